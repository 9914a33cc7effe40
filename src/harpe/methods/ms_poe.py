"""After Ms-PoE, multi-scale positions (Zhang et al. 2024, "Found in the middle: How language models use long contexts
better via plug-and-play positional encoding", arXiv 2403.04797): every head's positions divided by a ratio of its own.

Heads are ranked by their position awareness (`harpe.models.position_awareness`); the first has the smallest ratio, so
that what it learned of positions changes least. Against the authors' program (VITA-Group/Ms-PoE, commit a46c3d1):

* Heads are ranked on texts once, not on each prompt: the ratios are a table, and the model is the same for all texts.
* Key/value heads are ranked. The program ranks query heads and turns the keys of a group by the ratio of its first
  query head, so that under grouped queries a score depends on where in the text its two tokens stand.
* The k-th of H heads has low + (high - low) k / (H - 1). The program divides by H, and gives head h the ratio of the
  rank k = (the h-th head in the order), which is the inverse of the ranking.
"""

from __future__ import annotations

from collections.abc import Sequence

from harpe.errors import HarpeError
from harpe.methods.measured import MeasureHeads, measured_rows
from harpe.methods.types import Stage, check_unscaled, table_encoding, untrained
from harpe.positions.geometry import ModelGeometry


def ms_poe(
    geometry: ModelGeometry,
    length: int,
    *,
    low: float = 1.2,
    high: float = 1.8,
    first: int = 2,
    awareness: Sequence[Sequence[float]] | None = None,
    measure: MeasureHeads | None = None,
) -> list[Stage]:
    """One stage without training: inverse frequencies divided by the ratio of the head, layer by layer.

    It was made for reading better inside the trained context, and does not extend it much: a head meets new angles
    beyond its ratio times that context, and one of the layers before `first` beyond that context itself.

    Parameters
    ----------
    low, high
        Ratios of the first and the last head of a layer, linear by rank between; the same for both is the control.
    first
        The lowest layer that changes.
    awareness
        Position awareness, [layers][key/value heads], in the place of measuring.
    measure
        Measures it, where ratios differ.
    """
    check_unscaled(geometry, "Ms-PoE")
    if not 1 <= low <= high < float("inf"):
        raise HarpeError(f"ms-poe has low {low:g} and high {high:g}; ratios are 1 or more, and high is not below low.")
    if not 0 <= first < geometry.layers:
        raise HarpeError(f"ms-poe has first {first}, and the model has the layers 0 to {geometry.layers - 1}.")
    heads, pairs = geometry.key_value_heads, geometry.rotary_dim // 2
    if low == high:
        rows: Sequence[Sequence[float]] = [[0.0] * heads] * geometry.layers
    else:
        rows = measured_rows("ms-poe", "awareness", awareness, measure, geometry)
    trained = [geometry.base ** (-i / pairs) for i in range(pairs)]
    changed = range(geometry.layers) if geometry.changed_layers is None else geometry.changed_layers
    tables: list[list[list[float]] | None] = [None] * geometry.layers
    for layer in changed:
        ratios = [1.0] * heads if layer < first else ratios_of(rows[layer], low, high)
        tables[layer] = [[value / ratio for value in trained] for ratio in ratios]
    return untrained(table_encoding(tables, geometry), length)


def ratios_of(awareness: Sequence[float], low: float, high: float) -> list[float]:
    """The ratio of every head of a layer: `low` for the most aware, `high` for the least; ties in the order of
    heads."""
    order = sorted(range(len(awareness)), key=lambda head: -awareness[head])
    steps = max(1, len(order) - 1)
    return [low + (high - low) * order.index(head) / steps for head in range(len(order))]
