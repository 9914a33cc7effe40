"""A run directory as one value: its plan, its rows with what was measured of them, and its summary.

A single run is a comparison with one training a row. Its rows lie in RUN/NAME, those of a comparison in
RUN/NAME/seed-SEED.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harpe.bases.ranges import BaseRange
from harpe.errors import HarpeError
from harpe.report.read.fields import build, parse, parse_file, parse_if_there
from harpe.report.read.lengths import LengthScores, check_rows
from harpe.report.read.measures import measures_of
from harpe.report.read.positions import parse_positions
from harpe.report.read.scores import SeedRun, read_seed
from harpe.report.read.summary import Measure, Summary, parse_summary
from harpe.report.titles import retitled

KIND = "comparison"
"""What the plan of a comparison says that it is."""


@dataclass(frozen=True)
class Model:
    """The checkpoint that was extended."""

    name: str
    model_type: str
    layers: int
    query_heads: int
    key_value_heads: int
    head_dim: int
    rotary_dim: int
    parameters: int
    original_length: int
    base: float


@dataclass(frozen=True)
class StagePlan:
    """What a stage of training was planned to be."""

    length: int
    tokens: int
    steps: int
    encoding: str = ""


@dataclass(frozen=True)
class Row:
    """One method with its options, and what was measured of it."""

    name: str
    """Also that of its folder."""
    title: str
    explanation: str
    trained: bool
    control: bool
    """One base of HARPE's own range: what a gain over the baseline has to be held against."""
    per_head: bool
    bases: tuple[float, ...]
    """One base per key/value head."""
    source: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    stages: tuple[StagePlan, ...] = ()
    runs: tuple[SeedRun, ...] = ()
    """By seed; a row without training has one."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"a method is named {self.name!r}, which is no plain directory name")
        if not self.bases or not all(math.isfinite(base) and base > 1 for base in self.bases):
            raise ValueError(f"the bases of {self.name} are not finite numbers above 1")

    @property
    def failures(self) -> tuple[SeedRun, ...]:
        return tuple(run for run in self.runs if run.failed is not None)

    @property
    def distinct_bases(self) -> int:
        return len(set(self.bases))


@dataclass(frozen=True)
class Run:
    """Everything that a report shows."""

    title: str
    model: Model
    original_length: int
    target_length: int
    rows: tuple[Row, ...]
    baseline_name: str
    range: BaseRange | None = None
    reasons: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    """Of training; None in a single run, which compares no seeds."""
    published: str | None = None
    """Name of the published figures whose setting this run has."""
    training: dict[str, Any] = field(default_factory=dict)
    corpus: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    extended: str | None = None
    """Of a single run the name of the row whose model is its outcome; plans of earlier versions do not say."""

    @property
    def comparison(self) -> bool:
        """Whether `harpe compare` has written it."""
        return self.seeds is not None

    @property
    def baseline(self) -> Row:
        """What the others are compared with."""
        return next(row for row in self.rows if row.name == self.baseline_name)

    @property
    def before(self) -> Row | None:
        """The model as it was: the row `base`, or else the first row without training."""
        return self._first("base", [row for row in self.rows if not row.trained])

    @property
    def after(self) -> Row | None:
        """The extended model: the row that the plan names, or else HARPE's, or the first trained one."""
        trained = [row for row in self.rows if row.trained]
        return self._first(self.extended or "harpe", [*([self.harpe] if self.harpe else []), *trained])

    @property
    def harpe(self) -> Row | None:
        """The row `harpe`, or else the first row whose heads have different bases."""
        return self._first("harpe", [row for row in self.rows if row.distinct_bases > 1])

    @property
    def control(self) -> Row | None:
        """The same training with one base: the row `one-base`, or else the first trained row with one base."""
        return self._first("one-base", [row for row in self.rows if row.trained and row.distinct_bases == 1])

    @property
    def reference(self) -> Row | None:
        """What the rows of a single run are compared with: the control beside a HARPE row, else the model as it was."""
        return self.control if self.control and self.harpe else self.before

    def _first(self, name: str, others: Sequence[Row]) -> Row | None:
        return next(iter([*(row for row in self.rows if row.name == name), *others]), None)

    def measure(self, name: str) -> Measure | None:
        """The measure with this id, where it was run."""
        return next((m for m in self.measures if m.id == name), None)

    @property
    def measures(self) -> tuple[Measure, ...]:
        return self.summary.measures


