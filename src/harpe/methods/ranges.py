"""The range that bases are chosen from.

The rule here is provisional and is printed as such: the ratios of the published setting (HARPE, arXiv 2412.07171: LLaMA-2 from 4k
to 128k with bases of 1M to 5M) to the NTK-aware base of that extension. It held at 8 times the trained length with small models; at
16 times its low end proved too small.
"""

from __future__ import annotations

from dataclasses import dataclass

from harpe.errors import HarpeError
from harpe.methods.types import ModelGeometry

LOW_RATIO, HIGH_RATIO = 3.0, 15.0
"""1M and 5M divided by the NTK-aware base 3.4e5 of LLaMA-2 at 32 times its length."""


@dataclass(frozen=True)
class BaseRange:
    """Smallest and largest base, and where they come from."""

    low: float
    high: float
    reference: float
    """The NTK-aware base B = b0 s^(d/(d-2)), d rotary dimensions, s = target / trained length."""
    why: str

    @property
    def middle(self) -> float:
        """Arithmetic middle: the base of the control row."""
        return (self.low + self.high) / 2


def ntk_base(base: float, scale: float, rotary_dim: int) -> float:
    """NTK-aware base b0 s^(d/(d-2)): keeps the fastest pair and stretches the slowest by exactly s.

    Source: bloc97 2023, "NTK-aware scaled RoPE"; Peng et al. 2023, arXiv 2309.00071, section 3.1.
    """
    return float(base * scale ** (rotary_dim / (rotary_dim - 2)))


def provisional_range(geometry: ModelGeometry, length: int, low: float | None = None, high: float | None = None) -> BaseRange:
    """[3 B, 15 B] with B the NTK-aware base; `low` or `high` replace an end.

    Raises
    ------
    HarpeError
        When the target is not longer than the trained context, or the range is empty or invalid.
    """
    if length <= geometry.original_length:
        raise HarpeError(
            f"--length {length} is not longer than the model's context of {geometry.original_length} tokens: there is nothing to "
            "extend. Choose a longer target, or give --original-length if the model was trained with a shorter context."
        )
    if geometry.rotary_dim <= 2:
        raise HarpeError(f"The rotary dimension is {geometry.rotary_dim}; the range rule needs at least 4. Give --min and --max.")
    scale = length / geometry.original_length
    reference = ntk_base(geometry.base, scale, geometry.rotary_dim)
    why = (
        f"provisional rule: {LOW_RATIO:g} B to {HIGH_RATIO:g} B, B = b0 s^(d/(d-2)) = {reference:,.0f} with trained base "
        f"b0 = {geometry.base:,.0f}, scale s = {scale:g}, rotary dimension d = {geometry.rotary_dim}"
    )
    if low is not None or high is not None:
        why += "; ends given by hand replace it"
    chosen_low = LOW_RATIO * reference if low is None else low
    chosen_high = HIGH_RATIO * reference if high is None else high
    if not 1 < chosen_low <= chosen_high < float("inf"):
        raise HarpeError(
            f"The range of bases {chosen_low:g} .. {chosen_high:g} is empty or invalid; --min must be above 1 and at most --max."
        )
    return BaseRange(chosen_low, chosen_high, reference, why)
