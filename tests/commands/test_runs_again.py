"""A run is measured and gone on with by what it was given, and by what it has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import harpe
from harpe.cli.main import main
from harpe.commands.evaluate import evaluate
from harpe.data.token_ids import tokenizer_identity
from harpe.errors import HarpeError
from harpe.files import new_folder, read_json, read_jsonl
from harpe.models.load import load_tokenizer
from harpe.options.measuring import EvaluateOptions
from harpe.runs.directory import held, size_of_weights
from harpe.training import trainer

SETTINGS: dict[str, Any] = {"length": 256, "tokens": 2048, "batch_tokens": 512, "dtype": "float32", "method": "yarn"}


def run(workspace: Path, out: str = "run", **changes: Any) -> Path:
    options = {"model": str(workspace / "model"), "data": str(workspace / "texts"), **SETTINGS, **changes}
    return harpe.extend(out=workspace / out, **options)


def test_a_run_with_a_tokenizer_of_its_own_is_measured_with_it(workspace: Path) -> None:
    """The same vocabulary, but other tokens for capitals."""
    other = workspace / "other"
    other.mkdir()
    for file in (workspace / "model").glob("tokenizer*"):
        shutil.copy(file, other)
    settings = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps({**settings, "normalizer": {"type": "Lowercase"}}))
    run(workspace, tokenizer=str(other))
    held_out = workspace / "held_out"
    held_out.mkdir()
    for number in range(2):
        words = " ".join(f"Cows {n} AND dogs {n % (5 + number)}." for n in range(300))
        (held_out / f"{number}.txt").write_text(words)
    options = {"data": str(held_out), "samples": 0, "grid_samples": 0, "dtype": "float32"}
    evaluate(EvaluateOptions(model=str(workspace / "run"), **options))
    kept, given, models = (
        tokenizer_identity(load_tokenizer(str(path)))["sha256"]
        for path in (workspace / "run/yarn/model", other, workspace / "model")
    )
    for row in ("base", "yarn"):
        found = read_json(workspace / "run" / row / "scores" / "protocol.json")["tokenizer"]["sha256"]
        assert found == given and found != models, row
    assert kept == given
    overlap = read_json(workspace / "run/yarn/scores/perplexity.json")["overlap"]
    assert overlap["share"] is not None, overlap


def test_a_full_disk_is_told_before_training(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harpe.runs.directory.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(HarpeError, match=r"needs about .* MB .* are free"):
        run(workspace)
    assert not (workspace / "run").exists()


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_where_its_own_checkpoints_take_the_room(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = trainer.remove_checkpoints

    def killed(folder: Path, *args: Any, **more: Any) -> None:
        remove(folder, *args, **more)
        if more.get("before") == 3:
            raise Killed

    with monkeypatch.context() as at:
        at.setattr(trainer, "remove_checkpoints", killed)
        with pytest.raises(Killed):
            run(workspace, save_every=1)
    there = size_of_weights(workspace / "run")
    parameters = read_json(workspace / "run/plan.json")["model"]["parameters"]
    assert there > 4 * 3 * parameters
    whole = 4 * 10 * parameters + 50_000_000
    usage = shutil._ntuple_diskusage  # type: ignore[attr-defined]
    with monkeypatch.context() as at:
        at.setattr("harpe.runs.directory.shutil.disk_usage", lambda path: usage(whole, there, whole - there - 1))
        with pytest.raises(HarpeError, match=r"needs about [\d.]+ MB under .*, and [\d.]+ MB are free"):
            run(workspace, save_every=1, resume=True)
    monkeypatch.setattr("harpe.runs.directory.shutil.disk_usage", lambda path: usage(whole, there, whole - there))
    assert run(workspace, save_every=1, resume=True).is_dir()
    assert [row["step"] for row in read_jsonl(workspace / "run/yarn/stage-1/log.jsonl")] == [1, 2, 3, 4]


def test_a_model_is_saved_where_somebody_has_deleted_its_log(workspace: Path) -> None:
    model = run(workspace, save_every=2)
    weights = (model / "model.safetensors").read_bytes()
    shutil.rmtree(model)
    (workspace / "run/yarn/stage-1/log.jsonl").unlink()
    assert (run(workspace, save_every=2, resume=True) / "model.safetensors").read_bytes() == weights


def test_a_run_whose_files_have_moved_says_how_it_goes_on(workspace: Path) -> None:
    run(workspace)
    (workspace / "texts").rename(workspace / "moved")
    moved = {"data": str(workspace / "moved"), "resume": True}
    with pytest.raises(HarpeError, match="Where these are the same files under other names, write the names of now"):
        run(workspace, **moved)
    with pytest.raises(HarpeError) as refused:
        run(workspace, **moved, learning_rate=1e-4)
    assert "same files" not in str(refused.value) and "learning_rate" in str(refused.value)
    recipe = workspace / "run/recipe.yaml"
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "data": moved["data"]}))
    assert run(workspace, **moved).is_dir()


def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_read(workspace: Path) -> None:
    with pytest.raises(HarpeError, match="--seed is 4294967296; it must be a number from 0 to 4294967295"):
        run(workspace, seed=2**32)
    assert not (workspace / "run").exists()


def test_holding_a_run_leaves_alone_what_others_make_below_it(workspace: Path) -> None:
    run(workspace)
    outer, inner = workspace / "run", workspace / "run" / "inner"
    with held(inner), new_folder(inner / "yarn" / "checkpoint-4") as made:
        (made / "weights").write_text("w")
        (left := inner / f".x.1.{'0' * 12}.partial").write_text("of who holds it")
        with new_folder(outer / "exported") as exported:
            (exported / "weights").write_text("w")
            with held(outer):
                assert (made / "weights").exists() and (exported / "weights").exists() and left.exists()
    assert (inner / "yarn/checkpoint-4/weights").exists() and (outer / "exported/weights").exists()


def test_a_home_that_no_shell_has_written_out_is_the_home(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workspace / "home"))
    monkeypatch.chdir(workspace)
    assert main(["prepare", "--data=texts", "--model=model", "--length=128", "--out=~/prepared"]) == 0
    assert (workspace / "home/prepared/index.json").is_file() and not (workspace / "~").exists()
