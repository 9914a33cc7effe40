"""Configurations that say one thing of positions while their model does another are refused, before anything is
trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from harpe.errors import HarpeError
from harpe.methods.types import per_head_encoding, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.rotation_check import check_rotation

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HYBRID = {
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}


def made(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SHAPE | settings), dtype=torch.float32
    ).eval()


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("granitemoehybrid", {**HYBRID, "position_embedding_type": "nope"}, "layer 1 turns no queries and keys"),
        ("granite_swa", {**WINDOWS, "layer_rope_theta": [1e4, 0]}, "layer 1 turns no queries and keys"),
        ("granite_swa", {**WINDOWS, "layer_rope_theta": [1e4, 5e5]}, "layer 1 turns by other angles"),
        ("falcon", {}, "layer 0 has 1 key/value heads, and its configuration says 2"),
        (
            "qwen3_5_text",
            {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
            "several dimensions|neither half-split nor",
        ),
    ],
    ids=["no positions", "none in a layer", "a base by layer", "one key head", "several dimensions"],
)
def test_a_model_that_rotates_otherwise_than_its_configuration_says_is_refused(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    model = made(family, **settings)

    def read_and_check() -> None:
        # the configuration alone does not show it, but for Qwen 3.5 in older transformers
        read_geometry(model.config, "x")
        check_rotation(model, "x")

    with pytest.raises(HarpeError, match=reason):
        read_and_check()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("granitemoehybrid", {**HYBRID, "position_embedding_type": "rope"}),
        ("falcon", {"multi_query": False}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("hrm_text", {}),
        pytest.param(
            "internlm3",
            {},
            marks=pytest.mark.skipif("internlm3" not in CONFIG_MAPPING, reason="not in this transformers"),
        ),
    ],
    ids=["positions", "all heads", "grouped", "layers in a loop", "code of another family"],
)
def test_relatives_that_do_as_they_say_take_bases_by_head(family: str, settings: dict[str, Any]) -> None:
    model = made(family, **settings)
    geometry, ids = read_geometry(check_rotation(model).config, "x"), torch.arange(3, 90)[None]
    with torch.no_grad():
        before = model(ids).logits
        kept, other = ((geometry.base * factor,) * geometry.key_value_heads for factor in (1, 9))
        torch.testing.assert_close(
            apply_encoding(model, per_head_encoding(kept, geometry), geometry, 512)(ids).logits, before
        )
        assert not torch.allclose(
            apply_encoding(model, per_head_encoding(other, geometry), geometry, 512)(ids).logits, before
        )


def test_rope_parameters_that_a_forward_does_not_work_with_are_told_and_nothing_stays_behind() -> None:
    model = made("granite_swa", **WINDOWS)
    geometry = read_geometry(check_rotation(model).config, "x")
    stock = vars(__import__(type(model).__module__, fromlist=["x"]))["apply_rotary_pos_emb"]
    with pytest.raises(HarpeError, match="does not work with the rope parameters"):
        apply_encoding(model, shared_encoding(70_000.0, geometry), geometry, 512)
    assert vars(__import__(type(model).__module__, fromlist=["x"]))["apply_rotary_pos_emb"] is stock
    assert not any(module._forward_pre_hooks for module in model.modules())
