"""A checkpoint is known by its content."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harpe import files
from harpe.errors import HarpeError
from harpe.models.identity import checkpoint_identity


@pytest.fixture
def checkpoint(make_tiny: Any, tmp_path: Path) -> Path:
    make_tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_copy_under_another_name_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    _change(tmp_path / "copy" / "config.json", _name_or_path="elsewhere", transformers_version="6.0")
    (tmp_path / "copy" / "generation_config.json").write_text('{"repetition_penalty": 1.3}')
    assert checkpoint_identity(tmp_path / "copy") == checkpoint_identity(checkpoint)
    (tmp_path / "link").symlink_to(checkpoint)
    assert checkpoint_identity(tmp_path / "link") == checkpoint_identity(checkpoint)
    json.dumps(checkpoint_identity(checkpoint))


def test_one_changed_weight_is_another_model_though_size_and_time_are_the_same(checkpoint: Path) -> None:
    before, path = checkpoint_identity(checkpoint), checkpoint / "model.safetensors"
    there, weights = path.stat(), load_file(path)
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, path, {"format": "pt"})
    assert path.stat().st_size == there.st_size
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))
    after = checkpoint_identity(checkpoint)
    assert after["weights"] != before["weights"]
    assert after["config"] == before["config"]


def test_what_the_configuration_decides_is_part_of_the_model(checkpoint: Path) -> None:
    before = checkpoint_identity(checkpoint)
    _change(checkpoint / "config.json", rms_norm_eps=1e-3)
    assert checkpoint_identity(checkpoint)["config"] != before["config"]
    between = checkpoint_identity(checkpoint)
    (checkpoint / "adapter_config.json").write_text('{"lora_alpha": 16}')
    assert checkpoint_identity(checkpoint)["config"] != between["config"]


def test_files_are_read_once_as_long_as_they_stay(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    files._sha256_in_state.cache_clear()
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(path) or "0")
    assert checkpoint_identity(checkpoint) == checkpoint_identity(checkpoint)
    assert len(read) == 1


def test_a_model_of_the_hub_is_the_commit_that_its_name_stands_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, commits = tmp_path / "hub" / "models--maker--model", ["a" * 40, "b" * 40]
    for commit in commits:
        shutil.copytree(checkpoint, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commits[0])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert checkpoint_identity("maker/model") == {"commit": commits[0]}
    assert checkpoint_identity("maker/model", commits[1]) == {"commit": commits[1]}
    (repo / "refs" / "main").write_text(commits[1])
    assert checkpoint_identity("maker/model") == {"commit": commits[1]}
    with pytest.raises(HarpeError, match="maker/other"):
        checkpoint_identity("maker/other")


def test_a_folder_that_cannot_be_told_is_a_sentence(checkpoint: Path) -> None:
    torch.save({}, checkpoint / "pytorch_model.bin")
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(HarpeError, match="cannot be read"):
        checkpoint_identity(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(HarpeError, match="no weights in safetensors"):
        checkpoint_identity(checkpoint)
