"""lm-eval on a per-head model gives the log-likelihoods of a plain forward pass, and offline tasks have lm-eval's own
prompts."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import harpe
from harpe.errors import HarpeError
from harpe.evaluation.short.offline import NOT_COMPARABLE, TRIVIA_EXAMPLES, offline_tasks
from harpe.evaluation.short.record import Record
from harpe.evaluation.short.tasks import accuracy, run_short_tasks
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_model, load_tokenizer
from harpe.options.measuring import ShortOptions
from harpe.reporter import Reporter
from harpe.suites.short import measure_short

from .trained_run import check, trained_run

pytest.importorskip("lm_eval", reason="short benchmarks need the package lm-eval (pip install 'harpe[eval]')")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions of PIQA's form, two of one subject of MMLU's with five solved ones."""
    root = tmp_path_factory.mktemp("short")
    (root / "piqa").mkdir()
    rows = [
        {"goal": f"open jar {i}", "sol1": f"turn the lid {i}", "sol2": "hit it with a longer sentence than that"}
        for i in range(3)
    ]
    (root / "piqa" / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (root / "piqa" / "valid-labels.lst").write_text("0\n1\n0\n")
    for split, count in (("dev", 5), ("test", 2)):
        (root / "mmlu" / split).mkdir(parents=True)
        with (root / "mmlu" / split / f"anatomy_{split}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["question", "choice0", "choice1", "choice2", "choice3", "answer"])
            writer.writerows([f"{split} {i}, which? ", "one", 'a "b"', "three", "four", i % 4] for i in range(count))
    for name in ("hellaswag_subset", "arc_challenge", "llm-foundry"):
        (root / name).mkdir()
    waving = [
        {
            "question": f"[header] How to wave {i} [title] Lift  a hand.",
            "choices": dict(zip("ABCD", (f"[step] Move it {i}.", "b", "c", "d"), strict=True)),
            "answer": "ABCD"[i % 4],
        }
        for i in range(5)
    ]
    whole = {"dev": waving[:2], "test": waving[2:]}
    (root / "hellaswag_subset" / "hellaswag_1000dev_1000test.json").write_text(json.dumps(whole))
    choices = [{"text": text, "label": label} for text, label in (("ice", "1"), ("fire", "2"), ("air", "3"))]
    example = {"question": {"stem": "What burns?", "choices": choices}, "answerKey": "2"}
    (root / "arc_challenge" / "ARC-Challenge-Dev.jsonl").write_text(json.dumps(example) + "\n")
    scored = {"query": "Question: What melts?", "choices": ["stone", "ice"], "gold": 1}
    (root / "llm-foundry" / "arc_challenge.jsonl").write_text(
        json.dumps(scored) + "\n" + json.dumps({**scored, "query": "Question: B?"})
    )
    trivia = [
        {"context": f"Question: Who is number {i}?\nAnswer:", "answer": f"N{i}", "aliases": [f"N\u2028{i}", f"No {i}"]}
        for i in range(TRIVIA_EXAMPLES + 3)
    ]
    (root / "llm-foundry" / "triviaqa_sm_sub.jsonl").write_text(
        "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in trivia)
    )
    return root


@pytest.fixture(scope="module")
def per_head() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return harpe.apply(load_model("embedded", torch.float32), "harpe", length=2048)


def plain(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """The log-likelihood of a continuation, by one forward pass and float64."""
    prefix, whole = tokenizer(context).input_ids, tokenizer(context + continuation).input_ids
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(float(scores[i - 1, whole[i]]) for i in range(len(prefix), len(whole)))


@pytest.mark.slow
def test_log_likelihoods_of_a_per_head_model_are_those_of_a_plain_forward_pass(folder: Path, per_head: Any) -> None:
    tokenizer = load_tokenizer("embedded")
    found = run_short_tasks(per_head, tokenizer, offline_tasks("piqa", folder), 0, batch_size=4)["samples"]["piqa"]
    assert len(found) == 3
    untouched = load_model("embedded", torch.float32)
    different = 0
    for sample in found:
        for request, response in zip(sample["arguments"], sample["filtered_resps"], strict=True):
            value = plain(per_head, tokenizer, *request)
            assert float(response[0]) == pytest.approx(value, abs=1e-4)
            different += abs(value - plain(untouched, tokenizer, *request)) > 1e-3
    assert different == 6  # the bases matter: the same model without them says something else


@pytest.mark.slow
def test_offline_prompts_are_written_as_lm_eval_writes_them(folder: Path, per_head: Any) -> None:
    tokenizer = load_tokenizer("embedded")
    piqa = run_short_tasks(per_head, tokenizer, offline_tasks("piqa", folder), 0)["samples"]["piqa"][1]
    assert [tuple(request) for request in piqa["arguments"]] == [
        ("Question: open jar 1\nAnswer:", " turn the lid 1"),
        ("Question: open jar 1\nAnswer:", " hit it with a longer sentence than that"),
    ]
    assert piqa["target"] in (1, "1")
    (mmlu,) = run_short_tasks(per_head, tokenizer, offline_tasks("mmlu", folder), 5, limit=1)["samples"].values()
    head = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    options = '\nA. one\nB. a "b"\nC. three\nD. four\nAnswer:'
    shots = "".join(f"dev {i}, which?{options} {'ABCD'[i % 4]}\n\n" for i in range(5))
    assert [tuple(request) for request in mmlu[0]["arguments"]] == [
        (f"{head}{shots}test 0, which?{options}", f" {c}") for c in "ABCD"
    ]


@pytest.mark.slow
def test_local_tasks_are_worded_as_lm_eval_words_them_with_examples_that_are_not_scored(
    folder: Path, per_head: Any
) -> None:
    tokenizer = load_tokenizer("embedded")

    def asked(name: str) -> list[dict[str, Any]]:
        (found,) = run_short_tasks(per_head, tokenizer, offline_tasks(name, folder), 1)["samples"].values()
        return found

    waving = asked("hellaswag_local")
    assert len(waving) == 3
    heads = [f"How to wave {i}. Lift a hand.{end}\n\n" for i, end in ((0, "  Move it 0."), (1, " b"))]
    prompt, ending = waving[1]["arguments"][0]
    assert prompt in [head + "How to wave 3. Lift a hand." for head in heads] and ending == "  Move it 3."
    assert [ending for _, ending in waving[1]["arguments"][1:]] == [" b", " c", " d"] and str(
        waving[1]["target"]
    ) == "3"
    first, second = asked("arc_challenge_local")
    head = "Question: What burns?\nAnswer: fire\n\n"
    assert [tuple(a) for a in first["arguments"]] == [
        (head + "Question: What melts?\nAnswer:", f" {c}") for c in ("stone", "ice")
    ]
    assert first["target"] in (1, "1") and second["arguments"][0][0] == head + "Question: B?\nAnswer:"
    trivia = asked("triviaqa_local")
    assert len(trivia) == 3
    example, question = trivia[2]["arguments"][0][0].split("\n\n")
    assert question == f"Question: Who is number {TRIVIA_EXAMPLES + 2}??\nAnswer:"  # lm-eval's own second question mark
    assert int(example.split("??")[0].removeprefix("Question: Who is number ")) < TRIVIA_EXAMPLES
    assert trivia[2]["target"] == [f"N\u2028{TRIVIA_EXAMPLES + 2}", f"No {TRIVIA_EXAMPLES + 2}"]


def test_shares_have_wilsons_interval() -> None:
    got = accuracy([{"acc": 1.0}] * 8 + [{"acc": 0.0}] * 2)
    assert got["score"] == pytest.approx(80) and got["low"] == pytest.approx(49.0, abs=0.1)


def test_files_that_are_missing_are_told(tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="piqa is missing"):
        offline_tasks("piqa", tmp_path)


def test_the_real_files_give_57_subjects_and_1838_questions(harpe_data: Path) -> None:
    mmlu, (piqa,) = offline_tasks("mmlu", harpe_data / "short_bench"), offline_tasks("piqa", harpe_data / "short_bench")
    splits = [task["custom_dataset"]() for task in mmlu]
    assert len(mmlu) == 57 and sum(len(s["test"]) for s in splits) == 14042 and all(len(s["dev"]) == 5 for s in splits)
    assert len(piqa["custom_dataset"]()["validation"]) == 1838
    sizes, texts = (
        {"hellaswag_local": (1000, 1000), "arc_challenge_local": (292, 1172), "triviaqa_local": (100, 2900)},
        {},
    )
    for name, (examples, scored) in sizes.items():
        (task,) = offline_tasks(name, harpe_data / "short_bench")
        rows = task["custom_dataset"]()
        texts[name] = [{row.get("query") or row["question"] for row in rows[split]} for split in ("examples", "scored")]
        assert (len(rows["examples"]), len(rows["scored"])) == (examples, scored)
    assert not any(examples & scored for examples, scored in texts.values())


@pytest.mark.slow
def test_the_verb_writes_scores_with_intervals_and_does_not_measure_twice(folder: Path, tmp_path: Path) -> None:
    options = ShortOptions(
        model="embedded", out=str(tmp_path), tasks="piqa", offline=True, data=str(folder.parent), dtype="float32"
    )
    (folder.parent / "short_bench").symlink_to(folder)
    measure_short(options)
    value = read_json(tmp_path / "short.json")
    assert value["tasks"]["piqa"]["samples"] == 3 and value["tasks"]["piqa"]["shots"] == 0
    assert len(read_jsonl(tmp_path / "piqa.jsonl")) == 3
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    measure_short(options, Listener())
    assert said == [f"Everything is measured already; the scores are in {tmp_path / 'short.json'}."]
    with pytest.raises(HarpeError, match=r"other options \(limit"):
        measure_short(ShortOptions(**{**vars(options), "limit": 2}))


@pytest.mark.slow
def test_a_task_tells_how_much_of_its_prompts_the_models_run_has_trained_on(folder: Path, tmp_path: Path) -> None:
    """Every question is one text, however many answers it is asked with; the answers to choose from were trained on."""
    head = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    options = '\nA. one\nB. a "b"\nC. three\nD. four\nAnswer:'
    shots = "".join(f"dev {i}, which?{options} {'ABCD'[i % 4]}\n\n" for i in range(5))
    prompts = [f"{head}{shots}test {i}, which?{options}" for i in range(2)]
    model, data = trained_run(tmp_path / "run", ["Nothing of all that is asked. " * 30, *[options] * 6])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "short_bench").symlink_to(folder)
    given: dict[str, Any] = {"tasks": "mmlu", "offline": True, "data": str(tmp_path / "data"), "dtype": "float32"}
    measure_short(ShortOptions(model=str(model), out=str(tmp_path / "trained"), **given))
    check(read_json(tmp_path / "trained" / "short.json")["tasks"]["mmlu"]["overlap"], prompts, data)
    measure_short(ShortOptions(model="embedded", out=str(tmp_path / "untouched"), **given))
    unknown = read_json(tmp_path / "untouched" / "short.json")["tasks"]["mmlu"]["overlap"]
    assert unknown["share"] is None and "not known" in unknown["reason"]


@pytest.mark.slow
def test_a_measurement_that_was_killed_asks_only_the_questions_that_it_had_not_ended(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside the second task, in the middle of a line of its record."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "short_bench").symlink_to(folder)
    given = {
        "model": "embedded",
        "tasks": "arc_challenge_local,piqa",
        "shots": 0,
        "data": str(tmp_path / "data"),
        "dtype": "float32",
    }

    def options(name: str) -> ShortOptions:
        return ShortOptions(**given, out=str(tmp_path / name), offline=True, batch_size=1)

    asked: list[str] = []
    keep = Record.add_partial

    def killed(self: Record, attr: str, req: Any, res: Any) -> None:
        asked.append(str(req))
        if len(asked) == 4 + 4:  # of 4 and 6 requests
            # the share of this process
            with self.path.with_name(f"{self.path.name}.0").open("a", encoding="utf-8") as stream:
                stream.write('{"request": "12ab')
            raise KeyboardInterrupt
        keep(self, attr, req, res)

    monkeypatch.setattr(Record, "add_partial", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_short(options("killed"))
    assert list(read_json(tmp_path / "killed" / "short.json")["tasks"]) == ["arc_challenge_local"]
    monkeypatch.setattr(
        Record, "add_partial", lambda self, attr, req, res: (asked.append(str(req)), keep(self, attr, req, res))[1]
    )
    asked.clear()
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    measure_short(options("killed"), Listener())
    assert (
        len(asked) == 4
        and any("was cut short" in text for text in said)
        and "piqa: 3 requests were answered before." in said
    )
    asked.clear()
    measure_short(options("whole"))
    assert len(asked) == 10
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["arc_challenge_local.jsonl", "piqa.jsonl", "short.json"]
    # a question whose answers were not all there was asked again as a whole: the same numbers to the last digit
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    tasks = read_json(tmp_path / "whole" / "short.json")["tasks"]
    assert tasks["arc_challenge_local"]["note"] == NOT_COMPARABLE and "note" not in tasks["piqa"]
