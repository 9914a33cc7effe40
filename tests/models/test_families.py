"""Per-head RoPE in every tested family, against the stock models and against plain float64."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from harpe.methods.types import per_head_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model

from .tiny_families import FAMILIES, REPRESENTATIVES, bases_of, heads_of, tiny

ALL = pytest.mark.parametrize("family", FAMILIES)
COSTLY = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.matrix) for name in FAMILIES]
)
"""All families where the whole matrix is asked for (make families), else the representatives."""


def ids_of(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: PreTrainedModel, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False, **inputs).logits


def with_bases(model: PreTrainedModel, bases: Any = None, length: int = 4096) -> PreTrainedModel:
    geometry = read_geometry(model.config, "tiny")
    return apply_encoding(model, per_head_encoding(tuple(bases or bases_of(model)), geometry), geometry, length)


def rotary_of(model: PreTrainedModel) -> Any:
    return next(module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding"))


def module_of(model: PreTrainedModel) -> Any:
    return sys.modules[type(rotary_of(model)).__module__]


def rope_of(model: PreTrainedModel) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The layer type that the rotary module wants to be told, if any, and the rope parameters of global layers."""
    rope = model.config.rope_parameters
    return (("full_attention",), rope["full_attention"]) if "full_attention" in rope else ((), rope)


@contextmanager
def exact_angles(model: PreTrainedModel) -> Iterator[None]:
    """The stock model with its cos and sin computed in float64 and cast; only the arrangement of its tables is its
    own."""
    rotary = rotary_of(model)
    stock = rotary.forward

    def forward(x: torch.Tensor, position_ids: torch.Tensor, *layer_type: str) -> tuple[torch.Tensor, torch.Tensor]:
        rope = model.config.rope_parameters[layer_type[0]] if layer_type else model.config.rope_parameters
        table, _ = stock(x, position_ids, *layer_type)
        pairs = getattr(rotary, f"{layer_type[0]}_inv_freq" if layer_type else "inv_freq").shape[0]
        angle = position_ids.double()[..., None] / rope["rope_theta"] ** (
            torch.arange(0, 2 * pairs, 2).double() / (2 * pairs)
        )
        if table.shape[-1] == 2 * pairs:
            neighbours = torch.equal(table[..., 0::2], table[..., 1::2])
            angle = angle.repeat_interleave(2, -1) if neighbours else torch.cat([angle, angle], -1)
        return angle.cos().to(table.dtype), angle.sin().to(table.dtype)

    rotary.forward = forward
    try:
        yield
    finally:
        del rotary.forward


@ALL
def test_equal_bases_are_the_stock_model(family: str) -> None:
    model, ids = tiny(family), ids_of(1, 700)
    with exact_angles(model):
        expected = logits(model, ids)
    base = rope_of(model)[1]["rope_theta"]
    got = logits(with_bases(model, [base] * heads_of(model)), ids)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@ALL
def test_every_head_is_rotated_as_a_stock_model_with_its_base_rotates_it(family: str) -> None:
    model = tiny(family)
    module, stock_apply = module_of(model), module_of(model).apply_rotary_pos_emb
    heads, layer_type = heads_of(model), rope_of(model)[0]
    group = model.config.num_attention_heads // heads
    width = 2 * read_geometry(model.config, family).rotary_dim // 2
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(2, model.config.num_attention_heads, 33, width, generator=generator)
    k = torch.randn(2, heads, 33, width, generator=generator)
    positions = torch.randint(0, 3000, (2, 33), generator=generator)
    bases = bases_of(model)
    pair = rotary_of(with_bases(copy.deepcopy(model)))(q, positions, *layer_type)
    if pair[1].dim() == 4 and pair[0].dtype == torch.int64:
        pair = (pair[0], pair[1][1])  # the row of a layer that changes
    got_q, got_k = module.apply_rotary_pos_emb(q, k, *pair)
    for head, base in enumerate(bases):
        stock = copy.deepcopy(model)
        rope_of(stock)[1]["rope_theta"] = base
        with exact_angles(stock):
            cos, sin = rotary_of(stock).forward(q, positions, *layer_type)
        own = slice(group * head, group * (head + 1))
        want_q, want_k = stock_apply(q[:, own], k[:, head : head + 1], cos, sin)
        torch.testing.assert_close(got_q[:, own], want_q, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got_k[:, head : head + 1], want_k, atol=1e-5, rtol=1e-5)


