"""The rows of a run: a method with its stages, or the untouched model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harpe.errors import HarpeError
from harpe.experiment.options import ExtendOptions
from harpe.methods.abf import abf
from harpe.methods.harpe import harpe
from harpe.methods.ranges import BaseRange, provisional_range
from harpe.methods.types import ModelGeometry, Stage
from harpe.positions.base_sets import choose_bases


@dataclass(frozen=True)
class Arm:
    """One row of a run."""

    name: str
    """Name of its folder."""
    title: str
    explanation: str
    bases: tuple[float, ...]
    """One base per key/value head."""
    stages: tuple[Stage, ...]
    """Empty for the untouched model."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "explanation": self.explanation,
            "trained": bool(self.stages),
            "bases": list(self.bases),
        }


def untouched(geometry: ModelGeometry) -> Arm:
    """The model as it is."""
    bases = (geometry.base,) * geometry.key_value_heads
    text = f"The checkpoint as it is: trained on {geometry.original_length} tokens with base {geometry.base:,.0f}, no further training."
    return Arm("base", "untouched", text, bases, ())


def harpe_arm(geometry: ModelGeometry, length: int, bases: BaseRange, options: dict[str, Any]) -> Arm:
    """HARPE on a set chosen from a range; `options` are those of `choose_bases` (strategy, stride, rule, force)."""
    chosen = choose_bases(
        heads=geometry.key_value_heads, head_dim=geometry.rotary_dim, length=length, low=bases.low, high=bases.high, **options
    )
    text = (
        f"A RoPE base of its own for each of the {geometry.key_value_heads} key/value heads, {chosen.strategy} in "
        f"[{bases.low:,.0f}, {bases.high:,.0f}], trained once at {length} tokens."
    )
    return Arm("harpe", "HARPE", text, chosen.bases, tuple(harpe(geometry, length, chosen)))


def one_base_arm(geometry: ModelGeometry, length: int, base: float, name: str, title: str, why: str) -> Arm:
    """One base for all heads (ABF), trained once."""
    text = f"One RoPE base for all heads, {base:,.0f} ({why}), trained once at {length} tokens."
    return Arm(name, title, text, (base,) * geometry.key_value_heads, tuple(abf(geometry, length, base)))


def arm_of(options: ExtendOptions, geometry: ModelGeometry) -> tuple[Arm, BaseRange]:
    """The row that `harpe extend` trains, with the range its bases come from.

    Raises
    ------
    HarpeError
        For options that do not go together.
    """
    bases = provisional_range(geometry, options.length, options.min, options.max)
    if options.method == "harpe":
        if options.base is not None:
            raise HarpeError("--base belongs to --method abf; HARPE takes its bases from the range (--min, --max).")
        search = {"strategy": options.strategy, "stride": options.stride, "rule": options.rule, "force": options.force}
        return harpe_arm(geometry, options.length, bases, search), bases
    if options.strategy != "uniform" or options.stride is not None or options.rule is not None:
        raise HarpeError("--strategy, --stride and --rule choose several bases; --method abf has one (--base).")
    base, why = (bases.high, "the top of the range") if options.base is None else (options.base, "given by --base")
    return one_base_arm(geometry, options.length, base, "abf", "ABF", why), bases
