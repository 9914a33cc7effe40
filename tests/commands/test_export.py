"""`harpe export` of a run directory and of a checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import harpe
from harpe.commands.evaluate import evaluate
from harpe.commands.export import export, without_folders
from harpe.comparison import jobs
from harpe.comparison.worker import work
from harpe.errors import HarpeError
from harpe.files import read_json, write_json
from harpe.models.load import embedded_model_path, load_model
from harpe.options.measuring import EvaluateOptions
from harpe.options.runs import ExportOptions
from harpe.reporter import Reporter
from harpe.runs.corpus import MIXED

SCORES: dict[str, Any] = {
    "perplexity.json": {
        "documents": 7,
        "bins": [],
        "short": {"length": 64, "perplexity": 12.34, "low": 11.0, "high": 13.0},
        "long": {"start": 128, "end": 256, "perplexity": 23.45, "low": 22.0, "high": 25.0},
    },
    "needles.json": {
        "tasks": [{"task": "single", "length": 256, "samples": 9, "score": 0.67, "low": 0.5, "high": 0.8}]
    },
}


@pytest.fixture
def extended(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with a trained model, from folders inside folders; its reasons tell of a measurement that is
    cached."""
    monkeypatch.setenv("HARPE_CACHE", str(workspace / "cache"))
    (workspace / "models").mkdir()
    (workspace / "models" / "mine").symlink_to(workspace / "model")
    settings: dict[str, Any] = {
        "length": 256,
        "tokens": 1024,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "dtype": "float32",
    }
    with monkeypatch.context() as there:
        there.chdir(workspace)
        settings["assignment"] = "adaptive"
        harpe.extend(model="models/mine", data=str(workspace / "texts"), out=workspace / "run", **settings)
    return workspace / "run"


def test_a_card_names_a_base_model_that_was_taken_from_the_hub_and_no_folder(extended: Path, workspace: Path) -> None:
    """`models/mine` was a folder where the run began; where it is exported there is none."""
    card = (export(ExportOptions(source=str(extended), out=str(workspace / "out"))) / "README.md").read_text()
    assert "base_model" not in card and "models/" not in card
    for name, change in (
        ("plan.json", {"name": "owner/model"}),
        ("harpe/stages.json", {"identity": {"commit": "0" * 40}}),
    ):
        value = read_json(extended / name)
        write_json(extended / name, value | {"model": value["model"] | change})
    card = (export(ExportOptions(source=str(extended), out=str(workspace / "again"))) / "README.md").read_text()
    assert "\nbase_model: owner/model\n" in card and "# owner/model, 256 tokens" in card


def test_a_run_is_exported_with_a_card_of_method_plan_data_and_scores(extended: Path, workspace: Path) -> None:
    for name, value in SCORES.items():
        write_json(extended / "harpe" / "scores" / name, value)
    out = export(ExportOptions(source=str(extended), out=str(workspace / "out")))
    plan, card = read_json(extended / "plan.json"), (out / "README.md").read_text()
    assert plan["corpus"]["hash"] in card
    assert plan["methods"][1]["explanation"] in card
    assert all(reason in card for reason in plan["reasons"])
    assert "| perplexity, positions 128 to 256 | not measured | 23.45 [22.00 – 25.00], n = 7 |" in card
    assert "| needles: single, 256 tokens | not measured | 67% [50 – 80], n = 9 |" in card
    assert any("tokens back on average" in reason for reason in plan["reasons"])
    written = [path.read_text() for path in out.iterdir() if path.suffix != ".safetensors"]
    assert not any(str(workspace) in text for text in written)  # no paths of the machine it was made on
    config = json.loads((out / "config.json").read_text())
    assert config["rope_parameters"]["bases"] == plan["methods"][1]["bases"]
    assert (config["max_position_embeddings"], config["harpe_original_length"]) == (256, 64)
    assert AutoTokenizer.from_pretrained(out).model_max_length == 256
    trained, exported = load_model(extended / "harpe" / "model"), load_model(out)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), exported.parameters(), strict=True))


def test_a_card_names_all_texts_of_a_mixture_and_no_folder() -> None:
    long = "/home/someone/books, documents of at least 4,096 tokens upsampled to 50% of every source"
    assert without_folders(long + MIXED.format(12.5, "/home/someone/chats.jsonl")) == (
        "books, documents of at least 4,096 tokens upsampled to 50% of every source, and 12.5% of the tokens of "
        "chats.jsonl"
    )
    assert without_folders("org/name" + MIXED.format(25, "./a b")) == "org/name, and 25% of the tokens of a b"
    long = f"./clients/{'n' * 200}.txt, documents of at least 4,096 tokens drawn 3 times as often inside every source"
    assert without_folders(long) == long.removeprefix("./clients/")
    assert without_folders(long.removeprefix("./clients/")) == long.removeprefix("./clients/")
    assert without_folders(f"../{MIXED.format(5, '.')}") == ".., and 5% of the tokens of a folder"


@pytest.mark.parametrize("prepared", [False, True])
def test_a_card_names_no_folder_of_texts_that_were_named_from_where_the_run_began(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, prepared: bool
) -> None:
    (workspace / "clients").mkdir()
    (workspace / "texts").rename(workspace / "clients" / "acme")
    monkeypatch.chdir(workspace)
    data, made = "clients/acme", "made"
    if prepared:
        harpe.prepare(data, "model", 256, made, upsample_factor=2)
        data = made
    harpe.extend("model", 256, data, "run", method="abf", tokens=1024, batch_tokens=256)
    (workspace / "elsewhere").mkdir()
    monkeypatch.chdir(workspace / "elsewhere")
    card = (export(ExportOptions(source=str(workspace / "run"), out="out")) / "README.md").read_text()
    assert "clients" not in card and "acme" in card


