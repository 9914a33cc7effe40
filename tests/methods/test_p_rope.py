"""p-RoPE against transformers' formula and a stock model, and a scale by layer against stock rope types."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import harpe
from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import Encoding
from harpe.models.geometry import read_geometry
from harpe.positions.geometry import ModelGeometry

GEOMETRY = ModelGeometry("llama", 3, 8, 4, 64, 64, 2048, 10_000.0, 97)
LENGTH = 8 * 2048


def encoding(name: str, geometry: ModelGeometry = GEOMETRY, **options: Any) -> Encoding:
    (stage,) = make_stages(method_named(name), geometry, LENGTH, options)
    return stage.encoding


def tables(found: Encoding) -> tuple[Any, ...]:
    assert found.tables is not None
    return found.tables


def config(**changes: Any) -> LlamaConfig:
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return LlamaConfig(**sizes, **heads, max_position_embeddings=256, initializer_range=0.1, **changes)


def two_models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    torch.manual_seed(0)
    stock = LlamaForCausalLM(config()).eval()
    return stock, copy.deepcopy(stock)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_one_share_is_transformers_proportional_rope(share: float) -> None:
    theirs = LlamaConfig(hidden_size=512, num_attention_heads=8, head_dim=64)
    theirs.rope_parameters = {"rope_type": "proportional", "rope_theta": 10_000.0, "partial_rotary_factor": share}
    wanted, factor = ROPE_INIT_FUNCTIONS["proportional"](theirs)
    found = encoding("p-rope", share=share)
    (table,) = tables(found)
    assert factor == found.attention_factor == 1.0
    for row in table:
        assert row == pytest.approx(wanted.tolist(), rel=1e-6)
        assert sum(value > 0 for value in row) == math.floor(share * 32)


def test_a_model_with_a_share_by_head_is_the_stock_model_in_every_head() -> None:
    """Heads do not mix before the output projection: with one head's columns of it, a model is that of one share."""
    shares, ids = [0.5, 1.0], torch.randint(0, 97, (1, 900))
    for head, share in enumerate(shares):
        stock, ours = two_models()
        with torch.no_grad():
            for model in (stock, ours):
                for layer in model.model.layers:
                    kept = slice(32 * head, 32 * head + 32)  # two query heads of 16 in a group
                    weight = layer.self_attn.o_proj.weight
                    weight.copy_(torch.zeros_like(weight).index_copy(1, torch.arange(64)[kept], weight[:, kept]))
        frequencies = torch.tensor([1e4 ** (-i / 8) if i < 8 * share else 0.0 for i in range(8)])
        stock.model.rotary_emb.inv_freq.copy_(frequencies)
        harpe.apply(ours, "p-rope", length=1024, share=shares)
        assert ours.config.rope_parameters["rope_type"] == "harpe"
        with torch.no_grad():
            torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=3e-4, rtol=1e-4)


def test_a_pair_that_does_not_turn_sees_no_distance_and_a_base_may_be_given() -> None:
    (table,) = tables(encoding("p-rope", share=[0.0, 0.29, 0.5, 1.0], base=5e5))
    assert [sum(value > 0 for value in row) for row in table] == [0, 9, 16, 32]
    assert table[3] == pytest.approx([5e5 ** (-i / 32) for i in range(32)], rel=1e-12)
    hundred = replace(GEOMETRY, rotary_dim=200)
    (table,) = tables(encoding("p-rope", hundred, share=0.29))  # 0.29 * 100 is 28.999999999999996
    assert sum(value > 0 for value in table[0]) == 29


def test_scales_by_layer_are_position_interpolation_with_the_scale_of_each() -> None:
    stock, ours = two_models()
    scales = [1.0, 2.5, 4.0]
    harpe.apply(ours, "layer-scale", length=1024, first=1.0, last=4.0)
    rotary = stock.model.rotary_emb
    frequencies = rotary.inv_freq.clone()

    def scaled(layer: Any, args: Any, kwargs: Any) -> Any:
        rotary.inv_freq.copy_(frequencies / scales[layer.self_attn.layer_idx])
        kwargs["position_embeddings"] = rotary(args[0], torch.arange(args[0].shape[1])[None])
        return args, kwargs

    for layer in stock.model.layers:
        layer.register_forward_pre_hook(scaled, with_kwargs=True)
    ids = torch.randint(0, 97, (1, 900))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ["pi", "ntk", "by-parts"])
def test_one_scale_for_all_layers_is_the_method_of_the_rule(rule: str) -> None:
    ids = torch.randint(0, 97, (1, 900))
    stock, ours = two_models()
    options = {"attention_factor": 1.0} if rule == "by-parts" else {}
    harpe.apply(stock, rule, length=1024, **options)
    harpe.apply(ours, "layer-scale", length=1024, scales=[4.0, 4.0, 4.0], rule=rule)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=3e-4, rtol=1e-4)


def test_layers_with_a_window_have_no_scale() -> None:
    windowed = Gemma3TextConfig(num_hidden_layers=12, num_key_value_heads=4, num_attention_heads=8, head_dim=64)
    geometry = read_geometry(windowed, "x")
    assert geometry.changed_layers == (5, 11)
    found = tables(encoding("layer-scale", geometry, scales=[2.0, 8.0]))
    assert [layer for layer, table in enumerate(found) if table is not None] == [5, 11]
    slow = [found[layer][0][-1] for layer in (5, 11)]
    assert slow[0] == pytest.approx(4 * slow[1]) and slow[0] == pytest.approx(geometry.base ** (-31 / 32) / 2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("p-rope", {"share": 1.2}, "from 0 to 1"),
        ("p-rope", {"share": [0.5, 0.5]}, "has 2 shares"),
        ("p-rope", {"share": [0.5, 0.5, float("nan"), 1.0]}, "number|from 0 to 1"),
        ("p-rope", {"base": 0.5}, "above 1"),
        ("layer-scale", {}, "takes either"),
        ("layer-scale", {"first": 2.0}, "takes either"),
        ("layer-scale", {"first": 2.0, "last": 4.0, "scales": [1.0, 2.0, 3.0]}, "takes either"),
        ("layer-scale", {"scales": [1.0, 2.0]}, "3 layers change"),
        ("layer-scale", {"scales": [1.0, 2.0, 0.5]}, "1 or more"),
        ("layer-scale", {"scales": [1.0, 2.0, 3.0], "rule": "yarn"}, "rule"),
    ],
)
def test_what_cannot_be_is_told(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(HarpeError, match=words):
        encoding(name, **options)
    with pytest.raises(HarpeError, match="without a scaling"):
        encoding("p-rope", replace(GEOMETRY, attention_factor=1.2))
