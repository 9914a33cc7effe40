"""`harpe report` on a folder of scores: every number on the page is that of a plain loop over the records; models,
folders and samples that do not belong together are told apart."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from harpe.cli.main import main
from harpe.commands.evaluate import evaluate
from harpe.commands.report import report_scores
from harpe.data.overlap import unknown_overlap
from harpe.errors import HarpeError
from harpe.evaluation.statistics.intervals import weighted_mean, wilson
from harpe.files import read_json, write_json
from harpe.measurement import measurement_id, write_records
from harpe.models.load import load_model, load_tokenizer
from harpe.options.measuring import EvaluateOptions, LongOptions, PerplexityOptions, RulerOptions
from harpe.suites.long import run_long
from harpe.suites.perplexity import measure_perplexity
from harpe.suites.ruler import run_ruler


def measure(model: str, folder: Path, texts: Path) -> Path:
    common: dict[str, Any] = {"model": model, "dtype": "float32"}
    run_long(LongOptions(**common, lengths="200,256", samples=3, tasks="content-4", out=str(folder / "some")))
    ruler = {"length": 512, "samples": 3, "tasks": "niah_single_1,fwe", "beyond_context": True}
    run_ruler(RulerOptions(**common, **ruler, out=str(folder / "r" / "at 512")))
    read = common | {"data": str(texts), "documents": 2}
    measure_perplexity(PerplexityOptions(**read, lengths="32,100,200", out=str(folder / "p.json")))
    keys: dict[str, Any] = {"key_tokens": True, "short_context": 32, "judge": "embedded"}
    measure_perplexity(PerplexityOptions(**read, **keys, lengths="190", out=str(folder / "k.json")))
    measure_perplexity(PerplexityOptions(**read, window=128, stride=100, out=str(folder / "w" / "w.json")))
    asked = {"length": 200, "original_length": 150, "samples": 2, "grid_samples": 1, "documents": 2}
    evaluate(EvaluateOptions(**read | asked, out=str(folder / "e")))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's scores in `a`, and in `b` those of one whose weights differ."""
    folder = tmp_path_factory.mktemp("scores")
    texts = folder / "texts"
    texts.mkdir()
    for n in (3, 4):
        lines = [f"value_{i} = compute({i % n}, name='{i * 7}')" for i in range(30)]
        lines[0] = lines[5] = f"secret_number = {n}83920571640  # said twice: what the second one needs is far"
        (texts / f"{n}.txt").write_text("\n".join(lines))
    model = load_model("embedded", torch.float32)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head += 0.5 * head.std() * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder / "other")
    load_tokenizer("embedded").save_pretrained(folder / "other")
    measure("embedded", folder / "a", texts)
    measure(str(folder / "other"), folder / "b", texts)
    return folder


@pytest.fixture
def scores(made: Path, tmp_path: Path) -> Path:
    for name in ("a", "b"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def by_a_loop(folder: Path) -> dict[tuple[str, str], float]:
    """Every measure by its task and length, from the records alone."""
    cells: dict[tuple[str, str], list[float]] = {}
    for row in records(folder / "some" / "answers.jsonl"):
        cells.setdefault((row["task"], str(row["length"])), []).append(row["score"])
    for row in records(folder / "r" / "at 512" / "answers.jsonl"):
        cells.setdefault((row["task"], "512"), []).append(row["score"])
    for row in records(folder / "e" / "needles.jsonl"):
        cells.setdefault((row["task"].replace("_", "-"), str(row["length"])), []).append(row["score"])
    for row in records(folder / "e" / "grid.jsonl"):
        cells.setdefault((f"grid, depth {row['depth']:.0%}", str(row["length"])), []).append(row["score"])
    found = {key: 100 * sum(each) / len(each) for key, each in cells.items()}
    rows = records(folder / "p.records.jsonl")
    data = read_json(folder / "p.json")["data"]
    keyed = records(folder / "k.records.jsonl")
    for title, of in ((data, keyed), (f"{data}, key tokens", [row["key"] for row in keyed])):
        loss = sum(row["nll"][0] for row in of) / sum(row["tokens"][0] for row in of)
        found[title, "190"] = math.exp(loss)
    for i, length in enumerate((32, 100, 200)):
        loss = sum(row["nll"][i] for row in rows) / sum(row["tokens"][i] for row in rows)
        found[data, str(length)] = math.exp(loss)
    rows = records(folder / "w" / "w.records.jsonl")
    loss = sum(sum(row["nll"]) for row in rows) / sum(sum(row["tokens"]) for row in rows)
    found[f"{data}, stride 100", "128"] = math.exp(loss)
    rows = records(folder / "e" / "perplexity.jsonl")
    found["windows", "150"] = math.exp(sum(r["short_nll"] for r in rows) / sum(r["short_tokens"] for r in rows))
    last = read_json(folder / "e" / "perplexity.json")["bins"][-1]["start"]
    found[f"positions from {last}", "200"] = math.exp(
        sum(r["nll"][-1] for r in rows) / sum(r["tokens"][-1] for r in rows)
    )
    return found


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "report" / "tables.csv").open() as stream:
        return list(csv.DictReader(stream))


