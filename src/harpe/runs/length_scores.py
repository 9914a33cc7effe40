"""Effective length and length score of every model of a run or comparison, for each task that was asked at several
lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harpe.errors import HarpeError
from harpe.evaluation.statistics.lengths import (
    KEPT,
    ROUNDING,
    Asked,
    ByLength,
    base_score,
    effective_length,
    length_score,
    resample_lengths,
)
from harpe.evaluation.statistics.resampling import RESAMPLES, Draws, holm
from harpe.files import read_json, read_jsonl, write_json
from harpe.measurement import check_scores, common_seeds
from harpe.ownership import remove_ours
from harpe.report.read.run import read_run
from harpe.runs.differences import GATED

LEVEL = 0.05


@dataclass(frozen=True)
class Samples:
    """One task at one length, as one model answered it."""

    keys: tuple[Any, ...]
    """What the samples are: alike for models that can be compared."""
    scores: tuple[float, ...]
    """0..1."""
    draw: str
    """Lengths with the same name hold the same samples."""
    chance: float = 0.0
    """Expected score of a guesser, 0..1."""


@dataclass(frozen=True)
class AnsweredTask:
    """A task, or the mean of several, that one model was asked at one or more lengths."""

    id: str
    title: str
    group: str
    task: str | None
    """None: a mean over tasks."""
    samples: dict[tuple[int, str], Samples]
    """By length in tokens and task."""

    def guessed(self) -> list[float]:
        """What a guesser scores at every length, in per cent."""
        lengths = sorted({length for length, _ in self.samples})
        at = [[each.chance for (n, _), each in self.samples.items() if n == length] for length in lengths]
        return [100 * sum(chances) / len(chances) for chances in at]


def needle_tasks(scores: Path) -> Iterator[AnsweredTask]:
    """What `harpe evaluate` left: the grid's single needle, the needle tasks, and the mean of those that are
    compared."""
    check_scores(scores)
    protocol = scores / "protocol.json"
    texts = str(read_json(protocol).get("held_out", "")) if protocol.is_file() else ""
    if all((scores / name).is_file() for name in ("grid.json", "grid.jsonl")):
        yield _grid(read_jsonl(scores / "grid.jsonl"), texts)
    if not all((scores / name).is_file() for name in ("needles.json", "needles.jsonl")):
        return
    rows = sorted(read_jsonl(scores / "needles.jsonl"), key=lambda row: row["index"])
    asked: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        asked.setdefault((row["length"], row["task"]), []).append(row)
    found = {
        (length, task): Samples(
            tuple((texts, r["index"]) for r in those), tuple(r["score"] for r in those), f"{task} {length}"
        )
        for (length, task), those in asked.items()
    }
    if all(any(task == name for _, task in found) for name in GATED):
        words = "needles, mean of single, multi-key and multi-query"
        yield AnsweredTask(
            "needles-mean", words, "needles", None, {key: each for key, each in found.items() if key[1] in GATED}
        )
    for task in dict.fromkeys(task for _, task in found):
        those_ = {key: each for key, each in found.items() if key[1] == task}
        yield AnsweredTask(f"needles-{task}", f"{task.replace('_', '-')} needles", "needles", task, those_)


def _grid(rows: Sequence[dict[str, Any]], texts: str) -> AnsweredTask:
    """A sample's score at a length is its mean over the depths: all cells are of the same samples."""
    samples: dict[tuple[int, str], Samples] = {}
    for length in sorted({row["length"] for row in rows}):
        by_sample: dict[int, list[float]] = {}
        for row in rows:
            if row["length"] == length:
                by_sample.setdefault(row["index"], []).append(row["score"])
        order = sorted(by_sample)
        scores = tuple(sum(by_sample[i]) / len(by_sample[i]) for i in order)
        samples[length, "single"] = Samples(tuple((texts, i) for i in order), scores, "grid")
    return AnsweredTask("grid", "single needle, mean over depths", "needles", "single", samples)


