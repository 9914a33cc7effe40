"""summary.json of a comparison: every measure of every method with its interval, differences to the baseline, and what
may be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harpe.comparison.inputs import check_rows
from harpe.comparison.recipe import read_evaluation
from harpe.comparison.suites.base import Measure
from harpe.comparison.suites.registry import SUITES, asked_suites
from harpe.evaluation.statistics.resampling import (
    FEWEST_SEEDS,
    RESAMPLES,
    SPREAD,
    holm,
    paired,
    resample,
)
from harpe.files import read_json, sha256_file, sha256_json, write_json
from harpe.measurement import common_seeds
from harpe.report.wording import first_upper
from harpe.runs.length_scores import summarised
from harpe.runs.position_losses import gathered, position_differences

LEVEL = 0.05
MEANS = ("needles-mean", "ruler-niah", "long-mean")
"""Scores at the target length that `reading` tells."""


def summarise(run: Path, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Write summary.json from the score files that are there, and return it; HarpeError where rows have not read the
    same."""
    plan = read_json(run / "plan.json")
    check_rows(run, plan)
    methods, seeds, baseline = [m["name"] for m in plan["methods"]], plan["seeds"], plan["baseline"]
    trained = {m["name"] for m in plan["methods"] if m["trained"]}
    there = collect(run, methods, sorted({0, *seeds}))
    measures = [_measured(measure, methods, trained, baseline, resamples) for measure in there]
    value = {
        "baseline": baseline,
        "seeds": seeds,
        "resamples": resamples,
        "interval": "seeds and documents" if len(seeds) >= FEWEST_SEEDS else "documents only",
        "seeds_spread": SPREAD,
        "measures": measures,
        "positions": _positions(run, plan, resamples),
        "lengths": _lengths(run, plan, resamples),
        "reading": [*_reading(plan, measures), *_not_measured(plan, measures), *_notes(run, plan)],
        "scores": _scores(run, plan),
    }
    write_json(run / "summary.json", value)
    return value