class Recorder:
    """Queries and keys as the eager attention gets them, and as they leave the projections (or the norms after
    those)."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, projections: dict[str, str]) -> None:
        self.rotated: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.projected: dict[str, list[torch.Tensor]] = {}
        module = module_of(model)
        stock = module.eager_attention_forward

        def record(owner: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.rotated.append((query, key))
            return stock(owner, query, key, *args, **kwargs)

        monkeypatch.setattr(module, "eager_attention_forward", record)
        for name, part in model.named_modules():
            for role, suffix in projections.items():
                if name.endswith(suffix):
                    part.register_forward_hook(
                        lambda _m, _i, out, role=role: self.projected.setdefault(role, []).append(out)
                    )


def rotated_in_numpy(x: np.ndarray, base: float, positions: np.ndarray, pairs: int, interleaved: bool) -> np.ndarray:
    """x float64 [S, D] of one head, its first 2 * pairs dimensions turned as complex numbers."""
    turn = np.exp(1j * positions[:, None] * base ** (-np.arange(pairs) / pairs))
    out = x.copy()
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    turned = (x[:, first] + 1j * x[:, second]) * turn
    out[:, first], out[:, second] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("family", ["llama", "cohere", "gpt_neox", "gemma3_text"])
def test_attention_scores_are_those_of_plain_float64(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q and k from the projections, turned in numpy head by head: no table, no shared code."""
    model = with_bases(tiny(family, attn_implementation="eager"))
    projections = {"gpt_neox": {"qkv": "query_key_value"}, "gemma3_text": {"q": "q_norm", "k": "k_norm"}}
    recorder = Recorder(model, monkeypatch, projections.get(family, {"q": "q_proj", "k": "k_proj"}))
    positions = torch.arange(60)[None]
    logits(model, ids_of(1, 60), position_ids=positions)
    heads, queries, dim = heads_of(model), model.config.num_attention_heads, 16
    bases, pairs = bases_of(model), read_geometry(tiny(family).config, family).rotary_dim // 2
    layers = [1, 3] if family == "gemma3_text" else [0, 1]
    for layer in layers:
        if family == "gpt_neox":
            fused = recorder.projected["qkv"][layer][0].double().numpy()
            q, k, _ = fused.reshape(60, queries, 3, dim).transpose(2, 1, 0, 3)
        elif family == "gemma3_text":
            q, k = (recorder.projected[role][layer][0].double().numpy() for role in "qk")
        else:
            q = recorder.projected["q"][layer][0].reshape(60, queries, dim).double().numpy().transpose(1, 0, 2)
            k = recorder.projected["k"][layer][0].reshape(60, heads, dim).double().numpy().transpose(1, 0, 2)
        got_q, got_k = (x[0].double().numpy() for x in recorder.rotated[layer])
        for head in range(queries):
            own = head * heads // queries
            place = positions[0].numpy().astype(float)
            want_q = rotated_in_numpy(q[head], bases[own], place, pairs, family == "cohere")
            want_k = rotated_in_numpy(k[own], bases[own], place, pairs, family == "cohere")
            want = want_q @ want_k.T
            assert np.abs(got_q[head] @ got_k[own].T - want).max() <= 1e-5 * np.abs(want).max()


