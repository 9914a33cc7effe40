"""The base that a checkpoint was trained with is that of the frequencies its rotary module computes, whatever its
configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

import harpe
from harpe.errors import HarpeError
from harpe.methods.types import per_head_encoding, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import layer_notes, read_geometry

from .tiny_families import FAMILIES, MOE, heads_of, tiny, tiny_config

ALPHA = {"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 1000.0, "factor": 1.0}
HUNYUAN: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"rope_parameters": ALPHA},
    "hunyuan_v1_moe": {**MOE, "moe_topk": 2, "num_shared_expert": 1, "rope_parameters": ALPHA},
}
"""Families that raise the base by a fixed alpha, under the name of dynamic scaling."""
TRUE_BASE = 10_000.0 * 1000.0 ** (16 / 14)
"""With heads of 16, from HunYuan's own formula: theta alpha^(d/(d-2))."""
IDS = torch.randint(3, 97, (1, 300), generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:the model has new positions")
ours = pytest.mark.parametrize("family", HUNYUAN)


def hunyuan(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    values = {
        name: value
        for name, value in tiny_config("llama").to_dict().items()
        if name not in ("model_type", "rope_parameters")
    }
    config = AutoConfig.for_model(family, **{**values, **HUNYUAN[family], "rope_parameters": dict(ALPHA)})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=IDS, use_cache=False).logits)


def rotary_of(model: PreTrainedModel) -> Any:
    (rotary,) = (module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding"))
    return rotary


def frequencies(model: PreTrainedModel) -> torch.Tensor:
    return torch.as_tensor(rotary_of(model).inv_freq).double()


def powers(base: float) -> torch.Tensor:
    return base ** (-torch.arange(8).double() / 8)


def test_the_base_of_hunyuans_published_configuration_is_the_one_its_successor_names() -> None:
    config = AutoConfig.for_model(
        "hunyuan_v1_dense", head_dim=128, max_position_embeddings=32_768, rope_parameters=dict(ALPHA)
    )
    assert (
        read_geometry(config, "x").base == AutoConfig.for_model("hy_v3").rope_parameters["rope_theta"] == 11_158_840.0
    )


@ours
def test_a_hidden_base_is_found_told_and_counted_as_trained(family: str) -> None:
    config = hunyuan(family).config
    geometry = read_geometry(config, "x")
    assert geometry.base == pytest.approx(TRUE_BASE, rel=1e-6)
    assert (geometry.trained_angles, geometry.original_length) == (None, 512)
    (note,) = layer_notes(config, geometry)
    assert f"{geometry.base:,.0f}" in note and "10,000" in note


@ours
def test_positions_kept_leave_the_logits_of_a_hidden_base_bit_for_bit_also_exported(
    family: str, tmp_path: Path
) -> None:
    model = hunyuan(family)
    before = logits(model)
    harpe.export(harpe.apply(model, "base-kept", length=2048), tmp_path / "m")
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()), before)


@ours
def test_equal_bases_per_head_are_the_model_with_the_hidden_base(family: str) -> None:
    model = hunyuan(family)
    before, geometry = logits(model), read_geometry(model.config, "x")
    apply_encoding(model, per_head_encoding([geometry.base] * heads_of(model), geometry), geometry, 2048)
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)


@ours
def test_methods_start_from_the_hidden_base(family: str) -> None:
    expected = {
        "abf": powers(5e8),
        "ntk": powers(TRUE_BASE * 4 ** (16 / 14)),
        "pi": powers(TRUE_BASE) / 4,
        "ntk-dynamic": powers(TRUE_BASE),
    }
    for method, wanted in expected.items():
        options: dict[str, Any] = {"base": 5e8} if method == "abf" else {}
        model = harpe.apply(hunyuan(family), method, length=2048, **options)
        torch.testing.assert_close(frequencies(model), wanted, rtol=1e-5, atol=0)
    with pytest.raises(HarpeError, match="normalises queries and keys after they are rotated"):
        harpe.apply(hunyuan(family), "yarn", length=2048)
    model = harpe.apply(hunyuan(family), "yarn", length=2048, attention_factor=1.0)
    assert model.config.rope_parameters["rope_theta"] == pytest.approx(TRUE_BASE, rel=1e-6)
    # the slowest pair turns 512 / (2 pi TRUE_BASE^(7/8)) times in the trained context: far below one, so that it is
    # interpolated
    assert frequencies(model)[-1].item() == pytest.approx((powers(TRUE_BASE) / 4)[-1].item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_of_a_plain_checkpoint_is_the_one_it_names_and_keeping_it_changes_no_bit(family: str) -> None:
    model = tiny(family)
    geometry, before = read_geometry(model.config, "x"), logits(model)
    named = model.config.rope_parameters
    assert geometry.base == named.get("full_attention", named)["rope_theta"]
    apply_encoding(model, shared_encoding(geometry.base, geometry), geometry, 2048)
    assert torch.equal(logits(model), before)


@pytest.mark.skipif("lfm3" not in CONFIG_MAPPING, reason="this transformers has no LFM 3")
def test_frequencies_that_follow_no_base_are_refused() -> None:
    with pytest.raises(HarpeError, match="rope type proportional.*follow no base"):
        read_geometry(AutoConfig.for_model("lfm3"), "x")


def test_an_attention_that_scales_queries_by_the_rope_parameters_is_refused() -> None:
    with pytest.raises(HarpeError, match="Ministral3Attention reads rope parameters for another use"):
        read_geometry(AutoConfig.for_model("ministral3"), "x")


def test_the_attention_factor_is_the_modules_own_and_one_base_keeps_it() -> None:
    """PhiMoE multiplies cos and sin by `long_mscale`, not by the factor that the rope type has elsewhere."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "short_mscale": 1.1,
    }
    rope |= {"long_mscale": 1.25, "original_max_position_embeddings": 128}
    values = {
        **MOE,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "num_hidden_layers": 1,
    }
    config = AutoConfig.for_model("phimoe", **values, max_position_embeddings=512, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config).eval()
    geometry = read_geometry(config, "x")
    assert geometry.original_length == 512 and geometry.attention_factor == pytest.approx(1.25)
    apply_encoding(model, shared_encoding(3e5, geometry), geometry, 2048)
    cos, _ = rotary_of(model)(torch.zeros(1), torch.tensor([[0, 2000]]))
    assert cos[0, 0, 0].item() == pytest.approx(1.25)


def test_a_method_that_a_rotary_module_has_no_values_for_is_refused_before_training() -> None:
    values = {
        **MOE,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "num_hidden_layers": 1,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phimoe", **values, max_position_embeddings=512))
    with pytest.raises(HarpeError, match="does not take the rope type yarn"):
        harpe.apply(model, "yarn", length=2048)
