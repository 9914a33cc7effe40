"""What every family holds in training is planned, whatever its layers are made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from harpe.distributed.layout import ONE_PROCESS
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.options.training import TrainingSettings
from harpe.planning.check import MemoryCheck
from harpe.planning.live import LiveBytes
from harpe.positions import rotation
from harpe.training.stages import train_stages

from .tiny_families import FAMILIES, REPRESENTATIVES, bases_of, tiny

LENGTH = 512


class Same(Dataset[dict[str, torch.Tensor]]):
    """One sequence again and again."""

    def __len__(self) -> int:
        return 4

    def cut(self, length: int) -> Same:
        return self

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(LENGTH) % 90 + 3
        return {"input_ids": ids, "labels": ids}


class FreshTiles:
    """Memory for the rotation's tiles that goes after a call, as on GPUs, in the place of what a thread keeps."""

    def take(self, rows: int, size: int) -> torch.Tensor:
        return torch.empty(rows, size)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.matrix) for name in FAMILIES],
)
def test_a_family_holds_what_was_planned(family: str, tmp_path: Path, monkeypatch: Any, record_property: Any) -> None:
    """Within a tenth, by one process in float32."""
    model = tiny(family)
    options = TrainingSettings(
        tokens=4 * LENGTH,
        batch_tokens=2 * LENGTH,
        dtype="float32",
        gradient_checkpointing=model.supports_gradient_checkpointing,
    )
    check = MemoryCheck(copy.deepcopy(model.config), LENGTH, options, 1)
    plan = check.plan(ONE_PROCESS)
    assert plan is not None, check.trouble
    geometry = read_geometry(model.config, family)
    stage = Stage(per_head_encoding(bases_of(model), geometry), LENGTH, 1.0)
    monkeypatch.setattr(rotation, "_scratch", FreshTiles())
    with LiveBytes() as live:
        live.watch(model.parameters())
        train_stages(model, geometry, [stage], Same(), options, tmp_path)
    record_property("planned / held", plan.total / live.peak)
    assert plan.total == pytest.approx(live.peak, rel=0.1)
