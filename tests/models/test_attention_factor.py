"""Attention factors that a method brings, for all heads or one per head: against stock rotations, folded weights and
transformers' own formula."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import harpe
from harpe.commands.export import export
from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import Stage, per_head_encoding, shared_encoding, with_attention_factor
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model
from harpe.options.runs import ExportOptions

from .test_families import COSTLY, exact_angles, ids_of, logits, module_of, rope_of, rotary_of
from .tiny_families import REPRESENTATIVES, bases_of, heads_of, tiny, tiny_config

NORM_BEHIND = ("hunyuan_v1_dense", "nanochat")
"""Families that normalise what they have rotated."""


def with_factors(model: Any, factors: Any, length: int = 4096) -> Any:
    geometry = read_geometry(model.config, "tiny")
    encoding = per_head_encoding(tuple(bases_of(model)), geometry)
    return apply_encoding(
        model, with_attention_factor(encoding, factors, geometry, length / geometry.original_length), geometry, length
    )


def factors_of(model: Any) -> list[float]:
    return [1.1 + 0.17 * head for head in range(heads_of(model))]


@COSTLY
def test_every_head_is_rotated_as_a_stock_model_rotates_it_times_its_factor(family: str) -> None:
    model = tiny(family)
    if family in NORM_BEHIND:
        with pytest.raises(HarpeError, match="after they are rotated"):
            with_factors(model, factors_of(model))
        pytest.skip("refused, as it should be")
    module, stock_apply = module_of(model), module_of(model).apply_rotary_pos_emb
    heads, layer_type = heads_of(model), rope_of(model)[0]
    group = model.config.num_attention_heads // heads
    width = 2 * read_geometry(model.config, family).rotary_dim // 2
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(2, model.config.num_attention_heads, 33, width, generator=generator)
    k = torch.randn(2, heads, 33, width, generator=generator)
    positions = torch.randint(0, 3000, (2, 33), generator=generator)
    bases, factors = bases_of(model), factors_of(model)
    pair = rotary_of(with_factors(copy.deepcopy(model), factors))(q, positions, *layer_type)
    if pair[1].dim() == 4 and pair[0].dtype == torch.int64:
        pair = (pair[0], pair[1][1])  # the row of a layer that changes
    got_q, got_k = module.apply_rotary_pos_emb(q, k, *pair)
    for head, (base, factor) in enumerate(zip(bases, factors, strict=True)):
        stock = copy.deepcopy(model)
        rope_of(stock)[1]["rope_theta"] = base
        with exact_angles(stock):
            cos, sin = rotary_of(stock).forward(q, positions, *layer_type)
        own = slice(group * head, group * (head + 1))
        want_q, want_k = stock_apply(q[:, own], k[:, head : head + 1], factor * cos, factor * sin)
        torch.testing.assert_close(got_q[:, own], want_q, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(got_k[:, head : head + 1], want_k, atol=2e-5, rtol=1e-5)


def test_factors_by_head_are_those_folded_into_the_projections() -> None:
    model, ids = tiny("llama"), ids_of(2, 300)
    factors, group = factors_of(model), model.config.num_attention_heads // heads_of(model)
    folded = with_factors(copy.deepcopy(model), None)
    with torch.no_grad():
        for layer in folded.model.layers:
            for projection, repeats in ((layer.self_attn.q_proj, group), (layer.self_attn.k_proj, 1)):
                width = model.config.head_dim * repeats
                for head, factor in enumerate(factors):
                    projection.weight[width * head : width * (head + 1)] *= factor
    expected = logits(folded, ids)
    got = logits(with_factors(model, factors), ids)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", REPRESENTATIVES)
@pytest.mark.parametrize("by_head", [True, False])
def test_a_saved_model_has_them_when_it_is_loaded(family: str, by_head: bool, tmp_path: Path) -> None:
    model, ids = tiny(family), ids_of(1, 90)
    model = with_factors(model, factors_of(model) if by_head else 1.3)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(logits(again, ids), logits(model, ids))
    plain = with_factors(tiny(family), None)
    assert not torch.allclose(logits(plain, ids), logits(model, ids), atol=1e-3)


def test_yarn_s_factor_is_that_of_transformers() -> None:
    config = tiny_config("llama", max_position_embeddings=512)
    geometry = read_geometry(config, "x")
    for length in (1024, 8192, 131_072):
        config.rope_parameters = {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": length / 512,
            "original_max_position_embeddings": 512,
        }
        _, theirs = ROPE_INIT_FUNCTIONS["yarn"](config)
        ours = with_attention_factor(shared_encoding(1e5, geometry), "yarn", geometry, length / 512).attention_factor
        assert ours == pytest.approx(theirs, rel=1e-12)
    assert with_attention_factor(shared_encoding(1e5, geometry), "yarn", geometry, 0.5).attention_factor == 1.0


def test_one_base_with_a_factor_is_a_stock_model_and_keeps_it_when_it_is_extended_again(tmp_path: Path) -> None:
    model = tiny("llama")
    geometry = read_geometry(model.config, "x")
    encoding = with_attention_factor(shared_encoding(3e5, geometry), 1.25, geometry, 2)
    apply_encoding(model, encoding, geometry, 2048)
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.config.rope_parameters["rope_type"] == "longrope"
    cos, sin = rotary_of(stock)(torch.zeros(1, 1, 64), torch.tensor([[1000]]))
    angle = 1000 * 3e5 ** (-torch.arange(8).double() / 8)
    for got, want in ((cos, angle.cos()), (sin, angle.sin())):
        torch.testing.assert_close(got[0, 0, :8].double(), 1.25 * want, atol=2e-4, rtol=0)
    again = read_geometry(stock.config, "x")
    assert again.attention_factor == pytest.approx(1.25) and again.base == pytest.approx(3e5)
    apply_encoding(stock, per_head_encoding([4e5, 5e5], again), again, 8192)
    assert stock.config.rope_parameters["attention_factor"] == pytest.approx(1.25)


def test_one_base_with_factors_by_head_turns_by_that_base() -> None:
    model = tiny("llama")
    geometry = read_geometry(model.config, "x")
    encoding = with_attention_factor(shared_encoding(3e5, geometry), [1.2, 1.4], geometry, 2)
    apply_encoding(model, encoding, geometry, 2048)
    rope = model.config.rope_parameters
    assert rope["rope_type"] == "harpe" and rope["bases"] == [3e5, 3e5] and rope["attention_factor"] == [1.2, 1.4]


METHODS = {"harpe": {}, "abf": {}, "one-base": {}, "ntk": {}}


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_none_yarn_s_a_number_and_numbers_by_head(name: str) -> None:
    geometry = read_geometry(tiny_config("llama"), "x")
    length = 8 * geometry.original_length
    for given, wanted in ((None, 1.0), ("yarn", 1.2079441541679836), (1.5, 1.5), ([1.1, 1.3], (1.1, 1.3))):
        (stage,) = make_stages(method_named(name), geometry, length, {"attention_factor": given})
        found = stage.encoding.attention_factor
        assert found == pytest.approx(wanted) and type(found) is type(wanted)
        assert Stage.from_dict(stage.as_dict()) == stage
        assert ("attention factor" in stage.encoding.describe()) == (given is not None)
    for wrong, words in (([1.0], "has 1 numbers"), (0.0, "must be above 0"), ("half", "attention_factor of")):
        with pytest.raises(HarpeError, match=words):
            make_stages(method_named(name), geometry, length, {"attention_factor": wrong})


def test_a_configuration_with_wrong_factors_is_refused() -> None:
    model = with_factors(tiny("llama"), [1.1, 1.2])
    for wrong in ([1.1], [1.1, -1.0], ["a", 1.0], 0.5j):
        config = copy.deepcopy(model.config)
        config.rope_parameters["attention_factor"] = wrong
        with pytest.raises(ValueError, match="attention_factor"):
            config.validate_rope()


def test_a_run_with_yarn_s_factor_trains_and_exports_it(workspace: Path) -> None:
    texts, model = str(workspace / "texts"), str(workspace / "model")
    options: dict[str, Any] = {"tokens": 2048, "batch_tokens": 512, "learning_rate": 1e-3, "dtype": "float32"}
    extended = harpe.extend(
        model, 512, texts, workspace / "run", method="harpe", method_options={"attention_factor": "yarn"}, **options
    )
    exported = export(ExportOptions(source=str(workspace / "run"), out=str(workspace / "out")))
    first = load_model(extended)
    assert first.config.rope_parameters["attention_factor"] == pytest.approx(1 + 0.1 * math.log(512 / 64))
    second = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    ids = ids_of(1, 100)
    assert torch.equal(logits(first, ids), logits(second, ids))
