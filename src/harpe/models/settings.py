"""What config.json of a checkpoint may say, and the refusals that follow from it before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harpe.errors import HarpeError
from harpe.models import remapped_attention
from harpe.models.weights import INDEX, WEIGHTS

PORTABLE = ("eager", "sdpa", remapped_attention.NAME)
"""Implementations of attention that a checkpoint may ask for. Others depend on the machine, or are code that is fetched
from the hub."""
PORTABLE_EXPERTS = ("eager", "batched_mm", "grouped_mm")
"""The same for experts."""
WHOLE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Counts that every decoder has; a whole number above zero."""


def check_settings(settings: Any, name: str) -> dict[str, Any]:
    """Refuse what config.json says that cannot be loaded, or would be loaded as something else.

    Parameters
    ----------
    settings
        config.json as it was read.
    name
        What messages call the checkpoint.

    Returns
    -------
    What must be told to `AutoConfig.from_pretrained` beside: the dtype, where it is spelled in a way that transformers
    does not read.

    Raises
    ------
    HarpeError
        For a model that needs code of its own, a quantised one, and entries that are not what they have to be.
    """
    if not isinstance(settings, dict):
        raise HarpeError(
            f"config.json of {name} holds no JSON object, so it describes no model. Restore it from where it came from."
        )
    _check_type(settings, name)
    for part in _parts(settings):
        quantised = part.get("quantization_config") or part.get("compression_config")
        if quantised:
            raise HarpeError(
                f"{name} is quantised ({_method(quantised)}): its weights are stored in fewer bits, which harpe "
                "neither trains nor measures. Name the checkpoint in bfloat16, float16 or float32 that it was made "
                "from, or one that was dequantised and saved again."
            )
        if part.get("transformers_weights", WEIGHTS) not in (None, WEIGHTS, INDEX):
            raise HarpeError(
                f"transformers_weights in config.json of {name} is {part['transformers_weights']!r}; harpe reads "
                f"{WEIGHTS}, or {INDEX} with its files. Rename the file and remove the entry."
            )
        for key in WHOLE:
            value = part.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise HarpeError(
                    f"{key} in config.json of {name} is {value!r}; it has to be a whole number above 0, written as "
                    "such."
                )
        for key in ("rope_parameters", "rope_scaling"):
            _check_rope(part.get(key), f"{key} in config.json of {name}")
    return _dtype(settings, name)


