"""ReRoPE for near heads and by parts for far ones, against loops over heads and pairs of tokens in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import harpe
from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import ReRoPE, Stage
from harpe.models.export import export_checkpoint
from harpe.positions.geometry import ModelGeometry
from harpe.runs.rows import extended_row

GEOMETRY = ModelGeometry("llama", 3, 8, 4, 64, 64, 2048, 10_000.0, 97)
DISTANCES = [[5.0, 90.0, 30.0, 60.0], [1.0, 2.0, 3.0, 4.0], [100.0, 200.0, 300.0, 400.0]]
NEAR = ((0, 2), (0, 1, 2, 3), ())
"""The six nearest of twelve, over all layers."""
CONTEXT, LENGTH, WINDOW = 64, 256, 20


def stage(geometry: ModelGeometry = GEOMETRY, measure: Any = None, **options: Any) -> Stage:
    (found,) = make_stages(method_named("rerope-parts"), geometry, 8 * 2048, options, measure=measure)
    return found


def test_the_nearest_heads_of_all_layers_have_rerope_and_the_trained_frequencies() -> None:
    asked: list[str] = []

    def measure(what: str) -> list[list[float]]:
        asked.append(what)
        return DISTANCES

    found, by_parts = stage(measure=measure), make_stages(method_named("by-parts"), GEOMETRY, 8 * 2048, {})[0].encoding
    assert asked == ["distances"] and found.share == 0.0 and found.encoding == stage(distances=DISTANCES).encoding
    assert found.encoding.attention == ReRoPE(512, NEAR) and by_parts.stock is not None
    assert found.encoding.attention_factor == pytest.approx(0.1 * math.log(8) + 1)
    assert found.encoding.describe().startswith("ReRoPE, window 512, in 6 heads, on 2 tables of frequencies, by layer")
    trained = [10_000.0 ** (-i / 32) for i in range(32)]
    slowed = [value / factor for value, factor in zip(trained, by_parts.stock["long_factor"], strict=True)]
    tables = found.encoding.tables
    assert tables is not None
    for layer, table in enumerate(tables):
        assert table is not None
        for head, row in enumerate(table):
            assert row == pytest.approx(trained if head in NEAR[layer] else slowed, rel=1e-12)


def test_heads_of_layers_with_a_window_are_not_counted() -> None:
    found = stage(replace(GEOMETRY, changed_layers=(0, 2)), distances=DISTANCES).encoding
    assert found.attention == ReRoPE(512, ((0, 1, 2, 3), (), ())) and found.tables is not None
    assert found.tables[1] is None


def naive(model: Any, ids: torch.Tensor, near: tuple[tuple[int, ...], ...], factor: float) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one text; layers, heads and pairs of tokens one by one."""
    by_hand = copy.deepcopy(model)
    config, pairs, scale = model.config, 8, LENGTH / CONTEXT
    heads, group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    trained = [10_000.0 ** (-i / pairs) for i in range(pairs)]
    turns = [CONTEXT * theta / (2 * math.pi) for theta in trained]
    low, high = max(i for i in range(pairs) if turns[i] > 8), min(i for i in range(pairs) if turns[i] < 1)
    ways = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(pairs)]
    slowed = [theta / scale ** (way**2) for theta, way in zip(trained, ways, strict=True)]

    def attend(number: int, module: Any, inputs: torch.Tensor) -> torch.Tensor:
        size = inputs.shape[1]
        q = module.q_proj(inputs)[0].view(size, -1, 16).double().numpy()
        k, v = (part(inputs)[0].view(size, heads, 16).double().numpy() for part in (module.k_proj, module.v_proj))
        out = np.zeros(q.shape)
        for head in range(q.shape[1]):
            of = head // group
            capped = of in near[number]
            theta = np.array(trained if capped else slowed)
            for i in range(size):
                distances = [min(i - j, WINDOW) if capped else i - j for j in range(i + 1)]
                a, b = q[i, head, :8] + 1j * q[i, head, 8:], k[: i + 1, of, :8] + 1j * k[: i + 1, of, 8:]
                angles = np.array(distances)[:, None] * theta
                scores = (a * np.conj(b) * np.exp(1j * angles)).real.sum(-1) / 4 * factor**2
                weights = np.exp(scores - scores.max())
                out[i, head] = weights / weights.sum() @ v[: i + 1, of]
        return module.o_proj(torch.from_numpy(out.reshape(1, size, -1)).float())

    for number, layer in enumerate(by_hand.model.layers):
        layer.self_attn.forward = lambda hidden_states, _at=(number, layer.self_attn), **_: (
            attend(*_at, hidden_states),
            None,
        )
    with torch.no_grad():
        return by_hand(ids[None], use_cache=False).logits[0]


