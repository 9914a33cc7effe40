"""Effective length and length score of runs and comparisons: from the records to the files and the page."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harpe.comparison.summary import complete, summarise
from harpe.errors import HarpeError
from harpe.files import read_json, write_json, write_jsonl
from harpe.report.page import write_report
from harpe.runs.length_scores import write_lengths

LENGTHS, DEPTHS, TRAINED = (16, 32, 64, 128), (0.0, 1.0), 32
Chance = Callable[[int, int], float]
"""Whether a sample (its number) is found at a length: 0, 1, or between the two depths."""


def write_grid(scores: Path, chance: Chance, samples: int = 40, texts: str = "a") -> None:
    rows = [
        {"task": "single", "length": n, "depth": d, "index": i, "score": chance(n, i)}
        for n in LENGTHS
        for d in DEPTHS
        for i in range(samples)
    ]
    write_jsonl(scores / "grid.jsonl", rows[::-1])
    ends = {"low": 0.0, "high": 1.0, "samples": samples}
    cells = [[{"score": sum(chance(n, i) for i in range(samples)) / samples, **ends} for _ in DEPTHS] for n in LENGTHS]
    write_json(scores / "grid.json", {"lengths": LENGTHS, "depths": DEPTHS, "cells": cells})
    write_json(scores / "protocol.json", {"held_out": texts})


def write_needles(scores: Path, found: dict[tuple[str, int], list[float]]) -> None:
    rows = [
        {"task": task, "length": n, "index": i, "score": s}
        for (task, n), those in found.items()
        for i, s in enumerate(those)
    ]
    write_jsonl(scores / "needles.jsonl", rows)
    tasks = [
        {"task": t, "length": n, "score": float(np.mean(s)), "low": 0.0, "high": 1.0, "samples": len(s)}
        for (t, n), s in found.items()
    ]
    write_json(scores / "needles.json", {"tasks": tasks})
    write_json(scores / "protocol.json", {"held_out": "a"})


def write_plan(run: Path, names: dict[str, bool], **more: Any) -> None:
    sizes = ("layers", "query_heads", "key_value_heads", "head_dim", "rotary_dim", "parameters", "original_length")
    methods = [
        {
            "name": name,
            "title": f"The {name}",
            "explanation": "",
            "trained": trained,
            "bases": [2e4, 3e4 if name == "harpe" else 2e4],
            "control": False,
            "per_head": name == "harpe",
        }
        for name, trained in names.items()
    ]
    plan = {
        "title": "t",
        "model": {"name": "m", "model_type": "llama", "base": 1e4, **dict.fromkeys(sizes, 2)},
        "original_length": TRAINED,
        "target_length": LENGTHS[-1],
        "range": {"low": 1e4, "high": 2e4, "reference": 1e4, "why": ""},
        "reasons": [],
        "methods": methods,
        "training": {},
        "corpus": {},
    }
    write_json(run / "plan.json", {**plan, **more})


def falling(shares: dict[int, float]) -> Chance:
    """The first samples of 40 are found, as many as the share says."""
    return lambda length, index: float(index < round(40 * shares[length]))


def by_id(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task["id"]: task for task in value["tasks"]}


def test_a_run_has_them_of_the_grid_and_of_the_needle_tasks_with_paired_differences(tmp_path: Path) -> None:
    shares = {
        "base": dict(zip(LENGTHS, (1.0, 0.9, 0.2, 0.0), strict=True)),
        "harpe": dict(zip(LENGTHS, (0.9, 1.0, 0.8, 0.9), strict=True)),
        "one-base": dict(zip(LENGTHS, (0.9, 1.0, 0.8, 0.9), strict=True)),
    }
    for name, each in shares.items():
        write_grid(tmp_path / name / "scores", falling(each))
        needles = {(t, n): [1.0] * 8 for t in ("single", "multi_key", "multi_query") for n in (32, 128)}
        write_needles(tmp_path / name / "scores", needles)
    write_plan(tmp_path, {"base": False, "harpe": True, "one-base": True})
    write_lengths(tmp_path)
    value = read_json(tmp_path / "lengths.json")
    tasks = by_id(value)
    assert value["reference"] == "one-base" and list(tasks)[:2] == ["grid", "needles-mean"] and len(tasks) == 5
    base, harpe = (tasks["grid"]["methods"][name] for name in ("base", "harpe"))
    assert [s["value"] for s in base["scores"]] == pytest.approx([100, 90, 20, 0])
    assert (base["base"]["value"], base["effective"]["value"], base["effective"]["low"]) == (100, 32, 16)
    # 85 of 100 are kept at 128 tokens, though not at 64
    assert harpe["effective"] == {"value": 128, "low": 32, "high": 128, "failed_below": [64]}
    assert base["area"]["value"] == pytest.approx((95 + 55 + 10) / 3)
    assert tasks["grid"]["units"] == 40 and tasks["needles-mean"]["units"] == 48
    same, other = (tasks["grid"]["differences"][name] for name in ("harpe", "base"))
    assert (same["value"], same["low"], same["high"], same["real"]) == (0, 0, 0, False)
    assert other["real"] and other["value"] == pytest.approx(160 / 3 - (95 + 90 + 85) / 3)
    page = write_report(tmp_path).read_text()
    part = page.split('id="lengths"')[1].split("</section>")[0]
    assert "The harpe falls below at 64 tokens and keeps enough again at 128." in part
    assert "<b>≥ 128</b><small>32–≥ 128</small>" in part and "<b>32</b><small>16–32</small>" in part
    assert "<b>100.0%</b>" in part and "× 0.85: 85.0%" in part and "Task by task (3)" in part
    pictures = re.findall(r'aria-label="The (\w+-?\w*): single needle[^"]*effective length (\d+) tokens\."', part)
    assert pictures == [("base", "32"), ("harpe", "128"), ("one-base", "128")]


def test_what_cannot_be_told_is_said_and_nothing_is_claimed(tmp_path: Path) -> None:
    shares = {
        "base": dict.fromkeys(LENGTHS, 0.0),
        "lucky": dict.fromkeys(LENGTHS, 0.05),
        "gone": dict.fromkeys(LENGTHS, 1),
    }
    for name, each in shares.items():
        write_grid(tmp_path / name / "scores", falling(each))
        write_needles(tmp_path / name / "scores", {("single", 128): [1.0, 0.0]})
    write_plan(tmp_path, dict.fromkeys(shares, True), original_length=8)
    write_lengths(tmp_path)
    grid = by_id(read_json(tmp_path / "lengths.json"))["grid"]["methods"]
    assert all(each["effective"] is None and each["area"] for each in grid.values())
    assert "not asked within the 8 tokens of the training" in grid["gone"]["reason"]
    write_plan(tmp_path, dict.fromkeys(shares, True))
    write_lengths(tmp_path)
    tasks = by_id(read_json(tmp_path / "lengths.json"))
    grid, single = tasks["grid"]["methods"], tasks["needles-single"]
    assert grid["base"]["effective"] is None and "0.0%, is not told from 0" in grid["base"]["reason"]
    # 2 of 40 samples: one draw in eight has neither
    assert grid["lucky"]["effective"] is None and "5.0%, is not told from 0" in grid["lucky"]["reason"]
    assert grid["gone"]["effective"]["value"] == 128
    assert single["differences"] == {} and single["methods"]["base"]["area"] is None
    assert single["methods"]["base"]["reason"] == "asked at 128 tokens alone: how far it reaches cannot be told"
    page = write_report(tmp_path).read_text()
    assert "No effective length: The base (its short score, 0.0%, is not told from 0" in page
    assert "asked at 128 tokens alone: how far it reaches cannot be told" in page


def test_rows_asked_other_samples_are_refused_by_name_and_those_cut_short_left_out(tmp_path: Path) -> None:
    everything = falling(dict.fromkeys(LENGTHS, 1.0))
    for name in ("base", "harpe"):
        write_grid(tmp_path / name / "scores", everything)
    write_plan(tmp_path, {"base": False, "harpe": True})
    write_grid(tmp_path / "harpe" / "scores", everything, texts="b")
    with pytest.raises(HarpeError, match=r"harpe \(seed 0\) was asked other samples than base"):
        write_lengths(tmp_path)
    rows = [{"task": "single", "length": n, "depth": 0.0, "index": 0, "score": 1.0} for n in LENGTHS[:2]]
    write_jsonl(tmp_path / "harpe" / "scores" / "grid.jsonl", rows)
    write_lengths(tmp_path)
    grid = by_id(read_json(tmp_path / "lengths.json"))["grid"]
    assert grid["incomplete"] == ["harpe"] and list(grid["methods"]) == ["base"]
    assert "left out: The harpe." in write_report(tmp_path).read_text()


def write_ruler(scores: Path, length: int, shares: dict[str, float], samples: int = 30) -> None:
    folder = scores / f"ruler-{length}"
    rows = [
        {"task": task, "sample": i, "score": float(i < round(samples * share))}
        for task, share in shares.items()
        for i in range(samples)
    ]
    write_jsonl(folder / "answers.jsonl", rows)
    write_json(folder / "ruler.json", {"length": length, "tasks": {}})


def test_a_comparison_has_them_over_seeds_in_summary_page_and_tables(tmp_path: Path) -> None:
    for name, seeds, kept in (("none", 1, 0.1), ("abf", 3, 0.6), ("harpe", 3, 1.0)):
        for seed in range(seeds):
            scores = tmp_path / name / f"seed-{seed}" / "scores"
            for length, share in ((16, 1.0), (32, 1.0), (64, kept), (128, kept)):
                write_ruler(scores, length, {"vt": share, "cwe": share / 2})
    plan = {"kind": "comparison", "baseline": "abf", "seeds": [0, 1, 2]}
    write_plan(tmp_path, {"none": False, "abf": True, "harpe": True}, **plan)
    value = summarise(tmp_path, resamples=500)
    tasks = by_id(value["lengths"])
    assert list(tasks) == ["ruler-vt", "ruler-cwe"]
    vt = tasks["ruler-vt"]["methods"]
    assert {name: (m["seeds"], m["effective"]["value"]) for name, m in vt.items()} == {
        "none": (1, 32),
        "abf": (3, 32),
        "harpe": (3, 128),
    }
    assert vt["harpe"]["area"]["value"] == 100 and vt["abf"]["area"]["value"] == pytest.approx((100 + 80 + 60) / 3)
    differences = tasks["ruler-vt"]["differences"]
    assert differences["harpe"]["real"] and differences["harpe"]["value"] == pytest.approx(20)
    assert differences["none"]["real"] and differences["none"]["holm"] >= differences["none"]["p"]
    page = write_report(tmp_path).read_text()
    part = page.split('id="lengths"')[1].split("</section>")[0]
    assert "Task by task (2)" in part and 'class="better"' in part and "+20.0 (" in part
    rows = list(csv.DictReader((tmp_path / "report" / "tables.csv").open()))
    found = {(row["measure"], row["method"]): row for row in rows}
    effective, area = (found[f"{kind}-ruler-vt", "harpe"] for kind in ("effective-length", "length-score"))
    assert (effective["unit"], effective["value"], effective["status"]) == ("tokens", "128", "measured")
    assert (area["value"], area["verdict"], area["seeds"], area["documents"]) == ("100.0", "real: better", "3", "120")
    assert "## By length: RULER vt" in (tmp_path / "report" / "tables.md").read_text()
    # a summary of an earlier version gets them, and keeps the rest
    write_json(tmp_path / "summary.json", {**{k: v for k, v in value.items() if k != "lengths"}, "reading": ["kept"]})
    complete(tmp_path)
    again = read_json(tmp_path / "summary.json")
    assert again["reading"] == ["kept"] and by_id(again["lengths"]).keys() == tasks.keys()


def test_scores_by_length_go_with_the_answers_that_they_were_of(tmp_path: Path) -> None:
    for name in ("base", "harpe"):
        write_grid(tmp_path / name / "scores", falling(dict.fromkeys(LENGTHS, 1.0)))
    write_plan(tmp_path, {"base": False, "harpe": True})
    write_lengths(tmp_path)
    assert (tmp_path / "lengths.json").is_file()
    for name in ("base", "harpe"):
        (tmp_path / name / "scores" / "grid.jsonl").unlink()
        (tmp_path / name / "scores" / "grid.json").unlink()
    write_lengths(tmp_path)
    assert not (tmp_path / "lengths.json").exists()