def summarised(
    found: Mapping[tuple[str, int], Sequence[AnsweredTask]],
    trained_length: int,
    reference: str,
    trained: set[str],
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Any] | None:
    """Every task of every method by length, with effective length and length score; None where nothing was asked.

    Parameters
    ----------
    found
        What was asked of every method and seed.
    trained_length
        Of the checkpoint, in tokens: the base score is the best one up to it.
    reference
        The method that the others are compared with.
    trained
        Methods that were trained: they are compared seed by seed.

    Returns
    -------
    reference, trained_length, kept, resamples and tasks; docs/report.md says what a task holds. Scores and length
    scores are in per cent, lengths in tokens, 0 for no effective length."""
    by_id: dict[str, dict[tuple[str, int], AnsweredTask]] = {}
    for key, tasks in found.items():
        for each in tasks:
            by_id.setdefault(each.id, {})[key] = each
    if not by_id:
        return None
    facts = {"reference": reference, "trained_length": trained_length, "kept": KEPT, "resamples": resamples}
    tasks_ = [_task(of, trained_length, reference, trained, resamples) for of in by_id.values()]
    return {**facts, "tasks": tasks_}


def _task(
    of: Mapping[tuple[str, int], AnsweredTask], trained_length: int, reference: str, trained: set[str], resamples: int
) -> dict[str, Any]:
    first = next(iter(of.values()))
    cells = sorted({cell for each in of.values() for cell in each.samples})
    models = [key for key, each in of.items() if each.samples.keys() == set(cells)]
    value: dict[str, Any] = {"id": first.id, "title": first.title, "group": first.group, "task": first.task}
    value |= {"lengths": sorted({length for length, _ in cells}), "units": 0, "methods": {}, "differences": {}}
    value["guessed"] = []
    value["incomplete"] = sorted({method for method, _ in of} - {method for method, _ in models})
    if not models:
        return value
    value["guessed"] = of[models[0]].guessed()
    asked = []
    for cell in cells:
        alike = of[models[0]].samples[cell]
        for key in models:
            if of[key].samples[cell].keys != alike.keys:
                raise HarpeError(
                    f"{key[0]} (seed {key[1]}) was asked other samples than {models[0][0]} ({first.title} at "
                    f"{cell[0]:,} tokens). Delete its scores and measure it again."
                )
        scores = np.array([of[key].samples[cell].scores for key in models], float)
        asked.append(Asked(cell[0], scores, (alike.draw, alike.keys)))
    drawn = resample_lengths(asked, resamples=resamples)
    value["units"] = sum({each.draw: each.scores.shape[1] for each in asked}.values())
    for method in dict.fromkeys(method for method, _ in models):
        rows = [number for number, key in enumerate(models) if key[0] == method]
        value["methods"][method] = {"seeds": len(rows), **_method(drawn, rows, trained_length, value["guessed"])}
    if len(drawn.lengths) > 1:
        fewest = min(each.scores.shape[1] for each in asked)
        value["differences"] = _differences(drawn, models, reference, trained, fewest)
    return value


def of_one_model(task: AnsweredTask, trained_length: int) -> dict[str, Any]:
    """Scores by length, base score, effective length and length score of one model in a task, each with its interval;
    as a method of `summarised` has them."""
    asked = [
        Asked(length, np.array([each.scores], float), (each.draw, each.keys))
        for (length, _), each in sorted(task.samples.items())
    ]
    return _method(resample_lengths(asked), [0], trained_length, task.guessed())


