"""What a run's summary says of its rows is what their records hold, and its outcome is the row that its plan names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harpe.commands.export import export
from harpe.errors import HarpeError
from harpe.files import read_json, read_jsonl, write_json, write_jsonl
from harpe.options.runs import ExportOptions
from harpe.report.page import write_report
from harpe.report.read.run import read_run
from harpe.runs.differences import GATED, difference, renew_summary, summarise_run

from .test_length_scores import write_plan

SHORT, TARGET = 32, 128
ROWS = {"base": (6.0, 3.2, 0), "yarn": (2.1, 2.8, 40), "harpe": (2.3, 2.9, 38), "one-base": (2.2, 2.9, 38)}
"""Of each row: loss at the end and in short windows, and needles found of 40 a task."""


def write_scores(scores: Path, long: float, short: float, found: int, noise: float) -> None:
    """Records of 12 documents of several lengths, with noise that is small beside what the rows differ by."""
    rows = []
    for document in range(12):
        tokens = 40 + document
        nll = [tokens * (loss + 0.3 * (document % 3) + (-1) ** document * noise) for loss in (short, long)]
        rows.append(
            {"document": document, "nll": nll, "tokens": [tokens] * 2, "short_nll": nll[0], "short_tokens": tokens}
        )
    write_jsonl(scores / "perplexity.jsonl", rows[::-1])
    ends = {"low": 1.0, "high": 9.0}
    of_short, of_long = (
        float(np.exp(sum(row["nll"][i] for row in rows) / sum(row["tokens"][i] for row in rows))) for i in (0, 1)
    )
    bins = [
        {"start": start, "end": end, "nll": loss, "tokens": 1, **ends}
        for start, end, loss in ((0, SHORT, short), (64, TARGET, long))
    ]
    summary: dict[str, Any] = {"documents": 12, "length": TARGET, "bins": bins}
    summary |= {"short": {"length": SHORT, "perplexity": of_short, **ends}}
    summary["long"] = {"start": 64, "end": TARGET, "perplexity": of_long, **ends}
    write_json(scores / "perplexity.json", summary)
    hits = {(task, n): found if n == TARGET else 40 for task in GATED for n in (SHORT, TARGET)}
    answers = {place: [float(i < count) for i in range(40)] for place, count in hits.items()}
    rows = [{"task": t, "length": n, "index": i, "score": s} for (t, n), a in answers.items() for i, s in enumerate(a)]
    write_jsonl(scores / "needles.jsonl", rows)
    tasks = [
        {"task": t, "length": n, "score": sum(those) / 40, "low": 0.0, "high": 1.0, "samples": 40}
        for (t, n), those in answers.items()
    ]
    write_json(scores / "needles.json", {"tasks": tasks})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for number, (name, row) in enumerate(ROWS.items()):
        write_scores(tmp_path / name / "scores", *row, 0.002 * number)
    write_plan(tmp_path, {name: name != "base" for name in ROWS}, extended="yarn")
    return tmp_path


def mean_loss(run: Path, name: str, key: str, count: str, place: int | None) -> float:
    """Over all tokens, from a row's records."""
    rows = read_jsonl(run / name / "scores" / "perplexity.jsonl")
    pick = (lambda v: v) if place is None else (lambda v: v[place])
    return sum(pick(row[key]) for row in rows) / sum(pick(row[count]) for row in rows)


def test_every_trained_row_is_compared_with_the_untouched_model_and_with_the_control(run: Path) -> None:
    summary = summarise_run(run)
    names = [d["name"] for d in summary["differences"]]
    assert names[::3] == [f"The {a} minus The {b}" for a in ("yarn", "harpe") for b in ("base", "one-base")]
    for d in summary["differences"]:
        first, second = (words.removeprefix("The ") for words in d["name"].split(" minus "))
        if d["unit"] == "points":
            expected = 100 * (ROWS[first][2] - ROWS[second][2]) / 40
        else:
            which = ("nll", "tokens", -1) if "positions" in d["measure"] else ("short_nll", "short_tokens", None)
            expected = mean_loss(run, first, *which) - mean_loss(run, second, *which)
        assert d["value"] == pytest.approx(expected, abs=1e-9), d
        assert d["low"] <= d["value"] <= d["high"] and d["significant"] == (d["low"] > 0 or d["high"] < 0)


