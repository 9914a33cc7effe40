"""Paired differences between the rows of a run, and what may be read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.evaluation.statistics.intervals import Interval, paired_difference
from harpe.files import read_json, read_jsonl, write_json
from harpe.report.wording import first_upper

GATED = ("single", "multi_key", "multi_query")
"""The needle tasks whose mean is compared: multi_value is shown, but small models do not master it even in their own
context."""


def _loss(scores: Path, long: bool) -> tuple[list[float], list[float]]:
    """Loss (a sum) and number of tokens of every document, in the last bin or in short windows."""
    rows = sorted(read_jsonl(scores / "perplexity.jsonl"), key=lambda row: row["document"])
    if long:
        return [row["nll"][-1] for row in rows], [row["tokens"][-1] for row in rows]
    return [row["short_nll"] for row in rows], [row["short_tokens"] for row in rows]


def _answers(scores: Path, length: int) -> list[float]:
    """Score of every sample of the gated tasks at a length, in a fixed order."""
    rows = [row for row in read_jsonl(scores / "needles.jsonl") if row["length"] == length and row["task"] in GATED]
    return [row["score"] for row in sorted(rows, key=lambda row: (row["task"], row["index"]))]


def difference(run: Path, first: str, second: str, measure: str, length: int) -> Interval:
    """Row `first` minus row `second` on the same documents or samples, with a paired bootstrap.

    Parameters
    ----------
    measure
        `long` or `short` (loss in nats a token), or `needles` (mean score of the gated tasks at `length`, in percentage
        points).
    """
    a, b = run / first / "scores", run / second / "scores"
    if measure == "needles":
        found = paired_difference(_answers(a, length), _answers(b, length))
        return Interval(**found.as_dict(scale=100), units=len(_answers(a, length)) // len(GATED))
    (x, tokens), (y, _) = _loss(a, measure == "long"), _loss(b, measure == "long")
    return paired_difference(x, y, tokens)


def gated_mean(scores: Path, length: int) -> float:
    """Mean score of the gated tasks at a length, 0..1."""
    tasks = {t["task"]: t["score"] for t in read_json(scores / "needles.json")["tasks"] if t["length"] == length}
    return float(sum(tasks[name] for name in GATED) / len(GATED))


def summarise_run(run: Path, control: str = "one-base", generation: dict[str, str] | None = None) -> dict[str, Any]:
    """summary.json of a run: what every trained row differs by from the untouched model and from the control, in
    sentences that claim what is shown.

    Parameters
    ----------
    control
        Name of the row that the others are compared with. The row without training is the untouched model.
    """
    plan = read_json(run / "plan.json")
    untouched = next(row["name"] for row in plan["methods"] if not row["trained"])
    titles = {row["name"]: row["title"] for row in plan["methods"]}
    others = [row["name"] for row in plan["methods"] if row["trained"] and row["name"] != control]
    measured = read_json(run / control / "scores" / "perplexity.json")
    target, original, last = measured["length"], measured["short"]["length"], measured["long"]
    measures = (
        ("long", f"loss at positions {last['start']:,} to {last['end']:,}", "nats a token"),
        ("short", f"loss in windows of {original:,} tokens", "nats a token"),
        ("needles", f"needles found at {target:,} tokens (single, multi-key, multi-query)", "points"),
    )
    differences, reading = [], [_found(run, titles, untouched, target)]
    for first in others:
        for second in (untouched, control):
            for measure, words, unit in measures:
                found = difference(run, first, second, measure, target)
                facts = {**found.as_dict(), "unit": unit, "significant": bool(found.clear)}
                name = f"{titles[first]} minus {titles[second]}"
                differences.append({"name": name, "measure": words, **facts})
                if second == control:
                    reading.append(_against(titles[first], differences[-1]))
    reading.append(
        f"{first_upper(titles[control])}, in the middle of HARPE's range and trained on the same tokens, tells whether "
        "different bases matter or only larger ones. Intervals are over documents and samples, each by itself. This is "
        "one training of a very small model: it shows that the extension works, not which method is better in general."
    )
    return {"differences": differences, "reading": reading, "generation": generation}


def renew_summary(run: Path) -> None:
    """summary.json of a quickstart again, where there is one, of the scores that are there now; without differences
    where some row has none, or no needles."""
    path = run / "summary.json"
    if not path.is_file():
        return
    generation = read_json(path).get("generation")
    rows = [run / row["name"] / "scores" for row in read_json(run / "plan.json")["methods"]]
    measured = all(map(_measured, rows))
    nothing: dict[str, Any] = {"differences": [], "reading": [], "generation": generation}
    write_json(path, summarise_run(run, generation=generation) if measured else nothing)


def _measured(scores: Path) -> bool:
    """Whether all is there that sentences are about, at one length."""
    loss, needles = scores / "perplexity.json", scores / "needles.json"
    if not (loss.is_file() and needles.is_file()):
        return False
    length = read_json(loss)["length"]
    return {*GATED} <= {task["task"] for task in read_json(needles)["tasks"] if task["length"] == length}


def _found(run: Path, titles: dict[str, str], untouched: str, target: int) -> str:
    """How many needles every row finds."""
    means = {name: f"{gated_mean(run / name / 'scores', target):.1%}" for name in titles}
    after = ", ".join(f"{titles[name]} {mean}" for name, mean in means.items() if name != untouched)
    return (
        f"At {target:,} tokens the untouched model finds {means[untouched]} of the needles (mean of single, multi-key "
        f"and multi-query); after training {after}."
    )


def _against(title: str, d: dict[str, Any]) -> str:
    """What a difference to the control shows."""
    better = (d["value"] > 0) == (d["unit"] == "points")
    digits = 1 if d["unit"] == "points" else 4
    value, low, high = (f"{d[key]:+.{digits}f}".replace("-", "−") for key in ("value", "low", "high"))
    verdict = f"{title} is {'better' if better else 'worse'}" if d["significant"] else "no difference is shown"
    return f"{title} against the control, {d['measure']}: {value} {d['unit']} [{low}, {high}]: {verdict}."
