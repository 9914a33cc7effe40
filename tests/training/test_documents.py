"""Documents that share a sequence are trained on as if each were alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.files import read_jsonl
from harpe.methods.types import SelfExtend, Stage, per_head_encoding, shared_encoding, stock_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.head import hidden_states
from harpe.training.documents import Documents, check_documents, inside_documents
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.pieces import Pieces
from harpe.training.stages import check_stages

from .test_stages import LENGTH, Counting, options, train

STARTS = ([0, 9, 30, 31], [0], [0, 50])
"""Documents of the sequences: several with one of a single token, one, two."""


class Packed(Counting):
    """Sequences of a few documents."""

    def document_starts(self, i: int) -> np.ndarray:
        return np.array(STARTS[i % len(STARTS)])


def batch(mask: Any, rows: range = range(3)) -> dict[str, torch.Tensor]:
    pieces = Pieces(Documents(Packed(6), mask))
    return torch.utils.data.default_collate([pieces[i] for i in rows])


def alone(model: Any, mask: Any) -> torch.Tensor:
    """The sum of the losses of all documents of a batch, each read by itself by the model as it is; the count of
    targets."""
    losses, count = [], 0
    for i in range(3):
        ids = Packed(6)[i]["input_ids"]
        for start, end in zip(STARTS[i], [*STARTS[i][1:], LENGTH], strict=True):
            if end - start > 1:
                places = torch.arange(end - start) + (start if mask == "run-on" else 0)
                logits = model(input_ids=ids[None, start:end], position_ids=places[None]).logits[0, :-1]
                losses.append(torch.nn.functional.cross_entropy(logits, ids[start + 1 : end], reduction="sum"))
                count += end - start - 1
    return torch.stack(losses).sum() / count


WINDOWS = {"layers": 4, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
LAYERED = ("gemma2", "gemma3_text", "gpt_oss")


def per_head(make_tiny: Any, family: str, **changes: Any) -> Any:
    model = make_tiny(family, **(WINDOWS if family in LAYERED else {}), **changes)
    geometry = read_geometry(model.config, family)
    bases = [1e4 * (2 + head) for head in range(geometry.key_value_heads)]
    return apply_encoding(model, per_head_encoding(bases, geometry), geometry, LENGTH)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mask", ["restart", "run-on"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "mixtral"])
def test_losses_and_gradients_are_those_of_every_document_alone(
    make_tiny: Any, family: str, mask: Any, recompute: bool
) -> None:
    """Three sequences in one pass, with sliding windows shorter than documents, caps and sinks where families have
    them."""
    model = per_head(make_tiny, family)
    set_recompute(model, recompute)
    with chunked_loss(model), inside_documents(model, mask):
        loss = model.train()(**batch(mask)).loss
        loss.backward()
    set_recompute(model, False)
    got = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    expected = alone(model.eval(), mask)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=2e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(got[name], weight.grad, atol=2e-6, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mask", ["restart", "run-on"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_no_bit_of_a_document_depends_on_the_one_before(make_tiny: Any, family: str, mask: Any) -> None:
    model = per_head(make_tiny, family).eval()
    given = batch(mask, range(1))
    other = given["input_ids"].clone()
    other[:, :9] = other[:, :9].flip(1)
    found = []
    with inside_documents(model, mask) as spans:
        assert spans is not None
        spans.set(given["documents"])
        places = given.get("position_ids")
        for ids in (given["input_ids"], other):
            found.append(model.lm_head(hidden_states(model, ids, position_ids=places)))
    assert torch.equal(found[0][:, 9:], found[1][:, 9:])
    assert not torch.equal(found[0][:, :9], found[1][:, :9])


@torch.no_grad()
def test_outside_of_the_context_a_model_is_as_before(make_tiny: Any) -> None:
    model, ids = make_tiny("llama").eval(), torch.arange(1, 40)[None]
    before, name = model(ids).logits, model.config._attn_implementation
    with inside_documents(model, "run-on"):
        inside = model(ids).logits  # one document
    assert model.config._attn_implementation == name and not model._forward_pre_hooks
    assert torch.equal(model(ids).logits, before) and torch.equal(inside, before)


@pytest.mark.parametrize("mask", ["restart", "run-on"])
def test_a_training_begins_with_the_loss_of_documents_alone(make_tiny: Any, tmp_path: Path, mask: Any) -> None:
    model = per_head(make_tiny, "llama", max_position_embeddings=32).double()
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "llama")
    bases = [1e4 * (2 + head) for head in range(geometry.key_value_heads)]
    stages = [Stage(per_head_encoding(bases, geometry), LENGTH, 1.0)]
    more = {"stages": stages, "batch_tokens": 3 * LENGTH, "tokens": 9 * LENGTH, "document_mask": mask}
    losses = []
    for size in (1, 3):
        train(make_tiny, tmp_path / str(size), Packed(30), micro_batch=size, **more)
        losses.append([row["loss"] for row in read_jsonl(tmp_path / str(size) / "stage-1" / "log.jsonl")])
    assert losses[0][0] == pytest.approx(float(alone(model.eval(), mask).detach()), abs=1e-5)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][-1] < losses[0][0] - 0.3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_documents_that_restart_are_refused_where_the_longest_would_decide_how_the_others_turn(
    make_tiny: Any, kind: str
) -> None:
    """Stock transformers reads the second document, of 13 tokens, otherwise beside one of 51 than alone."""
    rope: dict[str, Any] = {"rope_type": kind, "factor": 4.0}
    if kind == "longrope":
        sets = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
        rope |= {**sets, "original_max_position_embeddings": 32}
    stock = make_tiny("llama", max_position_embeddings=32, rope_parameters={**rope, "rope_theta": 1e4})
    places = torch.cat([torch.arange(51), torch.arange(13)])[None]
    beside, alone_ = (stock.model.rotary_emb(torch.zeros(1), at)[0][:, -13:] for at in (places, places[:, -13:]))
    assert not torch.equal(beside, alone_)
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(stock_encoding(rope, geometry), LENGTH, 1.0)]
    with pytest.raises(HarpeError, match=f"restart: rope type {kind} .*Give --document-mask run-on"):
        check_stages(stages, options(document_mask="restart"))
    with pytest.raises(HarpeError, match=f"restart: rope type {kind} "):
        check_documents(stock, "restart")
    check_stages(stages, options(document_mask="run-on"))


def test_what_cannot_be_kept_inside_documents_is_refused(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = read_geometry(make_tiny("llama").config, "tiny")
    plain = Stage(shared_encoding(2e4, geometry), LENGTH, 1.0)
    extended = replace(plain, encoding=replace(plain.encoding, attention=SelfExtend(8, 16)))
    masked = options(document_mask="restart")
    with pytest.raises(HarpeError, match="--sequence-parallel 1"):
        check_stages([plain], masked, Layout(2, 2))
    with pytest.raises(HarpeError, match="attention of their own"):
        check_stages([extended], masked)
    with pytest.raises(HarpeError, match="choose none, restart, run-on"):
        check_stages([plain], options(document_mask="block"))
    with pytest.raises(HarpeError, match="where documents start"):
        Documents(Counting(3), "restart")
    model = make_tiny("llama")
    monkeypatch.setattr(
        "harpe.training.documents._Spans.set", lambda spans, documents: None
    )  # the second sees the first
    with pytest.raises(HarpeError, match="depend on those before"):
        check_documents(model, "restart")
