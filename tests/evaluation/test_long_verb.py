"""`harpe long`: a model that knows everything gets 100 and one that guesses has no effective length; a killed run goes
on, lengths are added, and other options are refused. `harpe suites` lists what docs/evaluation.md does."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from harpe.cli.main import main
from harpe.data.token_ids import text_ids
from harpe.errors import HarpeError
from harpe.evaluation.catalogue import SUITES, as_markdown
from harpe.evaluation.greedy import completions
from harpe.evaluation.long.registry import LONG_TASKS
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_model, load_tokenizer
from harpe.options.measuring import LongOptions
from harpe.reporter import Reporter
from harpe.suites.long import run_long, summary

from .stub_server import StubServer, completion

DOCS = Path(__file__).parent.parent.parent / "docs"


def options(folder: Path, **changes: Any) -> LongOptions:
    given = {"model": "embedded", "lengths": "200,256", "samples": 3, "tasks": "content-4", "dtype": "float32"}
    return LongOptions(**{**given, "out": str(folder), **changes})


def asked_of(address: str, folder: Path, **changes: Any) -> LongOptions:
    given = {"model": "m", "server": address, "tokenizer": "embedded", "lengths": "1200,2400", "tasks": "all"}
    return options(folder, **{**given, "samples": 4, "original_length": 1200, **changes})


def test_a_server_that_knows_the_answers_gets_100_in_every_task_at_every_length(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="--server needs the package openai (pip install 'harpe[eval]')")
    known: dict[str, str] = {}

    def right(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        if not known:
            for path in tmp_path.glob("right/*-*.jsonl"):
                known.update({row["input"] + row["answer_prefix"]: row["answer"] for row in read_jsonl(path)})
        assert body["max_tokens"] in {task.tokens for task in LONG_TASKS.values()}
        return completion(known[body["prompt"]])

    with StubServer(right, {"m": 2500}) as stub:
        run_long(asked_of(stub.address, tmp_path / "right", requests=1))
    value = read_json(tmp_path / "right" / "long.json")
    assert list(value["tasks"]) == list(LONG_TASKS) and len(value["suites"]) == 5
    for name, task in value["tasks"].items():
        assert [(cell["length"], cell["score"]) for cell in task["lengths"]] == [(1200, 100.0), (2400, 100.0)], name
        assert task["area"]["value"] == 100.0 and task["effective"]["value"] == 2400, name
    for suite in value["suites"].values():
        assert [cell["value"] for cell in suite["lengths"]] == [100.0, 100.0] and suite["effective"]["value"] == 2400
    with StubServer(lambda body, number: completion("no idea"), {"m": 2500}) as stub:
        run_long(asked_of(stub.address, tmp_path / "wrong", against=str(tmp_path / "right")))
        with pytest.raises(HarpeError, match="--lengths 9000 is beyond the 2500 tokens that the server takes"):
            run_long(asked_of(stub.address, tmp_path / "wrong", lengths="9000"))
        unknown = asked_of(stub.address, tmp_path / "unknown", tasks="content-4", original_length=None)
        run_long(unknown)
    rows = read_json(tmp_path / "wrong" / "against.json")["tasks"]
    assert {(row["before"], row["after"]) for row in rows.values()} == {(100.0, 0.0)} and len(rows) == 2 * len(
        LONG_TASKS
    )
    (task,) = read_json(tmp_path / "unknown" / "long.json")["tasks"].values()
    assert task["effective"] is None and "--original-length" in task["reason"]


def records(scores: dict[int, float], chance: float = 0.25, count: int = 400) -> list[dict[str, Any]]:
    """Of a task with so many right at each length."""
    rng = random.Random(0)
    told = {"task": "content-4", "prediction": "1234", "chance": chance}
    return [
        {**told, "length": length, "sample": i, "score": float(rng.random() < share)}
        for length, share in scores.items()
        for i in range(count)
    ]


def test_who_guesses_alike_at_every_length_has_no_effective_length() -> None:
    (guesser,) = summary(records({256: 0.25, 512: 0.25, 1024: 0.25}), 400, 256)["tasks"].values()
    assert guesser["effective"] is None and "of a guesser" in guesser["reason"]
    assert all(cell["low"] < cell["chance"] == 25 < cell["high"] for cell in guesser["lengths"])
    (reader,) = summary(records({256: 0.95, 512: 0.92, 1024: 0.3}), 400, 256)["tasks"].values()
    assert reader["effective"]["value"] == 512 and reader["reason"] == ""
    longer = summary(records({512: 0.95, 1024: 0.95}), 400, 256)["tasks"]["content-4"]
    assert longer["effective"] is None and "not asked within the 256 tokens" in longer["reason"]


def test_what_was_cut_short_at_a_length_is_named_and_not_counted() -> None:
    value = summary(records({256: 0.95, 512: 0.9, 1024: 0.3})[:-1], 400, 256)
    assert value["incomplete"] == ["content-4-1024"]
    assert [cell["length"] for cell in value["tasks"]["content-4"]["lengths"]] == [256, 512]
    assert summary(records({256: 1.0})[:-1], 400, 256) == {"tasks": {}, "suites": {}, "incomplete": ["content-4-256"]}


def test_an_interrupted_run_goes_on_and_lengths_that_are_added_end_in_the_same_files(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    run_long(options(tmp_path / "whole"), Listener())
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir() if path.suffix != ".lock"}
    assert whole.keys() >= {"answers.jsonl", "content-4-200.jsonl", "content-4-256.jsonl", "long.json", "long.svg"}
    figure = ElementTree.fromstring(whole["long.svg"])
    assert figure.get("aria-label") == "Score by length of 1 long-context tasks; at the longest: content-4 0%."
    tips = [each.text for each in figure.iter("{http://www.w3.org/2000/svg}title")]
    assert tips == ["200 tokens: 0.0% (0.0 to 56.1%)", "256 tokens: 0.0% (0.0 to 56.1%)"]

    def same(folder: Path) -> bool:
        return all((folder / name).read_bytes() == content for name, content in whole.items())

    lines = whole["answers.jsonl"].decode().splitlines(keepends=True)
    (tmp_path / "whole" / "answers.jsonl").write_text("".join(lines[:3]) + lines[3][:30])
    (tmp_path / "whole" / "long.json").unlink()
    run_long(options(tmp_path / "whole"), Listener())
    assert any("cut short" in text for text in said) and same(tmp_path / "whole")
    run_long(options(tmp_path / "one by one", lengths="256"))
    run_long(options(tmp_path / "one by one", lengths="200"))
    assert same(tmp_path / "one by one")
    model, tokenizer = load_model("embedded", torch.float32), load_tokenizer("embedded")
    for row in read_jsonl(tmp_path / "whole" / "answers.jsonl"):  # what the model says, asked by itself
        sample = read_jsonl(tmp_path / "whole" / f"content-4-{row['length']}.jsonl")[row["sample"]]
        prompt = text_ids(tokenizer, sample["input"] + sample["answer_prefix"])
        (full,) = completions(model, tokenizer, [prompt], 16)
        assert full.startswith(row["prediction"]) and row["score"] == LONG_TASKS[row["task"]].score(full, sample)
        assert row["cut"] == (len(row["prediction"]) < len(full))
        assert row["score"] == LONG_TASKS["content-4"].score(row["prediction"], sample)


def test_what_cannot_be_asked_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_long(options(tmp_path / "there", lengths="200", samples=1))
    monkeypatch.setattr("harpe.suites.answers.load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.delenv("HARPE_DATA", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    for changes, words in (
        ({"lengths": "512"}, "--lengths 512 is beyond the 256 tokens.*--beyond-context"),
        ({"lengths": "64"}, "content-4 cannot be made with 64 tokens"),
        ({"lengths": "many"}, "--lengths many is neither"),
        ({"samples": 0}, "--samples 0"),
        ({"tasks": "needles"}, "--tasks needles is no task of harpe long"),
        ({"filler": "essays", "data": str(empty)}, "PaulGrahamEssays.json is missing"),
        ({"server": "http://localhost:1", "tokenizer": None}, "--server needs --model"),
    ):
        with pytest.raises(HarpeError, match=words):
            run_long(options(tmp_path / "new", **changes))
    with pytest.raises(HarpeError, match=r"with other options \(seed: 42 there, 7 now\)"):
        run_long(options(tmp_path / "there", lengths="200", samples=1, seed=7))
    (tmp_path / "there" / "content-4-200.jsonl").write_text("{}\n")
    with pytest.raises(HarpeError, match="was changed after harpe had written it"):
        run_long(options(tmp_path / "there", lengths="200", samples=1))
    given = ["--lengths", "200", "--samples", "1", "--tasks", "content", "--out", str(tmp_path / "cli")]
    assert main(["long", "embedded", *given]) == 2
    assert "content-16 cannot be made with 200 tokens" in capsys.readouterr().err


def test_essays_are_filler_too(tmp_path: Path, harpe_data: Path) -> None:
    pytest.importorskip("nltk", reason="essays are split by nltk (pip install 'harpe[eval]')")
    run_long(options(tmp_path, tasks="order-last-4", filler="essays", samples=2, data=str(harpe_data)))
    rows = read_jsonl(tmp_path / "order-last-4-256.jsonl")
    assert all(250 < row["length"] <= 256 and "The grass is green" not in row["input"] for row in rows)
    assert rows[0]["input"].split()[-40:] != rows[1]["input"].split()[-40:]


def test_the_table_of_the_docs_is_what_the_verb_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", "--markdown"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == as_markdown() and printed in (DOCS / "evaluation.md").read_text()
    assert main(["suites"]) == 0
    block = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert all(f"suite {suite.name} run by {suite.verb}" in block for suite in SUITES)


def test_what_the_list_says_of_a_guesser_is_what_samples_say() -> None:
    """Figures of the list against samples, in per cent."""
    from .test_long_tasks import drawn

    def mean(name: str) -> float:
        rows = drawn(name)
        return 100 * sum(row["chance"] for row in rows) / len(rows)

    told = {suite.name: [float(n) for n in re.findall(r"([\d.]+)%", suite.chance)] for suite in SUITES}
    places, others, givers = told["BABILong-like"]
    assert all(mean(f"babilong-{kind}") == pytest.approx(places, abs=0.5) for kind in ("qa1", "qa2"))
    assert all(mean(f"babilong-{kind}") == pytest.approx(others) for kind in ("qa3", "qa4"))
    assert mean("babilong-qa5") == pytest.approx(givers, abs=1)
    for name, said in zip((2, 4, 8), told["multi-round co-reference (MRCR-like)"], strict=True):
        assert mean(f"coreference-{name}") == pytest.approx(said, abs=2)
    assert [mean(f"order-nth-{n}") for n in (4, 16)] == told["order probe"]
    assert [mean(f"content-{n}") for n in (4, 16)] == told["content probe"]
    assert told["graph walks"][1] > mean("graph-bfs") > 0


def test_lines_of_samples_are_plain_json(tmp_path: Path) -> None:
    run_long(options(tmp_path, lengths="200", samples=2))
    rows = [json.loads(line) for line in (tmp_path / "content-4-200.jsonl").read_text().splitlines()]
    names = {"index", "input", "outputs", "length", "answer_prefix", "answer", "chance", "of", "words_behind"}
    assert [set(row) for row in rows] == [names, names]
