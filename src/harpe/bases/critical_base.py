"""The base at which a target length stops being new to any pair: the critical base of Liu et al. 2023, arXiv
2310.05209.

A model that was trained with base b0 on L0 tokens has seen whole turns only of those pairs whose wavelength 2 pi
b0^(2i/d) is at most L0. The base

    b* = b0 ^ ( ln(T / 2 pi) / ln(L0 / 2 pi) )

is the smallest for which these pairs, and no slower ones, turn fully within T tokens: no pair that was incomplete in
pretraining leaves the angles that it was trained on. The number of such pairs, d/2 * ln(L0 / 2 pi) / ln(b0), is the
same before and after, so that the formula does not hold d.

For a checkpoint that was trained with a scaling of its own, the same is asked of the angles that its pairs came to
(`angle_base`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harpe.errors import HarpeError

TURN = 2 * math.pi
"""Radians."""


def critical_base(base: float, original_length: int, length: int) -> float:
    """b* for a model trained with `base` on `original_length` tokens and read up to `length` tokens.

    Raises HarpeError where the trained context is no longer than one turn of the fastest pair (2 pi tokens): the rule
    is not defined there.
    """
    if original_length <= TURN:
        raise _undefined(f"The trained context is {original_length} tokens")
    if base <= 1:
        raise HarpeError(f"The trained base is {base:g}; it must be above 1. Give the range by --min and --max.")
    return _power(math.log(base) * math.log(length / TURN) / math.log(original_length / TURN), length)


def angle_base(trained_angles: Sequence[float], length: int) -> float:
    """b* of the angles that pairs came to in training, whatever scaling made them: the smallest base for which none of
    the pairs that had not turned fully leaves its angles within `length` tokens.

    With x_i = 2i/d it is the largest of (length / angle_i)^(1/x_i) over those pairs, and of (length / 2 pi)^(1/x) at
    the x where the trained angle is one turn: its logarithm is read between two pairs on the straight line. Where
    angle_i = L0 b0^(-x_i) the latter is the largest, and is `critical_base` exactly.

    Parameters
    ----------
    trained_angles
        Radians, one for every pair, fastest first.

    Raises
    ------
    HarpeError
        Where the fastest pair has not turned fully, or a slow pair came as far as a fast one.
    """
    if len(trained_angles) < 2 or trained_angles[0] <= TURN:
        raise _undefined(
            f"The fastest of {len(trained_angles)} rotary pairs came to {trained_angles[0]:.3g} radians in training"
        )
    turns, pairs = [math.log(angle / TURN) for angle in trained_angles], len(trained_angles)
    partial = [i for i, turn in enumerate(turns) if turn < 0]
    i = partial[0] if partial else pairs - 1
    crossing = (i - 1 + turns[i - 1] / (turns[i - 1] - turns[i])) / pairs if turns[i - 1] > turns[i] else math.inf
    if not 0 < crossing < math.inf:
        raise HarpeError(
            "The scaling of the checkpoint turns slow pairs as far as fast ones: no critical base is defined. Give "
            "--min and --max."
        )
    logs = [math.log(length / TURN) / crossing, *((math.log(length / TURN) - turns[j]) * pairs / j for j in partial)]
    return _power(max(logs), length)


def _undefined(why: str) -> HarpeError:
    return HarpeError(
        f"{why}, less than one turn of the fastest pair (6.3 tokens): no critical base is defined there. Give the real "
        "context with --original-length, or the range by --min and --max."
    )


def _power(log: float, length: int) -> float:
    try:
        return math.exp(log)
    except OverflowError:
        raise HarpeError(
            f"The critical base of {length} tokens is beyond any number: the target is too far. Choose a shorter "
            "--length, or give the range by --min and --max."
        ) from None
