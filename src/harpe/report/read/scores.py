"""What was measured of one model: the score files and training logs in the folder of a row, or of one of its seeds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from harpe.errors import HarpeError
from harpe.files import read_jsonl
from harpe.measurement import measured
from harpe.report.read.fields import build, parse, parse_if_there


@dataclass(frozen=True)
class Bin:
    """Mean negative log-likelihood (nats a token) of the positions start .. end - 1, with its 95 % interval."""

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
class _Estimate:
    perplexity: float
    low: float
    high: float


@dataclass(frozen=True)
class ShortPerplexity(_Estimate):
    """Perplexity in short windows, with its 95 % interval."""

    length: int


@dataclass(frozen=True)
class LongPerplexity(_Estimate):
    """Perplexity at the positions start .. end - 1, with its 95 % interval."""

    start: int
    end: int


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on held-out documents."""

    documents: int
    bins: tuple[Bin, ...]
    short: ShortPerplexity
    long: LongPerplexity


@dataclass(frozen=True)
class Score:
    """A share of samples (0..1) with its 95 % interval."""

    score: float
    low: float
    high: float
    samples: int

    def interval_words(self) -> str:
        """The interval in words."""
        return f"95 % interval {100 * self.low:.0f} to {100 * self.high:.0f} %, n = {self.samples}"


@dataclass(frozen=True)
class TaskScore(Score):
    """The score of a needle task at a length."""

    task: str
    length: int


@dataclass(frozen=True)
class Grid:
    """Single-needle scores by length and depth: `cells[length][depth]`."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    cells: tuple[tuple[Score, ...], ...]

    def __post_init__(self) -> None:
        if len(self.cells) != len(self.lengths) or any(len(row) != len(self.depths) for row in self.cells):
            raise ValueError(f"the cells are not {len(self.lengths)} lengths by {len(self.depths)} depths")


@dataclass(frozen=True)
class Curve:
    """Training loss by tokens seen."""

    tokens: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class StageRecord:
    """What a stage of training was."""

    length: int
    tokens: int
    steps: int
    data_hash: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Record:
    """What was spent on one row and seed."""

    stages: tuple[StageRecord, ...] = ()
    tokens: int = 0
    train_seconds: float | None = None
    evaluate_seconds: float | None = None


@dataclass(frozen=True)
class SeedRun:
    """One row with one seed, as far as it came."""

    seed: int
    failed: str | None
    """Why it did not come to its end."""
    record: Record | None
    curve: Curve | None
    perplexity: Perplexity | None
    needles: tuple[TaskScore, ...] | None
    grid: Grid | None

    def needle(self, task: str, length: int) -> TaskScore | None:
        """The score of a task at a length; of several, the last."""
        return next((s for s in reversed(self.needles or ()) if (s.task, s.length) == (task, length)), None)


def read_seed(folder: Path, seed: int) -> SeedRun:
    """What there is of one row and seed.

    Raises HarpeError when a file is damaged, or the score files do not belong together.
    """
    scores = folder / "scores"
    measured(scores)
    return SeedRun(
        seed=seed,
        failed=parse_if_there(folder / "failed.json", lambda value: str(parse(str, value["reason"], "reason"))),
        record=parse_if_there(folder / "record.json", lambda value: build(Record, value, "the record")),
        curve=_curve(folder),
        perplexity=parse_if_there(scores / "perplexity.json", lambda value: build(Perplexity, value, "the scores")),
        needles=parse_if_there(
            scores / "needles.json", lambda value: tuple(parse(tuple[TaskScore, ...], value["tasks"], "tasks"))
        ),
        grid=parse_if_there(scores / "grid.json", lambda value: build(Grid, value, "the grid")),
    )


def _curve(folder: Path) -> Curve | None:
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
        # A stage counts its tokens from 0 again.
        offset = tokens[-1] if tokens and stage and stage[0][0] <= tokens[-1] else 0.0
        tokens += [offset + t for t, _ in stage]
        losses += [loss for _, loss in stage]
    return Curve(tuple(tokens), tuple(losses)) if tokens else None
