"""Loading and saving checkpoints and tokenizers, with the failures told in sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
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
from harpe.models.gguf import checkpoint_of, gguf_file
from harpe.models.install import install
from harpe.models.old_keys import add_old_keys
from harpe.models.processor import keep_processor
from harpe.models.settings import check_causal, check_settings, settle
from harpe.models.weights import check_files, check_report

EMBEDDED = "embedded"
"""The name by which the base model inside the package is asked for."""


def embedded_model_path() -> Path:
    """Folder of the base model that is shipped in the package."""
    return Path(__file__).parent.parent / "assets" / "base-model"


def resolve(name: str | Path) -> str:
    """The folder or hub name behind `name`; checks that a path exists before anything tries the hub.

    A GGUF file stands for the checkpoint that is made from it, once (`harpe.models.gguf`).
    """
    text = str(name)
    if text == EMBEDDED:
        return str(embedded_model_path())
    if (file := gguf_file(text)) is not None:
        return str(checkpoint_of(file))
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise HarpeError(f"The folder {path} holds no config.json, so it is not a checkpoint of transformers.")
        return str(path)
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        raise HarpeError(
            f"There is no checkpoint folder at {path}. Give a folder with config.json, a GGUF file, or a name on the "
            "hub."
        )
    return text


def _hub_failure(name: str, error: Exception) -> HarpeError:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    hint = (
        "HF_HUB_OFFLINE is set, so only models in the local cache are found."
        if offline
        else ("Check the spelling and --revision; for a gated model set HF_TOKEN to a token that may read it.")
    )
    return HarpeError(
        f"{name} is neither a folder nor a model that could be loaded from the hub. {hint} ({_line(error)})"
    )


def _line(error: Exception) -> str:
    """The beginning of another library's message, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"


def load_config(name: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a checkpoint (no weights).

    Raises
    ------
    HarpeError
        Where there is none, and for what `harpe.models.settings` refuses: a model with code of its own, a quantised
        one, one that is no causal language model, entries that are broken.
    """
    install()
    target = resolve(name)
    settings = _read_settings(target, revision, str(name))
    options = check_settings(settings, str(name))
    try:
        config = AutoConfig.from_pretrained(target, revision=revision, trust_remote_code=False, **options)
    except Exception as error:  # of as many kinds as there are ways to get an entry wrong
        raise HarpeError(
            f"config.json of {name} does not describe a model that transformers can make: {_line(error)}"
        ) from error
    return settle(config, str(name))


def _read_settings(target: str, revision: str | None, name: str) -> Any:
    """config.json as it stands."""
    try:
        return PreTrainedConfig.get_config_dict(target, revision=revision)[0]
    except Exception as error:
        if not Path(target).is_dir():
            raise _hub_failure(name, error) from error
        file = Path(target) / "config.json"
        raise HarpeError(f"{file} cannot be read as a JSON object; restore it from where it came from.") from error


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of a folder that holds a tokenizer and nothing else.

    The checkpoint itself may be one that harpe does not load (a quantised one, say): a server may run it.
    """
    install()  # transformers reads the configuration too, and warns of a rope type that it does not know
    folder = Path(name).expanduser()
    target = str(folder) if str(name) != EMBEDDED and (folder / "tokenizer_config.json").is_file() else resolve(name)
    options: dict[str, Any] = {}
    refused = None
    try:
        options["config"] = load_config(
            target, revision
        )  # where harpe can read it: dtypes are spelled in more ways than transformers knows
    except HarpeError as error:
        refused = error
    try:
        tokenizer = AutoTokenizer.from_pretrained(target, revision=revision, trust_remote_code=False, **options)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise HarpeError(
                f"The tokenizer of {name} needs code of its own that harpe does not run (auto_map in "
                "tokenizer_config.json). Name one that transformers knows itself (--tokenizer)."
            ) from error
        reason = (
            str(refused) if refused is not None and (Path(target) / "config.json").is_file() else f"{_line(error)}."
        )
        raise HarpeError(f"No tokenizer could be loaded from {name} (--tokenizer names another): {reason}") from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()):
        raise HarpeError(
            f"The tokenizer of {name} has no vocabulary: tokenizer.json, or the file of its kind, is missing. Copy or "
            "download it again."
        )
    return tokenizer


