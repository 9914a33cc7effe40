"""Rows of a comparison that have read other things than the others are refused, whenever it shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harpe.comparison import jobs, worker
from harpe.comparison.inputs import at_commit, check_rows, check_ways, other
from harpe.comparison.recipe import read_recipe
from harpe.comparison.run import compare
from harpe.comparison.summary import complete, summarise
from harpe.comparison.worker import work
from harpe.errors import HarpeError
from harpe.evaluation.identity import MEASURING
from harpe.files import read_json, write_json, write_jsonl
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.options.runs import CompareOptions
from harpe.reporter import Reporter

Compare = Callable[..., Path]


@pytest.fixture
def compared(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Compares an untouched row and one that is put in without training; its workers run in this process."""
    for name in ("held-out", "corpus"):
        shutil.copytree(workspace / "texts", workspace / name)

    def run_worker(workers: Any, run: Path, job: jobs.Job, slot: int) -> str | None:
        try:
            work(run, job[0].name, job[1], Reporter())
        except HarpeError as error:
            return str(error)
        return None

    monkeypatch.setattr(jobs, "run_worker", run_worker)

    def start(*methods: Any) -> Path:
        recipe = {
            "title": "tiny",
            "model": str(workspace / "model"),
            "length": 256,
            "data": str(workspace / "texts"),
            "tokens": 1024,
            "batch_tokens": 512,
            "dtype": "float32",
            "seeds": [0],
            "baseline": "none",
            "methods": list(methods),
            "evaluation": {
                "data": str(workspace / "held-out"),
                "documents": 2,
                "samples": 0,
                "grid_samples": 0,
                "perplexity": {"prose": {"data": str(workspace / "corpus"), "lengths": "64,128", "documents": 2}},
            },
        }
        (workspace / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return compare(CompareOptions(recipe=str(workspace / "recipe.yaml"), out=str(workspace / "run")))

    return start


def change_words(folder: Path) -> Callable[[], None]:
    """Exchange a word for one of the same length in every text; returns what puts it back."""
    before = {file: file.read_text() for file in folder.iterdir()}
    for file, text in before.items():
        file.write_text(text.replace("jumps", "walks"))
    return lambda: [file.write_text(text) for file, text in before.items()] and None


def change_weights(folder: Path) -> Callable[[], None]:
    """Change a number in the weights and nothing else; returns what puts it back."""
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    with torch.no_grad():
        next(model.parameters())[5, 0] += 1
    shutil.rmtree(folder)
    save_checkpoint(model, load_tokenizer("embedded"), folder, 64)
    return lambda: (folder / "model.safetensors").write_bytes(before) and None


PI = {"name": "pi", "train": False}
NTK = {"name": "ntk", "train": False}


def test_a_row_is_added_only_while_weights_and_texts_are_those_that_the_others_have_read(
    compared: Compare, workspace: Path
) -> None:
    run = compared("none", NTK)
    plan, record = read_json(run / "plan.json"), read_json(run / "ntk" / "seed-0" / "record.json")
    assert record["inputs"] == plan["inputs"]
    before = {file: file.read_bytes() for file in (run / "recipe.yaml", run / "plan.json", run / "summary.json")}
    for change, named in (
        (lambda: change_words(workspace / "held-out"), "Held-out texts: not what"),
        (lambda: change_words(workspace / "corpus"), "Texts of prose: not what"),
        (lambda: change_weights(workspace / "model"), "Base weights: not what"),
    ):
        put_back = change()
        with pytest.raises(HarpeError, match=named):
            compared("none", NTK, PI)
        assert {file: file.read_bytes() for file in before} == before and not (run / "pi").exists()
        put_back()
    begun = read_json(run / "ntk" / "stages.json")
    begun["stages"][0]["encoding"]["bases"] = [54321.0, 54321.0]  # as another version would have chosen
    write_json(run / "ntk" / "stages.json", begun)
    compared("none", NTK, PI)  # nothing of the refusals is left behind
    assert read_json(run / "ntk" / "stages.json") == begun
    assert "54,321" in next(m["explanation"] for m in read_json(run / "plan.json")["methods"] if m["name"] == "ntk")
    (loss,) = [m for m in read_json(run / "summary.json")["measures"] if m["id"] == "loss-long"]
    assert set(loss["differences"]) == {"ntk", "pi"}
    for name, key, value in (
        ("record.json", "held_out", "0" * 64),
        ("inputs.json", "model", {"config": "0", "weights": "0"}),
    ):
        file = run / "pi" / "seed-0" / name
        there = read_json(file)
        changed = (
            {**there, key: value} if name == "inputs.json" else {**there, "inputs": {**there["inputs"], key: value}}
        )
        write_json(file, changed)
        for look in (summarise, complete):  # the second is `harpe report`'s
            with pytest.raises(HarpeError, match=r"pi \(seed 0\) differs .*(held-out texts|base weights).*Delete"):
                look(run)
        write_json(file, there)
    (run / "pi" / "seed-0" / "inputs.json").unlink()
    with pytest.raises(HarpeError, match="no inputs.json"):
        complete(run)


def test_a_worker_refuses_what_the_plan_does_not_name(compared: Compare, workspace: Path) -> None:
    run = compared("none")
    shutil.rmtree(run / "none" / "seed-0")
    change_words(workspace / "held-out")
    with pytest.raises(HarpeError, match=r"held-out texts: not what .*plan\.json names"):
        work(run, "none", 0, Reporter())
    assert not (run / "none" / "seed-0" / "scores").exists()


def test_the_time_of_measuring_is_that_of_all_starts_of_a_row(
    compared: Compare, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compared("none")
    record, kept = run / "none" / "seed-0" / "record.json", run / "none" / "seed-0" / "scores" / "seconds.json"
    assert read_json(record)["evaluate_seconds"] > 0 and not kept.exists()
    clock = [1000.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    first = worker.Timed(kept, Reporter())
    for clock[0], seconds in ((1000 + worker.KEPT_EVERY, 30), (1000 + 1.5 * worker.KEPT_EVERY, 30), (1500, 500)):
        first.progress("samples", 1, 2)  # the last one before a kill
        assert read_json(kept)["seconds"] == seconds
    record.unlink()
    work(run, "none", 0, Reporter())  # by a clock that stands
    assert read_json(record)["evaluate_seconds"] == 500 and not kept.exists()


def test_rows_that_do_not_say_what_they_are_of_get_no_new_row(compared: Compare, workspace: Path) -> None:
    run = compared("none", NTK)
    plan = read_json(run / "plan.json")
    write_json(run / "plan.json", {key: value for key, value in plan.items() if key != "inputs"})
    with pytest.raises(HarpeError, match="do not say which weights and texts"):
        compared("none", NTK, PI)


def rows(run: Path, held_out: dict[str, str], data: dict[str, str] | None = None) -> dict[str, Any]:
    """Rows of an earlier version: scores that name their texts, records that name their stream, and no pins."""
    for name, texts in held_out.items():
        folder = run / name / "seed-0"
        lines = [
            {"document": i, "nll": [1.0, 2.0], "tokens": [5, 5], "short_nll": 1.0, "short_tokens": 5} for i in range(3)
        ]
        (folder / "scores").mkdir(parents=True)
        write_jsonl(folder / "scores" / "perplexity.jsonl", lines)
        value = {
            "bins": [{"start": 0, "end": 128}, {"start": 128, "end": 256}],
            "short": {"length": 64},
            "long": {"start": 128, "end": 256},
        }
        write_json(folder / "scores" / "perplexity.json", value)
        write_json(folder / "scores" / "protocol.json", {"held_out": texts})
        if data is not None:
            write_json(folder / "record.json", {"stages": [{"data_hash": data[name]}]})
    methods = [{"name": name, "title": name, "trained": data is not None} for name in held_out]
    plan = {"methods": methods, "seeds": [0], "baseline": next(iter(held_out)), "target_length": 256}
    write_json(run / "plan.json", plan)
    return plan


def test_scores_of_other_texts_with_as_many_tokens_are_never_paired(tmp_path: Path) -> None:
    rows(tmp_path, {"a": "1" * 64, "b": "2" * 64})
    with pytest.raises(HarpeError, match=r"b \(seed 0\) differs from the other methods in this: held-out texts"):
        summarise(tmp_path, resamples=10)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("protocol", {"documents": 2}, "protocol"),
        ("dtype", "bfloat16", "dtype"),
        ("tokenizer", {"bos": None}, "settings of the tokenizer"),
        ("measuring", 3, "way of measuring"),
    ],
)
def test_scores_that_were_measured_in_another_way_are_never_paired(
    tmp_path: Path, key: str, value: Any, named: str
) -> None:
    plan = rows(tmp_path, {"a": "1" * 64, "b": "1" * 64})
    way = {"protocol": {"documents": 3}, "dtype": "float32", "tokenizer": {"bos": 1}, "measuring": 2}
    for name, changes in (("a", {}), ("b", {key: value})):
        write_json(tmp_path / name / "seed-0" / "scores" / "protocol.json", {"held_out": "1" * 64, **way, **changes})
    with pytest.raises(HarpeError, match=rf"b \(seed 0\) differs from the other methods in this: {named} "):
        check_rows(tmp_path, plan)


@pytest.mark.parametrize(
    ("file", "key", "called"),
    [
        ("ruler-128/protocol.json", "answers", "RULER at 128 tokens"),
        ("long/protocol.json", "answers", "long-context tasks"),
        ("curve-books.json", "measurement", "perplexity on books"),
        ("short/short.json", "measurement", "short benchmarks"),
    ],
)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"measuring": 3}, "way of measuring"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"options": {"lm_eval": "0.4.11"}}, "lm_eval"),
    ],
)
def test_scores_of_a_suite_that_were_measured_in_another_way_are_never_paired(
    tmp_path: Path, file: str, key: str, called: str, change: dict[str, Any], named: str
) -> None:
    plan = rows(tmp_path, {"a": "1" * 64, "b": "1" * 64, "old": "1" * 64})
    way = {"name": "a/model", "dtype": "float32", "options": {"lm_eval": "0.4.9"}, "measuring": 2}
    for name, value in (("a", {key: way}), ("b", {key: {**way, "name": "b/model"}}), ("old", {})):
        write_json(tmp_path / name / "seed-0" / "scores" / file, value)
    check_rows(tmp_path, plan)
    write_json(tmp_path / "b" / "seed-0" / "scores" / file, {key: way | change})
    with pytest.raises(HarpeError, match=rf"b \(seed 0\) differs .* in this: {named} of {called} "):
        check_rows(tmp_path, plan)