def collect(run: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[Measure]:
    """All measures of a run, one number a unit (document, sample), paired over methods; what a method lacks is out."""
    measures: dict[str, Measure] = {}
    for method in methods:
        for seed in seeds:
            for suite in SUITES:
                for measure, records in suite.measures(run / method / f"seed-{seed}" / "scores"):
                    if rows := sorted(records, key=lambda record: (record[1], record[0])):
                        measures.setdefault(measure.id, measure).found[method, seed] = rows
    return list(measures.values())


def complete(run: Path) -> None:
    """See that summary.json is there, and of the score files that are: not of a comparison that was cut short, or of
    rows as they were before, and with the spread of seeds that intervals have now. One of an earlier version, which
    does not say of which files it is, gets what it lacks.

    Raises HarpeError where rows have not read the same.
    """
    path, plan = run / "summary.json", read_json(run / "plan.json")
    check_rows(run, plan)
    there, found = read_json(path) if path.is_file() else None, _scores(run, plan)
    if there is not None and found is not None and "scores" in there:
        there = there if (there["scores"], there.get("seeds_spread")) == (found, SPREAD) else None
    if there is None:
        summarise(run)
        return
    added = {"positions": _positions, "lengths": _lengths}
    if missing := [key for key in added if key not in there]:
        write_json(path, there | {key: added[key](run, plan, RESAMPLES) for key in missing})


def _scores(run: Path, plan: dict[str, Any]) -> str | None:
    """SHA-256 of all score files; None where there are none (any more)."""
    seeds = sorted({0, *plan["seeds"]})
    rows = [run / method["name"] / f"seed-{seed}" / "scores" for method in plan["methods"] for seed in seeds]
    files = [file for row in rows for file in sorted(row.rglob("*.json*")) if file.is_file()]
    return sha256_json([[str(file.relative_to(run)), sha256_file(file)] for file in files]) if files else None


def _positions(run: Path, plan: dict[str, Any], resamples: int) -> dict[str, Any] | None:
    methods, trained = [m["name"] for m in plan["methods"]], {m["name"] for m in plan["methods"] if m["trained"]}
    losses = gathered(methods, sorted({0, *plan["seeds"]}), lambda name, seed: run / name / f"seed-{seed}" / "scores")
    return position_differences(losses, plan["baseline"], trained, resamples=resamples)


def _lengths(run: Path, plan: dict[str, Any], resamples: int) -> dict[str, Any] | None:
    """By method and seed, what every suite asked at several lengths."""
    rows = [(method["name"], seed) for method in plan["methods"] for seed in sorted({0, *plan["seeds"]})]
    found = {
        (name, seed): [each for suite in SUITES for each in suite.by_length(run / name / f"seed-{seed}" / "scores")]
        for name, seed in rows
    }
    trained = {method["name"] for method in plan["methods"] if method["trained"]}
    return summarised(found, plan["original_length"], plan["baseline"], trained, resamples=resamples)


def _measured(
    measure: Measure, methods: Sequence[str], trained: set[str], baseline: str, resamples: int
) -> dict[str, Any]:
    units, scale = measure.units(), 100.0 if measure.unit == "%" else 1.0
    values, draws = {}, {}
    for method in methods:
        seeds = measure.seeds(method)
        if not seeds:
            continue
        found = resample(measure.totals(method, seeds), units, resamples=resamples)
        interval = found.interval().within(0, 1 if measure.unit == "%" else math.inf)
        values[method] = {
            **interval.as_dict(scale=scale),
            "seeds": len(seeds),
            "documents": len(units.weights),
            "by_seed": [scale * each for each in found.by_seed],
        }
        both_trained = {method, baseline} <= trained
        if method != baseline and (common := common_seeds(seeds, measure.seeds(baseline), both_trained)):
            mine, other = common
            ours, theirs = measure.totals(method, mine), measure.totals(baseline, other)
            draws[method] = paired(ours, theirs, units, resamples=resamples)
    p_values = [found.p_value() for found in draws.values()]
    differences = {}
    for (method, found), p, adjusted in zip(draws.items(), p_values, holm(p_values), strict=True):
        interval = found.interval()
        real = interval.clear and adjusted < LEVEL
        shown = {"p": p, "holm": adjusted, "real": bool(real), "seeds": len(found.by_seed)}
        differences[method] = {**interval.as_dict(scale=scale), **shown}
    facts = {key: getattr(measure, key) for key in ("id", "title", "unit", "better", "group", "task", "length")}
    return {**facts, "documents": len(units.weights), "values": values, "differences": differences}


def _reading(plan: dict[str, Any], measures: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences on the main measures, none of which claims more than its interval."""
    titles = {method["name"]: method["title"] for method in plan["methods"]}
    baseline, target = titles[plan["baseline"]], plan["target_length"]
    sentences: list[str] = []
    for measure in measures:
        if measure["id"] not in ("loss-long", "loss-short", *(f"{of}-{target}" for of in MEANS)):
            continue
        better: list[str] = []
        worse: list[str] = []
        open_: list[str] = []
        lost: list[str] = []
        for name, found in measure["differences"].items():
            if not math.isfinite(found["value"]):
                lost.append(titles[name])
                continue
            improves = (found["value"] < 0) == (measure["better"] == "lower")
            (open_ if not found["real"] else better if improves else worse).append(titles[name])
        groups = {"Better": better, "Worse": worse, "No difference shown": open_, "Not finite": lost}
        if plan["baseline"] not in measure["values"]:
            groups = {"Not compared, as the baseline has no value": [titles[name] for name in measure["values"]]}
        elif apart := [titles[n] for n in measure["values"] if n not in {plan["baseline"], *measure["differences"]}]:
            groups["Not compared, as no seed is the baseline's too"] = apart
        parts = [f"{words}: {'; '.join(names)}." for words, names in groups.items() if names]
        if not parts:
            continue
        sentences.append(f"{first_upper(measure['title'])}, against {baseline}. {' '.join(parts)}")
    seeds = plan["seeds"]
    if len(seeds) < FEWEST_SEEDS:
        sentences.append(
            f"{len(seeds)} training seed{'s' if len(seeds) > 1 else ''}: intervals hold the spread of documents only, "
            "and say nothing of what another seed would give."
        )
    return sentences


def _not_measured(plan: dict[str, Any], measures: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence on what the recipe asks for and no method has: nothing that was measured is missing without a word."""
    there, asked = {measure["id"] for measure in measures}, dict[str, str]()
    evaluation = plan.get("evaluation")
    for suite, settings in asked_suites(read_evaluation(evaluation, "plan.json")) if evaluation else ():
        asked |= suite.asked(settings)
    missing = [words for start, words in asked.items() if not any(_is(name, start) for name in there)]
    if not missing:
        return []
    return [
        f"Asked for, and without a value in any method: {'; '.join(missing)}. What there is of it stands in the "
        "methods' folders."
    ]


def _notes(run: Path, plan: dict[str, Any]) -> list[str]:
    """What suites have to say of rows' values; once where several rows have it."""
    found: dict[str, dict[str, None]] = {}
    for method in plan["methods"]:
        for seed in sorted({0, *plan["seeds"]}):
            for suite in SUITES:
                for note in suite.notes(run / method["name"] / f"seed-{seed}" / "scores"):
                    found.setdefault(note, {})[method["title"]] = None
    return [f"{'; '.join(titles)}: {note}" for note, titles in found.items()]


def _is(name: str, asked: str) -> bool:
    first, _, last = asked.partition("{}")
    if last:
        return name.startswith(first) and name.endswith(last)
    return name == asked or (asked.endswith("-") and name.startswith(asked))
