"""Checkpoints that have a scaling of their own: what they were trained on, the range that follows, what is kept and
what is said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from harpe.bases.critical_base import angle_base, critical_base
from harpe.bases.ranges import base_range
from harpe.errors import HarpeError
from harpe.methods.types import per_head_encoding, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import layer_notes, read_geometry
from harpe.models.per_head import build_table

from .tiny_families import tiny, tiny_config

LONG_FACTORS = [1.0 + 31.0 * (i / 63) ** 2 for i in range(64)]
SCALED: dict[str, tuple[int, dict[str, Any]]] = {
    "llama3": (
        131_072,
        {"rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original": 8192},
    ),
    "yarn": (65_536, {"rope_theta": 1e4, "factor": 16.0, "original": 4096}),
    "longrope": (
        131_072,
        {"rope_theta": 1e4, "factor": 32.0, "short_factor": [1.0] * 64, "long_factor": LONG_FACTORS, "original": 4096},
    ),
    "linear": (32_768, {"rope_theta": 1e4, "factor": 8.0}),
}
"""By rope type: the declared context, and the parameters (`original` is original_max_position_embeddings)."""


def config_of(kind: str, context: int | None = None) -> Any:
    declared, values = SCALED[kind]
    rope = {"original_max_position_embeddings" if key == "original" else key: value for key, value in values.items()}
    shape = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 2}
    return AutoConfig.for_model(
        "llama",
        **shape,
        max_position_embeddings=context or declared,
        rope_parameters={"rope_type": kind, **rope},
        vocab_size=97,
    )


def scaled_frequencies(config: Any) -> list[float]:
    """transformers' own, for a text as long as the declared context."""
    rope = config.rope_parameters
    found, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device="cpu", seq_len=config.max_position_embeddings)
    return [float(f) for f in found.double()]


def angles(config: Any) -> list[float]:
    """What every pair turned by in training: before the scaling, and with it."""
    rope, scaled = config.rope_parameters, scaled_frequencies(config)
    before = rope.get("original_max_position_embeddings", 0)
    return [
        max(before * rope["rope_theta"] ** (-i / 64), config.max_position_embeddings * f) for i, f in enumerate(scaled)
    ]


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("times", [2, 16])
def test_at_the_critical_base_no_pair_that_had_not_turned_fully_meets_a_new_angle(kind: str, times: int) -> None:
    config = config_of(kind)
    geometry = read_geometry(config, "x")
    assert geometry.original_length == config.max_position_embeddings
    target = times * geometry.original_length
    critical = base_range(geometry, target).reference

    def new_angles(base: float) -> list[int]:
        return [
            i for i, a in enumerate(angles(config)) if a < 2 * math.pi and target * base ** (-i / 64) > a * (1 + 1e-6)
        ]

    assert not new_angles(critical)
    # and not far above the smallest base of that kind: the first such pair lies up to one pair beyond the point of a
    # whole turn
    assert new_angles(critical * 0.7)


@pytest.mark.parametrize("rule", ["critical", "short", "ntk"])
@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("more", [1, 1000, 1_000_000])
def test_no_rule_turns_a_pair_faster_that_had_not_turned_fully(kind: str, rule: Any, more: int) -> None:
    config = config_of(kind)
    found = base_range(read_geometry(config, "x"), config.max_position_embeddings + more, rule=rule)
    for i, (angle, frequency) in enumerate(zip(angles(config), scaled_frequencies(config), strict=True)):
        if angle < 2 * math.pi:
            assert found.low ** (-i / 64) <= frequency * (1 + 1e-5), i
    assert config.rope_parameters["rope_theta"] <= found.low <= found.high


def test_linear_scaling_to_its_whole_length_leaves_the_critical_base_of_the_pretraining() -> None:
    """Angles are then those of the pretraining: 8 times the tokens, each turned by an eighth."""
    assert base_range(read_geometry(config_of("linear"), "x"), 131_072).reference == pytest.approx(
        critical_base(1e4, 4096, 131_072)
    )


def test_the_critical_base_of_llama_3_1_is_that_of_twice_its_pretraining() -> None:
    """16 times the tokens at an eighth of the speed: the slow pairs came twice as far as in 8192 tokens."""
    found = base_range(read_geometry(config_of("llama3"), "x"), 524_288)
    assert found.reference == pytest.approx(critical_base(5e5, 16_384, 524_288), rel=1e-4)
    assert found.reference < critical_base(5e5, 8192, 524_288) / 6


