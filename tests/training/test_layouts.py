"""Training by several processes is the training by one: losses, gradients, weights, in every layout, resumed by any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harpe.distributed.processes import ALONE
from harpe.models.load import load_tokenizer, save_checkpoint

from .layouts import train_case
from .ranks import in_ranks

pytestmark = pytest.mark.slow

CASES: dict[int, list[dict[str, Any]]] = {
    2: [
        {"name": "data-parallel", "model": "plain"},
        {"name": "sequence-parallel", "model": "plain", "parts": 2},
        {"name": "bfloat16", "model": "plain", "dtype": "bfloat16"},
        {"name": "resumed-by-the-same", "model": "plain", "of": "data-parallel"},
        {"name": "resumed-of-one", "model": "tied", "of": "tied-alone"},
    ],
    4: [
        {"name": "both", "model": "plain", "parts": 2},
        {"name": "four-pieces-tied", "model": "tied", "parts": 4},
        {
            "name": "both-two-sequences-two-replicas-kept",
            "model": "tied",
            "parts": 2,
            "replicas": 2,
            "micro_batch": 2,
            "gradient_checkpointing": False,
        },
        {"name": "data-parallel-four-tied", "model": "tied"},
        {"name": "resumed-by-both", "model": "plain", "parts": 2, "of": "data-parallel"},
    ],
    8: [
        {"name": "eight-pieces", "model": "plain", "parts": 8},
    ],
}
"""The checkpoint `plain` has 4 key/value heads; both have 97 tokens, which no number of processes divides."""
ALONE_CASES: list[dict[str, Any]] = [
    {"name": "plain-alone", "model": "plain"},
    {"name": "tied-alone", "model": "tied"},
    {"name": "bfloat16-alone", "model": "plain", "dtype": "bfloat16"},
]


@pytest.fixture(scope="module")
def trained(make_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outcome of every case."""
    place = tmp_path_factory.mktemp("layouts")
    for name, tied in (("plain", False), ("tied", True)):
        model = make_tiny("llama", heads=8, key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=tied)
        save_checkpoint(model, load_tokenizer("embedded"), place / name, 32)
    for case in ALONE_CASES:
        train_case(place, ALONE, **case)
    for count, cases in CASES.items():
        (place / "cases.json").write_text(json.dumps(cases))
        in_ranks(count, "training.layouts", "train_cases", str(place))
    train_case(place, ALONE, "resumed-by-one", "plain", of="data-parallel")
    return place


def outcome(place: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((place / f"{name}.json").read_text()))


FLOAT32 = [
    (count, case["name"], case["model"], case.get("replicas", 1))
    for count, cases in CASES.items()
    for case in cases
    if case.get("dtype") is None
]


@pytest.mark.parametrize(("count", "name", "model", "replicas"), FLOAT32)
def test_losses_gradients_and_weights_are_those_of_one_process(
    trained: Path, count: int, name: str, model: str, replicas: int
) -> None:
    alone, found = outcome(trained, f"{model}-alone"), outcome(trained, name)
    assert found["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert found["grad_norm"] == pytest.approx(alone["grad_norm"], abs=1e-4)
    expected = load_file(trained / f"{model}-alone" / "model" / "model.safetensors")
    got = load_file(trained / name / "model" / "model.safetensors")
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=2e-4, rtol=0, msg=key)
    config = json.loads((trained / name / "model" / "config.json").read_text())
    assert config == json.loads((trained / f"{model}-alone" / "model" / "config.json").read_text())


@pytest.mark.parametrize(("count", "name", "model", "replicas"), FLOAT32)
def test_every_process_holds_its_share_of_every_weight(
    trained: Path, count: int, name: str, model: str, replicas: int
) -> None:
    """Rows that do not divide make the first shares larger by one row."""
    shards = count // replicas
    assert 1 / shards <= outcome(trained, name)["share"] <= (1 / shards if shards == 1 else 1 / shards + 1 / 64)


def test_a_run_resumed_by_the_same_processes_has_the_same_bits(trained: Path) -> None:
    whole, resumed = (outcome(trained, name) for name in ("data-parallel", "resumed-by-the-same"))
    assert resumed["loss"] == whole["loss"]
    files = [trained / name / "model" / "model.safetensors" for name in ("data-parallel", "resumed-by-the-same")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_resumed_by_one_process_is_that_of_one(trained: Path) -> None:
    alone, resumed = (outcome(trained, name) for name in ("plain-alone", "resumed-by-one"))
    assert resumed["loss"] == pytest.approx(alone["loss"], abs=1e-5)


def test_bfloat16_of_two_processes_is_near_that_of_one(trained: Path) -> None:
    """FSDP also keeps the states between layers in bfloat16, so that losses differ by its rounding."""
    alone, found = outcome(trained, "bfloat16-alone"), outcome(trained, "bfloat16")
    assert found["loss"] == pytest.approx(alone["loss"], abs=0.06)


def test_checkpoints_hold_nothing_but_safetensors_and_json(trained: Path) -> None:
    files = [path for path in (trained / "both" / "stage-1").glob("checkpoint-*/**/*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert len({path.name for path in files if path.suffix == ".safetensors"}) == 4  # each process its own
