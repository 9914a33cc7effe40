"""A tiny checkpoint, and the ways in which it can be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harpe.models.load import EMBEDDED, load_tokenizer, save_checkpoint

from .tiny_families import tiny

Damage = Callable[[Path], Any]


def whole(folder: Path) -> Path:
    """A checkpoint of one file with the tokenizer of the embedded model."""
    tokenizer = load_tokenizer(EMBEDDED)
    save_checkpoint(tiny("llama", vocab_size=len(tokenizer)), tokenizer, folder, 512)
    return folder


def damaged(source: Path, folder: Path, damage: Damage) -> Path:
    """A copy of a checkpoint, damaged."""
    shutil.copytree(source, folder)
    damage(folder)
    return folder


def config(**changes: Any) -> Damage:
    """Other entries in config.json; `...` takes one out."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        settings = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))

    return change


def rope(scaling: Any) -> Damage:
    """RoPE parameters as older configurations spell them."""
    return config(rope_parameters=..., rope_theta=10_000.0, rope_scaling=scaling)


def write(name: str, text: str | bytes) -> Damage:
    """Another file in a file's place."""
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def cut(size: int) -> Damage:
    """The weights cut short: at `size` bytes, or by as many where it is negative."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """Other weights."""

    def save(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({key: value.clone() for key, value in change(load_file(file)).items()}, file, {"format": "pt"})

    return save


def renamed(prefix: str) -> Damage:
    return weights(lambda found: {prefix + key: value for key, value in found.items()})


def without(part: str) -> Damage:
    return weights(lambda found: {key: value for key, value in found.items() if part not in key})


def also(**more: torch.Tensor) -> Damage:
    return weights(lambda found: found | {key.replace("__", "."): value for key, value in more.items()})


def shards(change: Callable[[Path, dict[str, str]], dict[str, str]]) -> Damage:
    """The weights in two files, and a change of their index."""

    def save(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        places = {}
        for number, keys in enumerate((sorted(found)[::2], sorted(found)[1::2]), 1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({key: found[key] for key in keys}, folder / file, {"format": "pt"})
            places |= dict.fromkeys(keys, file)
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": change(folder, places)})
        )

    return save


def _lose(folder: Path, places: dict[str, str]) -> dict[str, str]:
    (folder / "model-00002-of-00002.safetensors").unlink()
    return places


def _unlisted(folder: Path, places: dict[str, str]) -> dict[str, str]:
    return {key: file for key, file in places.items() if "00001" in file}


CONFIGURATION: dict[str, tuple[Damage, str]] = {
    "no JSON": (write("config.json", "{"), "cannot be read as a JSON object"),
    "empty": (write("config.json", ""), "cannot be read as a JSON object"),
    "a list": (write("config.json", "[]"), "JSON object"),
    "null": (write("config.json", "null"), "cannot be read as a JSON object"),
    "no entries": (write("config.json", "{}"), "names no model_type"),
    "no model type": (config(model_type=...), "names no model_type"),
    "list as model type": (config(model_type=["llama"]), "names no model_type"),
    "unknown model type": (config(model_type="foo"), "which transformers .* does not know"),
    "encoder and decoder": (config(model_type="t5"), "no causal language model"),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        "not a causal language model .LlamaForCausalLM",
    ),
    **{
        f"quantised by {method}": (config(quantization_config={"quant_method": method}), f"is quantised .{method}")
        for method in ("gptq", "awq", "bitsandbytes", "fp8", "mxfp4", "compressed-tensors")
    },
    "quantised in 4 bits": (config(quantization_config={"load_in_4bit": True}), "is quantised .load_in_4bit"),
    "length as a float": (config(max_position_embeddings=512.0), "max_position_embeddings .* is 512.0"),
    "length as a text": (config(max_position_embeddings="512"), "max_position_embeddings .* is '512'"),
    "no length": (config(max_position_embeddings=None), "max_position_embeddings .* is None"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads .* is 0"),
    "heads that do not divide": (config(hidden_size=65), "hidden size .65. is not a multiple"),
    "layer types too few": (config(layer_types=["full_attention"]), "does not describe a model"),
    "text in place of a number": (config(rms_norm_eps="1e-5"), "rms_norm_eps"),
    "unknown dtype": (config(dtype="bf16"), "dtype .* is 'bf16'; write bfloat16"),
    "dtype of eight bits": (config(dtype="float8_e4m3fn"), "dtype .* is 'float8_e4m3fn'"),
    "text model that is none": (config(text_config={"a": 1}), "text_config"),
    "scaling as a word": (rope("linear"), "rope_scaling .* is 'linear'; it has to be an object"),
    "scaling as a list": (rope([4.0]), "rope_scaling .* has to be an object"),
    "scaling without a factor": (rope({"type": "linear"}), "Missing required keys.*factor"),
    "scaling by a text": (rope({"type": "linear", "factor": "4"}), "factor '4'; it has to be a number above 0"),
    "scaling by nothing": (rope({"type": "linear", "factor": None}), "factor None"),
    "scaling by 0": (rope({"type": "linear", "factor": 0}), "factor 0"),
    "scaling unknown": (rope({"type": "foo", "factor": 4.0}), "RoPE of type 'foo', which transformers"),
    "base as a text": (config(rope_parameters={"rope_type": "default", "rope_theta": "10000"}), "rope_theta '10000'"),
    "base 0": (config(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta 0"),
    "RoPE type as a number": (config(rope_parameters={"rope_type": 3, "rope_theta": 1e4}), "rope_type 3"),
    "weights elsewhere": (config(transformers_weights="adapter_model.bin"), "transformers_weights"),
}
"""Damages of config.json, each with what the sentence says; no weights have to be read to find them."""

WEIGHTS: dict[str, tuple[Damage, str]] = {
    "compiled": (
        renamed("_orig_mod."),
        "lacks the weights lm_head.weight, .* _orig_mod.lm_head.weight, .*save the one inside",
    ),
    "wrapped": (renamed("module."), "holds the weights module.lm_head.weight, .* and 18 more.*save the model inside"),
    "a layer lost": (
        without(".1."),
        "model.layers.1.input_layernorm.weight, .* and 6 more, .* begin as random numbers",
    ),
    "no output layer": (without("lm_head"), "lacks the weights lm_head.weight, .*tie_word_embeddings"),
    "a layer too many": (
        weights(
            lambda found: found | {key.replace(".1.", ".2."): value for key, value in found.items() if ".1." in key}
        ),
        "holds the weights model.layers.2.input_layernorm.weight",
    ),
    "a bias too many": (
        also(model__layers__0__self_attn__q_proj__bias=torch.ones(64)),
        "q_proj.bias, for which a LlamaForCausalLM",
    ),
    "an adapter inside": (also(model__norm__lora_A__weight=torch.ones(2)), "merge_and_unload"),
    "another shape": (
        also(model__norm__weight=torch.ones(63)),
        r"the weight model.norm.weight is \[63\], and a LlamaForCausalLM .* has \[64\]",
    ),
    "another vocabulary": (config(vocab_size=100), r"lm_head.weight is \[2048, 64\], .* has \[100, 64\]"),
    "no weights": (weights(lambda found: {}), "lacks the weights .* and 18 more"),
    "eight bits": (also(model__norm__weight=torch.ones(64, dtype=torch.int8)), "model.norm.weight as I8"),
    "tied to another": (config(tie_word_embeddings=True), "tie_word_embeddings.*holds others"),
    "not a number": (
        weights(lambda found: found | {"model.norm.weight": torch.full((64,), torch.nan)}),
        "model.norm.weight .*not finite",
    ),
    "one infinity": (
        weights(
            lambda found: (
                found | {"lm_head.weight": found["lm_head.weight"].half().index_fill(0, torch.tensor(7), torch.inf)}
            )
        ),
        "lm_head.weight .*not finite",
    ),
    "no bytes": (cut(0), "model.safetensors is no whole safetensors file"),
    "header cut": (cut(100), "no whole safetensors file"),
    "end cut": (cut(-1000), "no whole safetensors file"),
    "zeros": (write("model.safetensors", bytes(5000)), "no whole safetensors file"),
    "pointer": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "no file": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights in safetensors"),
    "link to nowhere": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").symlink_to("nowhere")),
        "has no weights in safetensors",
    ),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "holds pytorch_model.bin. Pickled",
    ),
    "a shard lost": (shards(_lose), "names model-00002-of-00002.safetensors, which is not there"),
    "a shard unlisted": (shards(_unlisted), "lacks the weights"),
    "a pickled shard": (
        shards(lambda folder, places: places | {"model.norm.weight": "pytorch_model.bin"}),
        "names pytorch_model.bin",
    ),
    "a shard elsewhere": (
        shards(lambda folder, places: places | {"model.norm.weight": "../model.safetensors"}),
        "names ../model.safetensors",
    ),
    "an index of nothing": (shards(lambda folder, places: {}), "names no files"),
    "shards of a run": (write("shard-00000-model-00001-of-00001.safetensors", b""), "shards of a distributed run"),
    "adapter": (write("adapter_config.json", '{"base_model_name_or_path": "x"}'), "holds an adapter"),
    "generation of a list": (write("generation_config.json", "[]"), "could not be loaded"),
}
"""Damages of the weights; configuration and tokenizer load."""

TOKENIZER: dict[str, tuple[Damage, str]] = {
    "no JSON": (write("tokenizer.json", "{"), "No tokenizer could be loaded"),
    "an object": (write("tokenizer.json", "{}"), "No tokenizer could be loaded"),
    "no file": (lambda folder: (folder / "tokenizer.json").unlink(), "No tokenizer could be loaded"),
    "no vocabulary": (
        lambda folder: (
            (folder / "tokenizer.json").unlink(),
            (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}'),
        ),
        "has no vocabulary",
    ),
    "no settings": (write("tokenizer_config.json", "{"), "No tokenizer could be loaded"),
    "settings of a list": (write("tokenizer_config.json", "[]"), "No tokenizer could be loaded"),
    "a number as class": (write("tokenizer_config.json", '{"tokenizer_class": 3}'), "No tokenizer could be loaded"),
    "none": (lambda folder: [path.unlink() for path in folder.glob("*token*")], "No tokenizer could be loaded"),
}
"""Damages of the tokenizer; the model loads."""
