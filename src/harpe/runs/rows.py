"""The rows of a run: a method with its options and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from harpe.bases.choice import SearchOptions
from harpe.bases.ranges import RangeRule
from harpe.errors import HarpeError
from harpe.methods.measured import MeasureHeads
from harpe.methods.registry import make_stages, method_named, takes_range
from harpe.methods.types import Stage
from harpe.options.extend import ExtendOptions
from harpe.options.shared import RangeOptions
from harpe.positions.geometry import ModelGeometry
from harpe.report.wording import first_upper


@dataclass(frozen=True)
class Row:
    """One row of a run."""

    name: str
    """Name of its folder."""
    title: str
    explanation: str
    stages: tuple[Stage, ...]
    """One of share 0 for a method without training."""
    method: str
    source: str
    """Citation."""
    control: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        return any(stage.share for stage in self.stages)

    @property
    def changes(self) -> bool:
        """False: the checkpoint as it is, which needs no copy."""
        return self.method != "none"

    @property
    def bases(self) -> tuple[float, ...]:
        """One base per key/value head at the end, of the first layer where layers differ."""
        return self.stages[-1].encoding.bases

    @staticmethod
    def from_dict(value: Mapping[str, Any], stages: Sequence[Stage]) -> Row:
        """The row that `as_dict` wrote, with its stages."""
        kept = ("name", "title", "explanation", "method", "source", "control", "options")
        return Row(stages=tuple(stages), **{key: value[key] for key in kept})

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "explanation": self.explanation,
            "method": self.method,
            "source": self.source,
            "control": self.control,
            "trained": self.trained,
            "bases": list(self.bases),
            "per_head": self.stages[-1].encoding.per_head,
            "options": dict(self.options),
        }


def make_row(
    method: str,
    geometry: ModelGeometry,
    length: int,
    options: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    title: str | None = None,
    range_rule: RangeRule = "critical",
    measure: MeasureHeads | None = None,
    train: bool | None = None,
) -> Row:
    """A row by its method's name; see `harpe.methods.registry.make_stages`."""
    found, options = method_named(method), dict(options or {})
    stages = make_stages(found, geometry, length, options, range_rule=range_rule, measure=measure, train=train)
    name, title, words = name or method, title or found.title, explain(method, stages, geometry)
    return Row(name, title, words, tuple(stages), method, found.source, found.control, options)


def explain(method: str, stages: list[Stage], geometry: ModelGeometry) -> str:
    """A sentence on what a row is."""
    if method == "none":
        return (
            f"The checkpoint as it is: trained on {geometry.original_length} tokens with base {geometry.base:,.0f}, no "
            "further training."
        )
    if not any(stage.share for stage in stages):
        return f"{first_upper(stages[-1].encoding.describe())}; no training."
    if len(stages) == 1:
        note = f", {stages[0].note}" if stages[0].note else ""
        return f"{first_upper(stages[0].encoding.describe())}{note}; trained once at {stages[0].length} tokens."
    parts = [f"{stage.encoding.describe()} at {stage.length} tokens ({stage.share:.0%})" for stage in stages]
    return f"{len(stages)} stages: {'; '.join(parts)}."


def extended_row(options: ExtendOptions, geometry: ModelGeometry, measure: MeasureHeads | None = None) -> Row:
    """The row that `harpe extend` trains.

    Raises HarpeError for options that do not go together, and for a method without training.
    """
    assert options.method is not None
    given = dict(options.method_options or {})
    given_search = ((f.name, getattr(options, f.name), f.default) for f in fields(SearchOptions) if f.name != "seed")
    chosen = {name: value for name, value, default in given_search if value != default}
    if options.method == "harpe":
        if options.base is not None:
            raise HarpeError("--base belongs to --method abf; HARPE takes its bases from the range (--min, --max).")
        given = {**chosen, "seed": options.seed, **given}
    elif set(chosen) - {"force"}:
        raise HarpeError(
            "--strategy, --stride, --rule, --assignment and --layer-bases choose the bases of --method harpe; leave "
            f"them out for --method {options.method}."
        )
    if options.base is not None:
        if options.method != "abf":
            raise HarpeError(f"--base belongs to --method abf; --method {options.method} has --method-options.")
        given["base"] = options.base
    found = method_named(options.method)
    ends = {"min": options.min, "max": options.max, "range": options.range}
    if takes_range(found):
        given |= {key: value for key, value in ends.items() if value is not None}
    elif (options.min, options.max, options.range) != (None, None, RangeOptions.range):
        raise HarpeError(f"--range, --min and --max are for bases, which --method {options.method} does not choose.")
    row = make_row(options.method, geometry, options.length, given, measure=measure) if found.trains else None
    if row is None or not row.trained:
        raise HarpeError(
            f"{found.title} needs no training; `harpe compare` measures it, and harpe.apply puts it into a model."
        )
    return row
