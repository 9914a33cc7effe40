"""The values that methods produce and everything above them consumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from harpe.errors import HarpeError
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
    attention_factor: float = 1.0
    """Multiplies cos and sin in the checkpoint (YaRN, LongRoPE). Methods keep it: the weights have adapted to it."""
    reach: tuple[float, ...] | None = None
    """Angle in radians that each rotary pair came to in training, fastest first, where the checkpoint was trained with a scaling of its
    own; None: `original_length` times `base`^(-2i/d)."""
    changed_layers: tuple[int, ...] | None = None
    """Layers whose positions a method changes; None: all of them."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Encoding:
    """Rotary positions of a model: one base per key/value head, or one base for all of them."""

    bases: tuple[float, ...]
    """One base per key/value head."""
    rotary_dim: int
    """Rotary dimensions of a head."""
    per_head: bool
    """False: all bases are equal, and the model stays a stock transformers model with that `rope_theta`."""
    layer_bases: tuple[tuple[float, ...] | None, ...] | None = None
    """One row of bases for every layer, where layers differ, None for a layer that keeps its positions; `bases` is then the first row."""

    @property
    def inverse_frequency(self) -> torch.Tensor:
        """float64 [H_kv, D_rot/2]."""
        return inverse_frequencies(self.bases, self.rotary_dim)


def per_head_encoding(bases: Sequence[float] | Sequence[Sequence[float] | None], geometry: ModelGeometry) -> Encoding:
    """An encoding with a base of its own for every key/value head (HARPE): one row for all layers, or a row for every layer.

    Layers that keep their positions (`geometry.changed_layers` lacks them) may have None for a row; theirs is not used.
    """
    if not any(isinstance(row, Sequence) for row in bases):
        return Encoding(check_bases(cast(Sequence[float], bases), geometry.key_value_heads), geometry.rotary_dim, per_head=True)
    if len(bases) != geometry.layers:
        raise HarpeError(f"--bases has rows for {len(bases)} layers, but the model has {geometry.layers}; give one row for each of them.")
    changed = range(geometry.layers) if geometry.changed_layers is None else geometry.changed_layers
    rows: list[tuple[float, ...] | None] = []
    for layer, row in enumerate(cast(Sequence[Sequence[float] | None], bases)):
        if row is None and layer in changed:
            raise HarpeError(f"--bases has no row for layer {layer}, whose positions change; only layers that keep theirs may have none.")
        rows.append(check_bases(row, geometry.key_value_heads) if row is not None and layer in changed else None)
    return Encoding(next(row for row in rows if row is not None), geometry.rotary_dim, per_head=True, layer_bases=tuple(rows))


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
