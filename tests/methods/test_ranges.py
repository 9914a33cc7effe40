"""Ranges of bases and the stages of a method."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from harpe.errors import HarpeError
from harpe.methods.abf import abf
from harpe.methods.harpe import harpe
from harpe.methods.ranges import ntk_base, provisional_range
from harpe.methods.types import ModelGeometry
from harpe.positions.base_sets import choose_bases

LLAMA2 = ModelGeometry("llama", 32, 32, 32, 128, 128, 4096, 10_000.0, 32_000)


def test_the_provisional_range_gives_the_papers_one_to_five_million_for_llama2_at_128k() -> None:
    found = provisional_range(LLAMA2, 131_072)
    assert found.low == pytest.approx(1e6, rel=0.03)
    assert found.high == pytest.approx(5e6, rel=0.03)
    assert "provisional" in found.why


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
        provisional_range(LLAMA2, length)


@pytest.mark.parametrize(("low", "high"), [(5e6, 1e6), (0.5, None), (0.0, None), (None, math.inf), (math.nan, None)])
def test_an_impossible_range_is_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(HarpeError, match="empty or invalid"):
        provisional_range(LLAMA2, 131_072, low, high)


def test_a_rotary_dimension_without_a_rule_is_refused() -> None:
    with pytest.raises(HarpeError, match="rotary dimension is 2"):
        provisional_range(replace(LLAMA2, rotary_dim=2), 131_072)


def test_harpe_and_abf_train_once_at_the_target_on_all_tokens() -> None:
    per_head = harpe(LLAMA2, 131_072, choose_bases("uniform", heads=32, head_dim=128, length=131_072, low=1e6, high=5e6))
    shared = abf(LLAMA2, 131_072, 5e6)
    for stages in (per_head, shared):
        assert [(stage.length, stage.share) for stage in stages] == [(131_072, 1.0)]
    assert per_head[0].encoding.per_head and list(per_head[0].encoding.bases) == sorted(per_head[0].encoding.bases)
    assert not shared[0].encoding.per_head and shared[0].encoding.bases == (5e6,) * 32
