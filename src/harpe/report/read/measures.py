"""The measures of a single run, out of its score files: what a comparison has in its summary."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harpe.report.read.scores import Score, SeedRun
from harpe.report.read.summary import Measure, Value

NEEDLE_TITLES = {name: name.replace("_", "-") for name in ("single", "multi_key", "multi_query", "multi_value")}
"""harpe's own needle tasks."""
MEAN_OF = ("single", "multi_key", "multi_query")


def mean_score(parts: Sequence[Score]) -> Score:
    """Mean of independent scores; its interval combines theirs by MOVER (Zou and Donner 2008, Stat. Med. 27:1693).

    Each end lies the root of the summed squares of the parts' distances to that end away, divided by their number.
    """
    k = len(parts)
    value = sum(p.score for p in parts) / k
    below = math.sqrt(sum((p.score - p.low) ** 2 for p in parts)) / k
    above = math.sqrt(sum((p.high - p.score) ** 2 for p in parts)) / k
    return Score(value, value - below, value + above, sum(p.samples for p in parts))


def _loss(value: float, low: float, high: float, documents: int) -> Value:
    value, low, high = (math.log(number) if number > 0 else math.nan for number in (value, low, high))
    return Value(value, low, high, None, documents)


def _measure(
    name: str, title: str, values: dict[str, Value], task: str | None = None, length: int | None = None
) -> Measure:
    loss = name.startswith("loss-")
    documents = max((value.documents for value in values.values()), default=0)
    unit, better, group = ("nats", "lower", "perplexity") if loss else ("%", "higher", "needles")
    return Measure(name, title, unit, better, group, documents, values, {}, task, length)  # type: ignore[arg-type]


def _scores(found: dict[str, Score | None]) -> dict[str, Value]:
    return {
        name: Value(100 * s.score, 100 * s.low, 100 * s.high, None, s.samples)
        for name, s in found.items()
        if s is not None
    }


def measures_of(rows: dict[str, SeedRun], original: int, target: int) -> tuple[Measure, ...]:
    """Short and long perplexity, and the needle tasks with their mean at every length.

    harpe's own tasks at the original and the target length have a measure even where nothing was run.
    """
    found = {name: run.perplexity for name, run in rows.items() if run.perplexity}
    first = next(iter(found.values()), None)
    windows = f"loss windows of {first.short.length if first else original:,} tokens"
    far = f"loss tokens {first.long.start:,} to {first.long.end:,}" if first else "loss long positions"
    short, long = ({n: (getattr(p, key), p.documents) for n, p in found.items()} for key in ("short", "long"))
    measures = [
        _measure(name, title, {n: _loss(e.perplexity, e.low, e.high, documents) for n, (e, documents) in of.items()})
        for name, title, of in (("loss-short", windows, short), ("loss-long", far, long))
    ]
    tested = [(score.task, score.length) for run in rows.values() for score in run.needles or ()]
    for length in dict.fromkeys([target, original, *(length for _, length in tested)]):
        tasks = dict.fromkeys([*NEEDLE_TITLES, *(task for task, at in tested if at == length)])
        for task in tasks:
            values = _scores({name: run.needle(task, length) for name, run in rows.items()})
            measures.append(_measure(f"needles-{task}-{length}", f"{task} at {length:,} tokens", values, task, length))
        means, title = (
            {name: needle_mean(run, length) for name, run in rows.items()},
            f"needle mean at {length:,} tokens",
        )
        measures.append(_measure(f"needles-mean-{length}", title, _scores(means), length=length))
    return tuple(measures)


def needle_mean(run: SeedRun, length: int) -> Score | None:
    """Mean of single, multi-key and multi-query at a length; None unless all three were run."""
    parts = [run.needle(task, length) for task in MEAN_OF]
    found = [part for part in parts if part is not None]
    return mean_score(found) if len(found) == len(MEAN_OF) else None
