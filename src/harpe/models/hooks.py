"""Per-head RoPE inside transformers models, by two hooks a family and no subclass.

1. `XxxRotaryEmbedding.forward`: for `rope_type` "harpe" it returns cos and sin with a key/value-head dimension, float32
   [B, H, S, D/2]; any other type takes the stock path.
2. `apply_rotary_pos_emb` of the family's modeling module: a pair with a head dimension goes to our rotation, any other to the
   stock function.

Stock models in the same process take the stock path through both. A checkpoint with rope type "harpe" that is loaded where
harpe is not imported fails loudly in transformers (KeyError: 'harpe').

The exact bases come from the configuration at every forward, never from the module's `inv_freq` buffer: that one follows
`model.to(bfloat16)`, and inverse frequencies in bfloat16 are noise.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin

from harpe.models.geometry import FAMILIES
from harpe.positions.frequencies import check_bases, inverse_frequencies, rotary_tables
from harpe.positions.rotation import rotate_per_head

ROPE_TYPE = "harpe"
_MARK = "_harpe_hook"


def _rotary_dim(config: PreTrainedConfig, rope: dict[str, Any]) -> int:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * rope.get("partial_rotary_factor", 1.0))


def _initialise(config: PreTrainedConfig, device: Any = None, seq_len: int | None = None, **_: Any) -> tuple[torch.Tensor, float]:
    """transformers' protocol for a rope type: inverse frequencies [H, D/2] float32 (for display) and the attention factor."""
    rope = config.rope_parameters
    exact = inverse_frequencies(tuple(rope["bases"]), _rotary_dim(config, rope))
    return exact.to(device=device, dtype=torch.float32), 1.0


def _validate(self: PreTrainedConfig, rope_parameters: dict[str, Any], ignore_keys: set[str] | None = None) -> None:
    """Called by transformers whenever a configuration with rope type "harpe" is made."""
    required, optional = {"rope_type", "bases"}, {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    self._check_received_keys(ROPE_TYPE, set(rope_parameters), required, optional, ignore_keys=ignore_keys)
    check_bases(rope_parameters["bases"], self.num_key_value_heads, option="rope_parameters.bases in config.json")


def _wrap_forward(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.rope_type != ROPE_TYPE:
            return stock(self, x, position_ids, *args, **kwargs)
        rope = self.config.rope_parameters
        exact = inverse_frequencies(tuple(rope["bases"]), _rotary_dim(self.config, rope))
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return rotary_tables(exact, position_ids.to(x.device))

    setattr(forward, _MARK, True)
    return forward


def _wrap_apply(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if cos.dim() == 3:
            return stock(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim, **kwargs)
        if unsqueeze_dim != 1:
            raise NotImplementedError("per-head RoPE needs q and k as [batch, heads, positions, dimension]")
        return rotate_per_head(q, k, cos, sin)

    setattr(apply_rotary_pos_emb, _MARK, True)
    return apply_rotary_pos_emb


def _hook_module(module: ModuleType) -> None:
    if not hasattr(module.apply_rotary_pos_emb, _MARK):
        module.apply_rotary_pos_emb = _wrap_apply(module.apply_rotary_pos_emb)  # type: ignore[attr-defined]
    for name, cls in vars(module).items():
        if name.endswith("RotaryEmbedding") and isinstance(cls, type) and not hasattr(vars(cls).get("forward"), _MARK):
            setattr(cls, "forward", _wrap_forward(getattr(cls, "forward")))  # noqa: B009, B010  (the class is found by name)


@functools.cache
def install() -> None:
    """Teach transformers the rope type "harpe" for every supported family. Safe to call again."""
    ROPE_INIT_FUNCTIONS[ROPE_TYPE] = _initialise
    RotaryEmbeddingConfigMixin._validate_harpe_rope_parameters = _validate  # type: ignore[attr-defined]
    for family in FAMILIES:
        _hook_module(importlib.import_module(f"transformers.models.{family}.modeling_{family}"))
