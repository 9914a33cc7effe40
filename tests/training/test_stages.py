"""Training through stages: it learns, logs, resumes, and refuses what cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from harpe.errors import HarpeError
from harpe.files import read_jsonl, write_json
from harpe.methods.types import Stage, per_head_encoding, shared_encoding
from harpe.models.geometry import read_geometry
from harpe.training.checkpoints import is_complete, last_complete, mark_complete
from harpe.training.options import TrainingOptions
from harpe.training.stages import train_stages

LENGTH = 64


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Sequences that go up by one: learnable in a few steps."""

    def __init__(self, count: int, length: int = LENGTH) -> None:
        self.count, self.length = count, length

    def __len__(self) -> int:
        return self.count

    def cut(self, length: int) -> Counting:
        return self if length == self.length else type(self)(self.count * self.length // length, length)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(self.length) + 7 * i) % 90 + 1
        return {"input_ids": ids, "labels": ids.clone()}


def options(**changes: Any) -> TrainingOptions:
    values = {"tokens": 12 * 4 * LENGTH, "learning_rate": 1e-2, "batch_tokens": 4 * LENGTH, "save_every": 4, "dtype": "float32"}
    return TrainingOptions(**{**values, **changes})


def train(make_tiny: Any, folder: Path, data: Dataset[Any] | None = None, stages: list[Stage] | None = None, **changes: Any) -> Any:
    model = make_tiny("llama", max_position_embeddings=32)
    geometry = read_geometry(model.config, "tiny")
    stages = stages or [Stage(per_head_encoding((5e4, 9e4), geometry), LENGTH, 1.0)]
    return train_stages(model, geometry, stages, data or Counting(200, stages[-1].length), options(**changes), folder)  # type: ignore[arg-type]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_loss_falls_and_every_step_is_logged(make_tiny: Any, tmp_path: Path) -> None:
    model = train(make_tiny, tmp_path)
    rows = read_jsonl(tmp_path / "stage-1" / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["tokens"] for row in rows] == [4 * LENGTH * step for step in range(1, 13)]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert model.config.rope_parameters["rope_type"] == "harpe"
    assert list((tmp_path / "stage-1" / "tensorboard").rglob("events*"))


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_activations_give_the_same_weights(make_tiny: Any, tmp_path: Path, recompute: bool) -> None:
    expected = weights(train(make_tiny, tmp_path / "a", gradient_checkpointing=False))
    got = weights(train(make_tiny, tmp_path / "b", gradient_checkpointing=recompute))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-5)


class Stop(Exception):
    pass


def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit(make_tiny: Any, tmp_path: Path) -> None:
    """The interruption comes from the data, in the middle of an accumulated step."""
    expected = weights(train(make_tiny, tmp_path / "whole"))

    class Breaking(Counting):
        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            if i == 27:
                raise Stop
            return super().__getitem__(i)

    with pytest.raises(Stop):
        train(make_tiny, tmp_path / "broken", Breaking(200))
    assert last_complete(tmp_path / "broken" / "stage-1").name == "checkpoint-4"  # type: ignore[union-attr]
    got = weights(train(make_tiny, tmp_path / "broken"))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    rows = read_jsonl(tmp_path / "broken" / "stage-1" / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    losses = [row["loss"] for row in read_jsonl(tmp_path / "whole" / "stage-1" / "log.jsonl")]
    assert [row["loss"] for row in rows] == losses


def test_a_finished_stage_is_not_trained_again(make_tiny: Any, tmp_path: Path) -> None:
    expected = weights(train(make_tiny, tmp_path))
    log = (tmp_path / "stage-1" / "log.jsonl").read_bytes()
    got = weights(train(make_tiny, tmp_path))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert (tmp_path / "stage-1" / "log.jsonl").read_bytes() == log


def test_stages_follow_each_other_with_their_own_length_and_base(make_tiny: Any, tmp_path: Path) -> None:
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(shared_encoding(2e4, geometry), 64, 0.5), Stage(shared_encoding(5e4, geometry), 128, 0.5)]
    model = train(make_tiny, tmp_path, stages=stages)
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 5e4}
    assert model.config.max_position_embeddings == 128
    assert len(read_jsonl(tmp_path / "stage-1" / "log.jsonl")) == 6
    assert len(read_jsonl(tmp_path / "stage-2" / "log.jsonl")) == 6


@pytest.mark.parametrize(("schedule", "peaks"), [("restarted", 2), ("carried", 1)])
def test_the_learning_rate_rises_and_falls_in_every_stage_or_once(make_tiny: Any, tmp_path: Path, schedule: str, peaks: int) -> None:
    """Linear up over a quarter of the steps and linear down to zero, written out step by step."""
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(shared_encoding(2e4, geometry), 64, 1 / 3), Stage(shared_encoding(5e4, geometry), 128, 2 / 3)]
    train(make_tiny, tmp_path, stages=stages, schedule=schedule, warmup_share=0.25, learning_rate=1.0e-3)
    found = [row["learning_rate"] for n in (1, 2) for row in read_jsonl(tmp_path / f"stage-{n}" / "log.jsonl")]

    def whole(steps: int) -> list[float]:
        warm = -(-steps // 4)
        return [1e-3 * (s / warm if s < warm else (steps - s) / (steps - warm)) for s in range(steps)]

    wanted = whole(4) + whole(8) if peaks == 2 else whole(12)
    # the Trainer logs the rate of the step that follows
    shifted = [*wanted[1:4], 0.0, *wanted[5:], 0.0] if peaks == 2 else [*wanted[1:], 0.0]
    assert found == pytest.approx(shifted, abs=1e-12) or found == pytest.approx(wanted, abs=1e-12)


def test_no_text_is_repeated(make_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="needs 48 sequences of 64 tokens, the corpus gives 47"):
        train(make_tiny, tmp_path, Counting(47))


def test_divergence_is_told(make_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="diverged"):
        train(make_tiny, tmp_path, learning_rate=1e30, max_grad_norm=1e30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"tokens": 63}, "less than one step"),
        ({"micro_batch": 3}, "does not divide"),
        ({"dtype": "float16"}, "choose auto, bfloat16 or float32"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        options(**changes).check(LENGTH)


def test_broken_checkpoints_are_passed_over_and_removed(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"x" * step)
    mark_complete(tmp_path / "checkpoint-4")
    mark_complete(tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-8" / "model.safetensors").write_bytes(b"x")  # cut off after it was marked
    assert not is_complete(tmp_path / "checkpoint-8") and not is_complete(tmp_path / "checkpoint-12")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-4"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]
    write_json(tmp_path / "checkpoint-4" / "extra.json", {})
    assert is_complete(tmp_path / "checkpoint-4")
