"""How far each key/value head looks: the mean distance of its attention, measured on a few texts inside the trained
context.

For a query at position q and keys k = 1 .. q with attention a_qk, the distance of a head is

    sum a_qk (q - k) / sum a_qk        over all documents, queries and the query heads of the group

with q in the second half of a document, where far is possible. The first token is left out: heads that have nothing to
look at rest on it (an "attention sink": Xiao et al. 2023, arXiv 2309.17453), and would seem to look farthest of all.

Shapes: B documents of a batch (1), Q query heads, H key/value heads, S positions, L layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from harpe.errors import HarpeError
from harpe.files import read_json, sha256_json, write_json
from harpe.models.float_tables import attention_modules
from harpe.models.geometry import text_config
from harpe.models.per_head import key_value_heads
from harpe.ownership import is_ours, may_write

LONGEST = 4096
"""Longest piece of a document that is read. The attention of one layer is in memory at a time: 2 GiB for 32 heads at
this length."""
SHORTEST = 16
"""A shorter piece says nothing about distance and is passed over."""
MEASURING = 2
"""Of the ways in which heads have been measured; what an earlier one has kept is not read."""


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention that returns its weights, in evaluation mode; both as before afterwards."""
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


def pieces_of(documents: Sequence[Sequence[int]], context: int) -> list[list[int]]:
    """The first min(context, `LONGEST`) tokens of each document that has `SHORTEST`; HarpeError where none has."""
    pieces = [list(ids[: min(context, LONGEST)]) for ids in documents]
    pieces = [ids for ids in pieces if len(ids) >= SHORTEST]
    if not pieces:
        raise HarpeError(f"No text has {SHORTEST} tokens, so what heads look at cannot be measured. Give longer texts.")
    return pieces


@torch.inference_mode()
def head_distances(model: PreTrainedModel, documents: Sequence[Sequence[int]], context: int) -> NDArray[np.float64]:
    """Mean attention distance in tokens of every key/value head: float64 [L, H]; 0 in layers without attention.

    Parameters
    ----------
    documents
        Token ids; the first min(context, `LONGEST`) tokens of each are read.
    context
        The trained context in tokens: beyond it distances mean nothing.

    Raises
    ------
    HarpeError
        When no document has `SHORTEST` tokens, or the model's attention modules are not found.
    """
    config = text_config(model.config)
    heads, modules = key_value_heads(config), attention_modules(model, range(config.num_hidden_layers))
    pieces = pieces_of(documents, context)
    distances, weights = (np.zeros((config.num_hidden_layers, heads)) for _ in range(2))

    def reduce_layer(layer: int) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            attention_BQSS = output[1]
            size = attention_BQSS.shape[-1]
            seen = attention_BQSS[0, :, size // 2 :, 1:].double()
            position = torch.arange(size, device=seen.device, dtype=torch.float64)
            distance = (position[size // 2 :, None] - position[None, 1:]).clamp(min=0)
            for total, summed in ((distances, seen * distance), (weights, seen)):
                total[layer] += summed.sum(dim=(1, 2)).unflatten(0, (heads, -1)).sum(dim=1).cpu().numpy()

        return hook

    hooks = [module.register_forward_hook(reduce_layer(layer)) for layer, module in modules.items()]
    try:
        with eager_attention(model):
            for ids in pieces:
                model.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return np.divide(distances, weights, out=np.zeros_like(distances), where=weights > 0)


def model_hash(model: PreTrainedModel) -> str:
    """SHA-256 over the weights and the configuration, where windows, scales and caps of attention stand."""
    said = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    said.pop("transformers_version", None)
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cached_head_distances(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], context: int, folder: Path
) -> tuple[NDArray[np.float64], Path]:
    """`head_distances`, kept as JSON in `folder` under the hashes of weights and texts; returns the file too."""
    return cached("distances", head_distances, model, documents, context, folder)


def cached(
    name: str,
    measure: Callable[[PreTrainedModel, Sequence[Sequence[int]], int], NDArray[np.float64]],
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    context: int,
    folder: Path,
) -> tuple[NDArray[np.float64], Path]:
    """What `measure` finds of every head, [L, H], kept as JSON in `folder`, under `name` and the hashes of weights and
    texts; returns the file too."""
    texts = [list(ids[: min(context, LONGEST)]) for ids in documents]
    key = {"of": name, "way": MEASURING, "model": model_hash(model), "texts": sha256_json(texts), "context": context}
    path = folder / f"{sha256_json(key)[:32]}.json"
    if is_ours(path):
        there = read_json(path)
        if there.get("key") == key and name in there:
            return np.array(there[name], dtype=np.float64), path
    found = measure(model, texts, context)
    if may_write(path):
        write_json(path, {"key": key, "layers": len(found), "heads": found.shape[1], name: found.tolist()})
    return found, path
