"""Paired differences between the rows of a run, and what may be read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.evaluation.statistics.intervals import Interval, paired_difference
from harpe.files import read_json, read_jsonl

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
        return Interval(**found.as_dict(scale=100))
    (x, tokens), (y, _) = _loss(a, measure == "long"), _loss(b, measure == "long")
    return paired_difference(x, y, tokens)


def gated_mean(scores: Path, length: int) -> float:
    """Mean score of the gated tasks at a length, 0..1."""
    tasks = {t["task"]: t["score"] for t in read_json(scores / "needles.json")["tasks"] if t["length"] == length}
    return float(sum(tasks[name] for name in GATED) / len(GATED))


def summarise_run(run: Path, generation: dict[str, str] | None = None) -> dict[str, Any]:
    """summary.json of a run with the rows base, harpe and one-base: differences, and sentences that claim what they
    show."""
    plan = read_json(run / "plan.json")
    target, original = plan["target_length"], plan["original_length"]
    last = read_json(run / "harpe" / "scores" / "perplexity.json")["long"]
    measures = (
        ("long", f"loss at positions {last['start']:,} to {last['end']:,}", "nats a token"),
        ("short", f"loss in windows of {original:,} tokens", "nats a token"),
        ("needles", f"needles found at {target:,} tokens (single, multi-key, multi-query)", "points"),
    )
    differences = []
    for second, title in (("base", "HARPE minus untouched"), ("one-base", "HARPE minus one base")):
        for measure, words, unit in measures:
            found = difference(run, "harpe", second, measure, target)
            facts = {**found.as_dict(), "unit": unit, "significant": bool(found.clear)}
            differences.append({"name": title, "measure": words, **facts})
    return {"differences": differences, "reading": _reading(run, differences, target), "generation": generation}


def _reading(run: Path, differences: list[dict[str, Any]], target: int) -> list[str]:
    before, after, control = (gated_mean(run / name / "scores", target) for name in ("base", "harpe", "one-base"))
    sentences = [
        f"At {target:,} tokens the untouched model finds {before:.1%} of the needles (mean of single, multi-key and "
        f"multi-query), after HARPE {after:.1%}, after the control with one base {control:.1%}."
    ]
    against = [d for d in differences if d["name"] == "HARPE minus one base"]
    for d in against:
        better = (d["value"] > 0) == (d["unit"] == "points")
        digits = 1 if d["unit"] == "points" else 4
        value, low, high = (f"{d[key]:+.{digits}f}".replace("-", "−") for key in ("value", "low", "high"))
        verdict = f"HARPE is {'better' if better else 'worse'}" if d["significant"] else "no difference is shown"
        sentences.append(f"Against the control, {d['measure']}: {value} {d['unit']} [{low}, {high}]: {verdict}.")
    sentences.append(
        "The control, one base in the middle of the same range trained on the same tokens, tells whether different "
        "bases matter or only larger ones. This is one run of a very small model: it shows that the extension works, "
        "not which method is better in general."
    )
    return sentences
