"""The base at which a target length stops being new to any pair: the critical base of Liu et al. 2023, arXiv 2310.05209.

A model that was trained with base b0 on L0 tokens has seen whole turns only of those pairs whose wavelength 2 pi b0^(2i/d) is at
most L0. The base

    b* = b0 ^ ( ln(T / 2 pi) / ln(L0 / 2 pi) )

is the smallest for which these pairs, and no slower ones, turn fully within T tokens: no pair that was incomplete in pretraining
leaves the angles that it was trained on. The number of such pairs, d/2 * ln(L0 / 2 pi) / ln(b0), is the same before and after, so
that the formula does not hold d.
"""

from __future__ import annotations

import math

from harpe.errors import HarpeError


def critical_base(base: float, original_length: int, length: int) -> float:
    """b* for a model trained with `base` on `original_length` tokens and read up to `length` tokens.

    Raises
    ------
    HarpeError
        Where the trained context is no longer than one turn of the fastest pair (2 pi tokens): the rule is not defined there.
    """
    turn = 2 * math.pi
    if original_length <= turn:
        raise HarpeError(
            f"The trained context is {original_length} tokens, less than one turn of the fastest pair (6.3 tokens): no critical base "
            "is defined there. Give the real one with --original-length, or the range by --min and --max."
        )
    try:
        return float(base ** (math.log(length / turn) / math.log(original_length / turn)))
    except OverflowError:
        raise HarpeError(
            f"The critical base of {length} tokens, for base {base:g} trained on {original_length}, is beyond any number: the target is "
            "too far. Choose a shorter --length, or give the range by --min and --max."
        ) from None