def test_the_model_folder_of_a_run_is_exported_as_well(extended: Path, workspace: Path) -> None:
    out = export(ExportOptions(source=str(extended / "harpe" / "model"), out=str(workspace / "out")))
    assert (out / "modeling_harpe.py").is_file()
    assert (out / "tokenizer.json").is_file()


def test_what_cannot_be_exported_is_told_and_nothing_is_written(
    extended: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(source=str(extended), out=str(workspace / "out"))
    for changed, message in (
        (replace(options, method="base"), "no trained model base; --method may be harpe"),
        (replace(options, out=str(workspace / "texts")), "exists already"),
        (replace(options, source=str(workspace / "model")), "not extended by harpe"),
    ):
        with pytest.raises(HarpeError, match=message):
            export(changed)
    monkeypatch.setattr("harpe.runs.directory.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(HarpeError, match=r"The exported model needs about .* MB .* are free"):
        export(options)
    (extended / "harpe" / "model").rename(workspace / "away")
    with pytest.raises(HarpeError, match="is not finished"):
        export(options)
    assert not (workspace / "out").exists()


@pytest.fixture
def compared(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A comparison by `harpe.compare` with two trained methods, two seeds and Self-Extend; its workers run in this
    process."""
    recipe = {
        "title": "tiny",
        "model": str(workspace / "model"),
        "length": 256,
        "data": str(workspace / "texts"),
        "tokens": 1024,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "baseline": "abf",
        "evaluation": {"data": str(workspace / "texts"), "documents": 2, "samples": 0, "grid_samples": 0},
        "methods": ["self-extend", "none", "abf", {"name": "harpe-uniform", "method": "harpe"}],
    }
    (workspace / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(jobs, "run_worker", lambda workers, run, job, slot: work(run, job[0].name, job[1], Reporter()))
    return harpe.compare(workspace / "recipe.yaml", out=workspace / "compared", seeds=[3, 4])


def test_a_model_of_a_comparison_is_exported_by_method_and_seed(compared: Path, workspace: Path) -> None:
    options = ExportOptions(source=str(compared), out=str(workspace / "out"), method="harpe-uniform", seed=4)
    out = export(options)
    plan, card = read_json(compared / "plan.json"), (out / "README.md").read_text()
    (method,) = [entry for entry in plan["methods"] if entry["name"] == "harpe-uniform"]
    assert method["explanation"] in card and "seed 4" in card
    assert plan["corpus"]["hashes"]["4"] in card and plan["corpus"]["hashes"]["3"] not in card
    rows = [
        read_json(compared / name / "scores" / "perplexity.json")["long"]["perplexity"]
        for name in ("none/seed-0", "harpe-uniform/seed-4")
    ]
    (row,) = [line for line in card.splitlines() if line.startswith("| perplexity, positions")]
    assert [cell.split()[0] for cell in row.split("|")[2:4]] == [f"{value:.2f}" for value in rows]
    trained = load_model(compared / "harpe-uniform" / "seed-4" / "model")
    exported = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), exported.parameters(), strict=True))
    other = load_model(compared / "harpe-uniform" / "seed-3" / "model")
    assert any(not torch.equal(a, b) for a, b in zip(other.parameters(), exported.parameters(), strict=True))
    (compared / "abf" / "seed-3" / "model").rename(workspace / "away")
    # the first seed that has a model
    stock = export(replace(options, out=str(workspace / "stock"), method="abf", seed=None))
    assert "seed 4" in (stock / "README.md").read_text() and not (stock / "modeling_harpe.py").exists()
    for changed, message in (
        ({"method": None}, "has several models; choose one by --method: self-extend, abf, harpe-uniform"),
        ({"method": "none"}, "has no model none"),
        ({"seed": 5}, "--seed may be 3, 4"),
        ({"method": "self-extend"}, "no Self-Extend with seed 4; --seed may be 0"),
        ({"method": "self-extend", "seed": None}, "only harpe runs it"),
        ({"method": "abf", "seed": 3}, "seed 3 has no model. Start its `harpe compare` again"),
        (
            {"source": str(compared / "abf" / "seed-4" / "model"), "method": None},
            "--seed chooses a model of a comparison",
        ),
    ):
        with pytest.raises(HarpeError, match=message):
            export(replace(options, **{"out": str(workspace / "none"), **changed}))
    assert not (workspace / "none").exists()
    before = sorted(compared.rglob("*"))
    with pytest.raises(HarpeError, match="is a comparison, and its recipe says what is measured"):
        evaluate(EvaluateOptions(model=str(compared), data=str(workspace / "texts")))
    assert sorted(compared.rglob("*")) == before


def test_dynamic_ntk_keeps_the_length_of_the_tokenizer_whose_configuration_has_the_trained_context(
    tmp_path: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path(), model_max_length=2048)  # as a run saves it
    with pytest.warns(UserWarning, match="not trained with"):
        model = harpe.apply(load_model("embedded"), "ntk-dynamic", length=2048)
    harpe.export(model, tmp_path / "m", tokenizer)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["max_position_embeddings"] == 256
    found = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert found.model_max_length == 2048 and len(found("word " * 1500, truncation=True)["input_ids"]) > 256
    assert "256 tokens, beyond which the base grows" in (tmp_path / "m" / "README.md").read_text()