def settle(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """Check what transformers made of config.json, and leave to this machine what is its business; returns the same
    object.

    Raises HarpeError for a model that is no causal language model, and RoPE of a type that transformers does not know.
    """
    text = config.get_text_config(decoder=True)
    if not isinstance(text, PreTrainedConfig):
        raise HarpeError(
            f"text_config in config.json of {name} does not describe a model; remove it or restore the file."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise HarpeError(
            f"{name} has the model type {config.model_type}, of which transformers has no causal language model (one "
            "that reads from left to right and gives the next token). Name such a model."
        )
    _check_architecture(config, name)
    rope = getattr(text, "rope_parameters", None)
    for entry in _entries(rope) if isinstance(rope, dict) else ():
        kind = entry.get("rope_type", "default")
        if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
            raise HarpeError(
                f"config.json of {name} asks for RoPE of type {kind!r}, which transformers {transformers.__version__} "
                f"does not know. It knows default, {', '.join(key for key in ROPE_INIT_FUNCTIONS if key != 'harpe')}."
            )
    for each in (config, text):
        if each._attn_implementation not in PORTABLE:
            each._attn_implementation = None
        if getattr(text, "attn_logit_softcapping", None) is not None:
            each._attn_implementation = "eager"  # transformers before 5.23 takes sdpa, which leaves the cap out untold
        if getattr(each, "_experts_implementation", None) not in PORTABLE_EXPERTS:
            each._experts_implementation = None
    return config


def check_causal(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model whose text part alone is a causal language model: its weights are not loaded by harpe."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise HarpeError(
            f"{name} (model type {config.model_type}) is a model of several kinds of input, which harpe does not load. "
            "Save its language model alone, and name that."
        )


def _parts(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings, and those of the models inside a model of several kinds of input."""
    yield settings
    yield from (
        value
        for key, value in settings.items()
        if key.endswith("_config") and isinstance(value, dict) and "model_type" in value
    )


def _check_type(settings: dict[str, Any], name: str) -> None:
    kind = settings.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise HarpeError(
            f"config.json of {name} names no model_type, so nobody can tell which model it is. Restore the file."
        )
    if kind in CONFIG_MAPPING:
        return
    code = settings.get("auto_map")
    if code:
        raise HarpeError(
            f"{name} needs code of its own that harpe does not run (model type {kind}, {_files(code)}). Name a "
            "checkpoint whose model type transformers knows itself."
        )
    raise HarpeError(
        f"{name} has the model type {kind}, which transformers {transformers.__version__} does not know. A newer one "
        "may: pip install --upgrade transformers."
    )


def _files(code: Any) -> str:
    names = code.values() if isinstance(code, dict) else code if isinstance(code, list) else [code]
    return (
        ", ".join(sorted({f"{str(each).rsplit('.', 1)[0]}.py" for each in names if isinstance(each, str)}))
        or "auto_map"
    )


def _method(quantised: Any) -> str:
    if not isinstance(quantised, dict):
        return str(quantised)
    return str(
        quantised.get("quant_method") or next((key for key, value in quantised.items() if value), "quantization_config")
    )


def _entries(rope: dict[str, Any]) -> list[dict[str, Any]]:
    """Rope parameters; those of every layer type where they have their own."""
    return [value for value in rope.values() if isinstance(value, dict)] or [rope]


def _check_rope(rope: Any, where: str) -> None:
    if rope is None:
        return
    if not isinstance(rope, dict):
        raise HarpeError(
            f"{where} is {rope!r}; it has to be an object such as {{'rope_type': 'linear', 'factor': 4.0}}."
        )
    for entry in _entries(rope):
        kind = entry.get("rope_type", entry.get("type", "default"))
        if not isinstance(kind, str):
            raise HarpeError(f"{where} has the rope_type {kind!r}; it has to be a name such as 'default' or 'yarn'.")
        for key, value in entry.items():
            number = key in ("factor", "rope_theta") or key.endswith("max_position_embeddings")
            if (
                key in ("rope_type", "type")
                or isinstance(value, bool)
                or (value is None and key != "factor")
                or not (number or _spelled(value))
            ):
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or (number and value <= 0):
                raise HarpeError(
                    f"{where} has the {key} {value!r}; it has to be a number{' above 0' if number else ''}, without "
                    "quotes."
                )


def _spelled(value: Any) -> bool:
    """Whether a value is a number, or a text that spells one."""
    try:
        float(value if isinstance(value, str | int | float) else "none")
    except ValueError:
        return False
    return True


def _dtype(settings: dict[str, Any], name: str) -> dict[str, Any]:
    key = "dtype" if "dtype" in settings else "torch_dtype"
    value = settings.get(key)
    if value is None or isinstance(value, dict):  # a dict has one for each model inside
        return {}
    word = value.removeprefix("torch.") if isinstance(value, str) else value
    if word == "auto":
        return {key: None}
    dtype = getattr(torch, word, None) if isinstance(word, str) else None
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise HarpeError(
            f"{key} in config.json of {name} is {value!r}; write bfloat16, float16 or float32, as the weights are "
            "stored."
        )
    return {key: dtype} if word != value else {}


def _check_architecture(config: PreTrainedConfig, name: str) -> None:
    """Refuse a checkpoint that was saved as a model for something else, such as classification."""
    named = getattr(config, "architectures", None)
    if not isinstance(named, list) or len(named) != 1 or config.get_text_config(decoder=True) is not config:
        return
    base = MODEL_MAPPING.get(type(config), None)
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    known = {getattr(cls, "__name__", "") for cls in (base if isinstance(base, tuple) else (base,))} | {causal.__name__}
    (architecture,) = named
    if architecture in known or architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return
    if isinstance(architecture, str) and hasattr(transformers, architecture):
        raise HarpeError(
            f"{name} is a {architecture} by its config.json, not a causal language model ({causal.__name__}). Name the "
            "language model that it was made from."
        )