@pytest.mark.parametrize(
    ("file", "key", "verb"),
    [
        ("protocol.json", None, "evaluate"),
        ("ruler-128/protocol.json", "answers", "ruler"),
        ("long/protocol.json", "answers", "long"),
        ("curve-books.json", "measurement", "perplexity"),
        ("short/short.json", "measurement", "short"),
    ],
)
def test_no_row_is_trained_beside_scores_that_another_version_measured(
    tmp_path: Path, file: str, key: str | None, verb: str
) -> None:
    def write(number: int | None) -> None:
        way = {"measuring": number}
        write_json(tmp_path / "a" / "seed-0" / "scores" / file, {key: way} if key else way)

    for number in (MEASURING[verb], None):  # None: a version that did not say
        write(number)
        check_ways(tmp_path)
    write(MEASURING[verb] + 1)
    with pytest.raises(HarpeError, match=f"{re.escape(file)} was measured by another version of harpe"):
        check_ways(tmp_path)


def test_rows_trained_on_other_streams_of_one_seed_are_never_paired(tmp_path: Path) -> None:
    plan = rows(tmp_path, {"a": "1" * 64, "b": "1" * 64}, {"a": "3" * 64, "b": "4" * 64})
    with pytest.raises(HarpeError, match="training texts of seed 0"):
        check_rows(tmp_path, plan)
    check_rows(
        tmp_path / "alike", rows(tmp_path / "alike", {"a": "1" * 64, "b": "1" * 64}, {"a": "3" * 64, "b": "3" * 64})
    )


