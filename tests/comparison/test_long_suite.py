"""The tasks of `harpe long` in a comparison: the scores are those of the verb, all rows have the same samples, a killed
comparison asks nothing twice, and what cannot be asked is told first."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import harpe.suites.long
from harpe.comparison import jobs
from harpe.comparison.plan import expected_seconds, make_rows
from harpe.comparison.recipe import parse, read_recipe
from harpe.comparison.run import compare
from harpe.comparison.summary import summarise
from harpe.comparison.worker import source_of, work
from harpe.errors import HarpeError
from harpe.evaluation.records import Records
from harpe.files import read_json, read_jsonl, write_json, write_jsonl
from harpe.models.load import load_model
from harpe.options.measuring import LongOptions
from harpe.options.runs import CompareOptions
from harpe.report.page import write_report
from harpe.reporter import Reporter
from harpe.suites.long import run_long, summary

LONG = {"lengths": [256, 320], "tasks": "order-last-4,content-4", "samples": 3}
FILES = {f"{task}-{length}.jsonl" for task in ("order-last-4", "content-4") for length in (256, 320)}


def recipe_of(**changes: Any) -> dict[str, Any]:
    """The model inside the package as it is, and with positions put in without training."""
    return {
        "title": "tiny",
        "model": "embedded",
        "length": 512,
        "data": "embedded",
        "tokens": 2048,
        "batch_tokens": 1024,
        "dtype": "float32",
        "seeds": [0],
        "baseline": "none",
        "methods": ["none", {"name": "ntk", "train": False}],
        "evaluation": {"data": "embedded", "documents": 1, "samples": 0, "grid_samples": 0, "long": LONG},
    } | changes


def start(folder: Path, **changes: Any) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(**changes)))
    return compare(CompareOptions(recipe=str(folder / "recipe.yaml"), out=str(folder / "run")))


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Workers take seconds to import everything; this process has."""

    def run_worker(workers: Any, run: Path, job: jobs.Job, slot: int) -> str | None:
        try:
            work(run, job[0].name, job[1], Reporter())
        except HarpeError as error:
            return str(error)
        return None

    patch.setattr(jobs, "run_worker", run_worker)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A comparison, and the names of the files of samples that were made for it."""
    made: list[str] = []
    real = harpe.suites.long.samples

    def samples(of: Any, *rest: Any) -> Any:
        made.append(f"{of.name}.jsonl")
        return real(of, *rest)

    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        patch.setattr(harpe.suites.long, "samples", samples)
        run = start(tmp_path_factory.mktemp("whole"))
    return run, made


def test_the_scores_of_a_row_are_those_of_the_verb_asked_of_its_model(
    whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, _ = whole
    ours, model = run / "ntk" / "seed-0" / "scores" / "long", run / "ntk" / "seed-0" / "model"
    asked = {**LONG, "lengths": "256,320", "dtype": "float32", "beyond_context": True}
    run_long(LongOptions(model=str(model), out=str(tmp_path / "long"), **asked))
    for name in ("long.json", "long.svg", "answers.jsonl", "protocol.json", *FILES):
        assert (ours / name).read_bytes() == (tmp_path / "long" / name).read_bytes(), name
    verb, found = read_json(tmp_path / "long" / "long.json")["tasks"], read_json(run / "summary.json")
    measures = {measure["id"]: measure for measure in found["measures"]}
    lengths = {task["id"]: task for task in found["lengths"]["tasks"]}
    for task, value in verb.items():
        for cell in value["lengths"]:
            assert measures[f"long-{task}-{cell['length']}"]["values"]["ntk"]["value"] == cell["score"]
        of = lengths[f"long-{task}"]["methods"]["ntk"]
        assert all(of[key] == value[key] for key in ("base", "effective", "area", "reason"))
    assert set(measures["long-mean-320"]["differences"]) == {"ntk"} and "long-mean" in lengths


def test_samples_are_made_once_and_a_row_with_others_is_not_compared(whole: tuple[Path, list[str]]) -> None:
    run, made = whole
    assert sorted(made) == sorted(FILES)
    plan = read_json(run / "plan.json")
    assert {f"{name}.jsonl" for name in plan["inputs"]["long"]} == FILES
    for name in FILES:
        files = [run / "samples" / "long" / name, *(run / row / "seed-0/scores/long" / name for row in ("none", "ntk"))]
        assert len({file.read_bytes() for file in files}) == 1
    file = run / "ntk" / "seed-0" / "scores" / "long" / "content-4-320.jsonl"
    before = file.read_text()
    file.write_text(before.replace("Question", "question", 1))
    with pytest.raises(HarpeError, match=r"ntk \(seed 0\) differs .*long-context samples of content-4 at 320 tokens"):
        summarise(run)
    file.write_text(before)
    summarise(run)


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_asks_nothing_twice(
    whole: tuple[Path, list[str]], tmp_path: Path, fork: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    real, added = Records.add, list[tuple[str, int, int]]()

    def add(self: Records, row: dict[str, Any]) -> None:
        real(self, row)
        if self.path.name == "answers.jsonl":
            added.append((row["task"], row["length"], row["sample"]))

    def killed(self: Records, row: dict[str, Any]) -> None:
        add(self, row)
        if len(added) == 12 + 6:  # all of the first row, and two batches of the second
            os.kill(os.getpid(), signal.SIGKILL)

    def broken() -> int:
        monkeypatch.setattr(Records, "add", killed)
        start(tmp_path)
        return 0

    assert fork(broken).wait() == -signal.SIGKILL
    scores = tmp_path / "run" / "ntk" / "seed-0" / "scores" / "long"
    (part,) = scores.glob("answers.jsonl.*")
    before = [(row["task"], row["length"], row["sample"]) for row in read_jsonl(part) if "task" in row]
    assert not (scores / "long.json").exists()
    monkeypatch.setattr(Records, "add", add)
    run = start(tmp_path)
    asked = {(task, n, i) for task in ("order-last-4", "content-4") for n in LONG["lengths"] for i in range(3)}  # type: ignore[attr-defined]
    assert len(before) == 6 and len(added) == 6 and {*before, *added} == asked
    summaries = [read_json(folder / "summary.json") for folder in (run, whole[0])]
    for each in summaries:
        del each["scores"]  # the hash of files in which answers stand in the order in which they were given
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize(
    ("long", "words"),
    [
        ({"lengths": [256], "tasks": "content-5"}, "long-context in the recipe: --tasks content-5 is no task.*content"),
        ({"lengths": [256], "tasks": ""}, "--tasks names no task"),
        ({"lengths": [256, 256]}, "long-context lengths .*different numbers"),
        ({"lengths": []}, "long-context lengths"),
        ({"lengths": [256, 1024]}, "long-context length 1024, beyond the 512 tokens of the target"),
        ({"lengths": [256], "samples": 0}, "0 samples of long; the least is 1"),
        ({"lengths": [256], "filler": "books"}, "choose noise, essays"),
        ({"lengths": "256"}, "lengths of long"),
        ({"samples": 3}, "lacks lengths"),
    ],
)
def test_a_wrong_recipe_gets_a_sentence(long: dict[str, Any], words: str) -> None:
    with pytest.raises(HarpeError, match=words):
        parse(recipe_of(evaluation={"data": "embedded", "long": long}), "the recipe")


def test_a_length_too_short_for_a_task_is_told_before_texts_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harpe.comparison.run.training_texts", lambda *_, **__: pytest.fail("texts were packed"))
    with pytest.raises(HarpeError, match=r"content-16 cannot be made with 200 tokens .* takes at least \d+"):
        start(
            tmp_path,
            methods=["none", "abf"],
            evaluation={"data": "embedded", "long": {**LONG, "tasks": "content", "lengths": [200]}},
        )
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_does_not_ask_them_is_kept_as_before_there_were_any() -> None:
    plain: dict[str, Any] = {"data": "embedded"}
    kept = [parse(recipe_of(evaluation=each), "x").recipe()["evaluation"] for each in (plain, {**plain, "long": None})]
    assert kept[0] == kept[1] and "long" not in kept[0]
    asked = parse(recipe_of(), "x").recipe()
    assert asked["evaluation"]["long"]["lengths"] == [256, 320] and parse(asked, "x").recipe() == asked


def test_the_expected_time_counts_the_tokens_that_are_asked_at_their_lengths(tmp_path: Path) -> None:
    seconds = []
    corpora = {
        "books": {"data": "embedded", "documents": 3, "lengths": "64,640"},
        "slid": {"data": "x", "window": 64, "stride": 8},
    }
    for more in ({}, {"long": LONG}, {"perplexity": corpora}):
        value = recipe_of(evaluation={"data": "embedded", "documents": 1, **more})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value))
        recipe = read_recipe(tmp_path / "recipe.yaml")
        source = source_of(recipe)
        seconds.append(expected_seconds(recipe, source, make_rows(recipe, source, None), 1.0, 2.0)["ntk"])
    model: Any = load_model("embedded")
    config = model.config
    width, layers = config.num_attention_heads * config.head_dim, config.num_hidden_layers
    matrices = sum(value.numel() for value in model.model.layers.parameters() if value.dim() > 1)
    matrices += config.vocab_size * config.hidden_size

    def cost(length: int) -> float:
        """A token's, over that of one in a text of the target length."""
        return (6 * matrices + 6 * width * layers * length) / (6 * matrices + 6 * width * layers * recipe.length)

    long = 2 * 3 * (256 * cost(256) + 320 * cost(320))
    assert seconds[1] - seconds[0] == pytest.approx(2.0 * long)
    assert seconds[2] - seconds[0] == pytest.approx(2.0 * 3 * 640 * cost(640))