def text(length: int, seed: int) -> torch.Tensor:
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed))


def applied(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    return harpe.apply(copy.deepcopy(model), "rerope-parts", length=LENGTH, window=WINDOW, **options)


@pytest.mark.parametrize("heads", [4, 2], ids=["MHA", "GQA"])
def test_a_model_is_the_loops_in_batches_with_padding_and_by_a_cache(make_tiny: Any, heads: int) -> None:
    model = make_tiny("llama", key_value_heads=heads, layers=3, max_position_embeddings=CONTEXT)
    distances = [[*row[:1], 95.0] if heads == 2 else row for row in DISTANCES]
    near = ((0,), (0,), (0,)) if heads == 2 else NEAR
    if heads == 2:
        distances[2][0] = 94.0
    ours = applied(model, distances=distances)
    assert ours.config.harpe_attention["heads"] == [list(row) for row in near]
    texts = [text(110, 1), text(73, 2)]
    wanted = [naive(model, ids, near, 0.1 * math.log(4) + 1) for ids in texts]
    batch = torch.stack([torch.nn.functional.pad(ids, (110 - len(ids), 0)) for ids in texts])
    mask = (torch.arange(110)[None] >= torch.tensor([[0], [37]])).long()
    with torch.no_grad():
        together = ours(batch, attention_mask=mask, use_cache=False).logits
        cache, pieces = None, []
        for start, end in ((0, 40), (40, 97), *((i, i + 1) for i in range(97, 110))):
            step = ours(batch[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            pieces.append(step.logits)
        stock = model(texts[0][None]).logits[0]
    for found in (together, torch.cat(pieces, dim=1)):
        torch.testing.assert_close(found[0], wanted[0], atol=3e-4, rtol=1e-4)
        torch.testing.assert_close(found[1, 37:], wanted[1], atol=3e-4, rtol=1e-4)
    assert not torch.allclose(stock, wanted[0], atol=1e-2)  # the loops can tell


def test_the_controls_are_rerope_for_all_heads_and_by_parts_for_all(make_tiny: Any) -> None:
    model, ids = make_tiny("llama", layers=2, max_position_embeddings=CONTEXT), text(120, 3)
    everywhere = applied(model, near=1.0, attention_factor=1.0)
    with pytest.warns(UserWarning, match="trained with"):
        by_parts = harpe.apply(copy.deepcopy(model), "by-parts", length=LENGTH)
    nowhere = applied(model, near=0.0)
    assert nowhere.config.rope_parameters["rope_type"] == "harpe" and not hasattr(nowhere.config, "harpe_attention")
    with torch.no_grad():
        found = everywhere(ids[None]).logits[0]
        torch.testing.assert_close(nowhere(ids[None]).logits, by_parts(ids[None]).logits, atol=3e-4, rtol=1e-4)
    torch.testing.assert_close(found, naive(model, ids, ((0, 1), (0, 1)), 1.0), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "measures the heads of the model on texts, which are not at hand"),
        ({"near": 1.2}, "from 0 to 1"),
        ({"near": float("nan")}, "from 0 to 1|number"),
        ({"window": 2048}, "less than the trained context of 2048"),
        ({"window": 0}, "at least 1"),
        ({"factor": 0.5}, "1 or more"),
        ({"distances": DISTANCES[:2]}, "must be 3 rows"),
        ({"near": 1.0, "exponent": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(HarpeError, match=words):
        stage(**options)


def test_it_is_neither_trained_nor_exported(make_tiny: Any, tmp_path: Any) -> None:
    options = harpe.api.ExtendOptions(model="x", length=8192, data="x", out="x", method="rerope-parts")
    with pytest.raises(HarpeError, match="ReRoPE near, by parts far needs no training"):
        extended_row(options, GEOMETRY, lambda *_: pytest.fail("measured"))
    model = make_tiny("llama", max_position_embeddings=CONTEXT)
    with pytest.raises(HarpeError, match=r"changed \(rerope\): only harpe runs it"):
        export_checkpoint(applied(model, near=1.0), tmp_path / "exported")
