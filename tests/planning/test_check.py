"""`harpe extend` plans its memory first: it takes the layout that fits, and refuses what does not."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from harpe.commands.extend import extend
from harpe.comparison.resources import sharing
from harpe.distributed.layout import MLP_TILE, Layout, choose_layout
from harpe.errors import HarpeError
from harpe.options.extend import ExtendOptions
from harpe.options.training import LayoutOptions, TrainingSettings
from harpe.planning import check as check_module
from harpe.planning import trace
from harpe.planning.check import MemoryCheck, these_devices
from harpe.planning.devices import _limits
from harpe.reporter import Reporter

OPTIONS: dict[str, Any] = {"model": "embedded", "length": 512, "data": "embedded", "tokens": 1024, "dtype": "float32"}


class Said(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, text: str) -> None:
        self.sentences.append(text)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many bytes of memory this machine has."""

    def sized(size: int) -> None:
        monkeypatch.setattr(check_module, "machine_memory", lambda: size)

    return sized


def test_a_training_that_cannot_fit_is_refused_and_leaves_nothing(machine: Any, tmp_path: Path) -> None:
    machine(50_000_000)
    with pytest.raises(HarpeError, match=r"memory does not suffice.* of the 50 MB of a process .*--ignore-memory"):
        extend(ExtendOptions(**OPTIONS, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_trained_when_asked_and_the_plan_is_told(machine: Any, tmp_path: Path) -> None:
    machine(50_000_000)
    said = Said()
    target = extend(ExtendOptions(**OPTIONS, out=str(tmp_path / "run"), ignore_memory=True), said)
    assert (target / "config.json").exists()
    assert any(text.startswith("Planned memory of tensors: ") and "little to spare" in text for text in said.sentences)


def test_a_model_whose_code_cannot_be_traced_is_trained_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a kernel has no stand-in\nand more")

    monkeypatch.setattr(trace.Tracer, "layer", fail)
    said = Said()
    extend(ExtendOptions(**OPTIONS, out=str(tmp_path / "run")), said)
    assert "The memory of this training could not be planned (a kernel has no stand-in)." in said.sentences


def small(**changes: Any) -> PreTrainedConfig:
    shape = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 1024, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config: PreTrainedConfig = AutoConfig.for_model(changes.pop("family", "llama"), **{**shape, **changes})
    return config


def test_sequences_are_shared_and_then_cut_in_tiles_as_memory_asks_for(machine: Any) -> None:
    """Two sequences of 16384 tokens a step, so that both processes would have work without sharing."""
    settings = TrainingSettings(tokens=32768, batch_tokens=32768, dtype="float32")

    def chosen(size: int) -> Layout:
        machine(size)
        return choose_layout(2, LayoutOptions(), [2], 1, MemoryCheck(small(), 16384, settings, 2).filled)

    machine(10**12)
    memory = MemoryCheck(small(), 16384, settings, 2)
    plans = [memory.plan(layout) for layout in (Layout(2, 1), Layout(2, 2), Layout(2, 2, mlp_tile=MLP_TILE))]
    assert plans[0] and plans[1] and plans[2] and plans[0].total > plans[1].total > plans[2].total
    assert chosen(10**12) == Layout(2, 1)
    # two processes of one machine, and a fifth to spare
    assert chosen(enough := int(2 * plans[1].total / 0.8) + 2000) == Layout(2, 2)
    assert chosen(int(2 * plans[2].total / 0.8) + 2000) == Layout(2, 2, mlp_tile=MLP_TILE)
    assert chosen(enough // 4) == Layout(2, 2, mlp_tile=MLP_TILE)  # nothing fits: what needs least


def test_families_whose_sequences_cannot_be_shared_are_not_shared_for_memory(machine: Any) -> None:
    machine(1000)
    config = small(family="gemma3_text", sliding_window=64, layer_types=["sliding_attention", "full_attention"])
    settings = TrainingSettings(tokens=2048, batch_tokens=2048, dtype="float32")
    memory = MemoryCheck(config, 1024, settings, 2)
    assert memory.filled(Layout(2, 2)) == math.inf
    chosen = choose_layout(2, LayoutOptions(), [2], 1, memory.filled)
    assert chosen.sequence_parallel == 1


def test_layers_that_are_no_feed_forward_layers_are_left_alone(machine: Any) -> None:
    """LFM2's convolutions have matrices and look at several tokens."""
    settings = TrainingSettings(tokens=4096, batch_tokens=2048, dtype="float32")
    config = small(family="lfm2", layer_types=["conv", "full_attention"])
    machine(2_000_000)
    memory = MemoryCheck(config, 2048, settings, 1)
    assert memory.plan(Layout(mlp_tile=512)) is not None and not memory.trouble


def test_a_training_that_fits_with_nothing_to_spare_is_not_refused(machine: Any) -> None:
    settings = TrainingSettings(tokens=32768, batch_tokens=16384, dtype="float32")
    machine(10**12)
    needed = MemoryCheck(small(), 16384, settings, 1).plan(Layout(mlp_tile=MLP_TILE))
    assert needed is not None
    machine(int(needed.total * 1.1))
    memory = MemoryCheck(small(), 16384, settings, 1)
    layout = choose_layout(1, LayoutOptions(), [1], 1, memory.filled)
    assert layout.mlp_tile == MLP_TILE
    (told,) = memory.check(layout, ignored=False)
    assert "little to spare" in told


def test_limits_of_control_groups_of_both_versions_count(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,memory:/slurm/job\n1:name=systemd:/x\n0::/user/step\n")
    found = [str(path.relative_to(tmp_path)) for path in _limits(tmp_path, own)]
    assert found == [
        "memory/slurm/job/memory.limit_in_bytes",
        "memory/slurm/memory.limit_in_bytes",
        "memory/memory.limit_in_bytes",
        "user/step/memory.max",
        "user/memory.max",
        "memory.max",
    ]


def test_processes_of_one_machine_share_its_memory(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(8000)
    assert these_devices(4).memory == 2000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of two machines
    assert these_devices(4).memory == 4000
    assert these_devices(4, trainings=2).memory == 2000


@pytest.mark.parametrize(
    ("gpus", "jobs", "processes", "rows"),
    [(1, 1, 1, 1), (1, 2, 1, 2), (2, 2, 1, 1), (3, 4, 1, 2), (2, 2, 2, 2), (4, 2, 2, 1), (5, 5, 2, 3)],
)
def test_rows_of_a_comparison_on_one_gpu_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, gpus: int, jobs: int, processes: int, rows: int
) -> None:
    found = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=60_000)
    for name, value in (("is_available", True), ("device_count", gpus), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    devices = these_devices(processes, sharing({}, jobs, processes))
    assert (devices.count, devices.name, devices.memory) == (processes, "H100", 60_000 // rows)
