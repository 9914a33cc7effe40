"""Reads the run directory of a comparison into values.

What was not measured is missing from the values ("not run"); a file whose entries have other types than they should is an error that
names the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harpe.errors import HarpeError
from harpe.measurement import measured
from harpe.report.position_differences import PositionDifferences, parse_positions
from harpe.report.read import (
    BaseRange,
    Curve,
    Grid,
    Model,
    Perplexity,
    parse_bases,
    parse_curve,
    parse_environment,
    parse_file,
    parse_grid,
    parse_if_there,
    parse_model,
    parse_name,
    parse_perplexity,
    parse_range,
)
from harpe.report.titles import retitled

T = TypeVar("T")

KIND = "comparison"
INTERVALS = ("seeds and documents", "documents only")
SEEDS_NEEDED = 3
"""With fewer, the randomness of training cannot be in an interval."""
UNITS = ("nats", "%")
DIRECTIONS = ("lower", "higher")


@dataclass(frozen=True)
class Value:
    """A measure of one method, over its seeds and documents (or samples), with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int
    documents: int
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Contrast:
    """A measure of one method minus the baseline's on the same documents, with its 95 % interval."""

    value: float
    low: float
    high: float
    p: float | None
    holm: float | None
    """p after Holm's correction across methods."""
    real: bool


@dataclass(frozen=True)
class Measure:
    """One quantity, for all methods that it was measured of."""

    id: str
    title: str
    unit: str
    """`nats` (a token) or `%`."""
    better: str
    """`lower` or `higher`."""
    group: str
    task: str | None
    length: int | None
    """In tokens; None for a mean over lengths and for what has none."""
    documents: int
    values: dict[str, Value]
    differences: dict[str, Contrast]


@dataclass(frozen=True)
class StagePlan:
    """What a stage was planned to be."""

    length: int
    tokens: int
    steps: int
    encoding: str


@dataclass(frozen=True)
class StageRecord:
    """What a stage was."""

    length: int
    tokens: int
    steps: int
    data_hash: str | None
    seconds: float | None


@dataclass(frozen=True)
class Record:
    """What was spent on one method and seed."""

    stages: tuple[StageRecord, ...]
    tokens: int
    train_seconds: float | None
    evaluate_seconds: float | None


@dataclass(frozen=True)
class SeedRun:
    """One method with one seed, as far as it came."""

    seed: int
    failed: str | None
    """Why it did not come to its end."""
    record: Record | None
    curve: Curve | None
    perplexity: Perplexity | None
    grid: Grid | None


@dataclass(frozen=True)
class Entry:
    """One row of the comparison."""

    name: str
    title: str
    explanation: str
    source: str
    trained: bool
    control: bool
    """One base of HARPE's own range: what a gain over the baseline has to be held against."""
    per_head: bool
    bases: tuple[float, ...]
    """One base per key/value head."""
    options: dict[str, Any]
    stages: tuple[StagePlan, ...]
    runs: tuple[SeedRun, ...]

    @property
    def failures(self) -> tuple[SeedRun, ...]:
        return tuple(run for run in self.runs if run.failed is not None)


@dataclass(frozen=True)
class Summary:
    """Values and differences of all measures, and what may be read from them."""

    interval: str
    """What the intervals cover: `seeds and documents` or `documents only`."""
    resamples: int
    measures: tuple[Measure, ...]
    reading: tuple[str, ...]
    positions: PositionDifferences | None


@dataclass(frozen=True)
class Comparison:
    """Everything that the page of a comparison shows."""

    title: str
    model: Model
    original_length: int
    target_length: int
    range: BaseRange | None
    reasons: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: Entry
    published: str | None
    """Name of the published figures whose setting this run has."""
    methods: tuple[Entry, ...]
    training: dict[str, Any]
    corpus: dict[str, Any]
    evaluation: dict[str, Any]
    environment: dict[str, str]
    summary: Summary | None

    def measure(self, name: str) -> Measure | None:
        """The measure with this id, where it was run."""
        return next((m for m in self.measures if m.id == name), None)

    @property
    def measures(self) -> tuple[Measure, ...]:
        return self.summary.measures if self.summary else ()


