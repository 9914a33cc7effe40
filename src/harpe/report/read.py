"""Reads a run directory into values. A missing score is None ("not run"); a damaged file is an error that names it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harpe.errors import HarpeError
from harpe.files import read_json, read_jsonl
from harpe.measurement import check_scores
from harpe.report.position_differences import PositionDifferences, parse_positions
from harpe.report.titles import retitled

T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Number of samples (needles) or documents (perplexity)."""

    def interval_words(self) -> str:
        """The interval of a share in words."""
        return f"95 % interval {100 * self.low:.0f} to {100 * self.high:.0f} %, n = {self.n}"


@dataclass(frozen=True)
class Bin:
    """Mean negative log-likelihood (nats a token) of the positions start .. end - 1."""

    start: int
    end: int
    nll: float
    low: float
    high: float
    tokens: int

    @property
    def middle(self) -> float:
        """Middle of the bin on a logarithmic axis of positions."""
        return math.sqrt(max(self.start, 1) * max(self.end, 1))


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on held-out documents."""

    bins: tuple[Bin, ...]
    short: Estimate
    short_length: int
    long: Estimate
    long_start: int
    long_end: int


@dataclass(frozen=True)
class Grid:
    """Single-needle scores by length and depth: `cells[length][depth]`."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    cells: tuple[tuple[Estimate, ...], ...]


@dataclass(frozen=True)
class Curve:
    """Training loss by tokens seen."""

    tokens: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Method:
    """One row of the plan and what was measured of it."""

    name: str
    title: str
    explanation: str
    trained: bool
    bases: tuple[float, ...]
    """One base per key/value head."""
    curve: Curve | None
    perplexity: Perplexity | None
    needles: dict[tuple[str, int], Estimate] | None
    """Scores by task and length."""
    grid: Grid | None

    @property
    def distinct_bases(self) -> int:
        return len(set(self.bases))


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
class BaseRange:
    """The range that the bases were chosen from."""

    low: float
    high: float
    reference: float
    why: str


@dataclass(frozen=True)
class Difference:
    """One measure of one method minus another's."""

    name: str
    measure: str
    value: float
    low: float
    high: float
    unit: str
    significant: bool


@dataclass(frozen=True)
class Summary:
    """What the run's own comparison says, in numbers and sentences."""

    differences: tuple[Difference, ...]
    reading: tuple[str, ...]
    prompt: str | None
    text: str | None


@dataclass(frozen=True)
class Run:
    """Everything that the report shows."""

    title: str
    model: Model
    original_length: int
    target_length: int
    range: BaseRange
    reasons: tuple[str, ...]
    methods: tuple[Method, ...]
    training: dict[str, Any]
    corpus: dict[str, Any]
    environment: dict[str, str]
    summary: Summary | None
    positions: PositionDifferences | None
    """Every method minus a reference."""

    @property
    def before(self) -> Method | None:
        """The model as it was: the row `base`, or else the first row without training."""
        named = [m for m in self.methods if m.name == "base"]
        return next(iter(named + [m for m in self.methods if not m.trained]), None)

    @property
    def harpe(self) -> Method | None:
        """The extended model: the row `harpe`, or else the first row whose heads have different bases."""
        named = [m for m in self.methods if m.name == "harpe"]
        return next(iter(named + [m for m in self.methods if m.distinct_bases > 1]), None)

    @property
    def control(self) -> Method | None:
        """The same training with one base: the row `one-base`, or else the first trained row with one base."""
        named = [m for m in self.methods if m.name == "one-base"]
        return next(iter(named + [m for m in self.methods if m.trained and m.distinct_bases == 1]), None)


def read_run(run: Path, seed: int | None = None) -> Run:
    """Read the plan and whatever results exist so far.

    Parameters
    ----------
    seed
        Of a comparison, whose methods keep their results by training seed: what there is of this seed (methods without training have one,
        0), without the comparison's summary.

    Raises
    ------
    HarpeError
        When there is no plan, or a file is damaged; the message names the file.
    """
    run = Path(run)
    plan_path = run / "plan.json"
    if not plan_path.is_file():
        raise HarpeError(f"{run} is not a run directory: it has no plan.json. Give the directory that the run was written to.")

    def parse(plan: dict[str, Any]) -> Run:
        return Run(
            title=str(plan["title"]),
            model=parse_model(plan["model"]),
            original_length=int(plan["original_length"]),
            target_length=int(plan["target_length"]),
            range=parse_range(plan["range"]),
            reasons=tuple(str(reason) for reason in plan["reasons"]),
            methods=retitled([_method(run, entry, seed) for entry in plan["methods"]]),
            training=dict(plan["training"]),
            corpus=dict(plan["corpus"]),
            environment=parse_if_there(run / "environment.json", parse_environment) or {},
            summary=parse_if_there(run / "summary.json", _summary) if seed is None else None,
            positions=parse_if_there(run / "positions.json", parse_positions) if seed is None else None,
        )

    return parse_file(plan_path, parse)


def parse_file(path: Path, parse: Callable[[dict[str, Any]], T]) -> T:
    """`parse` of a JSON file, with everything that can be wrong with the file told as a HarpeError naming it."""
    try:
        return parse(read_json(path))
    except HarpeError:
        raise
    except KeyError as error:
        raise HarpeError(f"{path} lacks the entry {error}. Delete it and run that step again.") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise HarpeError(f"{path} is damaged ({error}). Delete it and run that step again.") from error