def _ends(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return {"low": 100 * float(low), "high": 100 * float(high)}


def _method(drawn: ByLength, rows: Sequence[int], trained_length: int, guessed: Sequence[float]) -> dict[str, Any]:
    """Scores, base score, effective length and length score of one method."""
    lengths = drawn.lengths
    scores, resampled = drawn.over_seeds(rows)
    value: dict[str, Any] = {
        "scores": [
            {"length": length, "value": 100 * float(scores[i]), **_ends(resampled[:, i])}
            for i, length in enumerate(lengths)
        ],
        "base": None,
        "effective": None,
        "area": None,
    }
    base, bases = base_score(scores, lengths, trained_length), base_score(resampled, lengths, trained_length)
    if lengths[0] <= trained_length:
        value["base"] = {"value": 100 * float(base), **_ends(bases)}
    if len(lengths) > 1:
        areas = length_score(resampled, lengths)
        value["area"] = {"value": 100 * float(length_score(scores, lengths)), **_ends(areas)}
    value["reason"] = _cannot_tell(value["base"], lengths, trained_length, max(guessed))
    if not value["reason"]:
        longest = int(effective_length(scores, lengths, base))
        draws = effective_length(resampled, lengths, bases)
        # lengths that were asked, and no numbers between two of them
        low = int(np.percentile(draws, 2.5, method="lower"))
        high = int(np.percentile(draws, 97.5, method="higher"))
        failed = [length for i, length in enumerate(lengths) if length < longest and scores[i] < KEPT * base - ROUNDING]
        value["effective"] = {"value": longest, "low": low, "high": high, "failed_below": failed}
    return value


def _cannot_tell(base: dict[str, float] | None, lengths: Sequence[int], trained_length: int, guessed: float) -> str:
    """Why there is no effective length; "" where there is one."""
    if len(lengths) == 1:
        return f"asked at {lengths[0]:,} tokens alone: how far it reaches cannot be told"
    if base is None:
        return f"not asked within the {trained_length:,} tokens of the training: there is no short score to keep"
    if base["low"] <= 0:
        return f"its short score, {base['value']:.1f}%, is not told from 0: there is nothing to keep"
    if KEPT * base["low"] <= guessed:  # whoever guesses alike at every length would keep it to the longest
        return f"{KEPT:.0%} of its short score, {base['value']:.1f}%, is not told from the {guessed:.1f}% of a guesser"
    return ""


def _differences(
    drawn: ByLength, models: Sequence[tuple[str, int]], reference: str, trained: set[str], units: int
) -> dict[str, Any]:
    """The length score of every method minus the reference's, under the same draws, with Holm's correction."""

    def seeds(method: str) -> list[int]:
        return [seed for name, seed in models if name == method]

    draws: dict[str, Draws] = {}
    for method in dict.fromkeys(name for name, _ in models):
        both = common_seeds(seeds(method), seeds(reference), {method, reference} <= trained)
        if method == reference or both is None:
            continue
        (a, ours), (b, theirs) = (
            drawn.over_seeds([models.index((name, seed)) for seed in those])
            for name, those in ((method, both[0]), (reference, both[1]))
        )
        value = float(length_score(a, drawn.lengths) - length_score(b, drawn.lengths))
        resampled = length_score(ours, drawn.lengths) - length_score(theirs, drawn.lengths)
        draws[method] = Draws(value, (), resampled, units)
    chances = [each.p_value() for each in draws.values()]
    found = {}
    for (method, each), p, adjusted in zip(draws.items(), chances, holm(chances), strict=True):
        interval = each.interval()
        real = bool(interval.clear and adjusted < LEVEL)
        found[method] = {**interval.as_dict(scale=100), "p": p, "holm": adjusted, "real": real}
    return found


def write_lengths(run: Path) -> None:
    """lengths.json of a run directory; differences are to the same row as those of positions.json. One of earlier
    scores goes where those that are there have none."""
    value = read_run(run)
    reference = value.reference
    if reference is None:
        return
    found = {(row.name, 0): list(needle_tasks(run / row.name / "scores")) for row in value.rows}
    trained = {row.name for row in value.rows if row.trained}
    lengths = summarised(found, value.original_length, reference.name, trained)
    if lengths is not None:
        write_json(run / "lengths.json", lengths)
    else:
        remove_ours(run / "lengths.json")