@pytest.mark.parametrize(
    ("base", "trained", "length"),
    [(1e4, 4096, 131_072), (5e5, 8192, 1_048_576), (1e4, 256, 2048), (1e6, 32_768, 131_072)],
)
@pytest.mark.parametrize("pairs", [16, 32, 64])
def test_without_a_scaling_the_angles_give_the_critical_base_itself(
    base: float, trained: int, length: int, pairs: int
) -> None:
    trained_angles = [trained * base ** (-i / pairs) for i in range(pairs)]
    assert angle_base(trained_angles, length) == pytest.approx(critical_base(base, trained, length), rel=1e-9)


@pytest.mark.parametrize("trained_angles", [[6.0, 1.0], [100.0], [100.0, 100.0]])
def test_angles_without_a_rule_are_refused(trained_angles: list[float]) -> None:
    with pytest.raises(HarpeError, match="no critical base is defined"):
        angle_base(trained_angles, 1000)


@pytest.mark.parametrize("kind", ["llama3", "yarn", "longrope", "linear"])
def test_the_context_before_the_scaling_by_hand_means_that_it_was_not_trained_with(kind: str) -> None:
    geometry = read_geometry(config_of(kind), "x", original_length=4096)
    assert (geometry.original_length, geometry.trained_angles, geometry.attention_factor) == (4096, None, 1.0)


def test_a_scaling_that_only_the_reader_switched_on_counts_as_none() -> None:
    """max_position_embeddings as in the pretraining (Qwen2.5 with YaRN), and dynamic scaling, which trained texts never
    meet."""
    for config in (
        config_of("yarn", context=4096),
        AutoConfig.for_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 4.0}),
    ):
        geometry = read_geometry(config, "x")
        assert geometry.original_length == config.max_position_embeddings and geometry.trained_angles is None
        assert any("taken not to have been trained with" in note for note in layer_notes(config, geometry))


def test_a_target_within_the_scaled_context_is_refused() -> None:
    with pytest.raises(HarpeError, match="131072 tokens: there is nothing to extend"):
        base_range(read_geometry(config_of("llama3"), "x"), 32_768)


def test_the_plan_says_what_is_replaced_kept_and_lost() -> None:
    notes = {kind: " ".join(layer_notes(config_of(kind), read_geometry(config_of(kind), "x"))) for kind in SCALED}
    assert all("is replaced" in note and "--original-length" in note for note in notes.values())
    assert "attention factor, 1.277, is kept" in notes["yarn"] and "is kept" not in notes["llama3"]
    assert "slowed the fastest pairs as well, 8 times" in notes["linear"]
    assert not any("fastest pairs" in notes[kind] for kind in ("yarn", "llama3", "longrope"))


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}


def test_bases_per_head_keep_the_attention_factor() -> None:
    model = tiny("llama", rope_parameters=dict(YARN))
    geometry = read_geometry(model.config, "x")
    apply_encoding(model, per_head_encoding([1e5, 2e5], geometry), geometry, 2048)
    assert model.config.rope_parameters["attention_factor"] == pytest.approx(0.1 * math.log(4) + 1)
    # twice: a second stage starts from what the first left
    apply_encoding(model, per_head_encoding([3e5, 4e5], geometry), geometry, 2048)
    assert model.config.rope_parameters["attention_factor"] == pytest.approx(0.1 * math.log(4) + 1)
    factor = build_table(model.config)[..., 1]
    assert factor.numel() and (factor == factor.flatten()[0]).all()


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_one_base_for_all_heads_keeps_it_in_a_stock_rope_type(family: str) -> None:
    rope = (
        dict(YARN)
        if family == "llama"
        else {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
        }
    )
    changes = {} if family == "llama" else {"original_max_position_embeddings": 128}
    geometry = read_geometry(tiny_config(family, rope_parameters=dict(rope), **changes), "x")
    assert geometry.attention_factor > 1.05
    model = tiny(family, rope_parameters=dict(rope), **changes)
    apply_encoding(model, shared_encoding(3e5, geometry), geometry, 2048)
    again = AutoModelForCausalLM.from_config(model.config).eval()
    (rotary,) = (m for m in again.modules() if hasattr(m, "rope_type"))
    cos, sin = rotary(torch.zeros(1, 1, 64), torch.tensor([[1000]]))
    angle = 1000 * 3e5 ** (-torch.arange(8).double() / 8)
    for got, want in ((cos, angle.cos()), (sin, angle.sin())):
        torch.testing.assert_close(got[0, 0, :8].double(), geometry.attention_factor * want, atol=2e-4, rtol=0)


def test_a_plain_checkpoint_has_neither_reach_nor_factor() -> None:
    geometry = read_geometry(tiny("llama").config, "x")
    assert (geometry.trained_angles, geometry.attention_factor, geometry.changed_layers) == (None, 1.0, None)
