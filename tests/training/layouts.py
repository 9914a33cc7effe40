"""What a rank of tests/training/test_layouts.py does: train one checkpoint in several layouts, one after the other."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import deepspeed.runtime.sequence_parallel.ulysses_sp  # noqa: F401  (imported here, once, before the ranks are forked)
import torch
import torch.utils.tensorboard
from torch.distributed.tensor import DTensor

from harpe.distributed.layout import Layout
from harpe.distributed.processes import Processes, join
from harpe.files import read_jsonl
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model, load_tokenizer, save_checkpoint, whole_weights
from harpe.training.stages import train_stages

from .test_stages import LENGTH, Counting, options

LAYERS = [(1e4, 3e4, 9e4, 27e4), (27e4, 9e4, 3e4, 1e4)]
"""A base for every key/value head of every layer, all different, so that a mixed-up head shows in the loss."""


def train_cases(folder: str) -> None:
    """Every case of FOLDER/cases.json, without any pickle of a file: losses and norms go to NAME.json, the model to
    NAME/model."""
    torch.load = pickle.load = _refuse
    ranks, place = join(tensors=True), Path(folder)
    for case in json.loads((place / "cases.json").read_text()):
        train_case(place, ranks, **case)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a pickle is read")


def train_case(
    place: Path,
    ranks: Processes,
    name: str,
    model: str,
    parts: int = 1,
    replicas: int = 1,
    dtype: str = "float32",
    of: str = "",
    **changes: Any,
) -> None:
    """One training; one that goes on from the fifth step of the case `of` where it is named."""
    if of and ranks.first:
        shutil.copytree(place / of / "stage-1", place / name / "stage-1")
        shutil.rmtree(place / name / "stage-1" / "checkpoint-10")
    ranks.wait()
    layout = Layout(ranks.count, parts, replicas)
    shards = {"distributed_config": layout.distributed_config(dtype == "bfloat16")} if layout.sharded else {}
    loaded = load_model(place / model, torch.float32, **shards)
    geometry = read_geometry(loaded.config, model)
    encoding = per_head_encoding(LAYERS, geometry)
    settings = options(**{"tokens": 10 * 4 * LENGTH, "save_every": 5, "dtype": dtype, **changes})
    stages = [Stage(encoding, LENGTH, 1.0)]
    train_stages(loaded, geometry, stages, Counting(200), settings, place / name, layout=layout, ranks=ranks)
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
