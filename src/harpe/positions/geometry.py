"""A model's geometry, as far as positions depend on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
    trained_angles: tuple[float, ...] | None = None
    """Angle in radians that each rotary pair came to in training, fastest first, where the checkpoint was trained with
    a scaling of its own; None: `original_length` times `base`^(-2i/d)."""
    changed_layers: tuple[int, ...] | None = None
    """Layers whose positions a method changes; None: all of them."""

    def as_dict(self) -> dict[str, Any]:
        value = asdict(self)
        return {"reach" if key == "trained_angles" else key: item for key, item in value.items()}  # its name in files