def load_model(
    name: str | Path, dtype: torch.dtype = torch.float32, revision: str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """A causal language model from safetensors: per-head checkpoints of harpe and stock ones alike.

    Its weights are those of the checkpoint, all of them, and no code or pickle of the checkpoint is read.

    Raises
    ------
    HarpeError
        As `load_config`, and for weights that are missing, left over, of another shape, in another format, or cut short
        (`harpe.models.weights`).
    """
    config = load_config(name, revision)
    check_causal(config, str(name))
    target = resolve(name)
    options = {"dtype": dtype, "revision": revision, "use_safetensors": True, "trust_remote_code": False, **kwargs}
    try:
        check_files(target, revision, str(name))
        # other shapes are reported like all else that is wrong, in place of an error that names none of them
        with _sharding(config) if "distributed_config" in kwargs else nullcontext():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                target, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except HarpeError:
        raise
    except Exception as error:
        raise HarpeError(f"{name} could not be loaded: {_line(error)}") from error
    model, report = loaded
    check_report(model, report, str(name))
    if "distributed_config" in kwargs:
        _settle_shards(model, str(name))
    return restore_attention(model)


@contextmanager
def _sharding(config: PreTrainedConfig) -> Iterator[None]:
    """Where transformers shards the model that it loads, two things otherwise than by itself.

    The output layer is left to the group of the whole model, whose weights are there when the loss calls the layer once
    a chunk; a group of its own expects one call a pass. And tied weights are tied before: torch then keeps one shard of
    them. Of two it copies one where the rows do not divide, and trains a copy that nobody reads.
    """
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), PreTrainedModel)
    kind = kind[0] if isinstance(kind, tuple) else kind
    distribute = kind.maybe_distribute_model

    def tied(model: PreTrainedModel, *arguments: Any) -> PreTrainedModel:
        model.tie_weights(recompute_mapping=False)
        return distribute(model, *arguments)

    changes = {"_fsdp_plan": {}, "maybe_distribute_model": staticmethod(tied)}
    before = {name: vars(kind)[name] for name in changes if name in vars(kind)}
    for name, value in changes.items():
        setattr(kind, name, value)
    try:
        yield
    finally:
        for name in changes:
            if name in before:
                setattr(kind, name, before[name])
            else:
                delattr(kind, name)


def _settle_shards(model: PreTrainedModel, name: str) -> None:
    """Keep weights whole within passes alone.

    Torch keeps those of some groups until the backward pass: after a forward pass without one the model would show
    whole weights, and an optimiser made then would train copies that nobody reads.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(True, recurse=False)
    if set(model.get_expanded_tied_weights_keys(all_submodels=True)) - set(model.all_tied_weights_keys):
        raise HarpeError(
            f"config.json of {name} ties its output layer to its embeddings, and its weights hold two different ones: "
            "several processes cannot share them. Set tie_word_embeddings to false in it."
        )


def to_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    """Move the model to the GPU where there is one, unless it is sharded, and is where it belongs; returns the same
    object."""
    if torch.cuda.is_available() and not getattr(model, "is_distributed_loading_by_transformers", False):
        torch.nn.Module.to(model, "cuda")
    return model


def whole_weights(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights of a sharded model in `dtype`, in the memory of the first process; nothing on the others. All of them
    call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    tied = set(model.all_tied_weights_keys or ())
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in found.items()
        if name not in tied
    }


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    length: int,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model (safetensors of 5 GB at most) and tokenizer into a temporary folder and rename it to `path`: whole or
    not at all.

    Parameters
    ----------
    weights
        Those of a sharded model (`whole_weights`); None: the model's own.
    """
    config, tokenizer.model_max_length = model.config, length
    sharded = config.__dict__.pop("distributed_config", None)  # transformers would gather again, in the masters' dtype
    try:
        with new_folder(path) as temporary:
            model.save_pretrained(temporary, state_dict=weights, max_shard_size="5GB")
            if weights is not None:
                config.dtype = next(value.dtype for value in weights.values() if value.is_floating_point())
                config.save_pretrained(temporary)
            add_old_keys(temporary, config)
            keep_processor(config, temporary)
            tokenizer.save_pretrained(temporary)
    finally:
        if sharded is not None:
            config.distributed_config = sharded