def is_comparison(run: Path) -> bool:
    """Whether a run directory holds a comparison. HarpeError for a plan that cannot be read."""
    path = Path(run) / "plan.json"
    return path.is_file() and parse_file(path, lambda plan: plan.get("kind") == KIND)


def read_run(run: Path, seed: int | None = None) -> Run:
    """Read the plan and whatever results exist so far.

    Parameters
    ----------
    seed
        Of a comparison: only what there is of this seed (rows without training have one, 0), without the summary.

    Raises
    ------
    HarpeError
        When there is no plan, or a file is damaged; the message names the file.
    """
    run = Path(run)
    path = run / "plan.json"
    if not path.is_file():
        where = "Give the directory that the run was written to."
        raise HarpeError(f"{run} is not a run directory: it has no plan.json. {where}")
    plan = parse_file(path, _parse_plan)

    def read_seeds(row: Row) -> tuple[SeedRun, ...]:
        if plan.seeds is None:
            return (read_seed(run / row.name, 0),)
        chosen = (0,) if not row.trained else plan.seeds if seed is None else (seed,)
        return tuple(read_seed(run / row.name / f"seed-{each}", each) for each in chosen)

    rows = tuple(replace(row, runs=read_seeds(row)) for row in plan.rows)
    environment = (
        parse_if_there(run / "environment.json", lambda value: {str(k): str(v) for k, v in value.items()}) or {}
    )
    environment.pop("schema_version", None)
    plan = replace(plan, rows=rows, environment=environment)
    if seed is not None:
        return plan
    names = {row.name for row in rows}
    summary = parse_if_there(
        run / "summary.json", lambda value: parse_summary(value, plan.baseline_name, names, plan.seeds)
    )
    if plan.comparison:
        return replace(plan, summary=summary or Summary())
    positions = parse_if_there(run / "positions.json", parse_positions)
    positions = positions if positions and positions.reference in names else None
    lengths = parse_if_there(run / "lengths.json", lambda value: _lengths(value, names))
    measures = measures_of({row.name: row.runs[0] for row in rows}, plan.original_length, plan.target_length)
    return replace(
        plan,
        baseline_name=positions.reference if positions else plan.baseline_name,
        summary=replace(summary or Summary(), measures=measures, positions=positions, lengths=lengths),
    )


def _lengths(value: dict[str, Any], names: set[str]) -> LengthScores:
    found = build(LengthScores, value, "the scores by length")
    check_rows(found, names)
    return found


def _parse_plan(value: dict[str, Any]) -> Run:
    """The plan, of a comparison or of a single run, without results."""
    comparison = value.get("kind") == KIND
    # A single run's rows do not say what they are to each other: earlier versions wrote neither flag, later ones call
    # the model as it was a control.
    flags = {} if comparison else {"control": False, "per_head": False, "stages": ()}
    entries = parse(tuple[Any, ...], value["methods"], "methods")
    rows = retitled([build(Row, entry, "a method", runs=(), **flags) for entry in entries])
    names = [row.name for row in rows]
    if not names or len(set(names)) < len(names):
        raise ValueError("two methods have the same name" if names else "it has no methods")
    given = {"rows": rows, "environment": {}, "summary": Summary()}
    if comparison:
        baseline = parse(str, value["baseline"], "baseline")
        if baseline not in names:
            raise ValueError(f"the baseline {baseline!r} is none of the methods")
        seeds = parse(tuple[int, ...], value["seeds"], "seeds")
        return build(Run, value, "the plan", baseline_name=baseline, seeds=seeds, **given)
    if value.get("extended", names[0]) not in names:
        raise ValueError(f"the extended model {value['extended']!r} is none of the methods")
    parse(BaseRange, value["range"], "range")
    parse(tuple[str, ...], value["reasons"], "reasons")
    run = build(Run, value, "the plan", baseline_name=names[0], seeds=None, published=None, **given)
    control = run.control if run.harpe else None
    rows = tuple(replace(row, per_head=row.distinct_bases > 1, control=row is control) for row in rows)
    return replace(run, rows=rows, baseline_name=run.reference.name if run.reference else names[0])
