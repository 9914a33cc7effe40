"""HARPE: a base for every key/value head, one stage of training at the target length (Lian et al. 2024, arXiv
2412.07171)."""

from __future__ import annotations

from collections.abc import Sequence

from harpe.bases.assignment import Assignment, LayerBases
from harpe.bases.base_sets import Rule, Strategy
from harpe.bases.choice import SearchOptions, choose_rows
from harpe.bases.ranges import BaseRange
from harpe.errors import HarpeError
from harpe.methods.measured import MeasureHeads
from harpe.methods.types import (
    AttentionFactor,
    Encoding,
    LengthScale,
    Stage,
    per_head_encoding,
    with_factors,
)
from harpe.positions.geometry import ModelGeometry


def harpe(
    geometry: ModelGeometry,
    length: int,
    bounds: BaseRange,
    *,
    strategy: Strategy = "uniform",
    stride: float | None = None,
    rule: Rule | None = None,
    force: bool = False,
    assignment: Assignment | None = None,
    layer_bases: LayerBases = "same",
    seed: int = 0,
    bases: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
    attention_factor: AttentionFactor | None = None,
    length_scale: LengthScale | None = None,
    measure: MeasureHeads | None = None,
) -> list[Stage]:
    """One stage at `length` with head h on a base of its own.

    Parameters
    ----------
    strategy, stride, rule, force, assignment, layer_bases, seed
        How bases are chosen from the range and given to the heads, as `harpe bases` explains them.
    bases
        The bases themselves instead: one row for all layers, or a row for every layer, None for those that keep their
        positions.
    attention_factor
        Multiplies queries and keys: none (the paper), "yarn" (0.1 ln s + 1), a number, or one per key/value head.
    length_scale
        Multiplies queries by max(1, 1 + c (ln n / ln L0 - 1)): none (the paper), c, or one per key/value head.
    measure
        Called for the adaptive assignment only.
    """
    search = SearchOptions(
        strategy=strategy,
        stride=stride,
        rule=rule,
        force=force,
        assignment=assignment,
        layer_bases=layer_bases,
        seed=seed,
    )

    def scaled(encoding: Encoding) -> Encoding:
        return with_factors(encoding, attention_factor, length_scale, geometry, length)

    if bases is not None:
        if search != SearchOptions(seed=seed):
            raise HarpeError(
                "harpe has bases that are given; strategy, stride, rule, assignment and layer_bases choose them. Leave "
                "one out."
            )
        return [Stage(scaled(per_head_encoding(bases, geometry)), length, share=1.0)]
    if assignment == "adaptive" and measure is None:
        raise HarpeError(
            "The adaptive assignment measures the model on texts, which are not at hand here; choose another "
            "assignment."
        )
    choice = choose_rows(
        search,
        heads=geometry.key_value_heads,
        layers=geometry.layers,
        head_dim=geometry.rotary_dim,
        length=length,
        low=bounds.low,
        high=bounds.high,
        head_distances=measure() if assignment == "adaptive" and measure is not None else None,
        changed=geometry.changed_layers,
    )
    rows, note = choice.rows, f"{choice.describe()}, in [{bounds.low:,.0f}, {bounds.high:,.0f}]"
    if choice.chosen.reason:
        note += f"; chosen by {choice.chosen.reason}"
    encoding = per_head_encoding(choice.first if len(set(rows)) == 1 else rows, geometry)
    return [Stage(scaled(encoding), length, share=1.0, note=note)]
