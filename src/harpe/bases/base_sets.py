"""Choosing a set of bases from a range: by name of a strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from harpe.bases.general_search import general_base_search, general_candidates
from harpe.bases.printed_search import printed_base_search
from harpe.bases.published_search import check_choice, check_stride, published_base_search
from harpe.errors import HarpeError

Strategy = Literal["uniform", "uniform-descending", "log-uniform", "peak-valley", "searched"]
Rule = Literal["published", "printed", "general"]

PUBLISHED_HEADS, PUBLISHED_HEAD_DIM = 32, 128
PUBLISHED_LENGTHS = (125_000, 131_072)
"""Lengths for which the published constants give the published set."""
PUBLISHED_RANGE, PUBLISHED_STRIDE = (1e6, 5e6), 3e4

# fmt: off
PUBLISHED_SET = tuple(1e4 * round(100 * b) for b in (
    1.00, 1.15, 1.30, 1.45, 2.17, 2.20, 2.23, 2.47, 2.50, 2.65, 2.68, 2.71, 2.74, 2.80, 2.83, 2.92,
    3.01, 3.04, 3.10, 3.13, 3.16, 3.22, 3.43, 3.46, 3.61, 3.88, 4.09, 4.15, 4.39, 4.45, 4.51, 4.54,
))
# fmt: on
"""Table 2 of HARPE (arXiv 2412.07171), as printed: what figures are drawn beside. The search computes it."""


@dataclass(frozen=True)
class BaseSet:
    """A chosen set of bases."""

    bases: tuple[float, ...]
    """In head order: head h gets `bases[h]`."""
    order: tuple[float, ...]
    """In the order in which they were picked, where they were picked one by one; else as `bases`."""
    strategy: str
    rule: str | None
    reason: str = ""
    """Which rule was taken, and why; empty where there is none to take."""

    @property
    def ascending(self) -> tuple[float, ...]:
        return tuple(sorted(self.bases))


def uniform_bases(heads: int, low: float, high: float) -> tuple[float, ...]:
    """b_h = low + h (high - low) / (heads - 1), h = 0 .. heads - 1 (HARPE, section 3.2). One head gets the mean."""
    if heads == 1:
        return ((low + high) / 2,)
    return tuple(low + h * (high - low) / (heads - 1) for h in range(heads))


def log_uniform_bases(heads: int, low: float, high: float) -> tuple[float, ...]:
    """b_h = low (high / low)^(h / (heads - 1)), with exact ends; not in the paper. One head gets the geometric mean."""
    if heads == 1:
        return (math.sqrt(low) * math.sqrt(high),)
    return (low, *(low * (high / low) ** (h / (heads - 1)) for h in range(1, heads - 1)), high)


def _peak_valley_rule(
    heads: int, head_dim: int, length: int, low: float, high: float, stride: float | None
) -> tuple[Rule, str]:
    """The rule that is taken where none is named: the published one in the published setting, else the general one."""
    here = (heads, head_dim, low, high, PUBLISHED_STRIDE if stride is None else stride)
    if here == (PUBLISHED_HEADS, PUBLISHED_HEAD_DIM, *PUBLISHED_RANGE, PUBLISHED_STRIDE) and _published_length(length):
        return "published", "the published rule: this is the setting that its constants belong to"
    setting = f"{PUBLISHED_HEADS} heads of {PUBLISHED_HEAD_DIM}, 131072 tokens, bases of 1M to 5M"
    return "general", f"the general rule: the constants of the published one belong to {setting}"


def _published_length(length: int) -> bool:
    return PUBLISHED_LENGTHS[0] <= length <= PUBLISHED_LENGTHS[1]


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
        `uniform`, `uniform-descending`, `log-uniform` or `peak-valley`.
    head_dim
        Rotary dimensions of a head.
    stride
        Distance between candidates of the peak-valley search. Default: the published one for the published and the
        printed rule, as a share of the range; a logarithmic grid for the general rule.
    rule
        Of peak-valley. `published`: the selection that produced the published set (Table 2), whose constants belong to
        head size 128 and 128k. `printed`: Algorithm 1 as printed. `general`: any geometry. None: published in its own
        setting, else general.
    force
        Let the published rule run outside that setting.

    Raises
    ------
    HarpeError
        On impossible or unsupported combinations, in a sentence that names the option.
    """
    if strategy == "searched":
        raise HarpeError(
            "--strategy searched makes tables, not bases. Run harpe bases --strategy searched first, and give the file "
            "that it writes to --method tables."
        )
    check_choice(heads, head_dim, low, high)
    if strategy != "peak-valley":
        if rule is not None or stride is not None:
            raise HarpeError(
                f"--rule and --stride belong to --strategy peak-valley; --strategy {strategy} has neither."
            )
        if strategy not in ("uniform", "uniform-descending", "log-uniform"):
            raise HarpeError(
                f"--strategy {strategy} is not known; choose peak-valley, uniform, uniform-descending or log-uniform."
            )
        bases = (log_uniform_bases if strategy == "log-uniform" else uniform_bases)(heads, low, high)
        bases = bases[::-1] if strategy == "uniform-descending" else bases
        return BaseSet(bases, bases, strategy, None)
    if stride is not None:
        check_stride(stride, low, high)
    reason = f"the {rule} rule, as asked for"
    if rule is None:
        rule, reason = _peak_valley_rule(heads, head_dim, length, low, high, stride)
    if rule == "general":
        found = general_base_search(heads, head_dim, length, general_candidates(heads, low, high, stride))
        return BaseSet(found.bases, found.bases, strategy, rule, reason)
    if rule not in ("published", "printed"):
        raise HarpeError(f"--rule {rule} is not known; choose general, published or printed.")
    if rule == "published" and not force and not (head_dim == PUBLISHED_HEAD_DIM and _published_length(length)):
        raise HarpeError(
            f"--rule published is tuned to head size {PUBLISHED_HEAD_DIM} and 131072 tokens; here the head size is "
            f"{head_dim} and the length {length}. Its constants do not carry over: use --rule general, or --force to "
            "run it all the same."
        )
    if stride is None:
        stride = PUBLISHED_STRIDE * ((high - low) / (PUBLISHED_RANGE[1] - PUBLISHED_RANGE[0])) or 1.0
    search = published_base_search if rule == "published" else printed_base_search
    picked = search(heads, head_dim, length, low, high, stride)
    return BaseSet(picked.bases, picked.order, strategy, rule, reason)