def test_sentences_claim_what_is_shown(run: Path) -> None:
    first, *against, last = summarise_run(run)["reading"]
    assert "untouched model finds 0.0%" in first and "The yarn 100.0%, The harpe 95.0%, The one-base 95.0%" in first
    assert [("is better" in s, "is worse" in s, "no difference is shown" in s) for s in against] == [
        (True, False, False),  # YaRN: loss at the end, in short windows, needles
        (True, False, False),
        (True, False, False),
        (False, True, False),  # HARPE
        (False, False, True),
        (False, False, True),
    ]
    assert "one training" in last


def test_sentences_are_renewed_with_the_scores_and_what_was_generated_stays(run: Path) -> None:
    renew_summary(run)  # of a run without sentences
    assert not (run / "summary.json").exists()
    said = {"prompt": "p", "text": "t"}
    write_json(run / "summary.json", summarise_run(run, generation=said))
    write_scores(run / "harpe" / "scores", *ROWS["yarn"], 0.0)
    renew_summary(run)
    value = read_json(run / "summary.json")
    assert "The yarn 100.0%, The harpe 100.0%" in value["reading"][0] and value["generation"] == said
    (run / "harpe" / "scores" / "needles.json").unlink()
    renew_summary(run)
    value = read_json(run / "summary.json")
    assert value["reading"] == value["differences"] == [] and value["generation"] == said


def test_the_page_and_an_export_take_the_model_that_the_plan_names(run: Path) -> None:
    tiles = write_report(run).read_text().split('class="tiles"')[1].split("</div>\n</div>")[0]
    values = read_json(run / "yarn" / "scores" / "perplexity.json")
    assert f'<span class="now">{values["long"]["perplexity"]:.2f}</span>' in tiles and "100.0%" in tiles
    assert "The harpe: " in tiles and "The one-base: " in tiles
    with pytest.raises(HarpeError, match="The yarn has no model yet"):
        export(ExportOptions(source=str(run), out=str(run / "out")))
    # plans of before name none
    write_plan(run, {name: name != "base" for name in ROWS})
    assert read_run(run).after.name == "harpe"  # type: ignore[union-attr]
    write_plan(run, {"base": False, "yarn": True})
    assert read_run(run).after.name == "yarn"  # type: ignore[union-attr]
    write_plan(run, {"base": False, "yarn": True}, extended="gone")
    with pytest.raises(HarpeError, match="'gone' is none of the methods"):
        read_run(run)


def test_sentences_are_of_the_lengths_that_were_measured(run: Path) -> None:
    """Also where the run was measured at others than its plan's."""
    write_plan(run, {name: name != "base" for name in ROWS}, extended="yarn", original_length=16, target_length=64)
    summary = summarise_run(run)
    measures = {d["measure"] for d in summary["differences"]}
    assert f"loss in windows of {SHORT} tokens" in measures and f"At {TARGET} tokens" in summary["reading"][0]
    write_json(run / "summary.json", summary)
    for name in ROWS:  # needles left out
        file = run / name / "scores" / "needles.json"
        write_json(file, {"tasks": [task for task in read_json(file)["tasks"] if task["task"] != "single"]})
    renew_summary(run)
    assert read_json(run / "summary.json")["reading"] == []


def test_five_samples_a_task_make_no_difference_clear(run: Path) -> None:
    for samples, clear in ((5, False), (6, True)):
        for name, score in (("harpe", 1.0), ("one-base", 0.0)):
            rows = [{"task": t, "length": TARGET, "index": i, "score": score} for t in GATED for i in range(samples)]
            write_jsonl(run / name / "scores" / "needles.jsonl", rows)
        assert difference(run, "harpe", "one-base", "needles", TARGET).clear == clear
