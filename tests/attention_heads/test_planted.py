"""Models whose heads are made by hand are read as they were made: how far they look, which copy, and what is equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harpe.attention_heads.copying import CopyPrompt, copy_prompts, copy_scores
from harpe.attention_heads.gradients import far_gradients, logarithms, loss_of
from harpe.attention_heads.heterogeneity import heterogeneity
from harpe.errors import HarpeError
from harpe.models.float_tables import float_tables, model_tables
from harpe.models.head_distance import head_distances

CODE, DIM, VOCABULARY = 64, 64, 512
WIDTH = 2 * CODE + 4
CONSTANT = 2 * CODE
"""Of the width: the token's code, the code of the token before it (written by layer 0), and a constant."""


def random_ids(length: int, seed: int, vocabulary: int = 97) -> list[int]:
    return torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def empty(layers: int, query_heads: int, heads: int, base: float) -> Any:
    """A Llama without any attention or feed-forward: hidden states are the tokens' codes and a constant."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=heads,
        head_dim=DIM,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        codes = torch.randn(VOCABULARY, CODE, generator=generator)
        model.model.embed_tokens.weight[:, :CODE] = codes / codes.norm(dim=1, keepdim=True)
        model.model.embed_tokens.weight[:, CONSTANT] = 1.0
    return model


@torch.no_grad()
def look_back(model: Any, layer: int, query_head: int, head: int, distance: int, strength: float = 60.0) -> None:
    """q and k are constants whose rotations meet `distance` tokens apart; where q and k of a head are 0, all attend
    evenly."""
    attention, pairs = model.model.layers[layer].self_attn, DIM // 2
    theta = model.config.rope_parameters["rope_theta"] ** (-torch.arange(pairs) / pairs)
    phase = -distance * theta
    q = attention.q_proj.weight[query_head * DIM : (query_head + 1) * DIM, CONSTANT]
    q[:pairs], q[pairs:] = strength * phase.cos(), strength * phase.sin()
    attention.k_proj.weight[head * DIM : head * DIM + pairs, CONSTANT] = 1.0


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_made_to_look_back_are_read_as_looking_back_so_far(groups: int) -> None:
    model = empty(1, 2 * groups, 2, 10_000.0)
    wanted = (3, 40)
    for head, distance in enumerate(wanted):
        for query_head in range(head * groups, (head + 1) * groups):
            look_back(model, 0, query_head, head, distance)
    documents = [
        torch.randint(0, VOCABULARY, (200,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 2)
    ]
    found = head_distances(model, documents, 512)
    np.testing.assert_allclose(found, [wanted], rtol=0.02)


@torch.no_grad()
def copying_model() -> Any:
    """Layer 0: head 0 writes the token before. Layer 1, 4 query heads on 2 key/value heads: query head 1 alone looks
    where the token before is the current one (an induction head); query head 3 one token back; 0 and 2 evenly."""
    model = empty(2, 4, 2, 1e9)
    look_back(model, 0, 0, 0, 1, 200.0)
    layer0, layer1 = (layer.self_attn for layer in model.model.layers)
    layer0.v_proj.weight[:CODE, :CODE] = torch.eye(CODE)
    layer0.o_proj.weight[CODE : 2 * CODE, :CODE] = torch.eye(CODE)
    # codes lie in the pairs that turn slowest: half of them in either dimension of a pair, 4 to 32 of each
    places = torch.cat([torch.arange(16, 32), torch.arange(48, 64)])
    chosen = torch.linalg.qr(torch.randn(CODE, CODE, generator=torch.Generator().manual_seed(5)))[0][: len(places)]
    layer1.q_proj.weight[DIM + places, :CODE] = 60.0 * chosen
    layer1.k_proj.weight[places, CODE : 2 * CODE] = 60.0 * chosen
    look_back(model, 1, 3, 1, 1, 200.0)
    return model


def prompts_of(count: int = 6) -> list[CopyPrompt]:
    """Tokens that all differ; the question repeats two, and the answer what came behind."""
    made = []
    for seed in range(count):
        text = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))[:120].tolist()
        key = 20 + 9 * seed
        made.append(CopyPrompt((*text, *text[key : key + 2], *text[key + 2 : key + 5]), 122, key + 2))
    return made


def test_heads_made_to_copy_are_read_as_copying_and_groups_are_averaged() -> None:
    model = copying_model()
    before = model.config._attn_implementation
    top, weight = copy_scores(model, prompts_of())
    np.testing.assert_allclose(top, [[0, 0], [0.5, 0]], atol=0.02)
    assert weight[1, 0] > 0.4 and weight[1, 1] < 0.02
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks for module in model.modules())


def test_copying_is_that_of_stock_attentions_over_the_whole_prompt(make_tiny: Any) -> None:
    model, prompts = make_tiny("qwen3", vocab_size=VOCABULARY), prompts_of()
    top, weight = copy_scores(model, prompts)
    model.set_attn_implementation("eager")
    hits, sums = np.zeros((2, 2)), np.zeros((2, 2))
    for prompt in prompts:
        with torch.no_grad():
            attentions = model(torch.tensor([prompt.ids]), output_attentions=True).attentions
        for layer, attention in enumerate(attentions):
            for query_head in range(4):
                for n in range(3):
                    row = attention[0, query_head, prompt.answer - 1 + n].tolist()
                    hits[layer, query_head // 2] += row.index(max(row)) == prompt.source + n
                    sums[layer, query_head // 2] += row[prompt.source + n]
    np.testing.assert_allclose(top, hits / 36)
    np.testing.assert_allclose(weight, sums / 36, rtol=1e-4)


def test_the_embedded_models_needles_are_found_where_the_answer_stands(embedded_writer: Any) -> None:
    for prompt in copy_prompts(embedded_writer, 256, 8):
        count = len(prompt.ids) - prompt.answer
        assert len(prompt.ids) == 256
        assert prompt.ids[prompt.source : prompt.source + count] == prompt.ids[prompt.answer :]
        before = embedded_writer.tokenizer.decode(prompt.ids[: prompt.source])
        question = embedded_writer.tokenizer.decode(prompt.ids[: prompt.answer])
        assert before.rsplit("\n", 1)[-1] == question.rsplit("\n", 1)[-1] != ""


def test_equal_heads_want_the_same(make_tiny: Any) -> None:
    model = make_tiny("llama", heads=4, key_value_heads=4)
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                weight.copy_(weight[:16].repeat(4, 1))
            weight = layer.self_attn.o_proj.weight
            weight.copy_(weight[:, :16].repeat(1, 4))
    documents = [random_ids(80, 1)] * 4  # halves that agree: what is left is the difference between heads
    equal, _ = far_gradients(model, documents, 80, 40)
    assert heterogeneity(equal, range(8))["heads"].value == pytest.approx(1, abs=1e-4)
    other, _ = far_gradients(make_tiny("llama", heads=4, key_value_heads=4), documents, 80, 40)
    assert heterogeneity(other, range(8))["heads"].value > 1.2


def test_far_gradients_are_those_of_the_far_tokens_alone_and_leave_the_model_as_it_was(make_tiny: Any) -> None:
    model = make_tiny("llama").train()
    documents = [random_ids(80, seed) for seed in range(2)]
    found, losses = far_gradients(model, documents, 64, 40)
    assert model.training and all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    model.eval()
    logs, factors = logarithms(model_tables(model.config))
    logs.requires_grad_()
    with float_tables(model, logs, factors):
        logits = model(torch.tensor([documents[1][:64]])).logits
        loss = torch.nn.functional.cross_entropy(logits[0, 39:63], torch.tensor(documents[1][40:64]))
        (wanted,) = torch.autograd.grad(loss, logs)
    assert losses[1] == pytest.approx(float(loss), rel=1e-5)
    torch.testing.assert_close(torch.tensor(found[1]), wanted, rtol=1e-3, atol=1e-6)
    assert float(loss_of(model, documents[1][:64], 40)) == pytest.approx(float(loss), rel=1e-5)


def test_a_tokenizer_that_cuts_answers_otherwise_in_the_needle_is_told(
    embedded_writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = embedded_writer.encode
    monkeypatch.setattr(embedded_writer, "encode", lambda text: [5, *plain(text)] if text[0] == " " else plain(text))
    with pytest.raises(HarpeError, match="In none of 3 needle samples"):
        copy_prompts(embedded_writer, 300, 3)
