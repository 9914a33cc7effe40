"""Layers' inputs wait in the host's memory where that was asked for, and gradients stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch.autograd.graph import save_on_cpu
from transformers import modeling_utils

from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.options.training import TrainingSettings
from harpe.training.loss import chunked_loss
from harpe.training.memory import check_accelerator, set_recompute
from harpe.training.stages import check_stages

NEEDS_OFFLOAD = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="transformers offloads from 5.23 on"
)


@NEEDS_OFFLOAD
def test_inputs_of_layers_go_to_the_host_and_gradients_are_the_same(
    make_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU nothing can be pinned, so the copies are of the kind that is not."""
    moved: list[str] = []

    def unpinned(pin_memory: bool, device_type: str) -> save_on_cpu:
        moved.append(device_type)
        return save_on_cpu(pin_memory=False)

    monkeypatch.setattr(modeling_utils, "save_on_cpu", unpinned)
    model, found = make_tiny("llama"), []
    ids = torch.arange(3, 67)[None]
    for offload in (False, True):
        model.zero_grad()
        model.train()
        set_recompute(model, True, offload)
        with chunked_loss(model):
            model(input_ids=ids, labels=ids).loss.backward()
        set_recompute(model, False)
        found.append([weight.grad.clone() for weight in model.parameters()])
    assert len(moved) == model.config.num_hidden_layers
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_offloading_is_refused_without_a_gpu_and_without_recompute(
    make_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(HarpeError, match="needs a GPU"):
        check_accelerator()
    geometry = read_geometry(make_tiny("llama").config, "the model")
    stages = [Stage(per_head_encoding([1e4] * geometry.key_value_heads, geometry), 64, 1.0)]
    options = TrainingSettings(tokens=640, dtype="float32", gradient_checkpointing=False)
    with pytest.raises(HarpeError, match="--gradient-checkpointing false has none"):
        check_stages(stages, options, Layout(offload=True))
