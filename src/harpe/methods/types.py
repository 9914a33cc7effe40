"""The values that methods produce and everything above them consumes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from harpe.positions.frequencies import check_bases, inverse_frequencies


@dataclass(frozen=True)
class ModelGeometry:
    """What a method needs to know of a model; read from config.json alone (`harpe.models.geometry`)."""

    model_type: str
    layers: int
    query_heads: int
    key_value_heads: int
    head_dim: int
    rotary_dim: int
    original_length: int
    """Context in tokens that the checkpoint was trained with."""
    base: float
    """RoPE base that the checkpoint was trained with."""
    vocabulary: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Encoding:
    """Rotary positions of a model: one base per key/value head, or one base for all of them."""

    bases: tuple[float, ...]
    """One base per key/value head."""
    rotary_dim: int
    per_head: bool
    """False: all bases are equal, and the model stays a stock transformers model with that `rope_theta`."""

    @property
    def inverse_frequency(self) -> torch.Tensor:
        """float64 [H_kv, D_rot/2]."""
        return inverse_frequencies(self.bases, self.rotary_dim)

    def rope_parameters(self, original_base: float) -> dict[str, Any]:
        """The entry `rope_parameters` of config.json."""
        if self.per_head:
            return {"rope_type": "harpe", "rope_theta": original_base, "bases": list(self.bases)}
        return {"rope_type": "default", "rope_theta": self.bases[0]}


def per_head_encoding(bases: tuple[float, ...], geometry: ModelGeometry) -> Encoding:
    """An encoding with a base of its own for every key/value head (HARPE)."""
    return Encoding(check_bases(bases, geometry.key_value_heads), geometry.rotary_dim, per_head=True)


def shared_encoding(base: float, geometry: ModelGeometry) -> Encoding:
    """An encoding with one base for all heads (RoPE, ABF)."""
    (checked,) = check_bases((base,), option="--base")
    return Encoding((checked,) * geometry.key_value_heads, geometry.rotary_dim, per_head=False)


@dataclass(frozen=True)
class Stage:
    """One stretch of training."""

    encoding: Encoding
    length: int
    """Sequence length in tokens."""
    share: float
    """Share of the token budget, 0..1; the shares of a method's stages add up to 1."""
