"""Per-head RoPE inside transformers models, against the stock models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import harpe
from harpe.methods.types import per_head_encoding, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@contextmanager
def exact_angles(model: PreTrainedModel) -> Iterator[None]:
    """The stock model with its cos and sin computed in float64 and cast: shares no code with the library."""
    rotary, theta = model.base_model.rotary_emb, model.config.rope_parameters["rope_theta"]
    dim = model.config.head_dim

    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids.double()[..., None] / theta ** (torch.arange(0, dim, 2).double() / dim)
        full = torch.cat([angle, angle], -1)
        return full.cos().to(x.dtype), full.sin().to(x.dtype)

    rotary.forward = forward
    try:
        yield
    finally:
        del rotary.forward


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def with_bases(model: PreTrainedModel, bases: list[float], length: int = 4096) -> PreTrainedModel:
    geometry = read_geometry(model.config, "tiny")
    return apply_encoding(model, per_head_encoding(tuple(bases), geometry), geometry, length)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key_value_heads", [2, 4])
def test_equal_bases_are_the_stock_model_at_positions_up_to_4095(
    make_tiny: Any, family: str, key_value_heads: int
) -> None:
    ids = torch.randint(1, 97, (1, 4096), generator=torch.Generator().manual_seed(1))
    model = make_tiny(family, key_value_heads=key_value_heads)
    with exact_angles(model):
        expected = logits(model, ids)
    plain = logits(model, ids)
    got = logits(with_bases(model, [10_000.0] * key_value_heads), ids)
    largest = expected.abs().max()
    assert (got - expected).abs().max() <= 1e-5 * largest
    assert (plain - expected).abs().max() <= 2e-4 * largest  # the stock model's own float32 angles


def test_equal_bases_are_the_stock_model_on_a_trained_checkpoint(harpe_data: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        harpe_data / "checkpoints" / "tinystories656k", dtype=torch.float32
    ).eval()
    model.config.head_dim = model.config.hidden_size // model.config.num_attention_heads
    ids = torch.randint(3, 2000, (1, 4096), generator=torch.Generator().manual_seed(2))
    with exact_angles(model):
        expected = logits(model, ids)
    got = logits(with_bases(model, [10_000.0] * 4), ids)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_equal_bases_are_the_stock_model_on_the_embedded_checkpoint() -> None:
    from harpe.models.load import load_model

    model = load_model("embedded").eval()
    ids = torch.randint(1, 2000, (1, 2048), generator=torch.Generator().manual_seed(3))
    model.config.head_dim = 32
    with exact_angles(model):
        expected = logits(model, ids)
    got = logits(with_bases(model, [10_000.0] * 8), ids)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_models_give_identical_logits(make_tiny: Any, family: str, tmp_path: Path) -> None:
    ids = torch.randint(1, 97, (1, 700))
    model = with_bases(make_tiny(family), [5_000.0, 70_000.0])
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    assert torch.equal(logits(again, ids), expected)
    assert again.config.rope_parameters["bases"] == [5_000.0, 70_000.0]
    assert again.config.max_position_embeddings == 4096


def test_a_second_encoding_replaces_the_first(make_tiny: Any) -> None:
    """As a method with several stages needs it."""
    model = make_tiny("llama")
    geometry = read_geometry(model.config, "tiny")
    ids = torch.randint(1, 97, (1, 600))
    direct = logits(apply_encoding(make_tiny("llama"), shared_encoding(9e5, geometry), geometry, 2048), ids)
    apply_encoding(model, per_head_encoding((5e3, 7e4), geometry), geometry, 1024)
    assert torch.equal(logits(apply_encoding(model, shared_encoding(9e5, geometry), geometry, 2048), ids), direct)
    assert model.config.harpe_original_length == 512


def test_apply_without_training_warns(make_tiny: Any) -> None:
    with pytest.warns(UserWarning, match="not trained"):
        harpe.apply(make_tiny("llama"), length=1024)
    model = make_tiny("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harpe.apply(model, "harpe", length=1024, bases=[5e4, 7e4])
    assert model.config.rope_parameters["bases"] == [5e4, 7e4]
