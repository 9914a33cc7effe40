"""Key/value caches: which can be used again, and one for prompts that are read one by one and answered together."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harpe.evaluation.flops import SLIDING
from harpe.models.angles import moving_rope
from harpe.models.geometry import GLOBAL, text_config
from harpe.models.per_head import key_value_heads

CACHE = 2**30
"""Bytes of keys and values of one batch."""
ROWS = 32
"""Prompts of one batch at most: an interrupted evaluation loses what was begun."""

Reuse = Literal["crop", "copy", "none"]
Way = tuple[Reuse, str | None]
"""How, and the reason where it is not at all."""


def cache_reuse(model: PreTrainedModel) -> Way:
    """How this model's cache can be used again, and, where it cannot, why."""
    config = text_config(model.config)
    if moving := moving_rope(config):
        return "none", f"Rope type {moving} rotates a prefix otherwise in a longer text: its keys cannot be used again."
    if other := sorted({str(kind) for kind in getattr(config, "layer_types", None) or []} - {*GLOBAL, SLIDING}):
        return "none", f"Layers of type {other[0]} have a state that cannot be taken back to an earlier token."
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if layers == {DynamicLayer}:
        return "crop", None
    if layers <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return "copy", None
    names = ", ".join(sorted(cls.__name__ for cls in layers))
    return "none", f"A cache of {names} cannot be taken back to an earlier token."


def why_padded(model: PreTrainedModel) -> str | None:
    """Why this model has to read prompts of several lengths padded to one, in one batch; None: `RowCache` serves it."""
    config: Any = text_config(model.config)
    reuse, reason = cache_reuse(model)
    if reuse == "copy":
        return "Some of its layers see a window of tokens."
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"The attention {config._attn_implementation} makes masks of its own."
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"A {config.model_type} takes no positions."
    return reason


class RowCache(Cache):
    """Keys and values of texts of several lengths, in memory that is taken once.

    Each row begins at the same place, without padding before it, so that it can be read as a text of its own is. Under
    autocast, keys and values are rounded to its dtype here, once: attention would round all of them at every step. Keys
    are then kept in float32, for products in float32 (`harpe.evaluation.row_attention`).

    Parameters
    ----------
    model
        One for which `why_padded` is None.
    rows, room
        How many texts, and the tokens that each of them may come to.
    """

    def __init__(self, model: PreTrainedModel, rows: int, room: int) -> None:
        self.rows, self.room, self.dtype = rows, room, held_dtype(model)
        self.lengths = [0] * rows
        """Tokens of each row."""
        self.reading: int | None = None
        """The row that is read; None: each row gets a token."""
        self._rows = [_RowLayer(self) for _ in range(text_config(model.config).num_hidden_layers)]
        super().__init__(layers=list(self._rows))

    @contextmanager
    def read_row(self, row: int) -> Iterator[None]:
        """What the model reads in this block goes on in one row."""
        self.reading = row
        try:
            yield
        finally:
            self.reading = None

    def begin_as(self, row: int, other: int, tokens: int) -> None:
        """Let a row begin with the first tokens of another one."""
        for held in (held for layer in self._rows for held in (layer.keys, layer.values) if held is not None):
            held[row, :, :tokens] = held[other, :, :tokens]
        self.lengths[row] = tokens

    def drop(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        if row != self.rows - 1:
            self.begin_as(row, self.rows - 1, self.lengths[-1])
        self.lengths.pop()
        self.rows -= 1

    def mask(self) -> torch.Tensor:
        """What is added to the scores of the next token of each row, float32 [B, 1, 1, room]."""
        lengths = torch.tensor(self.lengths, device=self._rows[0].device)[:, None, None, None]
        places = torch.arange(self.room, device=lengths.device)
        hidden = torch.finfo(torch.float32).min
        return torch.zeros(self.rows, 1, 1, self.room, device=lengths.device).masked_fill(places > lengths, hidden)


class _RowLayer(DynamicLayer):
    """One layer of a `RowCache`."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        cache, heads = self._cache, key_states.shape[1]
        self.device = key_states.device
        # zeros: what is masked has the weight 0, and 0 times a NaN is NaN
        shape = (cache.rows, heads, cache.room)
        self.keys = key_states.new_zeros(*shape, key_states.shape[3], dtype=torch.float32)
        self.values = value_states.new_zeros(*shape, value_states.shape[3], dtype=cache.dtype)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self._cache
        end = self.get_seq_length() + key_states.shape[2]
        held = []
        for all_rows, new in ((self.keys, key_states), (self.values, value_states)):
            assert all_rows is not None
            if cache.reading is None:
                rows = torch.arange(cache.rows, device=new.device)
                all_rows[rows, :, cache.lengths] = new[:, :, 0].to(cache.dtype).to(all_rows.dtype)
                held.append(all_rows[: cache.rows])  # all of it: a part would be copied by each product
            else:
                row = all_rows[cache.reading : cache.reading + 1]
                row[:, :, end - new.shape[2] : end] = new.to(cache.dtype)
                held.append(row[:, :, :end])
        return held[0], held[1]

    def get_seq_length(self) -> int:
        cache = self._cache
        return max(cache.lengths) if cache.reading is None else cache.lengths[cache.reading]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


def held_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype that attention rounds keys and values to: autocast's, or else the model's."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def tokens_at_once(model: PreTrainedModel) -> int:
    """How many tokens have `CACHE` bytes of keys and values."""
    config: Any = text_config(model.config)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    itemsize = 4 + held_dtype(model).itemsize  # of keys and of values
    return CACHE // (config.num_hidden_layers * key_value_heads(config) * size * itemsize)
