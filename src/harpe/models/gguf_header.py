"""What a GGUF file states of its model: read by the `gguf` package, and refused where a part of it would be lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from harpe.errors import HarpeError, optional_module

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model types of transformers by `general.architecture`; Mistral's, SmolLM's and others' files say llama too."""
SETTINGS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Entries of configurations by the file's keys (behind the architecture's name); each of them is needed."""
OPTIONAL = {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
}
"""Numbers as well, where the file has them."""
READ = {*SETTINGS, *OPTIONAL, "vocab_size", "tensor_data_layout"}
"""All keys that are taken over, or that nothing is computed from (the last two)."""
THETA = 10_000.0
"""llama.cpp's RoPE base where the file names none."""
FREQUENCIES = "rope_freqs.weight"
"""The tensor of divisors of the frequencies, by pair, in which llama.cpp keeps Llama 3's scaling."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of all published Llama 3 models; the factor differs."""
WHOLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of tensors that are not quantised."""


@dataclass(frozen=True)
class Header:
    """A GGUF file without the contents of its tensors."""

    path: Path
    values: dict[str, Any]
    """Metadata by key."""
    tensors: dict[str, Any]
    """`gguf.ReaderTensor` by name; its data are mapped, not read."""

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture"))

    @property
    def types(self) -> dict[str, int]:
        """How many tensors are stored in which type, the commonest first."""
        return dict(Counter(each.tensor_type.name for each in self.tensors.values()).most_common())

    def own(self, key: str) -> Any:
        """A value by its key behind the architecture's name; None where there is none."""
        return self.values.get(f"{self.architecture}.{key}")


def read_header(path: Path) -> Header:
    """Metadata and names of a GGUF file.

    Raises
    ------
    HarpeError
        Where the package `gguf` is missing; for a file that is none, is cut short, holds no model, or is one part of
        several.
    """
    gguf = optional_module("gguf", "gguf", f"{path.name} is a GGUF file, and reading it needs", "gguf")
    try:
        with path.open("rb") as stream:
            if stream.read(24) == b"version https://git-lfs.":
                raise HarpeError(f"{path} is a pointer of Git LFS, not the model. Fetch it: git lfs pull.")
        reader = gguf.GGUFReader(path, "r")
        values = {key: field.contents() for key, field in reader.fields.items()}
        header = Header(path, values, {tensor.name: tensor for tensor in reader.tensors})
        whole = len(header.tensors) == values["GGUF.tensor_count"]
    except HarpeError:
        raise
    except Exception as error:  # of as many kinds as there are ways to be cut short
        message = " ".join(str(error).split())[:200]
        raise HarpeError(f"{path} is no whole GGUF file ({message}). Copy or download it again.") from error
    if not whole:
        raise HarpeError(f"{path} names tensors twice. Copy or download it again.")
    kind = values.get("general.type", "model")
    if kind != "model":
        raise HarpeError(f"{path} holds no model but a part for one ({kind}). Name the model's own file.")
    if values.get("split.count", 1) > 1:
        raise HarpeError(
            f"{path} is one of {values['split.count']} parts of a model. Put them together by llama.cpp's "
            "llama-gguf-split --merge, and name the file that it makes."
        )
    return header