def shown(page: Path) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())


def test_every_number_is_what_a_plain_loop_over_the_records_gives(scores: Path) -> None:
    page = report_scores(scores / "a", None)
    expected, rows = by_a_loop(scores / "a"), table(scores / "a")
    assert len({round(value, 3) for value in expected.values()}) > 8
    assert {(row["task"], row["length"]) for row in rows} == expected.keys()
    text = shown(page)
    for row in rows:
        value = expected[row["task"], row["length"]]
        assert float(row["value"]) == pytest.approx(value), row
        words = f"{value:.1f}%" if row["unit"] == "%" else f"{value:.2f}"
        assert words in text and row["task"] in text
        if row["low"]:
            assert float(row["low"]) - 1e-9 <= value <= float(row["high"]) + 1e-9
    for path in (scores / "a").rglob("*.json"):
        for cell in read_json(path).get("bins", []) + read_json(path).get("positions", []):
            assert f"{cell['start']:,}–{cell['end']:,} {cell['nll']:.3f} {cell['low']:.3f}–{cell['high']:.3f}" in text
    assert "transformers, float32" in text and "Not known: The texts that this checkpoint was trained on" in text
    assert read_json(scores / "a" / "e" / "protocol.json")["model"]["weights"] in text
    assert "<script" not in page.read_text()


def test_differences_are_those_of_the_same_samples(scores: Path) -> None:
    page = report_scores(scores / "a", str(scores / "b"))
    rows, ours, theirs = table(scores / "a"), by_a_loop(scores / "a"), by_a_loop(scores / "b")
    assert [row["method"] for row in rows].count("this") == len(ours) == len(theirs)
    for row in rows:
        key = row["task"], row["length"]
        assert float(row["value"]) == pytest.approx((ours if row["method"] == "this" else theirs)[key])
        if row["method"] == "this" and row["unit"] == "%":
            assert float(row["difference"]) == pytest.approx(ours[key] - theirs[key])
        elif row["method"] == "this":
            assert row["difference_unit"] == "nats"
            assert float(row["difference"]) == pytest.approx(math.log(ours[key] / theirs[key]), abs=1e-9)
    assert any(ours[key] > theirs[key] for key in ours if key[0].startswith(("multi", "grid")))
    first, second = (records(scores / each / "p.records.jsonl") for each in "ab")
    losses = [x["nll"][2] - y["nll"][2] for x, y in zip(first, second, strict=True)]
    expected = weighted_mean(losses, [row["tokens"][2] for row in first])
    (row,) = (r for r in rows if r["group"].startswith("Perplexity, doc") and r["length"] == "200" and r["difference"])
    assert (float(row["difference_low"]), float(row["difference_high"])) == (expected.low, expected.high)
    assert expected.value != 0 and f"{expected.value:+.3f}".replace("-", "−") in shown(page)


def test_other_samples_are_shown_beside_and_not_paired(made: Path, scores: Path) -> None:
    shutil.rmtree(scores / "b" / "r")
    other = {"length": 512, "samples": 3, "tasks": "niah_single_1", "seed": 7, "beyond_context": True}
    run_ruler(RulerOptions(model=str(made / "other"), dtype="float32", **other, out=str(scores / "b" / "r")))
    page = report_scores(scores / "a", str(scores / "b"))
    rows = {row["task"]: row for row in table(scores / "a") if row["method"] == "this"}
    told = {"niah_single_1": "not the same samples or options", "fwe": "measured of one alone", "content-4": ""}
    for task, why in told.items():
        assert rows[task]["no_difference"] == why and bool(rows[task]["difference"]) == (not why)
        assert why in shown(page)
    assert len([row for row in table(scores / "a") if row["task"] == "niah_single_1"]) == 2


