"""Rotations that depend on the length of the text: dynamic NTK, and LongRoPE with two sets of factors.

Such a model turns a token otherwise when more text follows. A prefix of a long text is then not the same as a text of
its own: what was read of it cannot be used again, one pass does not serve several lengths, and a text read in pieces is
another than one read whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from harpe.methods.types import Stage
from harpe.models.geometry import rope_key, text_config
from harpe.models.head import hidden_states
from harpe.models.per_head import nested_types


def moving_rope(config: PreTrainedConfig) -> str | None:
    """The rope type by which a position's rotation depends on the length of the text; None where it does not."""
    rope: dict[str, Any] = getattr(text_config(config), "rope_parameters", None) or {}
    entries = (rope, *(value for value in rope.values() if isinstance(value, dict)))
    return next((str(entry["rope_type"]) for entry in entries if is_moving(entry)), None)


def moving_stage(stages: Iterable[Stage]) -> str | None:
    """The same of what a method puts in, of the first of its stages that has one."""
    entries = (stage.encoding.stock or {} for stage in stages)
    return next((str(entry["rope_type"]) for entry in entries if is_moving(entry)), None)


def moving_beside(config: PreTrainedConfig) -> str | None:
    """The same of the layers whose rope parameters no method changes; None where all read what it puts in."""
    config = text_config(config)
    entries = (config.rope_parameters[name] or {} for name in nested_types(config) if name != rope_key(config))
    return next((str(entry["rope_type"]) for entry in entries if is_moving(entry)), None)


def is_moving(entry: Mapping[str, Any]) -> bool:
    """Whether these rope parameters rotate a position by the length of its text."""
    kind = str(entry.get("rope_type"))
    return "dynamic" in kind or (kind == "longrope" and entry.get("short_factor") != entry.get("long_factor"))


@torch.no_grad()
def start_anew(model: PreTrainedModel) -> None:
    """Let a model forget the length of the texts that it has read: the next one is read as by a freshly loaded model.

    transformers' dynamic NTK keeps the frequencies of the longest text until one comes that is shorter than the trained
    context, such as one token.
    """
    if moving_rope(model.config) is not None:
        hidden_states(model, torch.zeros(1, 1, dtype=torch.int64, device=model.device))
