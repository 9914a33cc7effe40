"""The contexts before and with a scaling, and the base, from configurations in the forms in which checkpoints are
published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harpe.bases.ranges import base_range
from harpe.commands.bases import base_table, choose
from harpe.errors import HarpeError
from harpe.models.geometry import layer_notes, read_geometry
from harpe.models.load import load_config
from harpe.models.scaling import declared
from harpe.options.bases import BasesOptions

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 2,
    "vocab_size": 32_000,
}


def linear(factor: float) -> dict[str, Any]:
    return {"rope_scaling": {"factor": factor, "type": "linear"}}


def yarn(factor: float, before: int, **more: Any) -> dict[str, Any]:
    return {"rope_scaling": {"factor": factor, "original_max_position_embeddings": before, "type": "yarn", **more}}


LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LONGROPE = {"long_factor": [1.0 + i for i in range(48)], "short_factor": [1.0] * 48}
GEMMA3 = {"rope_local_base_freq": 10_000.0, "sliding_window": 1024, "num_hidden_layers": 6, "head_dim": 256}
FORMS: dict[str, tuple[dict[str, Any], int | None, tuple[int, int, float, bool]]] = {
    # configuration, the tokenizer's model_max_length, (before, trained context, base, trained with a scaling)
    "Llama 2": ({"max_position_embeddings": 4096}, None, (4096, 4096, 1e4, False)),
    "CodeLlama": ({"max_position_embeddings": 16_384, "rope_theta": 1e6}, None, (16_384, 16_384, 1e6, False)),
    "Vicuna v1.5 16k": (
        {"max_position_embeddings": 4096, "max_sequence_length": 16_384, **linear(4.0)},
        None,
        (4096, 16_384, 1e4, True),
    ),
    "the same, told by its tokenizer": (
        {"max_position_embeddings": 4096, **linear(4.0)},
        16_384,
        (4096, 16_384, 1e4, True),
    ),
    "the same, told by its size": ({"max_position_embeddings": 4096, **linear(4.0)}, None, (4096, 16_384, 1e4, True)),
    "LongChat v1.5 32k": ({"max_position_embeddings": 4096, **linear(8.0)}, 10**30, (4096, 32_768, 1e4, True)),
    "Chinese-Alpaca-2 16k": ({"max_position_embeddings": 16_384, **linear(4.0)}, None, (4096, 16_384, 1e4, True)),
    "LLaMA-2-7B-32K": ({"max_position_embeddings": 32_768, **linear(8.0)}, None, (4096, 32_768, 1e4, True)),
    "DeepSeek-Coder": (
        {"max_position_embeddings": 16_384, "rope_theta": 100_000, **linear(4.0)},
        16_384,
        (4096, 16_384, 1e5, True),
    ),
    "linear, told by its tokenizer": (
        {"max_position_embeddings": 16_384, **linear(4.0)},
        65_536,
        (16_384, 65_536, 1e4, True),
    ),
    "linear, with the original": (
        {
            "max_position_embeddings": 8192,
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "original_max_position_embeddings": 8192,
        },
        None,
        (8192, 32_768, 1e4, True),
    ),
    "Gemma 3": (
        {
            "model_type": "gemma3_text",
            "max_position_embeddings": 131_072,
            "rope_theta": 1e6,
            **GEMMA3,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        None,
        (16_384, 131_072, 1e6, True),
    ),
    "dynamic": (
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        None,
        (4096, 4096, 1e4, False),
    ),
    "Qwen2.5 with YaRN, as its README says": (
        {"model_type": "qwen2", "max_position_embeddings": 32_768, "rope_theta": 1e6, **yarn(4.0, 32_768)},
        131_072,
        (32_768, 32_768, 1e6, False),
    ),
    "Qwen3 with YaRN, as its README says": (
        {"model_type": "qwen3", "max_position_embeddings": 40_960, "rope_theta": 1e6, **yarn(4.0, 32_768)},
        131_072,
        (32_768, 32_768, 1e6, False),
    ),
    "YaRN without the original": (
        {"model_type": "qwen2", "max_position_embeddings": 32_768, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        None,
        (32_768, 32_768, 1e4, False),
    ),
    "Yarn-Llama-2 128k": (
        {"max_position_embeddings": 131_072, **yarn(32.0, 4096, finetuned=True)},
        None,
        (4096, 131_072, 1e4, True),
    ),
    "Yarn-Mistral 128k": (
        {
            "model_type": "mistral",
            "max_position_embeddings": 32_768,
            "sliding_window": 131_072,
            **yarn(16.0, 8192, finetuned=True),
        },
        None,
        (8192, 131_072, 1e4, True),
    ),
    "gpt-oss": (
        {
            "model_type": "gpt_oss",
            "max_position_embeddings": 131_072,
            "rope_theta": 150_000,
            **yarn(32.0, 4096, rope_type="yarn", truncate=False, beta_fast=32.0, beta_slow=1.0),
        },
        None,
        (4096, 131_072, 1.5e5, True),
    ),
    "Phi-3 128k": (
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "max_position_embeddings": 131_072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", **LONGROPE},
        },
        None,
        (4096, 131_072, 1e4, True),
    ),
    "Phi-3 4k": (
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
        None,
        (4096, 4096, 1e4, False),
    ),
    "MiniCPM-like LongRoPE that the reader may widen": (
        {
            "hidden_size": 3072,
            "max_position_embeddings": 32_768,
            "rope_scaling": {"rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": 32_768},
        },
        None,
        (32_768, 32_768, 1e4, False),
    ),
    "Llama 3.1": (
        {"max_position_embeddings": 131_072, "rope_theta": 5e5, "rope_scaling": {"factor": 8.0, **LLAMA3}},
        None,
        (8192, 131_072, 5e5, True),
    ),
    "Llama 3.2": (
        {"max_position_embeddings": 131_072, "rope_theta": 5e5, "rope_scaling": {"factor": 32.0, **LLAMA3}},
        None,
        (8192, 131_072, 5e5, True),
    ),
}


def write(folder: Path, values: dict[str, Any], tokenizer_length: int | None = None) -> str:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **values}))
    if tokenizer_length is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokenizer_length}))
    return str(folder)


@pytest.mark.parametrize("form", FORMS)
def test_contexts_and_bases_of_published_configurations(tmp_path: Path, form: str) -> None:
    values, tokenizer_length, (before, trained, base, scaled) = FORMS[form]
    config = load_config(write(tmp_path, values, tokenizer_length))
    geometry = read_geometry(config, form)
    assert (geometry.original_length, geometry.base, geometry.trained_angles is not None) == (trained, base, scaled)
    entry = config.rope_parameters.get("full_attention", config.rope_parameters)
    assert declared(config, entry).before == before
    if scaled:  # the slowest pair came as far as it did before, or farther
        assert geometry.trained_angles is not None and geometry.trained_angles[-1] >= before * base ** (
            -1 + 1 / len(geometry.trained_angles)
        ) * (1 - 1e-5)


def test_vicunas_range_is_that_of_a_context_of_4096_stretched_to_16384(tmp_path: Path) -> None:
    """Angles are those of Llama 2 at 4,096: 16,384 tokens at a quarter of the speed."""
    geometry = read_geometry(load_config(write(tmp_path, FORMS["Vicuna v1.5 16k"][0])), "x")
    plain = read_geometry(load_config(write(tmp_path, {"max_position_embeddings": 4096})), "x")
    found, wanted = base_range(geometry, 65_536), base_range(plain, 65_536)
    assert [found.low, found.high] == pytest.approx([wanted.low, wanted.high])
    assert [found.low, found.high] == pytest.approx([0.37e6, 1.87e6], rel=0.01)


def notes(folder: Path, values: dict[str, Any], original_length: int | None = None) -> str:
    config = load_config(write(folder, values))
    return " ".join(layer_notes(config, read_geometry(config, "x", original_length)))


def test_the_plan_says_which_reading_of_linear_scaling_was_taken_and_how_to_take_the_other(tmp_path: Path) -> None:
    undecided = {"max_position_embeddings": 16_384, **linear(4.0)}
    said = notes(tmp_path, undecided)
    assert (
        "16384, is taken for the context with linear scaling, 4096 for that before it (nothing in it says otherwise)"
        in said
    )
    assert "give --original-length 65536" in said
    other = read_geometry(load_config(str(tmp_path)), "x", 65_536)
    plain = read_geometry(load_config(write(tmp_path, {"max_position_embeddings": 16_384})), "x")
    assert base_range(other, 131_072).reference == pytest.approx(base_range(plain, 131_072).reference)
    said = notes(tmp_path, FORMS["Vicuna v1.5 16k"][0])
    assert (
        "4096, is taken for the context before linear scaling, 16384 for that with it (max_sequence_length is 16384)"
        in said
    )


def test_harpe_bases_says_it_too(tmp_path: Path) -> None:
    value = choose(
        BasesOptions(model=write(tmp_path, {"max_position_embeddings": 16_384, **linear(4.0)}), length=32_768)
    )
    assert any("--original-length 65536" in note for note in value["notes"])
    assert "--original-length 65536" in str(base_table(value).caption)


def test_a_yarn_that_the_reader_added_counts_for_the_context_before_it(tmp_path: Path) -> None:
    assert "32768 tokens are counted as the trained context" in notes(
        tmp_path, FORMS["Qwen3 with YaRN, as its README says"][0]
    )


def test_a_yarn_whose_factor_is_a_rounded_quotient_was_trained_with(tmp_path: Path) -> None:
    before, length = 2900, 32_000  # harpe writes their quotient, and the product is above the length by a rounding
    assert length / before * before > length
    folder = write(tmp_path, {"max_position_embeddings": length, **yarn(length / before, before)})
    assert read_geometry(load_config(folder), "x").original_length == length


@pytest.mark.parametrize("factor", [2.0, 4.0, 8.0])
def test_a_linear_scaling_of_ours_was_trained_to_the_length_that_it_was_given(tmp_path: Path, factor: float) -> None:
    folder = write(tmp_path, {"max_position_embeddings": 2048, "harpe_original_length": 512, **linear(factor)})
    geometry = read_geometry(load_config(folder), "x")
    assert geometry.original_length == 2048 and geometry.trained_angles is not None
    assert geometry.trained_angles[0] == pytest.approx(max(512, 2048 / factor))


def test_a_target_within_the_context_that_linear_scaling_reached_is_refused(tmp_path: Path) -> None:
    geometry = read_geometry(load_config(write(tmp_path, FORMS["Vicuna v1.5 16k"][0])), "x")
    with pytest.raises(HarpeError, match="16384 tokens: there is nothing to extend"):
        base_range(geometry, 8192)