def scores_at(model: PreTrainedModel, shift: int, rotate: Any, layer_type: tuple[str, ...]) -> torch.Tensor:
    """Pre-softmax scores [H_q, S, S] in float64 of fixed q and k at positions shift, shift + 1 …"""
    heads, queries = heads_of(model), model.config.num_attention_heads
    generator = torch.Generator().manual_seed(5)
    width = read_geometry(tiny(model.config.model_type).config, "x").rotary_dim
    q, k = (torch.randn(1, n, 24, width, generator=generator) for n in (queries, heads))
    pair = rotary_of(model)(q, shift + torch.arange(0, 24 * 9, 9)[None], *layer_type)
    if pair[1].dim() == 4 and pair[0].dtype == torch.int64:
        pair = (pair[0], pair[1][1])
    q, k = rotate(q, k, *pair)
    return (q.double() @ k.double().repeat_interleave(queries // heads, 1).transpose(2, 3))[0]


@ALL
def test_scores_depend_on_distance_alone(family: str) -> None:
    stock = tiny(family)
    layer_type = rope_of(stock)[0]
    rotate = module_of(stock).apply_rotary_pos_emb
    model = with_bases(tiny(family))
    rotate_per_head = module_of(model).apply_rotary_pos_emb
    still, largest = scores_at(model, 0, rotate_per_head, layer_type), 0.0
    largest = float(still.abs().max())
    for shift in (1, 1000, 100_000):
        assert (scores_at(model, shift, rotate_per_head, layer_type) - still).abs().max() <= 1e-5 * largest
    moved = (scores_at(stock, 100_000, rotate, layer_type) - scores_at(stock, 0, rotate, layer_type)).abs().max()
    assert moved > 1e-5 * largest, "the stock model's float32 angles must fail this test, or it has no power"


@ALL
def test_permuting_bases_and_heads_together_permutes_the_rotated_heads(family: str) -> None:
    stock = tiny(family)
    heads, queries, layer_type = heads_of(stock), stock.config.num_attention_heads, rope_of(stock)[0]
    width = read_geometry(stock.config, family).rotary_dim
    order = torch.arange(heads).flip(0)
    grouped = torch.arange(queries).view(heads, -1)[order].flatten()
    generator = torch.Generator().manual_seed(6)
    q, k = (torch.randn(1, n, 9, width, generator=generator) for n in (queries, heads))
    bases = bases_of(stock)
    found = []
    for model_bases, x, y in ((bases, q, k), ([bases[i] for i in order], q[:, grouped], k[:, order])):
        model = with_bases(tiny(family), model_bases)
        pair = rotary_of(model)(x, torch.arange(9)[None] + 700, *layer_type)
        if pair[1].dim() == 4 and pair[0].dtype == torch.int64:
            pair = (pair[0], pair[1][1])
        found.append(module_of(model).apply_rotary_pos_emb(x, y, *pair))
    assert torch.equal(found[0][0][:, grouped], found[1][0]) and torch.equal(found[0][1][:, order], found[1][1])


def test_permuting_a_models_heads_with_their_bases_leaves_its_logits() -> None:
    model, ids = with_bases(tiny("llama"), [5e3, 7e4]), ids_of(2, 50)
    other = with_bases(tiny("llama"), [7e4, 5e3])
    for a, b in zip(model.model.layers, other.model.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(a.self_attn, name).weight.data
            getattr(b.self_attn, name).weight.data = weight.view(2, -1, weight.shape[1]).flip(0).reshape(weight.shape)
        weight = a.self_attn.o_proj.weight.data
        b.self_attn.o_proj.weight.data = weight.view(weight.shape[0], 2, -1).flip(1).reshape(weight.shape)
    torch.testing.assert_close(logits(other, ids), logits(model, ids), atol=1e-5, rtol=1e-5)


@COSTLY
def test_generation_with_either_cache_equals_forward_passes_without(family: str) -> None:
    model, ids = with_bases(tiny(family)), ids_of(2, 21)
    made = ids
    for _ in range(8):
        made = torch.cat([made, logits(model, made)[:, -1:].argmax(-1)], 1)
    for cache in ("dynamic", "static"):
        got = model.generate(
            ids, max_new_tokens=8, do_sample=False, cache_implementation=cache, attention_mask=torch.ones_like(ids)
        )
        assert torch.equal(got, made), cache


@COSTLY
def test_left_padding_in_a_batch_of_unequal_lengths_changes_nothing(family: str) -> None:
    model = with_bases(tiny(family))
    long, short = ids_of(1, 30), ids_of(1, 17, seed=2)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 13, dtype=torch.int64), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :13] = 0
    got = model.generate(batch, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, 30:]
    for row, alone in enumerate((long, short)):
        made = model.generate(alone, attention_mask=torch.ones_like(alone), max_new_tokens=6, do_sample=False)
        assert torch.equal(got[row : row + 1], made[:, alone.shape[1] :])


@COSTLY
def test_eager_and_sdpa_attention_agree(family: str) -> None:
    ids = ids_of(2, 40)
    model = with_bases(tiny(family, attn_implementation="eager"))
    expected = logits(model, ids)
    if not model._supports_sdpa or getattr(model.config, "attn_logit_softcapping", None) is not None:
        pytest.skip(f"SDPA does not compute the attention of {family}")
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits(model, ids), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("asked", [None, "sdpa"])
def test_a_checkpoint_that_caps_its_scores_is_read_with_the_attention_that_caps(
    asked: str | None, tmp_path: Path
) -> None:
    model = tiny("gemma2", attn_logit_softcapping=0.5, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    if asked is not None:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "attn_implementation": asked}))
    uncapped = tiny("gemma2", attn_logit_softcapping=None, attn_implementation="eager")
    expected = logits(model, ids_of(1, 40))
    assert (logits(uncapped, ids_of(1, 40)) - expected).abs().max() > 1e-2
    torch.testing.assert_close(logits(load_model(tmp_path), ids_of(1, 40)), expected, atol=1e-6, rtol=1e-6)


@COSTLY
def test_one_graph_without_breaks_gives_the_same_logits(family: str) -> None:
    model, ids = with_bases(tiny(family)), ids_of(1, 24)
    expected = logits(model, ids)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled, ids), expected, atol=1e-5, rtol=1e-5)
