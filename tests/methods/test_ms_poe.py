"""Ms-PoE: what heads are ranked by against loops over stock attentions, its tables against the formula, and a model
with them against stock rotary positions divided head by head."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import harpe
from harpe.errors import HarpeError
from harpe.methods.ms_poe import ratios_of
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import Stage
from harpe.models.head_distance import cached
from harpe.models.position_awareness import position_awareness
from harpe.positions.geometry import ModelGeometry
from harpe.runs.rows import extended_row

GEOMETRY = ModelGeometry("llama", 4, 8, 4, 64, 64, 2048, 10_000.0, 97)
AWARENESS = [[0.3, 0.1, 0.4, 0.2], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.1, 0.2], [0.2, 0.2, 0.9, 0.1]]
RATIOS = {2: [1.2, 1.4, 1.8, 1.6], 3: [1.4, 1.6, 1.2, 1.8]}
"""By hand: the rank of each head, 0.2 further at each; of the two equal heads of layer 3 the first comes first."""
DOCUMENTS = [[int(i) for i in (torch.arange(n) * 7 + n) % 97] for n in (60, 33, 110, 5)]
CONTEXT = 64


def stage(geometry: ModelGeometry = GEOMETRY, measure: Any = None, **options: Any) -> Stage:
    (found,) = make_stages(method_named("ms-poe"), geometry, 8192, options, measure=measure)
    return found


def naive_awareness(model: Any, documents: list[list[int]], context: int) -> np.ndarray:
    """Loops over documents, layers, heads and queries, in float64, from the inputs of every layer."""
    config = model.config
    layers, heads, size = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    group = heads // config.num_key_value_heads
    found = np.zeros((layers, config.num_key_value_heads))
    count = 0
    for ids in (ids[:context] for ids in documents if len(ids) >= 16):
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        count += sum(1 for _ in range(len(ids) // 2, len(ids)))
        for number, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            with torch.no_grad():
                inputs = layer.input_layernorm(states[number])
                q = attention.q_proj(inputs)[0].view(len(ids), heads, size)
                k = attention.k_proj(inputs)[0].view(len(ids), -1, size)
                if hasattr(attention, "q_norm"):
                    q, k = attention.q_norm(q), attention.k_norm(k)
            q, k = q.double().numpy(), k.double().numpy()
            for head in range(heads):
                for at in range(len(ids) // 2, len(ids)):
                    scores = [float(q[at, head] @ k[j, head // group]) / math.sqrt(size) for j in range(at + 1)]
                    weights = [math.exp(score - max(scores)) for score in scores]
                    share = [weight / sum(weights) for weight in weights]
                    above = sum(1 for each in share if each > 3 * (sum(share) / len(share)))
                    found[number, head // group] += above / len(share) / group
    return found / count


@pytest.mark.parametrize(("family", "heads"), [("llama", 4), ("llama", 2), ("qwen3", 1)], ids=["MHA", "GQA", "norms"])
def test_awareness_is_that_of_loops_over_unrotated_scores(make_tiny: Any, family: str, heads: int) -> None:
    model = make_tiny(family, key_value_heads=heads, layers=3)
    found, wanted = position_awareness(model, DOCUMENTS, CONTEXT), naive_awareness(model, DOCUMENTS, CONTEXT)
    assert found.shape == (3, heads) and 0 < wanted.min() < wanted.max() < 1
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    for row, other in zip(found, wanted, strict=True):
        assert ratios_of(row, 1.2, 1.8) == ratios_of(other, 1.2, 1.8)


def test_the_model_is_left_as_it_was_and_a_measurement_is_kept(make_tiny: Any, tmp_path: Path) -> None:
    model = make_tiny("llama").train()
    before, hooks = model.config._attn_implementation, [len(m._forward_hooks) for m in model.modules()]
    first, path = cached("awareness", position_awareness, model, DOCUMENTS, CONTEXT, tmp_path)
    assert model.training and model.config._attn_implementation == before != "eager"
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    again, same = cached("awareness", lambda *_: pytest.fail("measured again"), model, DOCUMENTS, CONTEXT, tmp_path)
    assert path == same
    np.testing.assert_array_equal(first, again)


def test_tables_are_those_of_the_formula_and_the_first_two_layers_stay() -> None:
    tables = stage(awareness=AWARENESS).encoding.tables
    assert tables is not None
    for layer, table in enumerate(tables):
        assert table is not None
        for head, row in enumerate(table):
            ratio = RATIOS.get(layer, [1.0] * 4)[head]
            assert row == pytest.approx([10_000.0 ** (-i / 32) / ratio for i in range(32)], rel=1e-12)
    asked: list[str] = []

    def measure(what: str) -> list[list[float]]:
        asked.append(what)
        return AWARENESS

    measured = stage(measure=measure)
    assert asked == ["awareness"] and measured.encoding.tables == tables and measured.share == 0.0


def test_one_ratio_is_measured_of_nothing_and_windowed_layers_stay() -> None:
    windowed = replace(GEOMETRY, changed_layers=(1, 3))
    tables = stage(windowed, low=2.0, high=2.0, first=0).encoding.tables
    assert tables is not None and [table is not None for table in tables] == [False, True, False, True]
    assert tables[1] == tables[3] and tables[1] is not None
    assert all(row == pytest.approx([10_000.0 ** (-i / 32) / 2 for i in range(32)], rel=1e-12) for row in tables[1])


@pytest.mark.parametrize("heads", [4, 2], ids=["MHA", "GQA"])
def test_an_exported_model_is_stock_rotation_at_divided_positions(make_tiny: Any, heads: int, tmp_path: Path) -> None:
    """In float64 pair by pair, without a table: both of a pair of tokens are turned to their position over r."""
    model = make_tiny("llama", key_value_heads=heads, layers=4)
    by_hand, awareness = copy.deepcopy(model), [row[:heads] for row in AWARENESS]
    harpe.apply(model, "ms-poe", length=1024, awareness=awareness)
    harpe.export(model, tmp_path / "exported")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True).eval()
    frequencies = 10_000.0 ** (-np.arange(8) / 8)

    def attend(number: int, module: Any, inputs: torch.Tensor) -> torch.Tensor:
        size = inputs.shape[1]
        q = module.q_proj(inputs)[0].view(size, 4, 16).double().numpy()
        k, v = (part(inputs)[0].view(size, heads, 16).double().numpy() for part in (module.k_proj, module.v_proj))
        order = sorted(range(heads), key=lambda head: -awareness[number][head])
        out = np.zeros((size, 4, 16))
        for head in range(4):
            of = head // (4 // heads)
            ratio = 1.2 + 0.6 * order.index(of) / (heads - 1) if number >= 2 else 1.0
            angles = np.arange(size)[:, None] / ratio * frequencies
            a, b = (x[:, :8] + 1j * x[:, 8:] for x in (q[:, head], k[:, of]))
            scores = ((a * np.exp(1j * angles)) @ np.conj(b * np.exp(1j * angles)).T).real / 4
            weights = np.exp(np.where(np.tril(np.ones((size, size))) > 0, scores, -np.inf))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, of]
        return module.o_proj(torch.from_numpy(out.reshape(1, size, 64)).float())

    for number, layer in enumerate(by_hand.model.layers):
        layer.self_attn.forward = lambda hidden_states, _at=(number, layer.self_attn), **_: (
            attend(*_at, hidden_states),
            None,
        )
    ids = torch.randint(0, 97, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = by_hand(ids).logits
        torch.testing.assert_close(loaded(ids).logits, wanted, atol=3e-4, rtol=1e-4)
        assert not torch.allclose(make_tiny("llama", key_value_heads=heads, layers=4)(ids).logits, wanted, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "measures the heads of the model on texts, which are not at hand"),
        ({"low": 0.5}, "ratios are 1 or more"),
        ({"low": 2.0}, "high is not below low"),
        ({"high": float("inf")}, "ratios are 1 or more"),
        ({"first": 4}, "the layers 0 to 3"),
        ({"awareness": AWARENESS[:3]}, "must be 4 rows"),
        ({"awareness": [row[:2] for row in AWARENESS]}, "of 4 numbers"),
        ({"awareness": [[float("nan")] * 4] * 4}, "something else than numbers"),
        ({"awareness": 3}, "option awareness of ms-poe"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(HarpeError, match=words):
        stage(**options)
    with pytest.raises(HarpeError, match="which would be lost"):
        stage(replace(GEOMETRY, attention_factor=1.2), awareness=AWARENESS)


def test_extending_by_it_is_refused_before_anything_is_measured() -> None:
    options = harpe.api.ExtendOptions(model="x", length=8192, data="x", out="x", method="ms-poe")
    with pytest.raises(HarpeError, match="Ms-PoE needs no training"):
        extended_row(options, GEOMETRY, lambda *_: pytest.fail("measured"))
