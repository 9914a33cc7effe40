"""The rows of a run: a method with its stages, or the untouched model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harpe.errors import HarpeError
from harpe.experiment.choice import SearchOptions, choose_rows
from harpe.experiment.options import ExtendOptions
from harpe.methods.abf import abf
from harpe.methods.harpe import harpe
from harpe.methods.ranges import BaseRange, base_range
from harpe.methods.types import ModelGeometry, Stage


@dataclass(frozen=True)
class Arm:
    """One row of a run."""

    name: str
    """Name of its folder."""
    title: str
    explanation: str
    bases: tuple[float, ...]
    """One base per key/value head, of the first layer where layers differ."""
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


def harpe_arm(
    geometry: ModelGeometry, length: int, bases: BaseRange, search: SearchOptions, reach: Sequence[Sequence[float]] | None = None
) -> Arm:
    """HARPE on a set chosen from a range."""
    choice = choose_rows(
        search,
        heads=geometry.key_value_heads,
        layers=geometry.layers,
        head_dim=geometry.rotary_dim,
        length=length,
        low=bases.low,
        high=bases.high,
        reach=reach,
        changed=geometry.changed_layers,
    )
    text = (
        f"A RoPE base of its own for each of the {geometry.key_value_heads} key/value heads, {choice.describe()}, in "
        f"[{bases.low:,.0f}, {bases.high:,.0f}], trained once at {length} tokens."
    )
    text += f" Chosen by {choice.chosen.reason}." if choice.chosen.reason else ""
    rows = choice.rows
    return Arm("harpe", "HARPE", text, choice.first, tuple(harpe(geometry, length, choice.first if len(set(rows)) == 1 else rows)))


def one_base_arm(geometry: ModelGeometry, length: int, base: float, name: str, title: str, why: str) -> Arm:
    """One base for all heads (ABF), trained once."""
    text = f"One RoPE base for all heads, {base:,.0f} ({why}), trained once at {length} tokens."
    return Arm(name, title, text, (base,) * geometry.key_value_heads, tuple(abf(geometry, length, base)))


def arm_of(
    options: ExtendOptions, geometry: ModelGeometry, reach: Callable[[], Sequence[Sequence[float]]] | None = None
) -> tuple[Arm, BaseRange]:
    """The row that `harpe extend` trains, with the range its bases come from.

    Parameters
    ----------
    reach
        Measures how far each head looks; called for the adaptive assignment only.

    Raises
    ------
    HarpeError
        For options that do not go together.
    """
    bases = base_range(geometry, options.length, options.min, options.max, options.range)
    search = SearchOptions(
        options.strategy, options.stride, options.rule, options.force, options.assignment, options.layer_bases, options.seed
    )
    if options.method == "harpe":
        if options.base is not None:
            raise HarpeError("--base belongs to --method abf; HARPE takes its bases from the range (--min, --max).")
        measured = reach() if reach is not None and options.assignment == "adaptive" else None
        return harpe_arm(geometry, options.length, bases, search, measured), bases
    if search != SearchOptions(force=options.force, seed=options.seed):
        raise HarpeError(
            "--strategy, --stride, --rule, --assignment and --layer-bases are for several bases; --method abf has one (--base)."
        )
    base, why = (bases.high, "the top of the range") if options.base is None else (options.base, "given by --base")
    return one_base_arm(geometry, options.length, base, "abf", "ABF", why), bases