def parse_if_there(path: Path, parse: Callable[[dict[str, Any]], T]) -> T | None:
    return parse_file(path, parse) if path.is_file() else None


def parse_model(value: dict[str, Any]) -> Model:
    counts = ("layers", "query_heads", "key_value_heads", "head_dim", "rotary_dim", "parameters", "original_length")
    whole = {key: int(value[key]) for key in counts}
    return Model(name=str(value["name"]), model_type=str(value["model_type"]), base=float(value["base"]), **whole)


def parse_range(value: dict[str, Any]) -> BaseRange:
    return BaseRange(float(value["low"]), float(value["high"]), float(value["reference"]), str(value["why"]))


def parse_name(name: str) -> str:
    """A method's name, which is the name of its folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"a method is named {name!r}, which is no plain directory name")
    return name


def parse_bases(name: str, values: Any) -> tuple[float, ...]:
    """One base per key/value head."""
    bases = tuple(float(base) for base in values)
    if not bases or not all(math.isfinite(base) and base > 1 for base in bases):
        raise ValueError(f"the bases of {name} are not finite numbers above 1")
    return bases


def _method(run: Path, value: dict[str, Any], seed: int | None) -> Method:
    name, trained = parse_name(str(value["name"])), bool(value["trained"])
    folder = run / name if seed is None else run / name / f"seed-{seed if trained else 0}"
    scores = folder / "scores"
    check_scores(scores)
    return Method(
        name=name,
        title=str(value["title"]),
        explanation=str(value["explanation"]),
        trained=trained,
        bases=parse_bases(name, value["bases"]),
        curve=parse_curve(folder),
        perplexity=parse_if_there(scores / "perplexity.json", parse_perplexity),
        needles=parse_if_there(scores / "needles.json", _needles),
        grid=parse_if_there(scores / "grid.json", parse_grid),
    )


def parse_curve(folder: Path) -> Curve | None:
    """The logs of all stages in a row; of a step that was logged twice (a resumed run), the later row counts."""
    tokens: list[float] = []
    losses: list[float] = []
    paths = [p for p in folder.glob("stage-*/log.jsonl") if re.fullmatch(r"stage-\d+", p.parent.name)]
    for path in sorted(paths, key=lambda p: int(p.parent.name[6:])):
        try:
            rows = {int(row["step"]): (float(row["tokens"]), float(row["loss"])) for row in read_jsonl(path)}
        except HarpeError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise HarpeError(f"{path} is damaged ({type(error).__name__}: {error}). Run that stage again.") from error
        stage = [rows[step] for step in sorted(rows)]
        offset = tokens[-1] if tokens and stage and stage[0][0] <= tokens[-1] else 0.0  # this stage counts from 0 again
        tokens += [offset + t for t, _ in stage]
        losses += [loss for _, loss in stage]
    return Curve(tuple(tokens), tuple(losses)) if tokens else None


def _estimate(value: dict[str, Any], key: str, n: int) -> Estimate:
    return Estimate(float(value[key]), float(value["low"]), float(value["high"]), n)


def parse_perplexity(value: dict[str, Any]) -> Perplexity:
    documents = int(value["documents"])
    bins = tuple(
        Bin(int(b["start"]), int(b["end"]), float(b["nll"]), float(b["low"]), float(b["high"]), int(b["tokens"])) for b in value["bins"]
    )
    short, long = value["short"], value["long"]
    return Perplexity(
        bins=bins,
        short=_estimate(short, "perplexity", documents),
        short_length=int(short["length"]),
        long=_estimate(long, "perplexity", documents),
        long_start=int(long["start"]),
        long_end=int(long["end"]),
    )


def _needles(value: dict[str, Any]) -> dict[tuple[str, int], Estimate]:
    return {(str(t["task"]), int(t["length"])): _estimate(t, "score", int(t["samples"])) for t in value["tasks"]}


def parse_grid(value: dict[str, Any]) -> Grid:
    lengths, depths = tuple(int(n) for n in value["lengths"]), tuple(float(d) for d in value["depths"])
    cells = tuple(tuple(_estimate(cell, "score", int(cell["samples"])) for cell in row) for row in value["cells"])
    if len(cells) != len(lengths) or any(len(row) != len(depths) for row in cells):
        raise ValueError(f"the cells are not {len(lengths)} lengths by {len(depths)} depths")
    return Grid(lengths, depths, cells)


def parse_environment(value: dict[str, Any]) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items() if k != "schema_version"}


def _summary(value: dict[str, Any]) -> Summary:
    differences = tuple(
        Difference(
            name=str(d["name"]),
            measure=str(d["measure"]),
            unit=str(d["unit"]),
            significant=bool(d["significant"]),
            **{key: float(d[key]) for key in ("value", "low", "high")},
        )
        for d in value["differences"]
    )
    generation = value.get("generation") or {}
    prompt, text = generation.get("prompt"), generation.get("text")
    return Summary(
        differences,
        tuple(str(sentence) for sentence in value["reading"]),
        None if prompt is None else str(prompt),
        None if text is None else str(text),
    )
