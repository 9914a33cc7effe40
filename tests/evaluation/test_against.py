"""Before and after: differences are paired by question, their intervals are right, and other questions are refused."""

from __future__ import annotations

import math
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.evaluation.against import compare_answers, compare_short
from harpe.evaluation.statistics.intervals import mean_of_differences
from harpe.files import read_json, read_jsonl, write_json, write_jsonl
from harpe.options.measuring import RulerOptions, ShortOptions
from harpe.runs.model_scores import read_model
from harpe.runs.paired_models import pairs
from harpe.suites.ruler import run_ruler
from harpe.suites.short import measure_short

from .stub_server import StubServer, completion


def short_folder(folder: Path, scores: dict[str, list[float]], **changes: Any) -> Path:
    tasks = {name: {"metric": "acc", "score": 0.0} for name in scores}
    write_json(folder / "short.json", {"protocol": {"model": folder.name}, "tasks": tasks})
    for name, values in scores.items():
        common = {"task": name, "target": 1}
        rows = [
            {**common, "doc_id": i, "prompt_hash": f"{name}-{i}", "acc": value, **changes}
            for i, value in enumerate(values)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def test_differences_are_paired_and_have_the_interval_of_the_normal_approximation(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    before = {name: (rng.random(n) < 0.5).astype(float) for name, n in (("a", 900), ("b", 400))}
    # a paired gain: far narrower than unpaired
    after = {name: np.where(rng.random(len(x)) < 0.15, 1.0, x) for name, x in before.items()}
    short_folder(tmp_path / "before", {name: x.tolist() for name, x in before.items()})
    short_folder(tmp_path / "after", {name: x.tolist() for name, x in after.items()})
    compare_short(tmp_path / "before", tmp_path / "after", ["a", "b"])
    value = read_json(tmp_path / "after" / "against.json")
    errors = []
    for name in ("a", "b"):
        difference = 100 * (after[name] - before[name])
        errors.append(difference.std() / math.sqrt(len(difference)))
        row = value["tasks"][name]
        assert row["difference"] == pytest.approx(difference.mean()) == pytest.approx(row["after"] - row["before"])
        assert row["low"] == pytest.approx(difference.mean() - 1.96 * errors[-1], abs=0.25)
        assert row["high"] == pytest.approx(difference.mean() + 1.96 * errors[-1], abs=0.25)
        assert (row["better"], row["worse"]) == ((difference > 0).sum(), 0)
    mean = value["mean"]
    assert mean["difference"] == pytest.approx(
        (value["tasks"]["a"]["difference"] + value["tasks"]["b"]["difference"]) / 2
    )
    assert (mean["high"] - mean["low"]) / 2 == pytest.approx(1.96 * math.hypot(*errors) / 2, rel=0.06)
    text = (tmp_path / "after" / "against.md").read_text()
    assert (
        f"| b | {100 * before['b'].mean():.1f} | {100 * after['b'].mean():.1f} |" in text
        and "| mean of the tasks |" in text
    )


def test_the_mean_over_tasks_counts_every_task_the_same() -> None:
    assert mean_of_differences([[1.0] * 1000, [0.0]]).value == 0.5


def test_other_questions_prompts_or_missing_scores_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = short_folder(tmp_path / "after", {"a": [1.0, 0.0]})
    with pytest.raises(HarpeError, match=r"holds no short.json"):
        compare_short(tmp_path / "nowhere", after, ["a"])
    for name, folder in {
        "2 questions of a differ": short_folder(tmp_path / "1", {"a": [1.0, 0.0, 0.0, 1.0]}),
        "4 questions of a differ": short_folder(tmp_path / "2", {"a": [1.0, 0.0]}, prompt_hash="with other examples"),
        "holds no scores of a": short_folder(tmp_path / "3", {"b": [1.0]}),
    }.items():
        with pytest.raises(HarpeError, match=name):
            compare_short(folder, after, ["a"])
    value = read_json(tmp_path / "3" / "short.json")
    write_json(tmp_path / "3" / "short.json", {**value, "tasks": {"a": {"metrics": {"word_perplexity": 9.0}}}})
    monkeypatch.setattr("harpe.suites.short._read", lambda options, names: ({}, None))
    for folder, reason in ((tmp_path / "3", "a has no score of every question"), (tmp_path / "none", "no short.json")):
        with pytest.raises(HarpeError, match=reason):  # before the model is loaded, which there is none of
            measure_short(ShortOptions(model="no/model", tasks="a", out=str(tmp_path / "x"), against=str(folder)))
    assert not (after / "against.json").exists()


def test_the_verb_compares_answers_to_the_same_samples_and_refuses_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )
    pytest.importorskip("openai", reason="--server needs the package openai (pip install 'harpe[eval]')")

    def right(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        return completion(body["prompt"])  # holds all references

    given = {"model": "m", "tokenizer": "embedded", "length": 1024, "samples": 4, "tasks": "vt,fwe"}
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    with StubServer(lambda body, number: completion("no idea")) as nothing, StubServer(right) as all_of_it:
        run_ruler(RulerOptions(**given, server=nothing.address, out=before))
        words = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        assert main(["ruler", *words, "--server", all_of_it.address, "--out", after, "--against", before]) == 0
        printed = capsys.readouterr().out
        assert "Before and after" in printed and "+100.0" in printed
        rows = read_json(Path(after) / "against.json")["tasks"]
        assert {(row["before"], row["after"], row["difference"]) for row in rows.values()} == {(0.0, 100.0, 100.0)}
        count = len(all_of_it.bodies)
        assert main(["ruler", *words, "--server", all_of_it.address, "--out", after, "--against", before]) == 0
        assert len(all_of_it.bodies) == count  # nothing is asked again
        other = str(tmp_path / "other")
        run_ruler(RulerOptions(**{**given, "model": None, "length": 900}, out=other))
        refused = {str(tmp_path / "nowhere"): "holds no vt.jsonl", other: "are others than those in"}
        for number, (folder, reason) in enumerate(refused.items()):
            out = str(tmp_path / f"refused-{number}")
            assert main(["ruler", *words, "--server", all_of_it.address, "--out", out, "--against", folder]) == 2
            assert reason in capsys.readouterr().err
        assert len(all_of_it.bodies) == count  # told before anything is asked
    message = {"role": "assistant", "content": "no idea"}
    with StubServer(lambda body, number: (200, {"choices": [{"index": 0, "message": message}]})) as chatting:
        run_ruler(RulerOptions(**given, server=chatting.address, endpoint="chat", out=str(tmp_path / "chat")))
    with pytest.raises(HarpeError, match="one of the two was asked in a server's chat format"):
        compare_answers("ruler", Path(before), tmp_path / "chat", ["vt"], itemgetter("task"))
    alike, other = (pairs(read_model(Path(before)), read_model(Path(folder))) for folder in (after, tmp_path / "chat"))
    assert [each.difference.value for each in alike if each.difference] == [-100, -100]
    assert [(each.difference, each.why) for each in other] == 2 * [(None, "not the same samples or options")]
    with pytest.raises(HarpeError, match=r"holds no cwe.jsonl"):
        compare_answers("ruler", Path(before), Path(after), ["cwe"], itemgetter("task"))
    rows = read_jsonl(Path(before) / "vt.jsonl")
    write_jsonl(Path(before) / "vt.jsonl", rows[:-1])
    with pytest.raises(HarpeError, match="the samples of vt there are others"):
        compare_answers("ruler", Path(before), Path(after), ["vt"], itemgetter("task"))
    (Path(after) / "answers.jsonl").unlink()
    with pytest.raises(HarpeError, match=r"after holds no scores of fwe"):
        compare_answers("ruler", Path(before), Path(after), ["fwe"], itemgetter("task"))
