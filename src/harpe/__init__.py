"""harpe: a longer context window for a RoPE language model in one training stage."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harpe._version import __version__
from harpe.errors import HarpeError

if TYPE_CHECKING:
    from harpe.api import apply, compare, describe, export, extend, heads, prepare, register

__all__ = [
    "HarpeError",
    "__version__",
    "apply",
    "compare",
    "describe",
    "export",
    "extend",
    "heads",
    "prepare",
    "register",
]


def __getattr__(name: str) -> Any:
    """The functions are loaded at first use: `import harpe` alone does not import torch."""
    if name in __all__:
        return getattr(import_module("harpe.api"), name)
    raise AttributeError(f"module 'harpe' has no attribute {name!r}")
