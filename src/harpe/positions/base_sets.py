"""Choosing a set of bases from a range: by name of a strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from harpe.errors import HarpeError
from harpe.positions.published_search import published_base_search

Strategy = Literal["uniform", "uniform-descending", "peak-valley"]
Rule = Literal["published"]

PUBLISHED_HEAD_DIM = 128
PUBLISHED_LENGTHS = (125_000, 131_072)
"""Lengths for which the published constants give the published set."""


@dataclass(frozen=True)
class BaseSet:
    """A chosen set of bases."""

    bases: tuple[float, ...]
    """In head order: head h gets `bases[h]`."""
    order: tuple[float, ...]
    """In the order in which they were picked."""
    strategy: str
    rule: str | None

    @property
    def ascending(self) -> tuple[float, ...]:
        return tuple(sorted(self.bases))


def uniform_bases(heads: int, low: float, high: float) -> tuple[float, ...]:
    """b_h = low + h (high - low) / (heads - 1), h = 0 .. heads - 1 (HARPE, section 3.2). One head gets the middle of the range.

    Raises
    ------
    HarpeError
        When the number of heads is not positive, or an end of the range is not a finite number above 1, or they are swapped.
    """
    if heads < 1:
        raise HarpeError(f"--heads is {heads}; there must be at least one key/value head.")
    for option, value in (("--min", low), ("--max", high)):
        if not math.isfinite(value) or value <= 1:
            raise HarpeError(f"{option} is {value}; a RoPE base must be a finite number above 1.")
    if high < low:
        raise HarpeError(f"--min {low:g} is larger than --max {high:g}: the range is empty. Swap them.")
    if heads == 1:
        return ((low + high) / 2,)
    return tuple(low + h * (high - low) / (heads - 1) for h in range(heads))


def choose_bases(
    strategy: Strategy,
    *,
    heads: int,
    head_dim: int,
    length: int,
    low: float,
    high: float,
    stride: float | None = None,
    rule: Rule | None = None,
    force: bool = False,
) -> BaseSet:
    """Choose one base for every key/value head from [low, high].

    Parameters
    ----------
    strategy
        `uniform`, `uniform-descending`, or `peak-valley` (which needs `rule` and `stride`).
    head_dim
        Rotary dimensions of a head.
    stride
        Distance between candidates of the peak-valley search.
    rule
        `published`: the selection that produced the published set (Table 2). Its constants belong to head size 128 and 128k.
    force
        Let the published rule run outside that setting.

    Raises
    ------
    HarpeError
        On impossible or unsupported combinations, in a sentence that names the option.
    """
    if strategy in ("uniform", "uniform-descending"):
        if rule is not None or stride is not None:
            raise HarpeError(f"--rule and --stride belong to --strategy peak-valley; --strategy {strategy} has neither.")
        bases = uniform_bases(heads, low, high)
        bases = bases[::-1] if strategy == "uniform-descending" else bases
        return BaseSet(bases, bases, strategy, None)
    if strategy != "peak-valley":
        raise HarpeError(f"--strategy {strategy} is not known; choose uniform, uniform-descending or peak-valley.")
    if rule is None:
        raise HarpeError("--strategy peak-valley needs --rule published: no general rule exists yet. Or use --strategy uniform.")
    if stride is None:
        raise HarpeError("--strategy peak-valley needs --stride, the distance between candidate bases (published: 3e4).")
    fits = head_dim == PUBLISHED_HEAD_DIM and PUBLISHED_LENGTHS[0] <= length <= PUBLISHED_LENGTHS[1]
    if not fits and not force:
        raise HarpeError(
            f"--rule published is tuned to head size {PUBLISHED_HEAD_DIM} and 131072 tokens; here the head size is {head_dim} and the "
            f"length {length}. Its constants do not carry over: use --strategy uniform, or --force to run it all the same."
        )
    found = published_base_search(heads, head_dim, length, low, high, stride)
    return BaseSet(found.bases, found.order, strategy, rule)