def test_a_model_on_the_hub_is_read_at_the_commit_of_the_first_day() -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / "smollm2-135m-32k.yaml")
    assert at_commit(recipe, {"model": {"commit": "abc"}}) == replace(recipe, revision="abc")
    assert at_commit(recipe, {"model": {"config": "a", "weights": "b"}}) == at_commit(recipe, None) == recipe


def test_what_is_pinned_covers_samples_questions_and_streams_and_new_seeds_are_no_difference() -> None:
    pinned: dict[str, Any] = {
        "model": {"commit": "a"},
        "tokenizer": {"sha256": "b"},
        "training": {"0": "c"},
        "held_out": "d",
    }
    pinned |= {"corpora": {"books": "e"}, "ruler": {"128": {"vt": "f"}}, "short": "g"}
    assert other(pinned, pinned) == [] and other(pinned, {**pinned, "training": {"0": "c", "1": "x"}}) == []
    found = {"model": {"commit": "x"}, "tokenizer": {"sha256": "x"}, "training": {"0": "x"}, "held_out": "x"}
    found |= {"corpora": {"books": "x"}, "ruler": {"128": {"vt": "x"}}, "short": "x"}
    assert other(pinned, found) == [
        "base weights",
        "tokenizer",
        "held-out texts",
        "training texts of seed 0",
        "texts of books",
        "RULER samples of vt at 128 tokens",
        "questions of the short benchmarks",
    ]


def test_texts_with_one_order_for_two_seeds_are_told(compared: Compare, workspace: Path) -> None:
    compared("none")
    (workspace / "one").mkdir()
    (workspace / "one" / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    recipe = yaml.safe_load((workspace / "recipe.yaml").read_text())
    recipe |= {"data": str(workspace / "one"), "seeds": [0, 1], "methods": ["none", "abf"]}
    (workspace / "two.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(HarpeError, match=r"one gives seed 1 the same stream .* So few documents have few orders"):
        compare(CompareOptions(recipe=str(workspace / "two.yaml"), out=str(workspace / "two")))
    assert not (workspace / "two" / "plan.json").exists()
