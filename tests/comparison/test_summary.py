"""What a comparison says of its measures: no certainty from few samples, nothing left out without a word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harpe.comparison import summary
from harpe.comparison.suites.base import Measure
from harpe.comparison.suites.standard import _grid
from harpe.comparison.summary import _measured, _reading, complete
from harpe.files import read_json, write_json, write_jsonl

TITLES = {"base": "Base", "a": "Row A", "b": "Row B"}


def measure_of(found: dict[tuple[str, int], list[float]]) -> Measure:
    measure = Measure("loss-long", "loss at the far end", "nats", "lower", "perplexity")
    for key, losses in found.items():
        measure.found[key] = [((i,), 0, loss, 1.0) for i, loss in enumerate(losses)]
    return measure


def told(found: dict[tuple[str, int], list[float]], seeds: list[int]) -> tuple[dict[str, Any], str]:
    """The summary of one measure, and the sentence on it."""
    value = _measured(measure_of(found), list(TITLES), set(TITLES), "base", 500)
    methods = [{"name": name, "title": title} for name, title in TITLES.items()]
    plan = {"methods": methods, "baseline": "base", "target_length": 64, "seeds": seeds}
    return value, _reading(plan, [value])[0]


def losses(mean: float, seed: int) -> list[float]:
    return (mean + np.random.default_rng(seed).normal(0, 0.01, 12)).tolist()


def test_the_cells_of_a_needle_grid_are_of_the_same_samples_and_count_once(tmp_path: Path) -> None:
    rows = [
        {"length": length, "depth": depth, "index": index, "score": float(index == 0 or depth < 0.3)}
        for length in (64, 128)
        for depth in (0.0, 0.5, 1.0)
        for index in (0, 1)
    ]
    write_json(tmp_path / "grid.json", {})
    write_jsonl(tmp_path / "grid.jsonl", rows)
    ((measure, records),) = _grid(tmp_path)
    assert [(key[-1], stratum, weight) for key, stratum, _, weight in records] == [(0, 0, 1.0), (1, 0, 1.0)]
    assert [score for *_, score, _ in records] == pytest.approx([1.0, 1 / 3])
    measure.found["base", 0] = [(key, 0, 0.0, 1.0) for key, *_ in records]
    measure.found["a", 0] = records
    found = _measured(measure, ["base", "a"], set(), "base", 500)["differences"]["a"]
    assert not found["real"] and found["p"] >= 0.5 and found["low"] == pytest.approx(100 / 3)


def test_a_baseline_without_a_value_and_rows_without_its_seeds_are_named() -> None:
    a, b = {("a", 0): losses(2.0, 1)}, {("b", 1): losses(3.0, 2)}
    assert told(a | b, [0, 1])[1].endswith("Not compared, as the baseline has no value: Row A; Row B.")
    words = told(a | b | {("base", 0): losses(2.5, 3)}, [0, 1])[1]
    assert "Better: Row A." in words and words.endswith("Not compared, as no seed is the baseline's too: Row B.")


def test_a_loss_that_is_not_finite_is_told_as_that() -> None:
    value, words = told({("base", 0): losses(2.0, 1), ("a", 0): [*losses(2.0, 1)[:-1], math.nan]}, [0])
    assert words.endswith("Not finite: Row A.") and value["differences"]["a"]["p"] == 1.0
    assert not value["differences"]["a"]["real"]


def test_a_difference_says_how_many_seeds_it_has() -> None:
    found = {("base", seed): losses(2.0, seed) for seed in (0, 1, 2)} | {("a", 1): losses(1.0, 1)}
    value, _ = told(found, [0, 1, 2])
    assert value["differences"]["a"]["seeds"] == 1 and value["values"]["base"]["seeds"] == 3


def test_what_has_to_be_known_of_short_benchmarks_is_said_once_for_the_rows_that_it_is_of(tmp_path: Path) -> None:
    cut = {"longbench2": {"score": 9.0, "note": "the beginning of 3 questions was cut off"}, "piqa": {"score": 9.0}}
    for name in ("a", "b"):
        write_json(tmp_path / name / "seed-0" / "scores" / "short" / "short.json", {"tasks": cut})
    methods = [{"name": name, "title": title} for name, title in TITLES.items()]
    said = summary._notes(tmp_path, {"methods": methods, "seeds": [0]})
    assert said == ["Row A; Row B: longbench2: the beginning of 3 questions was cut off."]


def test_a_report_is_of_the_scores_that_are_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "check_rows", lambda run, plan: None)
    monkeypatch.setattr(summary, "collect", lambda *given: [])
    monkeypatch.setattr(summary, "_positions", lambda *given: None)
    monkeypatch.setattr(summary, "_lengths", lambda *given: None)
    write_json(tmp_path / "plan.json", {"methods": [{"name": "a", "trained": True}], "seeds": [0], "baseline": "a"})
    scores = tmp_path / "a" / "seed-0" / "scores"
    scores.mkdir(parents=True)
    write_json(scores / "perplexity.json", {"nll": 1.0})
    monkeypatch.setattr(summary, "_reading", lambda plan, measures: ["before"])
    complete(tmp_path)
    monkeypatch.setattr(summary, "_reading", lambda plan, measures: ["after"])
    complete(tmp_path)
    assert read_json(tmp_path / "summary.json")["reading"][0] == "before"
    write_json(scores / "perplexity.json", {"nll": 2.0})
    complete(tmp_path)
    assert read_json(tmp_path / "summary.json")["reading"][0] == "after"
    drawn = {key: value for key, value in read_json(tmp_path / "summary.json").items() if key != "seeds_spread"}
    write_json(tmp_path / "summary.json", drawn | {"reading": ["of seeds that were drawn"]})
    complete(tmp_path)
    assert read_json(tmp_path / "summary.json")["reading"][0] == "after"
    (scores / "perplexity.json").unlink()  # the summary is all that is left
    complete(tmp_path)
    assert read_json(tmp_path / "summary.json")["reading"][0] == "after"
