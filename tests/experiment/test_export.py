"""`harpe export` of a run directory and of a checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import harpe
from harpe.errors import HarpeError
from harpe.experiment.export import export
from harpe.experiment.options import ExportOptions
from harpe.files import read_json, write_json
from harpe.models.load import load_model

SCORES: dict[str, Any] = {
    "perplexity.json": {
        "documents": 7,
        "bins": [],
        "short": {"length": 64, "perplexity": 12.34, "low": 11.0, "high": 13.0},
        "long": {"start": 128, "end": 256, "perplexity": 23.45, "low": 22.0, "high": 25.0},
    },
    "needles.json": {"tasks": [{"task": "single", "length": 256, "samples": 9, "score": 0.67, "low": 0.5, "high": 0.8}]},
}


@pytest.fixture
def extended(workspace: Path) -> Path:
    """A run directory with a trained model."""
    settings: dict[str, Any] = {"length": 256, "tokens": 1024, "batch_tokens": 512, "learning_rate": 1e-3, "dtype": "float32"}
    harpe.extend(model=str(workspace / "model"), data=str(workspace / "texts"), out=workspace / "run", **settings)
    return workspace / "run"


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
    assert str(workspace) not in card  # no paths of the machine it was made on
    config = json.loads((out / "config.json").read_text())
    assert config["rope_parameters"]["bases"] == plan["methods"][1]["bases"]
    assert (config["max_position_embeddings"], config["harpe_original_length"]) == (256, 64)
    assert AutoTokenizer.from_pretrained(out).model_max_length == 256
    trained, exported = load_model(extended / "harpe" / "model"), load_model(out)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), exported.parameters(), strict=True))


def test_the_model_folder_of_a_run_is_exported_as_well(extended: Path, workspace: Path) -> None:
    out = export(ExportOptions(source=str(extended / "harpe" / "model"), out=str(workspace / "out")))
    assert (out / "modeling_harpe.py").is_file()
    assert (out / "tokenizer.json").is_file()


def test_what_cannot_be_exported_is_told_and_nothing_is_written(extended: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ExportOptions(source=str(extended), out=str(workspace / "out"))
    for changed, message in (
        (replace(options, method="base"), "no trained model base; --method may be harpe"),
        (replace(options, out=str(workspace / "texts")), "exists already"),
        (replace(options, source=str(workspace / "model")), "not extended by harpe"),
    ):
        with pytest.raises(HarpeError, match=message):
            export(changed)
    monkeypatch.setattr("harpe.experiment.directory.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(HarpeError, match=r"The exported model needs about .* GB .* are free"):
        export(options)
    (extended / "harpe" / "model").rename(workspace / "away")
    with pytest.raises(HarpeError, match="is not finished"):
        export(options)
    assert not (workspace / "out").exists()
