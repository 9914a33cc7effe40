"""Teaches transformers what harpe's models need: the rope type "harpe", its kernel, and the attention of methods
without training."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from transformers import PreTrainedConfig

from harpe.models import remapped_attention
from harpe.models.families import find_family
from harpe.models.per_head import allow_rope_type, initialise, register_rope_type
from harpe.positions.rotation import use_kernel


def install() -> None:
    """Teach transformers the rope type "harpe". Safe to call again. A family is hooked when its first model is made."""
    register_rope_type(_initialise)
    remapped_attention.register()
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        use_kernel(importlib.import_module("harpe.positions.rotation_triton").rotate)
    for name in ("phi3", "phimoe", "phi4_multimodal"):  # their configurations refuse rope types that they do not know
        module = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, PreTrainedConfig) and cls.__module__ == module.__name__:
                allow_rope_type(cls)


def _initialise(config: PreTrainedConfig, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, float]:
    find_family(config)
    remapped_attention.enforce(config)
    return initialise(config, *args, **kwargs)
