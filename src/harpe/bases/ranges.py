"""The range that bases are chosen from, for a model and a target length.

The scale is the critical base b* (`harpe.bases.critical_base`). Three rules set the ends around it:

* `critical`: 0.725 b* to 3.63 b*. These are the paper's 1M and 5M for LLaMA-2 at 128k (HARPE, arXiv 2412.07171), which
  it trained on 6B tokens; b* itself is the base of published Llama-3 checkpoints for 262,144 and 1,048,576 tokens.
* `short`: 0.2 b* to b*, for trainings of some dozens of steps, which cannot absorb larger ones (docs/choosing-bases.md,
  the range study).
* `ntk`: 3 B to 15 B of the NTK-aware base B = b0 s^(d/(d-2)), the ratios of the same setting. It falls behind b* as the
  scale s grows.

No end that a rule gives lies below the base that the model was trained with: heads are never turned faster than they
were. For a checkpoint that was trained with a scaling of its own, b* and B follow from the angles that its pairs came
to, and so does the least base: b* of its own context, with which none of the pairs that had not turned fully turns
faster than it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harpe.bases.critical_base import angle_base, critical_base
from harpe.errors import HarpeError
from harpe.positions.geometry import ModelGeometry

RangeRule = Literal["critical", "short", "ntk"]

_PAPER = critical_base(10_000, 4096, 131_072)
RATIOS: dict[str, tuple[float, float]] = {
    "critical": (1e6 / _PAPER, 5e6 / _PAPER),
    "short": (0.2, 1.0),
    "ntk": (3.0, 15.0),
}
"""Low and high end in multiples of the reference: b*, or B for `ntk`."""


@dataclass(frozen=True)
class BaseRange:
    """Smallest and largest base, and where they come from."""

    low: float
    high: float
    reference: float
    """The critical base, or the NTK-aware base for the rule `ntk`."""
    why: str

    @property
    def middle(self) -> float:
        """Arithmetic middle: the base of the control row."""
        return (self.low + self.high) / 2


def ntk_base(base: float, scale: float, rotary_dim: int) -> float:
    """NTK-aware base b0 s^(d/(d-2)): keeps the fastest pair and stretches the slowest by exactly s.

    Source: bloc97 2023, "NTK-aware scaled RoPE"; Peng et al. 2023, arXiv 2309.00071, section 3.1.

    Raises HarpeError where there is one pair only, which the rule would both keep and stretch.
    """
    if rotary_dim <= 2:
        raise HarpeError(
            f"The rotary dimension is {rotary_dim}; the NTK-aware base needs at least 4. Give --min and --max."
        )
    return float(base * scale ** (rotary_dim / (rotary_dim - 2)))


def base_range(
    geometry: ModelGeometry,
    length: int,
    low: float | None = None,
    high: float | None = None,
    rule: RangeRule = "critical",
) -> BaseRange:
    """The range for a target length; `low` or `high` replace an end, and may lie below the trained base.

    A model with partial rotary dimension needs no care: b* depends on no dimension. One that was trained with a scaling
    (Llama 3.1, gpt-oss) has a `trained_angles` in its geometry, which the rules read in the place of base and length.

    Raises HarpeError when the target is not longer than the trained context, or the range is empty or invalid.
    """
    if length <= geometry.original_length:
        raise HarpeError(
            f"--length {length} is not longer than the model's context of {geometry.original_length} tokens: there is "
            "nothing to extend. Choose a longer target, or give --original-length if the model was trained with a "
            "shorter context."
        )
    if rule not in RATIOS:
        raise HarpeError(f"--range {rule} is not known; choose critical, short or ntk.")
    trained = f"trained base b0 = {geometry.base:,.0f} and trained length L0 = {geometry.original_length}"
    least, angles = geometry.base, geometry.trained_angles
    if angles is not None:
        trained = (
            f"the angles that pairs came to within {geometry.original_length} tokens under the checkpoint's own scaling"
        )
        least = max(least, angle_base(angles, geometry.original_length))
        if rule == "ntk":
            reference = (length / angles[-1]) ** (geometry.rotary_dim / (geometry.rotary_dim - 2))
            name, formula = (
                "B",
                f"the base that keeps the slowest pair within its angle = {reference:,.0f} for {trained}",
            )
        else:
            reference = angle_base(angles, length)
            name, formula = "b*", f"the critical base of {trained} = {reference:,.0f}"
    elif rule == "ntk":
        scale = length / geometry.original_length
        reference = ntk_base(geometry.base, scale, geometry.rotary_dim)
        name, formula = (
            "B",
            f"the NTK-aware base b0 (T/L0)^(d/(d-2)) = {reference:,.0f} with {trained}, d = {geometry.rotary_dim}",
        )
    else:
        reference = critical_base(geometry.base, geometry.original_length, length)
        name, formula = "b*", f"the critical base b0^(ln(T/2pi)/ln(L0/2pi)) = {reference:,.0f} with {trained}"
    ratios = RATIOS[rule]
    why = f"rule {rule}: {ratios[0]:.3g} {name} to {ratios[1]:.3g} {name}, {name} = {formula}, target T = {length}"
    ends = [ratio * reference for ratio in ratios]
    # six digits, so that LLaMA-2 at 128k has the paper's 1M and 5M and not their neighbours in floating point
    if rule != "ntk":
        ends = [float(f"{end:.6g}") for end in ends]
    if min(ends) < least:
        why += (
            f"; no lower than {'the trained base' if angles is None else 'what it turned by in training, base'} "
            f"{least:,.0f}"
        )
        ends = [max(end, least) for end in ends]
    if low is not None or high is not None:
        why += "; ends given by hand replace it"
    chosen_low, chosen_high = ends[0] if low is None else low, ends[1] if high is None else high
    if not 1 < chosen_low <= chosen_high < float("inf"):
        raise HarpeError(
            f"The range of bases {chosen_low:g} .. {chosen_high:g} is empty or invalid; --min must be above 1 and at "
            "most --max."
        )
    return BaseRange(chosen_low, chosen_high, reference, why)
