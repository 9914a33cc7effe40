"""GGUF files written as llama.cpp's converter writes them (convert_hf_to_gguf.py), by the package `gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TYPES = {kind: getattr(gguf.GGMLQuantizationType, kind) for kind in ("F32", "F16", "BF16", "Q8_0")}

# The rules of the published tokenizer.json files: of GPT-2 (built in), SmolLM2, Llama 3, Qwen2 and Mistral-Nemo.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES = {"llama-bpe": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN}
WHOLE = {"llama-bpe", "tekken"}
"""Whose tokenizer.json says ignore_merges."""


def tokenizer(pre: str, text: str) -> Tokenizer:
    """A vocabulary of 600 tokens, merged from the bytes of a text that is split by the rule of that name; "+whole" is a
    token that no merges lead to."""
    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in RULES)
    first = {
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        **{name: [pre_tokenizers.Split(Regex(rule), "isolated")] for name, rule in RULES.items()},
    }[pre]
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=596, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    state = json.loads(made.to_str())
    state["model"]["vocab"]["zqxj"] = len(state["model"]["vocab"])
    state["model"]["ignore_merges"] = pre in WHOLE
    made = Tokenizer.from_str(json.dumps(state))
    made.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return made


def add_tokenizer(writer: gguf.GGUFWriter, pre: str, made: Tokenizer) -> None:
    state = json.loads(made.to_str())
    tokens = [made.id_to_token(index) for index in range(made.get_vocab_size())]
    kinds = {**dict.fromkeys(SPECIAL, gguf.TokenType.CONTROL), "<think>": gguf.TokenType.USER_DEFINED}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)


def tiny(family: str, vocabulary: int = 597, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    values = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 777,
        "initializer_range": 0.1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 54321.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }
    if family == "qwen2":  # has no size of heads of its own
        del values["head_dim"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            weight.data.normal_(1.0, 0.1)
    return model


def through(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """The same model with its matrices as that type holds them."""
    for weight in model.parameters():
        if weight.dim() == 2:
            stored = quantize(weight.detach().numpy(), TYPES[kind])
            weight.data = torch.tensor(np.array(dequantize(stored, TYPES[kind])), dtype=torch.float32)
    return model


def settings(model: PreTrainedModel) -> dict[str, Any]:
    """What the converter writes of a configuration, by key behind the architecture's name."""
    config: Any = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }


def tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Weights by the names of llama.cpp, float32; the rows of Llama's queries and keys in its order."""
    config: Any = model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names, found = gguf.get_tensor_name_map(architecture, config.num_hidden_layers), {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, kind = name.rpartition(".")
        value = weight.float().numpy()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = (
                value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
                .swapaxes(1, 2)
                .reshape(value.shape)
            )
        found[f"{names.get_name(module)}.{kind}"] = value
    return found


def write(
    path: Path,
    model: PreTrainedModel,
    made: Tokenizer,
    kind: str = "F32",
    pre: str = "gpt-2",
    states: dict[str, Any] | None = None,
    holds: dict[str, np.ndarray | None] | None = None,
    whole: dict[str, Any] | None = None,
) -> Path:
    """A GGUF file of a model; `states` (keys behind the architecture's), `holds` (tensors) and `whole` (keys) are added
    or, with None, left out."""
    architecture = str(model.config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    add_tokenizer(writer, pre, made)
    stated = {f"{architecture}.{key}": value for key, value in {**settings(model), **(states or {})}.items()} | (
        whole or {}
    )
    for key, value in stated.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_float32(key, value)
    for name, value in {**tensors(model), **(holds or {})}.items():
        if value is not None:
            type_ = TYPES[kind if value.ndim == 2 else "F32"]
            writer.add_tensor(name, quantize(value, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