def test_the_chat_format_is_a_suite_of_its_own(scores: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    tokenizer.chat_template = "{{ 'Q: ' + messages[0]['content'] + '\n' }}{% if add_generation_prompt %}A: {% endif %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    asked: dict[str, Any] = {"model": "embedded", "tokenizer": str(tmp_path / "chat"), "dtype": "float32", "samples": 3}
    run_long(LongOptions(**asked, lengths="200,256", tasks="content-4", chat=True, out=str(scores / "a" / "chat")))
    page = report_scores(scores / "a", None)
    rows = [row for row in table(scores / "a") if row["task"] == "content-4"]
    assert len(rows) == 4 and len({row["group"] for row in rows}) == 2
    assert "Long-context tasks (noise as filler, in the chat format)" in shown(page)


def test_a_mixture_a_folder_without_scores_and_the_same_folder_are_refused(scores: Path) -> None:
    with pytest.raises(HarpeError, match=r"is the same folder"):
        report_scores(scores / "a", str(scores / "b" / ".." / "a"))
    with pytest.raises(HarpeError, match=r"holds scores of two models: .*a.* and .*b"):
        report_scores(scores, None)
    (scores / "empty").mkdir()
    for folder, against in (("empty", None), ("a", "empty")):
        with pytest.raises(HarpeError, match=r"holds neither a run \(plan.json\) nor scores"):
            report_scores(scores / folder, str(scores / against) if against else None)
    with pytest.raises(HarpeError, match="There is no folder"):
        report_scores(scores / "nowhere", None)
    shutil.copy(scores / "a" / "some" / "long.json", scores / "b" / "some" / "long.json")
    with pytest.raises(HarpeError, match="is of another measurement"):
        report_scores(scores / "b", None)


def test_what_is_there_twice_cut_short_or_not_ours_is_refused(scores: Path) -> None:
    shutil.copytree(scores / "a" / "some", scores / "a" / "again")
    with pytest.raises(HarpeError, match=r"content-4 at 200 tokens twice, in again/long.json and in some/long.json"):
        report_scores(scores / "a", None)
    shutil.rmtree(scores / "a" / "again")
    path = scores / "a" / "p.json"
    whole = path.read_text()
    value = json.loads(whole)
    value["points"][0]["perplexity"] += 1
    path.write_text(json.dumps(value))
    with pytest.raises(HarpeError, match=r"p.json says .* and the records beside it"):
        report_scores(scores / "a", None)
    path.write_text("{")
    with pytest.raises(HarpeError, match="p.json"):
        report_scores(scores / "a", None)
    path.write_text(whole)
    (scores / "a" / "report").mkdir()
    (scores / "a" / "report" / "tables.csv").write_text("mine")
    with pytest.raises(HarpeError, match="harpe did not write it"):
        report_scores(scores / "a", None)
    assert not (scores / "a" / "report" / "index.html").exists()


def test_short_benchmarks_stand_beside_and_a_served_model_is_known_by_its_name_alone(tmp_path: Path) -> None:
    """Files as `harpe short` and `harpe ruler --server` write them."""
    model = {"config": "c", "weights": "w"}
    of = {"name": "me/model", "model": model, "options": {"limit": 4}, "dtype": "float32", "measuring": 2}
    for folder, hits in (("a", [1.0, 1.0, 0.0, 1.0]), ("b", [0.0, 1.0, 0.0, 1.0])):
        mine = of | {"name": f"{folder}/model", "model": model | {"weights": folder}}
        share = wilson(sum(hits), 4).as_dict("score", 100)
        task = {"metric": "acc", **share, "samples": 4, "shots": 5, "overlap": unknown_overlap("untold")}
        rows = [
            {"task": "piqa", "doc_id": i, "target": "0", "prompt_hash": f"h{i}", "acc": hit}
            for i, hit in enumerate(hits)
        ]
        write_json(tmp_path / folder / "s" / "short.json", {"measurement": mine, "tasks": {"piqa": task}})
        write_records(tmp_path / folder / "s" / "piqa.jsonl", rows, mine)
    page = report_scores(tmp_path / "a", str(tmp_path / "b"))
    (row, other) = table(tmp_path / "a")
    assert (row["value"], other["value"], row["difference"]) == ("75.0", "50.0", "25.0")
    assert "piqa (acc, 5 shots)" in shown(page) and "Not known: untold" in shown(page)

    served = {"name": "a/model", "model": {"at_server": "a/model", "known": "by its name alone"}, "server": "http://h"}
    samples = {"length": 64, "template": "base"}
    answers = served | {"options": {"endpoint": "completions"}, "samples": samples, "measuring": 3}
    folder = tmp_path / "a" / "served"
    write_json(folder / "protocol.json", {"samples": samples, "files": {"fwe": "0" * 64}, "answers": answers})
    cell = {**wilson(1, 2).as_dict("score", 100), "samples": 2}
    facts = {"measurement": measurement_id(answers), "overlap": None}
    write_json(folder / "ruler.json", {"length": 64, "tasks": {"fwe": cell}, **facts})
    rows = [{"task": "fwe", "sample": i, "score": float(i)} for i in range(2)]
    write_records(folder / "answers.jsonl", rows, answers)
    text = shown(report_scores(tmp_path / "a", None))
    assert "server http://h, completions" in text and "50.0%" in text
    assert "served/ruler.json: answered by a server, which tells a model's name alone" in text
    shutil.copytree(folder, tmp_path / "b" / "served")
    with pytest.raises(HarpeError, match="holds scores of two models"):
        report_scores(tmp_path / "b", None)


def test_answers_without_scores_are_named_and_a_run_takes_no_against(
    scores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scores / "a" / "some" / "long.json").unlink()
    assert main(["report", str(scores / "a")]) == 0
    assert "some: cut short before its scores, and left out." in shown(scores / "a" / "report" / "index.html")
    (scores / "run").mkdir()
    (scores / "run" / "plan.json").write_text("{}")
    assert main(["report", str(scores / "run"), "--against", str(scores / "a")]) != 0
    assert "is a run, whose page compares its own models" in " ".join(capsys.readouterr().err.split())
