"""Methods that leave the fastest pairs as they are, slow the slowest by the whole scale, and differ in between: MrRoPE,
and by parts with an exponent, for all heads or one per head.

Pair i turned r_i = L0 theta_i / 2 pi times in the trained context of L0 tokens. With lo the last pair that turned more
than `beta_fast` times and hi the first that turned less than `beta_slow` times, a pair is u_i = (i - lo) / (hi - lo) of
the way, from 0 to 1, and its inverse frequency becomes theta_i s^(-e(u_i)) for the scale s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from harpe.errors import HarpeError
from harpe.methods.interpolation import scale
from harpe.methods.measured import MeasureHeads
from harpe.methods.types import (
    AttentionFactor,
    LengthScale,
    Stage,
    check_unscaled,
    stock_encoding,
    table_encoding,
    with_attention_factor,
    with_length_scale,
)
from harpe.positions.geometry import ModelGeometry

EXPONENTS = (1.0, 6.0)
"""Of the heads that look farthest and nearest: 1 slows pairs evenly, a large one leaves most of them alone."""


def ramp(geometry: ModelGeometry, beta_fast: float, beta_slow: float) -> tuple[list[int], int]:
    """How many pairs behind lo every pair is, from 0 to n, and n = hi - lo, which is 1 at least.

    Where no pair turned that often, or that seldom, the first and the last pair stand for them.

    Raises HarpeError for bounds that are not in order.
    """
    if not 0 < beta_slow < beta_fast:
        raise HarpeError(f"beta_fast is {beta_fast:g} and beta_slow {beta_slow:g}; the one must be above the other.")
    pairs = geometry.rotary_dim // 2
    turns = [geometry.original_length * geometry.base ** (-i / pairs) / (2 * math.pi) for i in range(pairs)]
    low = max((i for i, r in enumerate(turns) if r > beta_fast), default=0)
    high = max(low + 1, min((i for i, r in enumerate(turns) if r < beta_slow), default=pairs - 1))
    return [min(max(i - low, 0), high - low) for i in range(pairs)], high - low


def mrrope(
    geometry: ModelGeometry,
    length: int,
    *,
    variant: Literal["pro", "uni"] = "pro",
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: AttentionFactor = "yarn",
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """After MrRoPE (arXiv 2601.22181), as others describe it: e = t (t + 1) / (n (n + 1)) for the t-th of n pairs in
    between (pro), or t / n (uni); q and k are multiplied by 0.1 ln s + 1."""
    steps, n = ramp(geometry, beta_fast, beta_slow)
    exponents = [t * (t + 1) / (n * (n + 1)) if variant == "pro" else t / n for t in steps]
    return _shared(geometry, length, factor, exponents, attention_factor, length_scale)


def by_parts(
    geometry: ModelGeometry,
    length: int,
    *,
    exponent: float = 2.0,
    factor: float | None = None,
    beta_fast: float = 8.0,
    beta_slow: float = 1.0,
    attention_factor: AttentionFactor = "yarn",
    length_scale: LengthScale | None = None,
) -> list[Stage]:
    """e = u^exponent, the same for all heads: the control of `harpe-parts`. 1 is MrRoPE-Uni."""
    exponents = exponents_of(geometry, exponent, beta_fast, beta_slow)
    return _shared(geometry, length, factor, exponents, attention_factor, length_scale)


def harpe_parts(
    geometry: ModelGeometry,
    length: int,
    *,
    exponents: Sequence[float] | None = None,
    low: float = EXPONENTS[0],
    high: float = EXPONENTS[1],
    assignment: Literal["ascending", "descending", "measured"] = "ascending",
    factor: float | None = None,
    beta_fast: float = 8.0,
    beta_slow: float = 1.0,
    attention_factor: AttentionFactor = "yarn",
    length_scale: LengthScale | None = None,
    measure: MeasureHeads | None = None,
) -> list[Stage]:
    """e = u^(an exponent of the head): every head keeps its fast pairs and has the whole scale at its slow end.

    Parameters
    ----------
    exponents
        One per key/value head of every layer; otherwise spread from `low` to `high` by their logarithm.
    assignment
        ascending, descending: in the order of the heads. measured: in every layer, the nearer a head looks, the larger
        its exponent (a forward pass over some texts).
    measure
        Called for the measured assignment only.
    """
    heads = geometry.key_value_heads
    if exponents is not None and len(exponents) != heads:
        raise HarpeError(f"harpe-parts has {len(exponents)} exponents; the model has {heads} key/value heads.")
    if not (0 < low < math.inf and 0 < high < math.inf):
        raise HarpeError(f"harpe-parts has exponents from {low:g} to {high:g}; both must be above 0.")
    spread = [low * (high / low) ** (h / max(1, heads - 1)) for h in range(heads)]
    rows: list[list[float]]
    if exponents is not None:
        rows = [list(exponents)]
    elif assignment == "measured":
        if measure is None:
            raise HarpeError(
                "harpe-parts measures how far heads look, on texts which are not at hand here. Choose another "
                "assignment."
            )
        rows = [_by_rank(spread, distances) for distances in measure()]
    else:
        rows = [spread if assignment == "ascending" else spread[::-1]]
    s, pairs = scale(geometry, length, factor), geometry.rotary_dim // 2
    check_unscaled(geometry, "harpe-parts")

    def table(row: Sequence[float]) -> list[list[float]]:
        powers = [exponents_of(geometry, exponent, beta_fast, beta_slow) for exponent in row]
        return [[geometry.base ** (-i / pairs) * s ** -head[i] for i in range(pairs)] for head in powers]

    changed = set(range(geometry.layers) if geometry.changed_layers is None else geometry.changed_layers)
    tables = [table(row) if len(rows) == 1 or layer in changed else None for layer, row in enumerate(rows)]
    encoding = with_attention_factor(table_encoding(tables, geometry), attention_factor, geometry, s)
    encoding = with_length_scale(encoding, length_scale, geometry)
    shown = sorted({exponent for row in rows for exponent in row})
    note = f"exponents from {shown[0]:.3g} to {shown[-1]:.3g}"
    return [Stage(encoding, length, share=1.0, note=note)]


def _by_rank(spread: Sequence[float], distances: Sequence[float]) -> list[float]:
    """The largest exponent for the nearest distance."""
    order = sorted(range(len(distances)), key=lambda head: -distances[head])
    row = [0.0] * len(distances)
    for exponent, head in zip(spread, order, strict=True):
        row[head] = exponent
    return row


def exponents_of(geometry: ModelGeometry, exponent: float, beta_fast: float, beta_slow: float) -> list[float]:
    """u^exponent of every pair; HarpeError for one that is not above 0."""
    if not math.isfinite(exponent) or exponent <= 0:
        raise HarpeError(f"An exponent is {exponent:g}; it must be a number above 0.")
    steps, n = ramp(geometry, beta_fast, beta_slow)
    return [(t / n) ** exponent for t in steps]


def _shared(
    geometry: ModelGeometry,
    length: int,
    factor: float | None,
    exponents: list[float],
    attention: AttentionFactor,
    length_scale: LengthScale | None,
) -> list[Stage]:
    """One table for all heads: LongRoPE in transformers, with the same factors at every length."""
    s = scale(geometry, length, factor)
    divisors = [s**exponent for exponent in exponents]
    stock = {
        "rope_type": "longrope",
        "factor": s,
        "original_max_position_embeddings": geometry.original_length,
        "short_factor": divisors,
        "long_factor": list(divisors),
    }
    given = with_attention_factor(stock_encoding(stock, geometry), attention, geometry, s).attention_factor
    if isinstance(given, tuple):
        raise HarpeError("attention_factor has a number for every head, which one table for all heads cannot hold.")
    encoding = stock_encoding({**stock, "attention_factor": given}, geometry)
    return [Stage(with_length_scale(encoding, length_scale, geometry), length, share=1.0)]