def is_comparison(run: Path) -> bool:
    """Whether a run directory holds a comparison. HarpeError for a plan that cannot be read."""
    path = Path(run) / "plan.json"
    return path.is_file() and parse_file(path, lambda plan: plan.get("kind") == KIND)


def read_comparison(run: Path) -> Comparison:
    """Read the plan of a comparison and whatever results exist so far.

    Raises
    ------
    HarpeError
        When there is no plan, or a file is damaged; the message names the file.
    """
    run = Path(run)
    path = run / "plan.json"
    if not path.is_file():
        raise HarpeError(f"{run} is not a run directory: it has no plan.json. Give the directory that the run was written to.")
    environment = parse_if_there(run / "environment.json", parse_environment) or {}

    def parse(plan: dict[str, Any]) -> Comparison:
        seeds = tuple(_whole(seed, "a seed") for seed in _list(plan["seeds"], "seeds"))
        methods = retitled([_entry(run, _object(value, "a method"), seeds) for value in _list(plan["methods"], "methods")])
        by_name = {entry.name: entry for entry in methods}
        if len(by_name) < len(methods):
            raise ValueError("two methods have the same name")
        baseline = _text(plan["baseline"], "baseline")
        if baseline not in by_name:
            raise ValueError(f"the baseline {baseline!r} is none of the methods")

        def summary(value: dict[str, Any]) -> Summary:
            return _summary(value, baseline, set(by_name), seeds)

        return Comparison(
            title=_text(plan["title"], "title"),
            model=parse_model(_object(plan["model"], "model")),
            original_length=_whole(plan["original_length"], "original_length"),
            target_length=_whole(plan["target_length"], "target_length"),
            range=_maybe(plan.get("range"), lambda value: parse_range(_object(value, "range"))),
            reasons=tuple(_text(reason, "a reason") for reason in _list(plan.get("reasons", []), "reasons")),
            seeds=seeds,
            baseline=by_name[baseline],
            published=_maybe(plan.get("published"), lambda value: _text(value, "published")),
            methods=methods,
            training=_object(plan.get("training", {}), "training"),
            corpus=_object(plan.get("corpus", {}), "corpus"),
            evaluation=_object(plan.get("evaluation", {}), "evaluation"),
            environment=environment,
            summary=parse_if_there(run / "summary.json", summary),
        )

    return parse_file(path, parse)


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is {value!r} and no whole number")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is {value!r} and no number")
    return float(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is {value!r} and no text")
    return value


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {value!r} and neither true nor false")
    return value


def _one_of(value: Any, allowed: tuple[str, ...], what: str) -> str:
    if value not in allowed:
        raise ValueError(f"{what} is {value!r} and none of {', '.join(allowed)}")
    return str(value)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{what} is {value!r} and no list")
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is {value!r} and no object")
    return value


def _maybe(value: Any, parse: Callable[[Any], T]) -> T | None:
    return None if value is None else parse(value)


def _entry(run: Path, value: dict[str, Any], seeds: tuple[int, ...]) -> Entry:
    name = parse_name(_text(value["name"], "the name of a method"))
    trained = _flag(value["trained"], f"trained of {name}")
    stages = []
    for stage in _list(value.get("stages", []), f"stages of {name}"):
        length, tokens, steps = (_whole(stage[key], f"{key} of a stage of {name}") for key in ("length", "tokens", "steps"))
        stages.append(StagePlan(length, tokens, steps, _text(stage.get("encoding", ""), f"encoding of a stage of {name}")))
    return Entry(
        name=name,
        title=_text(value["title"], f"title of {name}"),
        explanation=_text(value["explanation"], f"explanation of {name}"),
        source=_text(value.get("source") or "", f"source of {name}"),
        trained=trained,
        control=_flag(value["control"], f"control of {name}"),
        per_head=_flag(value["per_head"], f"per_head of {name}"),
        bases=parse_bases(name, _list(value["bases"], f"bases of {name}")),
        options=_object(value.get("options", {}), f"options of {name}"),
        stages=tuple(stages),
        runs=tuple(_seed_run(run / name / f"seed-{seed}", seed) for seed in (seeds if trained else (0,))),
    )


def _seed_run(folder: Path, seed: int) -> SeedRun:
    measured(folder / "scores")
    return SeedRun(
        seed=seed,
        failed=parse_if_there(folder / "failed.json", lambda value: _text(value["reason"], "reason")),
        record=parse_if_there(folder / "record.json", _record),
        curve=parse_curve(folder),
        perplexity=parse_if_there(folder / "scores" / "perplexity.json", parse_perplexity),
        grid=parse_if_there(folder / "scores" / "grid.json", parse_grid),
    )


def _record(value: dict[str, Any]) -> Record:
    def seconds(value: Any, what: str) -> float | None:
        return _maybe(value, lambda number: _number(number, what))

    stages = []
    for stage in _list(value.get("stages", []), "stages"):
        length, tokens, steps = (_whole(stage[key], f"{key} of a stage") for key in ("length", "tokens", "steps"))
        data = _maybe(stage.get("data_hash"), lambda text: _text(text, "data_hash"))
        stages.append(StageRecord(length, tokens, steps, data, seconds(stage.get("seconds"), "seconds")))
    train, evaluate = (seconds(value.get(key), key) for key in ("train_seconds", "evaluate_seconds"))
    return Record(tuple(stages), _whole(value.get("tokens", 0), "tokens"), train, evaluate)


def _summary(value: dict[str, Any], baseline: str, names: set[str], seeds: tuple[int, ...]) -> Summary:
    if value["baseline"] != baseline:
        raise ValueError(f"its baseline is {value['baseline']!r}, the plan's {baseline!r}")
    interval = _one_of(value["interval"], INTERVALS, "interval")
    if interval == INTERVALS[0] and len(seeds) < SEEDS_NEEDED:
        raise ValueError(f"interval is {interval!r}, but there are {len(seeds)} seeds and {SEEDS_NEEDED} are needed for that")
    measures = tuple(_measure(_object(entry, "a measure"), names) for entry in _list(value["measures"], "measures"))
    if len({measure.id for measure in measures}) < len(measures):
        raise ValueError("two measures have the same id")
    reading = tuple(_text(sentence, "a sentence of the reading") for sentence in _list(value.get("reading", []), "reading"))
    positions = _maybe(value.get("positions"), lambda entry: parse_positions(_object(entry, "positions")))
    return Summary(interval, _whole(value["resamples"], "resamples"), measures, reading, positions)


def _measure(value: dict[str, Any], names: set[str]) -> Measure:
    name = _text(value["id"], "id of a measure")
    values = {key: _value(_object(entry, name), f"{name} of {key}") for key, entry in _object(value["values"], name).items()}
    differences = {key: _contrast(_object(entry, name), f"{name} of {key}") for key, entry in _object(value["differences"], name).items()}
    unknown = ({*values} | {*differences}) - names
    if unknown:
        raise ValueError(f"{name} has values of {sorted(unknown)[0]!r}, which is none of the plan's methods")
    return Measure(
        id=name,
        title=_text(value["title"], f"title of {name}"),
        unit=_one_of(value["unit"], UNITS, f"unit of {name}"),
        better=_one_of(value["better"], DIRECTIONS, f"better of {name}"),
        group=_text(value["group"], f"group of {name}"),
        task=_maybe(value.get("task"), lambda text: _text(text, f"task of {name}")),
        length=_maybe(value.get("length"), lambda number: _whole(number, f"length of {name}")),
        documents=_whole(value["documents"], f"documents of {name}"),
        values=values,
        differences=differences,
    )


def _ends(value: dict[str, Any], what: str) -> tuple[float, float, float]:
    middle, low, high = (_number(value[key], f"{key} of {what}") for key in ("value", "low", "high"))
    return middle, low, high


def _value(value: dict[str, Any], what: str) -> Value:
    seeds, documents = (_whole(value[key], f"{key} of {what}") for key in ("seeds", "documents"))
    by_seed = tuple(_number(number, f"by_seed of {what}") for number in _list(value.get("by_seed", []), f"by_seed of {what}"))
    return Value(*_ends(value, what), seeds, documents, by_seed)


def _contrast(value: dict[str, Any], what: str) -> Contrast:
    p, holm = (_maybe(value.get(key), lambda number: _number(number, f"p of {what}")) for key in ("p", "holm"))
    return Contrast(*_ends(value, what), p, holm, _flag(value["real"], f"real of {what}"))
