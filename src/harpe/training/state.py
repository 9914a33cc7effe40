"""Weights and moments of a training on the disk: safetensors alone, every process its own shards.

Torch's distributed checkpoint writes them (`HuggingFaceStorageWriter`, which needs no pickle) and cuts them anew for
another number of processes when it reads. Options of the optimiser are no state: they come from the recipe.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from transformers import PreTrainedModel

from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.files import full_disk_told
from harpe.training.checkpoints import load_weights

MODEL, OPTIMIZER = "model", "optimizer"
"""Folders inside a checkpoint."""
TRAINED = StateDictOptions(ignore_frozen_params=True)
"""Weights that adapters stand for are those of the checkpoint that training began with."""
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
"""Moments by the names of their parameters: groups of parameters depend on the layout, names do not."""


def save_state(model: PreTrainedModel, optimizer: Optimizer, folder: Path, layout: Layout) -> None:
    """Write weights and moments into `folder`; every process of the layout calls this.

    Raises
    ------
    HarpeError
        When the disk of any process is full.
    """
    moments = _tensors(get_optimizer_state_dict(model, optimizer, options=FLAT))
    for name, state in ((MODEL, _untied(model, get_model_state_dict(model, options=TRAINED))), (OPTIMIZER, moments)):
        writer = HuggingFaceStorageWriter(str(folder / name), save_distributed=True)
        with full_disk_told(folder), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it may be
            try:
                dcp.save(state, storage_writer=writer, no_dist=not layout.sharded)
            except CheckpointException as error:  # no Exception, and holds those of all processes
                raise _cause(error) from error


def load_model_state(model: PreTrainedModel, folder: Path, layout: Layout) -> None:
    """Put the weights of a checkpoint into the model, in place.

    Raises
    ------
    HarpeError
        Where one is missing or has another shape.
    """
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        load_weights(model, folder)  # of a version that wrote whole models
        return
    state = get_model_state_dict(model, options=TRAINED)  # the model's own tensors, which are read into
    _load(_untied(model, state), folder / MODEL, layout)


def load_optimizer_state(model: PreTrainedModel, optimizer: Optimizer, folder: Path, layout: Layout) -> None:
    """Put the moments of a checkpoint into the optimiser.

    Raises
    ------
    HarpeError
        As `load_model_state`.
    """
    if (folder / "optimizer.pt").is_file():  # of a version that wrote PyTorch's file; weights_only reads tensors
        there = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        there["param_groups"] = [group for group in there["param_groups"] if group["params"]]
        optimizer.load_state_dict(there)
        return
    whole = get_optimizer_state_dict(model, optimizer, options=FLAT)
    state = _tensors(whole)
    _load(state, folder / OPTIMIZER, layout)
    set_optimizer_state_dict(model, optimizer, cast(Any, {**whole, **state}), options=FLAT)


def _load(state: dict[str, Any], folder: Path, layout: Layout) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not layout.sharded)
    except (CheckpointException, RuntimeError, ValueError, KeyError, OSError) as error:
        first = str(_cause(error) if isinstance(error, CheckpointException) else error).strip().splitlines()
        raise HarpeError(
            f"{folder} does not hold what this training needs ({first[0] if first else type(error).__name__}). Move "
            f"{folder.parent} away."
        ) from error


def _tensors(state: Any) -> dict[str, Any]:
    """The part of a flat optimiser state that is state: moments and counts."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _untied(model: PreTrainedModel, state: dict[str, Any]) -> dict[str, Any]:
    """A state without the second names of tied weights, which are one tensor."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return {name: value for name, value in state.items() if name not in tied}


def _cause(error: CheckpointException) -> BaseException:
    return next((failure[0] for failure in error.failures.values()), error)
