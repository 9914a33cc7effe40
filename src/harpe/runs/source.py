"""The checkpoint that a run starts from: read, refused where it cannot be extended, and loaded with float32 weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harpe.distributed.layout import ONE_PROCESS, Layout
from harpe.models.geometry import check_sliding_window, layer_notes, read_geometry, remove_window
from harpe.models.gguf import origin_note
from harpe.models.head import check_head
from harpe.models.kept_tokenizer import check_kept
from harpe.models.load import load_config, load_model, load_tokenizer, to_accelerator
from harpe.models.rotation_check import check_rotation
from harpe.models.vocabulary import check_vocabulary
from harpe.positions.geometry import ModelGeometry
from harpe.training.loss import loss_notes


@dataclass(frozen=True)
class Source:
    """The checkpoint that a run starts from; weights are loaded anew for every row."""

    name: str
    revision: str | None
    geometry: ModelGeometry
    tokenizer: PreTrainedTokenizerBase
    sliding_window: str
    notes: tuple[str, ...]
    """For the plan: layers that keep something, and what of the checkpoint is replaced."""
    dtype: torch.dtype
    """In which the checkpoint is stored; the extended one is stored in the same."""

    def config(self) -> PreTrainedConfig:
        """Of the checkpoint, without windows where training has none."""
        config = load_config(self.name, self.revision)
        if self.sliding_window == "off":
            remove_window(config)
        return config

    def parameters(self) -> int:
        """How many the model has; no weights are read."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config()).num_parameters()

    def load(self, layout: Layout = ONE_PROCESS, dtype: str = "float32") -> PreTrainedModel:
        """The model with float32 weights, on the accelerator where there is one.

        Of several processes each has its shards of it; `dtype` says in what they compute.
        """
        shards = {"distributed_config": layout.distributed_config(dtype == "bfloat16")} if layout.sharded else {}
        model = load_model(self.name, torch.float32, self.revision, **shards)
        check_vocabulary(model, self.tokenizer, self.name)
        return to_accelerator(check_rotation(check_head(model, self.name), self.name))


def open_source(
    name: str,
    length: int,
    revision: str | None,
    tokenizer: str | None,
    original_length: int | None,
    sliding_window: str,
) -> Source:
    """Read configuration and tokenizer, and refuse what cannot be extended. No weights are read."""
    config = load_config(name, revision)
    note = check_sliding_window(config, name, length, sliding_window)
    if sliding_window == "off":
        remove_window(config)
    geometry = read_geometry(config, name, original_length)
    origin = origin_note(config.name_or_path)
    notes = (
        *([origin] if origin else []),
        *([note] if note else []),
        *layer_notes(config, geometry),
        *loss_notes(config),
    )
    loaded = load_tokenizer(tokenizer or name, revision if tokenizer is None else None)
    check_vocabulary(config, loaded, name)
    check_kept(loaded, config, tokenizer or name)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Source(name, revision, geometry, loaded, sliding_window, notes, dtype)
