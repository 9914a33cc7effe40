"""Per-head RoPE inside transformers models, against the stock models."""

from __future__ import annotations

import importlib
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
from harpe.models.families import install
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
def test_equal_bases_are_the_stock_model_at_positions_up_to_4095(make_tiny: Any, family: str, key_value_heads: int) -> None:
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
    model = AutoModelForCausalLM.from_pretrained(harpe_data / "checkpoints" / "tinystories656k", dtype=torch.float32).eval()
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
def test_every_head_is_rotated_as_a_stock_model_with_that_base_rotates_it(make_tiny: Any, family: str) -> None:
    """For each key/value head and its query group: the family's own rotary module and function, with one base."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    stock_apply = module.apply_rotary_pos_emb
    bases = [5_000.0, 70_000.0]
    torch.manual_seed(4)
    q, k = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 33, 16)
    positions = torch.randint(0, 3000, (2, 33))
    model = with_bases(make_tiny(family), bases)
    got_q, got_k = module.apply_rotary_pos_emb(q, k, *model.base_model.rotary_emb(q, positions))
    for head, base in enumerate(bases):
        stock = make_tiny(family)
        stock.config.rope_parameters["rope_theta"] = base
        with exact_angles(stock):
            cos, sin = stock.base_model.rotary_emb.forward(q, positions)
        group = slice(2 * head, 2 * head + 2)
        want_q, want_k = stock_apply(q[:, group], k[:, head : head + 1], cos, sin)
        torch.testing.assert_close(got_q[:, group], want_q, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got_k[:, head : head + 1], want_k, atol=1e-6, rtol=1e-5)


def test_scores_depend_on_the_distance_alone_for_every_query_of_a_group(make_tiny: Any) -> None:
    """Rotating the queries of a group with bases of their own would break this."""
    module = importlib.import_module("transformers.models.llama.modeling_llama")
    model = with_bases(make_tiny("llama"), [5_000.0, 70_000.0])
    torch.manual_seed(5)
    q, k = torch.randn(1, 4, 1, 16).expand(1, 4, 2, 16), torch.randn(1, 2, 1, 16).expand(1, 2, 2, 16)

    def scores(shift: int) -> torch.Tensor:
        rotated_q, rotated_k = module.apply_rotary_pos_emb(q, k, *model.base_model.rotary_emb(q, torch.tensor([[shift, shift + 100]])))
        return (rotated_q[:, :, 1].double() * rotated_k[:, :, 0].repeat_interleave(2, 1).double()).sum(-1)

    for shift in (7, 1000, 60_000):
        torch.testing.assert_close(scores(shift), scores(0), atol=1e-5, rtol=1e-5)


def test_stock_models_in_the_same_process_are_untouched(make_tiny: Any) -> None:
    ids = torch.randint(1, 97, (2, 64))
    model = make_tiny("llama")
    before = logits(model, ids)
    install()
    with_bases(make_tiny("llama", seed=1), [5_000.0, 70_000.0])
    assert torch.equal(logits(model, ids), before)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_equals_full_forward_passes(make_tiny: Any, family: str) -> None:
    model = with_bases(make_tiny(family), [5_000.0, 70_000.0])
    ids = torch.randint(1, 97, (2, 40))
    model.generation_config.eos_token_id = None
    made = model.generate(ids, max_new_tokens=12, do_sample=False)
    for step in range(12):
        assert torch.equal(logits(model, made[:, : 40 + step])[:, -1].argmax(-1), made[:, 40 + step])


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
