"""Training by several processes is the training by one: losses, gradients, weights, in every layout, resumed by any."""

from __future__ import annotations

import json
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed.runtime.sequence_parallel.ulysses_sp  # noqa: F401  (once, before ranks are forked)
import pytest
import torch
import torch.utils.tensorboard
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from harpe.distributed.layout import Layout
from harpe.distributed.processes import ALONE, Processes, join
from harpe.files import read_jsonl
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model, load_tokenizer, save_checkpoint, whole_weights
from harpe.training.stages import train_stages

from .test_documents import Packed
from .test_stages import LENGTH, Counting, options

pytestmark = pytest.mark.slow

CASES: dict[int, list[dict[str, Any]]] = {
    2: [
        {"name": "data-parallel", "model": "plain"},
        {"name": "sequence-parallel", "model": "plain", "parts": 2},
        {"name": "tiles", "model": "plain", "parts": 2, "mlp_tile": 6},
        {"name": "bfloat16", "model": "plain", "dtype": "bfloat16"},
        {"name": "documents", "model": "tied", "document_mask": "restart"},
        {"name": "pose", "model": "tied", "pose_length": LENGTH // 4},
        {"name": "longce", "model": "tied", "longce_context": 12},
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
    {"name": "documents-alone", "model": "tied", "document_mask": "restart"},
    {"name": "pose-alone", "model": "tied", "pose_length": LENGTH // 4},
    {"name": "longce-alone", "model": "tied", "longce_context": 12},
]


LAYERS = [(1e4, 3e4, 9e4, 27e4), (27e4, 9e4, 3e4, 1e4)]
"""A base for every key/value head of every layer, all different, so that a mixed-up head shows in the loss."""


def train_cases(place: Path, cases: list[dict[str, Any]]) -> int:
    """Every case, without any pickle of a file: losses and norms go to NAME.json, the model to NAME/model."""
    torch.load = pickle.load = _refuse
    ranks = join(tensors=True)
    for case in cases:
        train_case(place, ranks, **case)
    return 0


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a pickle is read")


def train_case(
    place: Path,
    ranks: Processes,
    name: str,
    model: str,
    parts: int = 1,
    replicas: int = 1,
    mlp_tile: int = 0,
    dtype: str = "float32",
    of: str = "",
    **changes: Any,
) -> None:
    """One training; one that goes on from the fifth step of the case `of` where it is named."""
    if of and ranks.first:
        shutil.copytree(place / of / "stage-1", place / name / "stage-1")
        shutil.rmtree(place / name / "stage-1" / "checkpoint-10")
    ranks.wait()
    layout = Layout(ranks.count, parts, replicas, mlp_tile)
    shards = {"distributed_config": layout.distributed_config(dtype == "bfloat16")} if layout.sharded else {}
    loaded = load_model(place / model, torch.float32, **shards)
    geometry = read_geometry(loaded.config, model)
    encoding = per_head_encoding(LAYERS, geometry)
    settings = options(**{"tokens": 10 * 4 * LENGTH, "save_every": 5, "dtype": dtype, **changes})
    stages = [Stage(encoding, LENGTH, 1.0)]
    data = Packed(200) if settings.document_mask != "none" else Counting(200)
    train_stages(loaded, geometry, stages, data, settings, place / name, layout=layout, ranks=ranks)
    shares = [
        parameter.to_local().numel() / parameter.numel() if isinstance(parameter, DTensor) else 1.0
        for parameter in loaded.parameters()
    ]
    weights = whole_weights(loaded, torch.float32) if layout.sharded else None
    if ranks.first:
        save_checkpoint(loaded, load_tokenizer("embedded"), place / name / "model", LENGTH, weights)
        rows = read_jsonl(place / name / "stage-1" / "log.jsonl")
        found = {key: [row[key] for row in rows] for key in ("loss", "grad_norm")}
        (place / f"{name}.json").write_text(json.dumps({**found, "share": max(shares)}))
    ranks.wait()


@pytest.fixture(scope="module")
def trained(make_tiny: Any, ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outcome of every case."""
    place = tmp_path_factory.mktemp("layouts")
    for name, tied in (("plain", False), ("tied", True)):
        model = make_tiny("llama", heads=8, key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=tied)
        save_checkpoint(model, load_tokenizer("embedded"), place / name, 32)
    for case in ALONE_CASES:
        train_case(place, ALONE, **case)
    for count, cases in CASES.items():
        started = ranks(count, partial(train_cases, place, cases))
        assert [each.wait(400) for each in started] == [0] * count, "\n".join(each.stderr for each in started)
    train_case(place, ALONE, "resumed-by-one", "plain", of="data-parallel")
    return place


def outcome(place: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((place / f"{name}.json").read_text()))


OWN = ("documents", "pose", "longce")
"""Cases that train otherwise than their model's."""
FLOAT32 = [
    (count, case["name"], case["name"] if case["name"] in OWN else case["model"], case.get("replicas", 1))
    for count, cases in CASES.items()
    for case in cases
    if case.get("dtype") is None
]


@pytest.mark.parametrize(("count", "name", "model", "replicas"), FLOAT32)
def test_losses_gradients_and_weights_are_those_of_one_process(
    trained: Path, count: int, name: str, model: str, replicas: int
) -> None:
    alone, found = outcome(trained, f"{model}-alone"), outcome(trained, name)
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # tiles were 1.1e-5 apart at 3.0 on one processor
    assert found["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    expected = load_file(trained / f"{model}-alone" / "model" / "model.safetensors")
    got = load_file(trained / name / "model" / "model.safetensors")
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=1e-3, rtol=0, msg=key)  # of a hundredth a step
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
