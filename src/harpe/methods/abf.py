"""ABF, one larger base for all heads (Xiong et al. 2023, "Effective long-context scaling", arXiv 2309.16039): in one
stage or several, and as the controls of HARPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from harpe.bases.ranges import BaseRange
from harpe.errors import HarpeError
from harpe.methods.types import AttentionFactor, LengthScale, Stage, check_unscaled, shared_encoding, with_factors
from harpe.positions.geometry import ModelGeometry
from harpe.typed import typed

Place = Literal["top", "middle", "geometric-middle", "bottom"]
PAPER_STAGES = ((0.2, 4), (0.4, 2), (1.0, 1))
"""HARPE's multi-stage baseline, (1M, 32k), (2M, 64k), (5M, 128k): base as a share of the range's top, length as a
divisor of the target."""


def abf(
    geometry: ModelGeometry,
    length: int,
    bounds: BaseRange,
    *,
    base: float | None = None,
    attention_factor: AttentionFactor | None = None,
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """One stage at the target length with one base for all heads: `base`, else the range's top (HARPE's baseline). With
    `length_scale` 1 it is Entropy-ABF."""
    encoding = shared_encoding(bounds.high if base is None else base, geometry)
    return [Stage(with_factors(encoding, attention_factor, length_scale, geometry, length), length, share=1.0)]


def one_base(
    geometry: ModelGeometry,
    length: int,
    bounds: BaseRange,
    *,
    at: Place = "middle",
    attention_factor: AttentionFactor | None = None,
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """A control of HARPE: one base for all heads from HARPE's own range, without which a gain cannot be put down to
    different bases."""
    places = {
        "top": bounds.high,
        "middle": bounds.middle,
        "geometric-middle": (bounds.low * bounds.high) ** 0.5,
        "bottom": bounds.low,
    }
    if at not in places:
        raise HarpeError(f"one-base has at: {at!r}; choose {', '.join(places)}.")
    encoding = shared_encoding(places[at], geometry)
    return [Stage(with_factors(encoding, attention_factor, length_scale, geometry, length), length, share=1.0)]


def base_kept(geometry: ModelGeometry, length: int) -> list[Stage]:
    """The control of extension itself: trained at the target length with the positions as they are."""
    check_unscaled(geometry, "base-kept")
    return [Stage(shared_encoding(geometry.base, geometry), length, share=1.0)]


def abf_staged(
    geometry: ModelGeometry, length: int, bounds: BaseRange, *, stages: Sequence[Mapping[str, Any]] | None = None
) -> list[Stage]:
    """ABF in several stages.

    Parameters
    ----------
    stages
        For each: base, length in tokens, and optionally share (of the tokens; default: all alike). Without it the three
        stages of HARPE's baseline, scaled: a fifth, two fifths and all of the range's top, at a quarter, half and all
        of the target length (those not longer than the trained context are left out). For LLaMA-2 at 128k: 1M at 32k,
        2M at 64k, 5M at 128k.

    Raises
    ------
    HarpeError
        For stages that do not end at the target length, shares that do not add up to 1, or unknown keys.
    """
    if stages is None:
        chosen = [
            (share * bounds.high, length // by) for share, by in PAPER_STAGES if length // by > geometry.original_length
        ]
        return [Stage(shared_encoding(base, geometry), size, 1 / len(chosen)) for base, size in chosen]
    if not stages:
        raise HarpeError(
            "abf-staged has an empty list of stages; give each a base and a length, or leave the list out."
        )
    for number, stage in enumerate(stages, 1):
        unknown = set(stage) - {"base", "length", "share"}
        if unknown or not {"base", "length"} <= set(stage):
            raise HarpeError(
                f"Stage {number} of abf-staged has {sorted(stage)}; it takes base, length and, if not all alike, share."
            )
    numbers = {"base": float, "length": int, "share": float}
    stages = [
        {key: typed(value, numbers[key], f"{key} of stage {number} of abf-staged") for key, value in stage.items()}
        for number, stage in enumerate(stages, 1)
    ]
    shares = [stage.get("share", 1 / len(stages)) for stage in stages]
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise HarpeError(f"The shares of abf-staged's stages are {shares}; they must be above 0 and add up to 1.")
    lengths = [stage["length"] for stage in stages]
    if lengths != sorted(lengths) or lengths[-1] != length:
        raise HarpeError(
            f"The stages of abf-staged have lengths {lengths}; they must grow and end at the target, {length}."
        )
    return [
        Stage(shared_encoding(stage["base"], geometry), size, share)
        for stage, size, share in zip(stages, lengths, shares, strict=True)
    ]
