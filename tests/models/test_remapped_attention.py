"""Self-Extend, ReRoPE and dual chunk attention inside models, against the papers' formulas in float64, pair by pair."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from harpe.data import embedded
from harpe.errors import HarpeError
from harpe.methods.types import DualChunk, DynamicSelfExtend, ReRoPE, SelfExtend, per_head_encoding, shared_encoding
from harpe.models import remapped_attention
from harpe.models.apply import apply_encoding
from harpe.models.attention import apply_attention
from harpe.models.export import export_checkpoint
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model, load_tokenizer

from .tiny_families import bases_of, heads_of, tiny

SOME_HEADS = ReRoPE(9, ((0,), (1,), (1,), (0,)))
"""One of two in each of up to four layers (`fitted`)."""
METHODS = [SelfExtend(8, 3), SelfExtend(7, 4), DualChunk(12, 5), DualChunk(6, 6)]
METHODS += [DynamicSelfExtend(5, 16), DynamicSelfExtend(14, 16), ReRoPE(9, ((0,), ())), ReRoPE(12, ((0,), (0,)))]
ALL = pytest.mark.parametrize(
    "attention",
    [SelfExtend(8, 3), DualChunk(12, 5), DynamicSelfExtend(5, 16), SOME_HEADS],
    ids=["self-extend", "dual-chunk", "dynamic", "rerope"],
)
INTERLEAVED = ("glm", "cohere", "helium")


def distance(i: int, j: int, attention: Any, capped: bool = True) -> int:
    """Between query i and key j: the papers' cases, one by one. `capped`: in a head that has ReRoPE."""
    if isinstance(attention, ReRoPE):
        return min(i - j, attention.window) if capped else i - j
    if isinstance(attention, DynamicSelfExtend):
        w, g = attention.window, 1
        while i // g + w - w // g >= attention.context:  # of the first key
            g += 1
        return i - j if i - j < w else (i // g + w - w // g) - j // g
    if isinstance(attention, SelfExtend):
        w, g = attention.window, attention.group
        return i - j if i - j < w else (i // g + w - w // g) - j // g
    s, c = attention.chunk, attention.chunk + attention.local
    if i // s == j // s:
        return i % s - j % s
    if i // s - j // s == 1:
        return min(i % s + s, c - 1) - j % s
    return c - 1 - j % s


@contextmanager
def pair_by_pair(model: PreTrainedModel, attention: Any, bases: list[float] | None = None) -> Iterator[None]:
    """The stock model with an attention that rotates every pair by its own distance in float64; q and k must come
    unrotated."""
    config: Any = model.config
    rope = config.rope_parameters
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    bases = bases or [rope["rope_theta"]] * heads_of(model)
    interleaved = config.model_type in INTERLEAVED

    def naive(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        scaling: float,
        softcap: Any = None,
        s_aux: Any = None,
        **_: Any,
    ) -> Any:
        size, kind = query.shape[2], (getattr(config, "layer_types", None) or ["full_attention"] * 99)[module.layer_idx]

        def turns_of(capped: bool) -> np.ndarray:
            def of(i: int, j: int) -> int:
                return distance(i, j, attention, capped) if "full" in kind else i - j

            return np.array([[of(i, j) for j in range(size)] for i in range(size)])

        both = [turns_of(False), turns_of(True)]
        allowed = np.array(
            [[j <= i and ("full" in kind or i - j < config.sliding_window) for j in range(size)] for i in range(size)]
        )
        q, k, v = (x.detach().double().numpy() for x in (query, key, value))
        heads, group = k.shape[1], q.shape[1] // k.shape[1]
        output = np.zeros(q.shape)
        for b, h in np.ndindex(q.shape[:2]):
            x, y = q[b, h], k[b, h // group]
            turns = both[not isinstance(attention, ReRoPE) or h // group in attention.heads[module.layer_idx]]
            theta = bases[h // group] ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
            half = rotary_dim // 2
            firsts, seconds = (
                (slice(0, rotary_dim, 2), slice(1, rotary_dim, 2))
                if interleaved
                else (slice(half), slice(half, rotary_dim))
            )
            a, c = (z[:, firsts] + 1j * z[:, seconds] for z in (x, y))
            product = a[:, None] * np.conj(c)[None]
            score = (product * np.exp(1j * turns[..., None] * theta)).real.sum(-1) + x[:, rotary_dim:] @ y[
                :, rotary_dim:
            ].T
            score = score * scaling
            score = score if softcap is None else np.tanh(score / softcap) * softcap
            weight = np.exp(np.where(allowed, score, -np.inf))
            total = weight.sum(-1, keepdims=True) + (0 if s_aux is None else np.exp(float(s_aux[h])))
            output[b, h] = weight / total @ v[b, h // group]
        assert heads == len(bases)
        return torch.from_numpy(output).to(query.dtype).transpose(1, 2), None

    AttentionInterface.register("naive", naive)
    AttentionMaskInterface.register("naive", sdpa_mask)
    before = config._attn_implementation
    config._attn_implementation_internal = "naive"
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def fitted(attention: Any, model: PreTrainedModel) -> Any:
    """With heads for as many layers as the model has."""
    layers = model.config.num_hidden_layers
    return replace(attention, heads=attention.heads[:layers]) if isinstance(attention, ReRoPE) else attention


def ids_of(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: PreTrainedModel, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False, **inputs).logits


def reference(
    model: PreTrainedModel, ids: torch.Tensor, attention: Any, bases: list[float] | None = None
) -> torch.Tensor:
    with pair_by_pair(model, attention, bases):
        return logits(model, ids, position_ids=torch.zeros_like(ids), attention_mask=torch.ones_like(ids))


def changed(model: PreTrainedModel, attention: Any) -> Any:
    return apply_attention(copy.deepcopy(model), fitted(attention, model))


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 2e-4) -> bool:
    return torch.allclose(a.float(), b.float(), atol=atol, rtol=1e-4)


@pytest.mark.parametrize("attention", METHODS, ids=str)
@pytest.mark.parametrize("heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_llama_is_the_papers_formula(attention: Any, heads: int) -> None:
    model, ids = tiny("llama", num_key_value_heads=heads), ids_of(2, 53)
    got = logits(changed(model, attention), ids)
    assert close(got, reference(model, ids, attention))
    assert not close(got, logits(model, ids), atol=1e-2)  # the reference can tell


@ALL
@pytest.mark.parametrize("family", ["phi", "glm", "cohere", "gpt_neox", "gemma2", "gpt_oss"])
def test_other_families_are_the_papers_formula(family: str, attention: Any) -> None:
    """Partial and interleaved rotation, soft caps, sinks, and layers with a sliding window, which stay as they are."""
    model, ids = tiny(family), ids_of(1, 41)
    assert close(logits(changed(model, attention), ids), reference(model, ids, attention), atol=5e-4)


@ALL
def test_bases_per_head_are_turned_by_their_own_frequencies(attention: Any) -> None:
    model, ids = tiny("llama"), ids_of(1, 41)
    geometry, bases = read_geometry(model.config, "tiny"), bases_of(model)
    own = apply_encoding(copy.deepcopy(model), per_head_encoding(bases, geometry), geometry, 4096)
    assert close(logits(apply_attention(own, fitted(attention, own)), ids), reference(model, ids, attention, bases))


@ALL
def test_small_tiles_and_scores_in_one_piece_agree_and_so_do_gradients(
    attention: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = changed(tiny("llama"), attention), ids_of(2, 45)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        out = model(input_ids=ids, labels=ids, use_cache=False)
        out.loss.backward()
        return out.logits.detach(), model.model.layers[0].self_attn.k_proj.weight.grad.clone()

    whole = run()
    monkeypatch.setitem(remapped_attention.SCORES, "cpu", 2 * 4 * 45 * 3)
    for a, b in zip(whole, run(), strict=True):
        assert close(a, b, atol=1e-5)


@ALL
def test_gradients_are_those_of_finite_differences(attention: Any) -> None:
    model, ids = changed(tiny("llama"), attention).double(), ids_of(1, 30)
    weight = model.model.layers[0].self_attn.k_proj.weight
    step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    slope, losses = float((weight.grad * step).sum()), []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-2 * step
            losses.append(float(model(input_ids=ids, labels=ids, use_cache=False).loss))
            weight -= sign * 1e-2 * step
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize(
    "attention", [SelfExtend(64, 4), DualChunk(64, 16), DynamicSelfExtend(16, 64), ReRoPE(64, ((0,), (1,)))], ids=str
)
def test_short_texts_are_the_stock_model(attention: Any) -> None:
    model, ids = tiny("llama"), ids_of(2, 64)
    assert close(logits(changed(model, attention), ids), logits(model, ids), atol=1e-5)


@ALL
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_decoding_step_by_step_is_the_full_forward(attention: Any, family: str) -> None:
    model, ids = changed(tiny(family), attention), ids_of(2, 50)
    full, cache, steps = logits(model, ids), None, []
    with torch.inference_mode():
        for part in ids.split([21, 9, *[1] * 20], dim=1):  # a prefill, another piece, then token by token
            out = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    assert close(torch.cat(steps, dim=1), full)


@ALL
def test_left_padding_changes_nothing(attention: Any) -> None:
    model = changed(tiny("llama"), attention)
    texts = [ids_of(1, 40, seed=2), ids_of(1, 29, seed=3)]
    batch = torch.cat([torch.nn.functional.pad(text, (40 - text.shape[1], 0)) for text in texts])
    mask = (torch.arange(40)[None] >= torch.tensor([[0], [11]])).long()
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    for inputs in ({}, {"position_ids": position_ids}):
        got = logits(model, batch, attention_mask=mask, **inputs)
        assert close(got[0], logits(model, texts[0])[0]) and close(got[1, 11:], logits(model, texts[1])[0])
    together = model.generate(batch, attention_mask=mask, max_new_tokens=12, do_sample=False)[:, 40:]
    for text, answer in zip(texts, together, strict=True):
        assert model.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=12, do_sample=False)[
            0, text.shape[1] :
        ].equal(answer)


@ALL
def test_bfloat16_is_near_float32(attention: Any) -> None:
    model, ids = changed(tiny("llama"), attention), ids_of(1, 50)
    short: Any = copy.deepcopy(model).to(torch.bfloat16)
    wanted, got = logits(model, ids), logits(short, ids)
    assert float((got.float() - wanted).norm() / wanted.norm()) < 0.05


@ALL
def test_a_checkpoint_keeps_it_and_stock_transformers_stops(
    attention: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny("llama"), ids_of(1, 40)
    geometry = read_geometry(model.config, "tiny")
    encoding = replace(shared_encoding(geometry.base, geometry), attention=fitted(attention, model))
    before = logits(model, ids)
    apply_encoding(model, encoding, geometry, 2048)
    assert model.config.max_position_embeddings == 2048 and model.config.harpe_attention["type"] in (
        "self_extend",
        "dual_chunk",
        "dynamic_self_extend",
        "rerope",
    )
    wanted = logits(model, ids)
    model.save_pretrained(tmp_path / "first")
    load_model(tmp_path / "first").save_pretrained(tmp_path / "again")
    for name in ("first", "again"):
        assert close(logits(load_model(tmp_path / name).eval(), ids), wanted, atol=1e-6)
        # harpe is registered
        assert close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / name).eval(), ids), wanted, atol=1e-6)
    AutoModelForCausalLM.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "plain")
    once_more = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", attn_implementation="sdpa").eval()
    assert close(logits(once_more, ids), wanted, atol=1e-6)
    with monkeypatch.context() as patch:  # transformers without harpe, whatever the configuration says of the attention
        patch.delitem(ROPE_INIT_FUNCTIONS, "harpe")
        for name in ("first", "plain"):
            with pytest.raises(KeyError, match="harpe"):
                AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="sdpa")
    with pytest.raises(HarpeError, match="only harpe runs it"):
        export_checkpoint(model, tmp_path / "exported")
    with monkeypatch.context() as patch:
        patch.delitem(AttentionInterface._global_mapping, remapped_attention.NAME)
        with pytest.raises(ValueError, match=remapped_attention.NAME):
            AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    apply_encoding(model, shared_encoding(geometry.base, geometry), geometry, 2048)
    assert close(logits(model, ids), before, atol=1e-6) and not hasattr(model.config, "harpe_attention")
    model.save_pretrained(tmp_path / "removed")
    assert remapped_attention.NAME not in (tmp_path / "removed" / "config.json").read_text()


def test_a_norm_after_the_rotation_is_refused() -> None:
    model = tiny("hunyuan_v1_dense")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query_layernorm" in name:
                weight.copy_(torch.linspace(0.2, 2, len(weight)))
    with pytest.raises(HarpeError, match="more to queries or keys than to rotate"):
        apply_attention(model, SelfExtend(8, 3))


@pytest.mark.parametrize("heads", [((0,),), ((0,), (2,)), ((), (-1,))], ids=str)
def test_heads_that_the_model_does_not_have_are_refused(heads: Any) -> None:
    with pytest.raises(HarpeError, match="do not fit 2 layers with 2 key/value heads"):
        apply_attention(tiny("llama"), ReRoPE(9, heads))


def test_masks_that_it_cannot_honour_are_refused() -> None:
    model, ids = changed(tiny("llama"), SelfExtend(8, 3)), ids_of(1, 6)
    with pytest.raises(HarpeError, match="packed documents"):
        logits(model, ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    with pytest.raises(HarpeError, match="middle of a text"):
        logits(model, ids, attention_mask=torch.tensor([[1, 1, 0, 1, 1, 1]]))
    with pytest.raises(HarpeError, match="not one of pairs"):
        logits(model, ids, attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))


@pytest.mark.slow
def test_the_embedded_model_reads_eight_times_its_context_without_training() -> None:
    """Untouched, its perplexity explodes beyond 256 tokens; with 64 exact positions and groups of 16 it is about that
    of windows of 256.

    Windows of the same text, since which file this is depends on the version of Python.
    """
    model = load_model("embedded").eval()
    files = sorted(
        (file for file in embedded.tuning_files(("stdlib",)) if len(file.text) > 20_000), key=lambda file: file.sha256
    )
    ids = load_tokenizer("embedded")(files[0].text, return_tensors="pt").input_ids[:, :2048]
    assert ids.shape[1] == 2048

    def perplexity(length: int) -> float:
        windows = ids.view(-1, length)
        with torch.inference_mode():
            return float(model(input_ids=windows, labels=windows, use_cache=False).loss.exp())

    short, untouched = perplexity(256), perplexity(2048)
    apply_attention(model, SelfExtend(64, 16))
    extended = perplexity(2048)
    apply_attention(model, DualChunk(192, 64))
    chunked = perplexity(2048)
    assert untouched > 3 * short
    assert extended < 1.3 * short and chunked < 1.3 * short
