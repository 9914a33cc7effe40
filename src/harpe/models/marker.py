"""A tensor beside the weights, for programs that cannot hold one RoPE base per head.

Some read a configuration's `rope_theta`, pass over a rope type that they do not know, and would turn the checkpoint
into a stock model that is quietly wrong. A weight that they do not know stops them: llama.cpp's converter and mlx-lm
refuse a tensor without a place. vLLM and SGLang leave out every tensor with `rotary_emb.inv_freq` in its name, and
transformers is told to expect this one.

This file needs torch and nothing else: an exported checkpoint carries it as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

MARKER = "rotary_emb.inv_freq_per_head"
"""Its name, below the base model's prefix; an int64 [1] that holds the version of the format, 1."""


def with_marker(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's weights by name, and the marker."""
    return {**weights, f"{model.base_model_prefix}.{MARKER}": torch.ones(1, dtype=torch.int64)}


class Marked:
    """Mixed into a model class of transformers, which loads as before, expects the mark, and saves it."""

    _keys_to_ignore_on_load_unexpected: list[str] | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._keys_to_ignore_on_load_unexpected = [*(cls._keys_to_ignore_on_load_unexpected or ()), re.escape(MARKER)]

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: the weights are those of transformers' own class, so that its renamings of old names hold for them."""
        return False

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **kwargs: Any
    ) -> Any:
        model: Any = self
        weights = model.state_dict() if state_dict is None else state_dict
        return super().save_pretrained(save_directory, is_main_process, with_marker(self, weights), **kwargs)  # type: ignore[misc]
