"""Plans of memory are near what others have published and what trainings here hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harpe.files import read_json
from harpe.planning.devices import read_devices
from harpe.planning.memory import FLOAT32, StateBytes, plan_memory
from harpe.planning.settings import Settings
from harpe.planning.time import multiplied_parameters, plan_time, sequence_operations
from harpe.planning.trace import Tracer

from .shapes import config_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "plan_check.py"
CASES = ("vocabulary", "accumulated", "kept", "tiles", "data-parallel", "sequence-parallel", "both")
ON_HOST = StateBytes(2, 2, 0)
"""ZeRO-3 with masters and moments in the machine's memory: bfloat16 weights and gradients."""


@pytest.fixture(scope="module")
def llama() -> Tracer:
    return Tracer(config_of("Llama-2-7B"))


def planned(name: str, length: int, devices: str, parts: int, states: StateBytes = FLOAT32, **more: Any) -> float:
    settings = Settings(sequence_parallel=parts, **more)
    return plan_memory(Tracer(config_of(name)), length, read_devices(devices), settings, states=states).total / 1e9


RING = 4 * 2**20 * 1024 / 1e9
"""Gigabytes of keys and values of all of 1M tokens, 8 heads of 128, which TRL's ring attention gathers in bfloat16 and
harpe's sequence parallelism does not."""
PUBLISHED = [
    # ALST (arXiv 2506.13996): the length of a recipe that takes 8 H100 as far as their 80 GB go
    ("Llama-3.1-8B", 1_100_000, ON_HOST, {}, 0.0, 80.0),
    # TRL, FSDP2 with ring attention over 8; the precision of its weights is not stated, float32 is assumed
    ("Qwen3-0.6B", 2**20, FLOAT32, {}, RING, 27.9),
    ("Qwen3-0.6B", 2**20, FLOAT32, {"activations": "offloaded"}, RING, 20.8),
    ("Qwen3-8B", 2**20, FLOAT32, {"activations": "offloaded"}, RING, 56.2),
]
"""Model, tokens, states, more settings, gigabytes of theirs that harpe does not have, gigabytes; all on 8 H100.

Not asserted: ALST's recipes of 2.4M and 3.8M tokens with activations on the host, where the plan has 97 GB and more in
place of at most 80 (Liger's fused layers keep less than those of transformers, and no peak is stated); its single H200
and 32 GPUs (weights on the host, tiled layers), and torchtitan's in float8 with whole logits, which is other work."""


@pytest.mark.parametrize(("name", "length", "states", "more", "ring", "published"), PUBLISHED)
def test_plans_are_near_published_peaks(
    name: str, length: int, states: StateBytes, more: dict[str, Any], ring: float, published: float
) -> None:
    assert planned(name, length, "8xH100", 8, states, **more) + ring == pytest.approx(published, rel=0.2)


@pytest.mark.parametrize("way", ["harpe", "offloaded", "tiles", "offloaded+tiles"])
def test_plans_are_near_what_one_gpu_took(way: str) -> None:
    """1.2 billion parameters and LLaMA-2-7B on an H200, whose results are committed; at most 1% too little."""
    results = Path(__file__).parents[2] / "benchmarks" / "2026-11-26-steps-ways-gpu.json"
    names = {"1B": "Llama-3.2-1B", "7B": "Llama-2-7B"}
    more: dict[str, Any] = {"activations": "offloaded"} if "offloaded" in way else {}
    more |= {"mlp_tile": 4096} if "tiles" in way else {}
    cases = [case for case in read_json(results)["cases"] if case["way"] == way]
    assert len(cases) == (3 if way == "offloaded+tiles" else 2)
    for case in cases:
        share = planned(names[case["shape"]], case["length"], "1xH200", 1, **more) * 1e9 / case["peak_bytes"]
        assert 0.99 < share < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_training_holds_what_was_planned(case: str, tmp_path: Path) -> None:
    """Within 10%, by one, two and four processes: `scripts/plan_check.py` compares."""
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), case, "--out", str(tmp_path / "out.json")], capture_output=True
    )
    assert ended.returncode == 0, ended.stderr.decode()
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert found["planned"] == pytest.approx(found["held"], rel=0.1)


def test_states_are_16_bytes_a_parameter_and_divide_by_the_processes(llama: Tracer) -> None:
    parameters = sum(p.numel() for p in llama.model.parameters())
    assert parameters == 6_738_415_616
    one, eight = (plan_memory(llama, 8192, read_devices(f"{n}xH100"), Settings(sequence_parallel=n)) for n in (1, 8))
    assert one.moments["the optimiser's step"] == 16 * parameters
    assert eight.parts["weights"] + eight.parts["moments"] == pytest.approx(12 * parameters / 8, rel=1e-3)


def test_longer_sequences_never_need_less(llama: Tracer) -> None:
    found = [
        plan_memory(llama, length, read_devices("8xH100"), Settings(sequence_parallel=8)).total
        for length in (1024, 16384, 131072, 524288)
    ]
    assert found == sorted(found)


def test_operations_are_six_a_parameter_and_token_and_attention(llama: Tracer) -> None:
    """LLaMA-2-7B: every matrix but the embeddings; 32 layers x 12 x 4096 a pair of positions, half of them seen."""
    assert multiplied_parameters(llama) == 6_738_415_616 - 32000 * 4096 - 65 * 4096
    length = 131072
    attention = 32 * 12 * 4096 * length**2 / 2
    assert sequence_operations(llama, length) == pytest.approx(
        6 * multiplied_parameters(llama) * length + attention, rel=1e-9
    )


def test_time_and_cost_are_operations_by_the_speed_of_the_devices(llama: Tracer) -> None:
    """LLaMA-2-7B at 128k on 8 H100 of 989e12 operations a second, at half of that: a step takes 4.7 seconds."""
    found = plan_time(llama, 131072, 10 * 131072, read_devices("8xH100"), Settings(sequence_parallel=8), 0.5, price=2.5)
    attention = 32 * 12 * 4096 * 131072**2 / 2
    seconds = 10 * (6 * 6_607_077_376 * 131072 + attention) / (8 * 989e12 * 0.5)
    assert found.steps == 10 and found.hours is not None and found.hours * 3600 == pytest.approx(seconds, rel=1e-3)
    assert found.cost == pytest.approx(seconds / 3600 * 8 * 2.5, rel=1e-3)