SHARES = {"a": (0.25, 0.25), "b": (0.9, 0.3), "c": (0.9, 0.85)}
"""Of right answers at 32 and 128 tokens: of who guesses, who forgets, and who keeps it."""


Answered = tuple[Path, dict[str, Any], dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """A comparison whose rows have 40 samples of order's four tasks and two of content, its summary, and the records of
    its rows."""
    run = tmp_path_factory.mktemp("answered")
    tasks, found = ("order-last-4", "order-last-16", "order-nth-4", "order-nth-16", "content-4", "content-16"), {}
    for name, shares in SHARES.items():
        rng, scores = np.random.default_rng(5), run / name / "seed-0" / "scores" / "long"
        found[name] = [
            {
                "task": task,
                "length": n,
                "sample": i,
                "score": float(rng.random() < share),
                "chance": 0.25,
                "prediction": "1",
            }
            for task in tasks
            for n, share in zip((32, 128), shares, strict=True)
            for i in range(40)
        ]
        write_jsonl(scores / "answers.jsonl", found[name])
        write_json(scores / "long.json", {})
        for task in tasks:
            for n in (32, 128):
                write_jsonl(scores / f"{task}-{n}.jsonl", [{"index": i} for i in range(40)])
    sizes = ("layers", "query_heads", "key_value_heads", "head_dim", "rotary_dim", "parameters", "original_length")
    method = {"explanation": "", "trained": False, "bases": [2e4, 2e4], "control": False, "per_head": False}
    plan = {
        "kind": "comparison",
        "title": "t",
        "model": {"name": "m", "model_type": "llama", "base": 1e4, **dict.fromkeys(sizes, 2)},
        "original_length": 32,
        "target_length": 128,
        "baseline": "b",
        "seeds": [0],
        "range": {"low": 1e4, "high": 2e4, "reference": 1e4, "why": ""},
        "reasons": [],
        "methods": [{"name": name, "title": f"The {name}", **method} for name in SHARES],
        "training": {},
        "corpus": {},
    }
    write_json(run / "plan.json", plan)
    return run, summarise(run), found


def test_means_are_of_all_tasks_and_of_whole_suites_and_differences_are_paired(answered: Answered) -> None:
    _, value, records = answered
    measures = {measure["id"]: measure for measure in value["measures"]}
    assert len(measures) == 2 * (6 + 3)

    def scores(name: str, start: str) -> np.ndarray:
        return np.array([r["score"] for r in records[name] if r["length"] == 128 and r["task"].startswith(start)])

    for stem, start_ in (("mean", ""), ("order", "order"), ("content", "content"), ("order-nth-16", "order-nth-16")):
        found = measures[f"long-{stem}-128"]
        ours, theirs = 100 * scores("c", start_), 100 * scores("b", start_)
        assert found["values"]["c"]["value"] == pytest.approx(ours.mean())
        difference = found["differences"]["c"]
        assert difference["value"] == pytest.approx((ours - theirs).mean()) and difference["real"]
        # every task has 40 samples, so that draws within tasks spread at most as the pairs do
        assert difference["high"] - difference["low"] < 2 * 2.2 * (ours - theirs).std() / len(ours) ** 0.5
    assert any(
        line.startswith("Long-context tasks, mean of all 6 at 128 tokens, against The b. Better: The c.")
        for line in value["reading"]
    )
    tasks = {task["id"]: task for task in value["lengths"]["tasks"]}
    for name, each in records.items():
        verb = summary(each, 40, 32)
        pairs = [(f"long-{task}", of) for task, of in (*verb["tasks"].items(), *verb["suites"].items())]
        assert len(pairs) == 6 + 2
        for of_comparison, of_verb in pairs:
            method = tasks[of_comparison]["methods"][name]
            assert all(method[key] == of_verb[key] for key in ("base", "effective", "area", "reason"))


def test_the_page_has_the_table_and_nobody_who_guesses_an_effective_length(answered: Answered) -> None:
    run, value, _ = answered
    lengths = {task["id"]: task["methods"] for task in value["lengths"]["tasks"]}["long-mean"]
    assert lengths["a"]["effective"] is None and "is not told from the 25.0% of a guesser" in lengths["a"]["reason"]
    assert lengths["b"]["effective"]["value"] == 32 and lengths["c"]["effective"]["value"] == 128
    page = write_report(run).read_text()
    results, part = (
        page.split('id="results"')[1].split("</section>")[0],
        page.split('id="lengths"')[1].split("</section>")[0],
    )
    at_target = next(m for m in value["measures"] if m["id"] == "long-mean-128")["values"]["c"]
    assert "long-context tasks" in results and f"<b>{at_target['value']:.1f}%</b>" in results
    assert f"{at_target['low']:.1f}–{at_target['high']:.1f}%" in results
    assert "Long-context tasks, mean of all 6" in part and "Task by task (6)" in part
    assert "A guesser scores 25.0%." in part
    assert re.search(r"No effective length: The a \(85% of its short score, [\d.]+%, is not told from", part)
    assert "<b>≥ 128</b>" in part
    tables = (run / "report" / "tables.md").read_text()
    assert "## Differences: Long-context tasks, mean at 128" in tables and "A guesser scores 25.0%." in tables
    csv = (run / "report" / "tables.csv").read_text()
    assert "long-content-4-128,long-context task content-4 at 128 tokens,long,content-4,128,%" in csv
    assert "effective-length-long-mean" in csv and "length-score-long-order-nth-16" in csv
