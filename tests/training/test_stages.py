"""Training through stages: it learns, logs, resumes, and refuses what cannot work."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from harpe.distributed.layout import ONE_PROCESS
from harpe.errors import HarpeError
from harpe.files import new_folder, read_jsonl
from harpe.methods.types import Stage, per_head_encoding, shared_encoding
from harpe.models.geometry import read_geometry
from harpe.options.training import TrainingSettings
from harpe.training import trainer
from harpe.training.checkpoints import is_complete, last_complete, load_weights
from harpe.training.stages import train_stages
from harpe.training.trainer import Schedule

LENGTH = 64
MODEL, OPTIMIZER = (f"{part}/shard-00001-model-00001-of-00001.safetensors" for part in ("model", "optimizer"))
"""Files of a checkpoint of one process."""


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


def options(**changes: Any) -> TrainingSettings:
    values = {
        "tokens": 12 * 4 * LENGTH,
        "learning_rate": 1e-2,
        "batch_tokens": 4 * LENGTH,
        "save_every": 4,
        "dtype": "float32",
    }
    return TrainingSettings(**{**values, **changes})


def train(
    make_tiny: Any,
    folder: Path,
    data: Dataset[Any] | None = None,
    stages: list[Stage] | None = None,
    family: str = "llama",
    tell: Any = print,
    **changes: Any,
) -> Any:
    model = make_tiny(family, max_position_embeddings=32)
    geometry = read_geometry(model.config, "tiny")
    stages = stages or [Stage(per_head_encoding((5e4, 9e4), geometry), LENGTH, 1.0)]
    return train_stages(
        model, geometry, stages, data or Counting(200, stages[-1].length), options(**changes), folder, tell=tell
    )  # type: ignore[arg-type]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


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


class Breaking(Counting):
    """Breaks off in the middle of an accumulated step."""

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if i == 27:
            raise Stop
        return super().__getitem__(i)


RARE = [pytest.param(family, marks=pytest.mark.slow) for family in ("mixtral", "olmo")]


@pytest.mark.parametrize("family", ["llama", *RARE])  # norms of the last have no weights
def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit(make_tiny: Any, tmp_path: Path, family: str) -> None:
    """The interruption comes from the data, in the middle of an accumulated step. Experts have other names on the hub
    than in the model."""
    expected = weights(train(make_tiny, tmp_path / "whole", family=family))
    with pytest.raises(Stop):
        train(make_tiny, tmp_path / "broken", Breaking(200), family=family)
    assert last_complete(tmp_path / "broken" / "stage-1").name == "checkpoint-4"  # type: ignore[union-attr]
    got = weights(train(make_tiny, tmp_path / "broken", family=family))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    rows = read_jsonl(tmp_path / "broken" / "stage-1" / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    whole = read_jsonl(tmp_path / "whole" / "stage-1" / "log.jsonl")
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in whole]


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
def test_the_learning_rate_rises_and_falls_in_every_stage_or_once(
    make_tiny: Any, tmp_path: Path, schedule: str, peaks: int
) -> None:
    """Linear up over a quarter of the steps and linear down to zero, written out step by step."""
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(shared_encoding(2e4, geometry), 64, 1 / 3), Stage(shared_encoding(5e4, geometry), 128, 2 / 3)]
    train(make_tiny, tmp_path, stages=stages, schedule=schedule, warmup_share=0.25, learning_rate=1.0e-3)
    found = [row["learning_rate"] for n in (1, 2) for row in read_jsonl(tmp_path / f"stage-{n}" / "log.jsonl")]

    def whole(steps: int) -> list[float]:
        warm = -(-steps // 4)
        return [1e-3 * ((s + 1) / warm if s < warm else (steps - s) / (steps - warm)) for s in range(steps)]

    wanted = whole(4) + whole(8) if peaks == 2 else whole(12)
    # the Trainer logs the rate of the step that follows
    shifted = [*wanted[1:4], 0.0, *wanted[5:], 0.0] if peaks == 2 else [*wanted[1:], 0.0]
    assert found == pytest.approx(shifted, abs=1e-12) or found == pytest.approx(wanted, abs=1e-12)


def test_no_text_is_repeated(make_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="needs 48 sequences of 64 tokens, the corpus gives 47"):
        train(make_tiny, tmp_path, Counting(47))


@pytest.mark.parametrize("warmup_share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 16, 100])
def test_every_step_moves_the_weights(steps: int, warmup_share: float) -> None:
    rates = [Schedule(options(warmup_share=warmup_share), 0, steps)(step) for step in range(steps)]
    assert max(rates) == 1.0 and min(rates) > 0.0
    assert rates.index(1.0) == max(math.ceil(warmup_share * steps) - 1, 0)


def test_a_run_of_one_step_trains(make_tiny: Any, tmp_path: Path) -> None:
    before = weights(make_tiny("llama", max_position_embeddings=32))
    after = weights(train(make_tiny, tmp_path, tokens=4 * LENGTH))
    moved = (before["model.layers.0.mlp.up_proj.weight"] - after["model.layers.0.mlp.up_proj.weight"]).abs()
    assert moved.median() == pytest.approx(1e-2, rel=0.01)  # AdamW's first step is the learning rate


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "The loss became"),
        ({"tokens": 2 * 4 * LENGTH}, "The loss became"),
        # what the last update does shows in no loss of the training
        ({"tokens": 4 * LENGTH}, "norm of all weights went from"),
        ({"tokens": 4 * LENGTH, "learning_rate": 0.3}, "loss of the first step's texts went from"),
    ],
)
def test_divergence_is_told(make_tiny: Any, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    changes = {"learning_rate": 1e30, "max_grad_norm": 1e30, **changes}
    for _ in range(2):  # and what is there is not taken for trained when the run is resumed
        with pytest.raises(HarpeError, match=f"{told}.*diverged"):
            train(make_tiny, tmp_path, **changes)


def test_a_gradient_without_a_norm_is_told(make_tiny: Any, tmp_path: Path) -> None:
    model = make_tiny("llama", max_position_embeddings=32)
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    geometry = read_geometry(model.config, "tiny")
    stage = Stage(shared_encoding(5e4, geometry), LENGTH, 1.0)
    with pytest.raises(HarpeError, match="norm of the gradient became .* at step 1"):
        train_stages(model, geometry, [stage], Counting(200), options(), tmp_path)


@pytest.mark.parametrize("output_layer", [False, True])
def test_llama_written_as_granite_trains_alike(make_tiny: Any, tmp_path: Path, output_layer: bool) -> None:
    """Granite divides its logits by 8, and the output layer is 8 times that of Llama. Where it stays as it is all steps
    agree; AdamW's steps have one size, so that it learns an eighth as fast where it is trained too."""
    llama = make_tiny("llama", max_position_embeddings=32)
    ones = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 0.25}
    granite = make_tiny("granite", max_position_embeddings=32, logits_scaling=8.0, **ones)
    granite.load_state_dict({k: v * 8 if k == "lm_head.weight" else v for k, v in llama.state_dict().items()})
    losses = {}
    for name, model in (("llama", llama), ("granite", granite)):
        model.lm_head.weight.requires_grad_(output_layer)
        geometry = read_geometry(model.config, "tiny")
        stage = Stage(per_head_encoding((5e4, 9e4), geometry), LENGTH, 1.0)
        train_stages(model, geometry, [stage], Counting(200), options(learning_rate=3e-3), tmp_path / name)
        losses[name] = [row["loss"] for row in read_jsonl(tmp_path / name / "stage-1" / "log.jsonl")]
    assert losses["llama"][-1] < losses["llama"][0] - 0.3
    if output_layer:
        assert losses["granite"][0] == pytest.approx(losses["llama"][0], abs=1e-4)
        assert losses["granite"][-1] < losses["granite"][0] - 0.3
    else:
        assert losses["granite"] == pytest.approx(losses["llama"], abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"tokens": LENGTH - 1}, f"less than one text of --length {LENGTH}"),
        ({"tokens": LENGTH - 1, "batch_tokens": 8, "pose_length": 8}, f"less than one text of --length {LENGTH}"),
        ({"tokens": LENGTH, "batch_tokens": 2 * LENGTH}, f"less than one step of {2 * LENGTH} tokens"),
        ({"micro_batch": 3}, "does not divide"),
        ({"micro_batch": 0}, "--micro-batch is 0; it must be at least 1"),
        ({"micro_batch": -1}, "--micro-batch is -1; it must be at least 1"),
        ({"save_every": 0}, "--save-every is 0; it must be at least 1"),
        ({"batch_tokens": -5}, "--batch-tokens is -5; it must be at least 0"),
        ({"learning_rate": math.nan}, "--learning-rate is nan; it must be above 0, and finite"),
        ({"learning_rate": math.inf}, "--learning-rate is inf; it must be above 0, and finite"),
        ({"weight_decay": math.nan}, "--weight-decay is nan"),
        ({"weight_decay": math.inf}, "--weight-decay is inf"),
        ({"max_grad_norm": math.nan}, "--max-grad-norm nan"),
        ({"dtype": "float16"}, "choose auto, bfloat16 or float32"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        options(**changes).check(LENGTH)


def test_damaged_checkpoints_are_told_and_the_one_before_is_used(make_tiny: Any, tmp_path: Path) -> None:
    """Each damage by itself, to a finished stage; what is not harpe's stays as it is."""
    expected = weights(train(make_tiny, tmp_path / "whole"))
    (tmp_path / "whole" / "stage-1" / "checkpoint-best").mkdir()
    (tmp_path / "whole" / "stage-1" / "checkpoint-4-old").mkdir()
    (tmp_path / "whole" / "stage-1" / "checkpoint-2").mkdir()  # a number of harpe's, without harpe's mark

    def zeros(path: Path) -> None:
        path.write_bytes(bytes(path.stat().st_size))

    damages: dict[str, Callable[[Path], object]] = {
        OPTIMIZER: zeros,
        MODEL: lambda path: path.write_bytes(path.read_bytes()[:-9]),
        f"./{MODEL}": Path.unlink,
        "complete.json": lambda path: path.write_text("{}"),
        "trainer_state.json": zeros,
    }
    for name, damage in damages.items():
        shutil.copytree(tmp_path / "whole", folder := tmp_path / name.replace("/", "-"))
        damage(folder / "stage-1" / "checkpoint-12" / name)
        told: list[str] = []
        got = weights(train(make_tiny, folder, tell=told.append))
        assert all(torch.equal(got[key], value) for key, value in expected.items()), name
        assert len(told) == 1 and "checkpoint-12 is not whole" in told[0]
        assert is_complete(folder / "stage-1" / "checkpoint-12")  # made again
        left = sorted(p.name for p in (folder / "stage-1").glob("*checkpoint-*"))
        assert left == ["checkpoint-12", "checkpoint-2", "checkpoint-4-old", "checkpoint-8", "checkpoint-best"]


def test_what_lies_where_a_checkpoint_would_is_told_before_the_training(make_tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "stage-1" / "checkpoint-8").mkdir(parents=True)
    (tmp_path / "stage-1" / "checkpoint-8" / "thesis.tex").write_text("x")
    with pytest.raises(HarpeError, match=r"checkpoint-8 is not harpe's .* Move it"):
        train(make_tiny, tmp_path)
    assert [p.name for p in (tmp_path / "stage-1").rglob("*")] == ["checkpoint-8", "thesis.tex"]


def test_older_checkpoints_go_only_when_the_new_one_is_on_the_disk(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, remove = os.fsync, trainer.remove_checkpoints
    monkeypatch.setattr(
        "os.fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))[1]
    )
    monkeypatch.setattr(trainer, "remove_checkpoints", lambda *a, **k: (done.append("remove"), remove(*a, **k))[1])
    train(make_tiny, tmp_path)
    for place in (i for i, name in enumerate(done) if name == "remove"):
        assert done[place - 1] == str(tmp_path / "stage-1")  # the name is on the disk
        assert ".partial" in done[place - 2]  # and before it all that the folder holds
    assert done.count("remove") == 3
    assert sum(name.endswith(OPTIMIZER) for name in done) == 6  # torch does, and so do we


def test_a_run_killed_before_older_checkpoints_went_lets_them_go_when_it_goes_on(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "remove_checkpoints", lambda *a, **k: None)
        train(make_tiny, tmp_path)
    folder = tmp_path / "stage-1"
    assert sorted(p.name for p in folder.glob("*checkpoint-*")) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]
    train(make_tiny, tmp_path)
    assert sorted(p.name for p in folder.glob("*checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_disk_that_fills_up_inside_a_checkpoint_is_told_and_the_run_goes_on_later(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = weights(train(make_tiny, tmp_path / "whole"))

    @contextmanager
    def full(path: Path, replace: bool) -> Iterator[Path]:
        with new_folder(path, replace) as folder:
            if path.name == "checkpoint-8":
                (folder / name).parent.mkdir()
                (folder / name).symlink_to("/dev/full")
            yield folder

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "new_folder", full)
        with pytest.raises(HarpeError, match=r"The disk is full: .*checkpoint-8"):
            train(make_tiny, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full" / "stage-1").glob("*checkpoint-*")] == ["checkpoint-4"]
    got = weights(train(make_tiny, tmp_path / "full"))
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_checkpoints_in_several_files_are_loaded_whole_and_nothing_else_is(make_tiny: Any, tmp_path: Path) -> None:
    for family, changes in (
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("mixtral", {"num_local_experts": 4}),
    ):
        model, other = make_tiny(family, **changes), make_tiny(family, seed=1, **changes)
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, max_shard_size="20KB", save_original_format=False)
        assert len(list(folder.glob("*.safetensors"))) > 2
        load_weights(other, folder)
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    wider = make_tiny("mixtral", num_local_experts=4, layers=3)
    with pytest.raises(HarpeError, match=r"does not hold the weights of this model: model\.layers\.2"):
        load_weights(wider, folder)


def test_a_training_uses_one_device_however_many_there_are(tmp_path: Path) -> None:
    arguments = trainer.arguments(tmp_path, options(), ONE_PROCESS, 4, 12)
    arguments._n_gpu = 4  # what transformers finds on a machine with four
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 1)
