"""Ranges of bases and the stages of a method."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from harpe.bases.critical_base import critical_base
from harpe.bases.ranges import base_range, ntk_base
from harpe.errors import HarpeError
from harpe.methods.abf import abf
from harpe.methods.harpe import harpe
from harpe.positions.geometry import ModelGeometry

LLAMA2 = ModelGeometry("llama", 32, 32, 32, 128, 128, 4096, 10_000.0, 32_000)


def test_the_critical_range_is_exactly_the_papers_one_to_five_million_for_llama2_at_128k() -> None:
    found = base_range(LLAMA2, 131_072)
    assert (found.low, found.high) == (1e6, 5e6)


@pytest.mark.parametrize(("length", "published"), [(262_144, 283_461_213), (1_048_576, 3_580_165_449)])
def test_the_critical_base_is_that_of_published_llama3_checkpoints(length: int, published: int) -> None:
    # rope_theta of the Llama-3-8B checkpoints for 262k and 1048k tokens that Gradient published
    assert critical_base(500_000, 8192, length) == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    ("base", "trained", "length"), [(10_000, 4096, 131_072), (500_000, 8192, 262_144), (10_000, 256, 2048)]
)
def test_as_many_pairs_turn_fully_at_the_target_as_did_in_pretraining(base: float, trained: int, length: int) -> None:
    # counted with a fine grid of exponents in place of d/2 pairs: the count must not depend on d
    exponents = [i / 100_000 for i in range(100_001)]

    def turned(b: float, n: int) -> int:
        return sum(n * b**-e >= 2 * math.pi for e in exponents)

    assert turned(critical_base(base, trained, length), length) == pytest.approx(turned(base, trained), abs=2)


def test_the_short_rule_ends_where_the_critical_base_is() -> None:
    found = base_range(LLAMA2, 131_072, rule="short")
    assert found.high == pytest.approx(critical_base(10_000, 4096, 131_072), rel=1e-5)
    assert found.low == pytest.approx(found.high / 5, rel=1e-5)


def test_the_ntk_rule_gives_about_the_papers_range_for_llama2_at_128k() -> None:
    found = base_range(LLAMA2, 131_072, rule="ntk")
    assert found.low == pytest.approx(1e6, rel=0.03) and found.high == pytest.approx(5e6, rel=0.03)


@pytest.mark.parametrize("rule", ["critical", "short", "ntk"])
@pytest.mark.parametrize("length", [8193, 9000, 16_384, 10_000_000])
@pytest.mark.parametrize("base", [10_000.0, 500_000.0, 1e7])
def test_no_rule_goes_below_the_trained_base(rule: str, length: int, base: float) -> None:
    found = base_range(replace(LLAMA2, base=base, original_length=8192), length, rule=rule)  # type: ignore[arg-type]
    assert base <= found.low <= found.high


def test_an_end_given_by_hand_may_lie_below_the_trained_base() -> None:
    found = base_range(LLAMA2, 131_072, low=5000.0)
    assert found.low == 5000.0 and "by hand" in found.why


def test_the_critical_range_does_not_depend_on_the_rotary_dimension() -> None:
    whole, partial = base_range(LLAMA2, 32_768), base_range(replace(LLAMA2, rotary_dim=32), 32_768)
    assert (whole.low, whole.high) == (partial.low, partial.high)


@pytest.mark.parametrize(("scale", "dim"), [(2, 64), (8, 128), (32, 128)])
def test_the_ntk_base_is_that_of_transformers_dynamic_scaling(scale: int, dim: int) -> None:
    length, heads = 4096, 2
    config = LlamaConfig(
        hidden_size=heads * dim,
        num_attention_heads=heads,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 1.0},
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, device="cpu", seq_len=scale * length)
    base = float(frequencies[1]) ** (-dim / 2)
    assert ntk_base(10_000.0, scale, dim) == pytest.approx(base, rel=1e-4)


def test_the_ntk_base_slows_the_slowest_pair_by_exactly_the_scale() -> None:
    exponent = (LLAMA2.rotary_dim - 2) / LLAMA2.rotary_dim
    assert (ntk_base(1e4, 32, LLAMA2.rotary_dim) / 1e4) ** exponent == pytest.approx(32)


@pytest.mark.parametrize("length", [4096, 100])
def test_a_target_that_is_no_longer_is_refused(length: int) -> None:
    with pytest.raises(HarpeError, match="not longer than the model's context"):
        base_range(LLAMA2, length)


@pytest.mark.parametrize(("low", "high"), [(5e6, 1e6), (0.5, None), (0.0, None), (None, math.inf), (math.nan, None)])
def test_an_impossible_range_is_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(HarpeError, match="empty or invalid"):
        base_range(LLAMA2, 131_072, low, high)


def test_what_has_no_rule_is_refused() -> None:
    with pytest.raises(HarpeError, match="rotary dimension is 2"):
        base_range(replace(LLAMA2, rotary_dim=2), 131_072, rule="ntk")
    with pytest.raises(HarpeError, match="less than one turn"):
        base_range(replace(LLAMA2, original_length=6), 131_072)
    with pytest.raises(HarpeError, match="beyond any number"):
        base_range(replace(LLAMA2, original_length=7), 131_072)
    with pytest.raises(HarpeError, match="choose critical, short or ntk"):
        base_range(LLAMA2, 131_072, rule="best")  # type: ignore[arg-type]


def test_harpe_and_abf_train_once_at_the_target_on_all_tokens() -> None:
    per_head = harpe(LLAMA2, 131_072, base_range(LLAMA2, 131_072))
    shared = abf(LLAMA2, 131_072, base_range(LLAMA2, 131_072))
    for stages in (per_head, shared):
        assert [(stage.length, stage.share) for stage in stages] == [(131_072, 1.0)]
    assert per_head[0].encoding.per_head and list(per_head[0].encoding.bases) == sorted(per_head[0].encoding.bases)
    assert not shared[0].encoding.per_head and shared[0].encoding.bases == (5e6,) * 32