def read_config(header: Header) -> PreTrainedConfig:
    """The configuration that the file's metadata stand for.

    Every key of the architecture is taken over, or known to have no effect on what is computed, or refused; what the
    file leaves out has llama.cpp's default, or that of the family, which then has no other value.

    Raises
    ------
    HarpeError
        For an architecture that is not in `FAMILIES`; for keys that are missing, that say something which a
        configuration of the family cannot hold, or that nobody here knows; and for a scaling of positions other than
        Llama 3's.
    """
    if header.architecture not in FAMILIES:
        raise HarpeError(
            f"{header.path} holds a model of the architecture {header.architecture}; harpe reads {', '.join(FAMILIES)} "
            "from GGUF. Name the checkpoint in safetensors that it was made from."
        )
    path, values = header.path, {attribute: _needed(header, key) for key, attribute in SETTINGS.items()}
    for key in sorted(OPTIONAL):
        if header.own(key) is not None:
            _needed(header, key)
    _refuse_unread(header)
    heads, width = values["num_attention_heads"], values["hidden_size"]
    head_dim = int(header.own("attention.key_length") or header.own("rope.dimension_count") or width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (found := header.own(key)) not in (None, head_dim):
            raise HarpeError(
                f"{path} states {header.architecture}.{key} as {found!r} for heads of {head_dim}; in transformers "
                "there is one size for all. Name the checkpoint in safetensors that it was made from."
            )
    tokens = header.values.get("tokenizer.ggml.tokens") or []
    rows = int(header.tensors["token_embd.weight"].shape[-1]) if "token_embd.weight" in header.tensors else 0
    if len(tokens) > rows:
        raise HarpeError(f"{path} has embeddings for {rows} tokens and a vocabulary of {len(tokens)}.")
    theta = float(header.own("rope.freq_base") or THETA)
    family = FAMILIES[header.architecture]
    known = head_dim * heads != width or hasattr(CONFIG_MAPPING[family](), "head_dim")
    shape = {"head_dim": head_dim} if known else {}
    config = AutoConfig.for_model(
        family,
        **{key: _shortest(value) for key, value in values.items()},
        num_key_value_heads=header.own("attention.head_count_kv") or heads,
        **shape,
        vocab_size=rows,
        tie_word_embeddings="output.weight" not in header.tensors,
        rope_parameters={"rope_type": "default", "rope_theta": _shortest(theta)},
        bos_token_id=header.values.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=header.values.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=header.values.get("tokenizer.ggml.padding_token_id"),
    )
    if FREQUENCIES in header.tensors:
        config.rope_parameters = _llama3(header, config, head_dim)
    return config


def _needed(header: Header, key: str) -> int | float:
    value = header.own(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        said = "does not state" if value is None else f"states {value!r} for"
        raise HarpeError(
            f"{header.path} {said} {header.architecture}.{key}, of which a model of transformers has one for all "
            "layers. Name the checkpoint in safetensors that it was made from."
        )
    return value


def _refuse_unread(header: Header) -> None:
    prefix = f"{header.architecture}."
    keys = {key.removeprefix(prefix) for key in header.values if key.startswith(prefix)} - READ
    scaling = {key for key in keys if key.startswith("rope.scal")}
    if scaling and header.own("rope.scaling.type") != "none":
        said = ", ".join(f"{key} {header.own(key)}" for key in sorted(scaling))
        raise HarpeError(
            f"{header.path} scales its positions ({said}), and what its weights were trained with cannot be told from "
            "that. Name the checkpoint in safetensors that it was made from."
        )
    if unread := sorted(keys - scaling):
        raise HarpeError(
            f"{header.path} states {', '.join(f'{prefix}{key}' for key in unread)}, which harpe does not take over, so "
            "that the model would compute something else. Name the checkpoint in safetensors that it was made from."
        )


def _shortest(value: float) -> float:
    """The number that a float32 of the file was written for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def llama3_divisors(config: PreTrainedConfig, head_dim: int) -> torch.Tensor:
    """What Llama 3's scaling divides the frequency of every pair by: float32 [head_dim / 2]."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return 1.0 / config.rope_parameters["rope_theta"] ** pairs / scaled


def _llama3(header: Header, config: PreTrainedConfig, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, where the file's divisors are those that transformers computes by it."""
    divisors = torch.from_numpy(np.array(header.tensors[FREQUENCIES].data, dtype=np.float32))
    config.rope_parameters |= {"rope_type": "llama3", "factor": float(divisors.max()), **LLAMA3}
    found = llama3_divisors(config, head_dim)
    if divisors.shape != found.shape or not torch.allclose(divisors, found, rtol=1e-4):
        raise HarpeError(
            f"{header.path} scales its positions by the tensor {FREQUENCIES} in another way than Llama 3 does. Name "
            "the checkpoint in safetensors that it was made from."
        )
    return dict(config.rope_parameters)
