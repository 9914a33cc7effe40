"""How far heads look, against plain sums over the attentions that stock transformers returns; and what is done with
it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.tiny_families import MOE, tiny

import harpe
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models import head_distance
from harpe.models.head_distance import cached_head_distances, head_distances
from harpe.models.load import load_model
from harpe.models.position_awareness import position_awareness

DOCUMENTS = [[int(i) for i in (torch.arange(n) * 7 + n) % 97] for n in (40, 17, 90, 5)]
CONTEXT = 64


def naive_distances(model: Any, documents: list[list[int]], context: int) -> np.ndarray:
    """Loops over documents, layers, heads, queries and keys."""
    model.set_attn_implementation("eager")
    groups, heads = (
        model.config.num_attention_heads // model.config.num_key_value_heads,
        model.config.num_key_value_heads,
    )
    total, weight = (np.zeros((model.config.num_hidden_layers, heads)) for _ in range(2))
    for ids in documents:
        ids = ids[:context]
        if len(ids) < 16:
            continue
        with torch.no_grad():
            attentions = model(torch.tensor([ids]), output_attentions=True).attentions
        for layer, attention in enumerate(attentions):
            for head in range(model.config.num_attention_heads):
                a = attention[0, head].tolist()
                for q in range(len(ids) // 2, len(ids)):
                    for k in range(1, q + 1):
                        total[layer, head // groups] += a[q][k] * (q - k)
                        weight[layer, head // groups] += a[q][k]
    return total / weight


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_distances_are_those_of_stock_attentions_summed_in_loops(make_tiny: Any, family: str) -> None:
    model = make_tiny(family)  # 4 query heads in 2 groups
    found = head_distances(model, DOCUMENTS, CONTEXT)
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found, naive_distances(model, DOCUMENTS, CONTEXT), rtol=1e-5)
    np.testing.assert_array_equal(found, head_distances(model, DOCUMENTS, CONTEXT))


def test_the_model_is_left_as_it_was(make_tiny: Any) -> None:
    model = make_tiny("llama").train()
    before, hooks = model.config._attn_implementation, [len(m._forward_hooks) for m in model.modules()]
    head_distances(model, DOCUMENTS, CONTEXT)
    assert model.training and model.config._attn_implementation == before != "eager"
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_a_measurement_is_kept_for_the_same_weights_and_texts_only(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny("llama")
    first, path = cached_head_distances(model, DOCUMENTS, CONTEXT, tmp_path)
    monkeypatch.setattr(head_distance, "head_distances", lambda *a: pytest.fail("measured again"))
    again, same = cached_head_distances(make_tiny("llama"), DOCUMENTS, CONTEXT, tmp_path)
    np.testing.assert_array_equal(first, again)
    assert path == same
    monkeypatch.undo()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    assert cached_head_distances(model, DOCUMENTS, CONTEXT, tmp_path)[1] != path
    assert cached_head_distances(make_tiny("llama"), DOCUMENTS[::-1], CONTEXT, tmp_path)[1] != path
    assert cached_head_distances(make_tiny("llama"), DOCUMENTS, CONTEXT // 2, tmp_path)[1] != path


def test_a_measurement_with_a_window_is_not_that_without_for_the_same_weights(make_tiny: Any, tmp_path: Path) -> None:
    narrow, wide = make_tiny("mistral", sliding_window=4), make_tiny("mistral", sliding_window=None)
    assert all(torch.equal(a, b) for a, b in zip(narrow.parameters(), wide.parameters(), strict=True))
    near, _ = cached_head_distances(narrow, DOCUMENTS, CONTEXT, tmp_path)
    far, _ = cached_head_distances(wide, DOCUMENTS, CONTEXT, tmp_path)
    np.testing.assert_array_equal(far, head_distances(wide, DOCUMENTS, CONTEXT))
    assert near.max() < 4 < far.min()


def test_texts_without_enough_tokens_are_refused(make_tiny: Any) -> None:
    with pytest.raises(HarpeError, match="No text has 16 tokens"):
        head_distances(make_tiny("llama"), [[1, 2, 3]], CONTEXT)


def test_an_adaptive_run_gives_the_larger_base_to_the_head_that_looks_farther(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARPE_CACHE", str(tmp_path / "cache"))
    settings: dict[str, Any] = {
        "length": 256,
        "tokens": 1024,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "dtype": "float32",
    }
    harpe.extend(
        str(workspace / "model"), data=str(workspace / "texts"), out=tmp_path / "run", assignment="adaptive", **settings
    )
    plan = read_json(tmp_path / "run" / "plan.json")
    (kept,) = (tmp_path / "cache" / "head-distances").iterdir()
    reach = np.array(read_json(kept)["distances"]).mean(axis=0)
    assert np.argsort(plan["methods"][1]["bases"]).tolist() == np.argsort(reach).tolist()
    assert any("tokens back on average" in reason for reason in plan["reasons"])
    bases = load_model(tmp_path / "run" / "harpe" / "model").config.rope_parameters["bases"]
    assert bases == plan["methods"][1]["bases"]


def test_a_run_with_a_row_for_every_layer_saves_and_loads_every_row(workspace: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "length": 256,
        "tokens": 1024,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "dtype": "float32",
    }
    harpe.extend(
        str(workspace / "model"), data=str(workspace / "texts"), out=tmp_path / "run", layer_bases="own", **settings
    )
    rows = load_model(tmp_path / "run" / "harpe" / "model").config.rope_parameters["bases"]
    assert len(rows) == 2 and len({base for row in rows for base in row}) == sum(map(len, rows))


@pytest.mark.parametrize(
    ("family", "other", "more"),
    [
        ("lfm2", "conv", {}),
        ("qwen3_next", "linear_attention", {"shared_expert_intermediate_size": 32, "linear_num_key_heads": 2}),
    ],
)
def test_layers_of_hybrids_without_attention_are_not_asked(family: str, other: str, more: dict[str, Any]) -> None:
    more = {**MOE, **more, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    types = [other, "full_attention"] * 2
    model = tiny(family, num_hidden_layers=4, layer_types=types, **(more if family == "qwen3_next" else {}))
    with torch.no_grad():
        for layer in (1, 3):
            wanted = naive_distances_of(model, layer)
            found = head_distances(model, DOCUMENTS, CONTEXT)
            np.testing.assert_allclose(found[layer], wanted, rtol=1e-5)
    assert not found[[0, 2]].any()
    aware = position_awareness(model, DOCUMENTS, CONTEXT)
    assert aware.shape == (4, 2) and (aware[[1, 3]] > 0).all() and not aware[[0, 2]].any()


def naive_distances_of(model: Any, layer: int) -> np.ndarray:
    """As `naive_distances`, of one layer of a model that returns its attentions alone."""
    kept: list[Any] = []
    attention = model.model.layers[layer].self_attn
    handle = attention.register_forward_hook(lambda module, inputs, output: kept.append(output[1][0]))
    model.set_attn_implementation("eager")
    total, weight = np.zeros(2), np.zeros(2)
    for ids in (ids[:CONTEXT] for ids in DOCUMENTS if len(ids) >= 16):
        model(torch.tensor([ids]), use_cache=False)
        size, seen = len(ids), kept.pop().double().numpy()
        for head in range(4):
            for q in range(size // 2, size):
                for k in range(1, q + 1):
                    total[head // 2] += seen[head, q, k] * (q - k)
                    weight[head // 2] += seen[head, q, k]
    handle.remove()
    return total / weight
