"""What a checkpoint with a scaling of its own (linear, YaRN, LongRoPE, Llama 3) was trained on, from its configuration.

Two things count, and both come from angles. Before the scaling the pairs came to L0 theta_i, with it to L theta'_i, theta' being the
scaled inverse frequencies and L the longer context; the larger of the two is the *reach* of a pair, beyond which its angles are new.
And the attention factor, by which cos and sin are multiplied: the weights have adapted to it.

Whether a scaling was trained with, a configuration does not say. It is taken to be where the declared context
(`max_position_embeddings`) is longer than that before the scaling, as in Llama 3.1, Phi-3 and gpt-oss. Dynamic scaling is what it is
for texts beyond the trained context only, so it counts as none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from harpe.models.per_head import stock_frequencies

SCALED = ("linear", "yarn", "longrope", "llama3")
"""Types of scaling that a checkpoint can have been trained with."""


class Trained(NamedTuple):
    """What a checkpoint was trained on."""

    length: int
    attention_factor: float
    reach: tuple[float, ...] | None
    """Radians by pair; None where there was no scaling."""


def length_before(config: PreTrainedConfig, rope: dict[str, Any]) -> int:
    """Tokens of the context before the scaling, as far as the configuration tells."""
    declared = rope.get("original_max_position_embeddings")
    if declared is None and rope.get("rope_type") == "linear":
        declared = config.max_position_embeddings / rope["factor"]
    return int(declared or config.max_position_embeddings)


def trained_with(
    config: PreTrainedConfig, rotary: type, rope: dict[str, Any], plain: list[float], key: str | None, given: int | None
) -> Trained:
    """Context, attention factor and reach of a checkpoint.

    Parameters
    ----------
    rope
        Rope parameters of the layers that attend to everything, under `key` where layer types have entries of their own.
    plain
        Their inverse frequencies without the scaling.
    given
        The trained context by hand. No longer than that before the scaling, it says that the scaling was not trained with.
    """
    kind, before = rope.get("rope_type", "default"), length_before(config, rope)
    length = given if given is not None else max(before, config.max_position_embeddings) if kind in SCALED else before
    if kind not in SCALED or length <= before:
        return Trained(int(length), 1.0, None)
    scaled, factor = stock_frequencies(config, rotary, rope, key, length)
    return Trained(int(length), factor, tuple(max(before * p, length * s) for p, s in zip(plain, scaled, strict=True)))
