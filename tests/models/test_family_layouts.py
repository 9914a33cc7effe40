"""Every family trained by two processes: the losses of one, or a refusal. The whole: scripts/layout_table.py."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from harpe.distributed.layout import ONE_PROCESS, Layout
from harpe.distributed.processes import ALONE, Processes, join
from harpe.errors import HarpeError
from harpe.files import read_jsonl
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.models.head import check_head
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.options.training import TrainingSettings
from harpe.training.stages import train_stages

from .tiny_families import FAMILIES, REPRESENTATIVES, bases_of, tiny

LENGTH = 64
LAYOUTS = {"data parallel": 1, "sequence parallel": 2}
"""Pieces of a sequence, for two processes."""


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Sequences that go up by one."""

    def __len__(self) -> int:
        return 8

    def cut(self, length: int) -> Counting:
        return self

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(LENGTH) + 7 * i) % 90 + 3
        return {"input_ids": ids, "labels": ids.clone()}


def train(place: Path, name: str, ranks: Processes, layout: Layout) -> None:
    """Losses of four steps go to NAME.json, or the sentence of a refusal."""
    shards = {"distributed_config": layout.distributed_config(False)} if layout.sharded else {}
    model = check_head(load_model(place / "model", torch.float32, **shards))
    geometry = read_geometry(model.config, name)
    stage = Stage(per_head_encoding(bases_of(model), geometry), LENGTH, 1.0)
    options = TrainingSettings(tokens=8 * LENGTH, batch_tokens=2 * LENGTH, learning_rate=1e-2, dtype="float32")
    try:
        train_stages(model, geometry, [stage], Counting(), options, place / name, layout=layout, ranks=ranks)
        outcome: Any = [row["loss"] for row in read_jsonl(place / name / "stage-1" / "log.jsonl")]
    except HarpeError as error:
        outcome = str(error)
    if ranks.first:
        (place / f"{name}.json").write_text(json.dumps(outcome))


def train_all(place: Path) -> int:
    ranks = join(tensors=True)
    for name, parts in LAYOUTS.items():
        train(place, name, ranks, Layout(2, parts))
    return 0


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name in REPRESENTATIVES else pytest.mark.matrix)
        for name in FAMILIES
    ],
)
def test_a_family_is_trained_by_two_processes_as_by_one_or_refused(
    family: str, tmp_path: Path, ranks: Any, record_property: Any
) -> None:
    save_checkpoint(tiny(family), load_tokenizer("embedded"), tmp_path / "model", 64)
    train(tmp_path, "alone", ALONE, ONE_PROCESS)
    both = ranks(2, partial(train_all, tmp_path))
    assert [each.wait() for each in both] == [0, 0], "\n".join(each.stderr for each in both)
    alone = json.loads((tmp_path / "alone.json").read_text())
    for name in LAYOUTS:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        if isinstance(found, str):
            assert "--sequence-parallel" in found and name == "sequence parallel"
        else:
            assert found == pytest.approx(alone, abs=1e-5), name
        record_property(name, found if isinstance(found, str) else "yes")
