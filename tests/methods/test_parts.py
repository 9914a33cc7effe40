"""MrRoPE, by parts and HARPE by parts against their formulas written out, and against stock models."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import harpe
from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import Encoding
from harpe.models.geometry import read_geometry
from harpe.positions.geometry import ModelGeometry

GEOMETRY = ModelGeometry("llama", 3, 8, 4, 64, 64, 2048, 10_000.0, 97)
LENGTH, SCALE = 16 * 2048, 16.0


def encoding(name: str, **options: object) -> Encoding:
    (stage,) = make_stages(method_named(name), GEOMETRY, LENGTH, options)
    return stage.encoding


def naive(exponent_of: object, fast: float, slow: float) -> list[float]:
    """Inverse frequencies, pair by pair."""
    theta = [10_000.0 ** (-2 * i / 64) for i in range(32)]
    turns = [2048 * t / (2 * math.pi) for t in theta]
    low = -1
    for i in range(32):
        if turns[i] > fast:
            low = i
    high = 31
    while turns[high - 1] < slow:
        high -= 1
    found = []
    for i in range(32):
        t, n = i - low, high - low
        if t <= 0:
            found.append(theta[i])
        elif t >= n:
            found.append(theta[i] / SCALE)
        else:
            found.append(theta[i] * SCALE ** -exponent_of(t, n))  # type: ignore[operator]
    return found


def frequencies(found: Encoding) -> list[float]:
    assert found.stock is not None and found.stock["short_factor"] == found.stock["long_factor"]
    return [10_000.0 ** (-2 * i / 64) / factor for i, factor in enumerate(found.stock["long_factor"])]


def test_mrrope_s_exponents_are_those_of_the_formula_and_its_temperature_is_yarn_s() -> None:
    for variant, power in (("pro", lambda t, n: t * (t + 1) / (n * (n + 1))), ("uni", lambda t, n: t / n)):
        found = encoding("mrrope", variant=variant)
        assert frequencies(found) == pytest.approx(naive(power, 32, 1), rel=1e-12)
        assert found.stock is not None and found.stock["attention_factor"] == pytest.approx(0.1 * math.log(16) + 1)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 4.0])
def test_by_parts_slows_by_a_power(exponent: float) -> None:
    found = encoding("by-parts", exponent=exponent)
    assert frequencies(found) == pytest.approx(naive(lambda t, n: (t / n) ** exponent, 8, 1), rel=1e-12)
    same = encoding("by-parts", exponent=1.0, beta_fast=32.0)
    assert frequencies(same) == pytest.approx(frequencies(encoding("mrrope", variant="uni")), rel=1e-12)


def test_every_head_of_harpe_parts_is_by_parts_with_its_exponent() -> None:
    exponents = [1.0, 2.0, 3.0, 6.0]
    found = encoding("harpe-parts", exponents=exponents)
    assert found.tables is not None and len(found.tables) == 1 and found.tables[0] is not None
    for row, exponent in zip(found.tables[0], exponents, strict=True):
        assert row == pytest.approx(naive(lambda t, n, e=exponent: (t / n) ** e, 8, 1), rel=1e-12)
    assert found.attention_factor == pytest.approx(0.1 * math.log(16) + 1)
    ascending = encoding("harpe-parts", assignment="ascending").tables
    descending = encoding("harpe-parts", assignment="descending").tables
    assert ascending is not None and descending is not None and ascending[0] is not None
    assert ascending[0] == descending[0][::-1] and ascending[0][0] == pytest.approx(  # type: ignore[index]
        naive(lambda t, n: t / n, 8, 1), rel=1e-12
    )


def test_the_nearer_a_head_looks_the_more_of_its_pairs_stay() -> None:
    distances = [[10.0, 300.0, 20.0, 5.0], [1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]]
    options = {"assignment": "measured"}
    stages = make_stages(method_named("harpe-parts"), GEOMETRY, LENGTH, options, measure=lambda: distances)
    tables = stages[0].encoding.tables
    assert tables is not None and len(tables) == 3
    for row, table in zip(distances, tables, strict=True):
        assert table is not None
        middle = [head[20] for head in table]  # a pair in between turns the faster the larger the exponent
        assert sorted(range(4), key=lambda h: row[h]) == sorted(range(4), key=lambda h: -middle[h])
    with pytest.raises(HarpeError, match="Choose another assignment"):
        make_stages(method_named("harpe-parts"), GEOMETRY, LENGTH, options)


def test_harpe_parts_with_one_exponent_is_the_stock_model_by_parts() -> None:
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    stock, ours = (LlamaForCausalLM(copy.deepcopy(config)).eval() for _ in range(2))
    ours.load_state_dict(stock.state_dict())
    harpe.apply(stock, "by-parts", length=2048, exponent=3.0)
    harpe.apply(ours, "harpe-parts", length=2048, exponents=[3.0, 3.0])
    assert stock.config.rope_parameters["rope_type"] == "longrope"
    assert ours.config.rope_parameters["rope_type"] == "harpe" and "bases" not in ours.config.rope_parameters
    ids = torch.randint(0, 97, (1, 1500))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mrrope", {"beta_fast": 1.0, "beta_slow": 2.0}, "must be above the other"),
        ("by-parts", {"exponent": 0.0}, "must be a number above 0"),
        ("by-parts", {"attention_factor": [1.0, 1.1, 1.2, 1.3]}, "one table for all heads cannot hold"),
        ("harpe-parts", {"exponents": [1.0]}, "has 1 exponents; the model has 4"),
        ("mrrope", {"factor": 0.5}, "scaled by 1 or more"),
    ],
)
def test_what_cannot_be_is_told(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(HarpeError, match=words):
        encoding(name, **options)


def test_a_short_context_has_fast_and_slow_pairs_too() -> None:
    """256 tokens: no pair but the first turned 32 times, and none of a narrow head less than once."""
    tiny = ModelGeometry("llama", 4, 8, 8, 32, 8, 16, 4.0, 97)
    (stage,) = make_stages(method_named("mrrope"), tiny, 64, {})
    stock = stage.encoding.stock
    assert stock is not None and stock["long_factor"][0] == 1.0 and stock["long_factor"][-1] == pytest.approx(4.0)


def test_geometry_is_read_for_what_methods_need() -> None:
    geometry = read_geometry(LlamaConfig(max_position_embeddings=256), "x")
    (stage,) = make_stages(method_named("mrrope"), geometry, 2048, {})
    assert stage.encoding.describe().startswith("rope type longrope")
