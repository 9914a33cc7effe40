"""Loading and saving checkpoints and tokenizers, with the failures told in sentences."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harpe.errors import HarpeError
from harpe.files import new_folder
from harpe.models.attention import restore_attention
from harpe.models.geometry import text_config
from harpe.models.install import install

EMBEDDED = "embedded"
"""The name by which the base model inside the package is asked for."""


def embedded_model_path() -> Path:
    """Folder of the base model that is shipped in the package."""
    return Path(__file__).parent.parent / "assets" / "base-model"


def resolve(name: str | Path) -> str:
    """The folder or hub name behind `name`; checks that a path exists before anything tries the hub."""
    text = str(name)
    if text == EMBEDDED:
        return str(embedded_model_path())
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise HarpeError(f"The folder {path} holds no config.json, so it is not a checkpoint of transformers.")
        return str(path)
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        raise HarpeError(f"There is no checkpoint folder at {path}. Give a folder with config.json, or a name on the hub.")
    return text


def _hub_failure(name: str, error: Exception) -> HarpeError:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    hint = (
        "HF_HUB_OFFLINE is set, so only models in the local cache are found."
        if offline
        else ("Check the spelling and --revision; for a gated model set HF_TOKEN to a token that may read it.")
    )
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return HarpeError(f"{name} is neither a folder nor a model that could be loaded from the hub. {hint} ({first_line})")


def load_config(name: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a checkpoint (no weights)."""
    install()
    target = resolve(name)
    try:
        return AutoConfig.from_pretrained(target, revision=revision)
    except (OSError, KeyError) as error:
        raise _hub_failure(str(name), error) from error


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint."""
    install()  # transformers reads the configuration too, and warns of a rope type that it does not know
    target = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(target, revision=revision)
    except (OSError, ValueError) as error:
        raise HarpeError(f"No tokenizer could be loaded from {name} ({str(error).splitlines()[0]}).") from error


def load_model(name: str | Path, dtype: torch.dtype = torch.float32, revision: str | None = None, **kwargs: Any) -> PreTrainedModel:
    """A causal language model from safetensors: per-head checkpoints of harpe and stock ones alike.

    Weights in pickle files are refused: `use_safetensors=True`.
    """
    install()
    target = resolve(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, revision=revision, use_safetensors=True, **kwargs)
    except (OSError, KeyError) as error:
        if Path(target).is_dir():
            raise HarpeError(f"The weights in {name} could not be loaded: {str(error).strip().splitlines()[0]}") from error
        raise _hub_failure(str(name), error) from error
    return restore_attention(model)


def to_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    """Move the model to the GPU where there is one; returns the same object."""
    if torch.cuda.is_available():
        torch.nn.Module.to(model, "cuda")
    return model


def check_vocabulary(model_or_config: PreTrainedModel | PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that can produce ids the model has no embedding for."""
    config = model_or_config.config if isinstance(model_or_config, PreTrainedModel) else model_or_config
    size = text_config(config).vocab_size
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= size:
        raise HarpeError(
            f"The tokenizer has token ids up to {largest}, but {name} has only {size} embeddings: they do not belong "
            "together. Use the tokenizer that came with the checkpoint (--tokenizer)."
        )


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, length: int) -> None:
    """Write model (safetensors) and tokenizer into a temporary folder and rename it to `path`: whole or not at all."""
    with new_folder(path) as temporary:
        tokenizer.model_max_length = length
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
