"""LongCE weighs tokens in training as its paper writes it: token by token, window by window, with stock forwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.files import read_jsonl
from harpe.methods.types import Stage, per_head_encoding, shared_encoding, stock_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.training.checkpoints import last_complete
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.pieces import Pieces
from harpe.training.stages import check_stages

from .test_stages import Breaking, Counting, Stop, options, train, weights

TARGET, CONTEXT = 64, 12


class Answers(Counting):
    """Every third token is no target."""

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        item = super().__getitem__(i)
        item["input_ids"] = (item["input_ids"] * 31 + i) % 97
        item["labels"] = item["input_ids"].masked_fill(torch.arange(self.length) % 3 == 0, -100)
        return item


def batch(data: Any, count: int) -> dict[str, torch.Tensor]:
    pieces = Pieces(data)
    return torch.utils.data.default_collate([pieces[i] for i in range(count)])


def losses_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """-log p of the tokens 1, 2, … of a text, by the model's own logits."""
    logs = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    return -logs.gather(1, ids[1:, None])[:, 0]


def weighted(model: Any, data: Any, count: int, context: int = CONTEXT) -> tuple[torch.Tensor, list[float]]:
    """The mean over targets of loss times min(e^(short - long), 5), and these weights."""
    step, total, found, targets = context // 4, torch.zeros(()), [], 0
    for i in range(count):
        ids, labels = data[i]["input_ids"], data[i]["labels"]
        long = losses_of(model, ids)
        for token in range(1, len(ids)):
            if labels[token] == -100:
                continue
            weight = 1.0
            if token >= context:
                begin = (token - context) // step * step
                with torch.no_grad():
                    short = losses_of(model, ids[begin : token + 1])[-1]
                weight = min(math.exp(short - long[token - 1].detach()), 5.0)
            found.append(weight)
            total, targets = total + weight * long[token - 1], targets + 1
    return total / targets, found


def sharp(make_tiny: Any, family: str, **changes: Any) -> Any:
    """A random model that is sure of itself, so that what it sees moves its losses by several nats."""
    model = make_tiny(family, max_position_embeddings=32, **changes)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(25)
    geometry = read_geometry(model.config, family)
    return apply_encoding(
        model, per_head_encoding([9e3 + 3e4 * h for h in range(geometry.key_value_heads)], geometry), geometry, TARGET
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_losses_and_gradients_are_those_of_the_paper_written_out(make_tiny: Any, family: str, recompute: bool) -> None:
    model, data = sharp(make_tiny, family).double(), Answers(3, TARGET)
    set_recompute(model, recompute)
    with chunked_loss(model, CONTEXT):
        loss = model.train()(**batch(data, 3)).loss
        loss.backward()
        with torch.no_grad():
            measured = model.eval()(**batch(data, 3)).loss
            by_labels = model(
                torch.stack([data[i]["input_ids"] for i in range(3)]),
                torch.stack([data[i]["labels"] for i in range(3)]),
            ).loss
    set_recompute(model, False)
    got = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    expected, factors = weighted(model.eval(), data, 3)
    expected.backward()
    assert max(factors) == 5.0 and min(factors) < 0.3 and factors.count(1.0) >= 3 * 7
    for found in (loss, measured, by_labels):
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=2e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(got[name], weight.grad, atol=5e-5, rtol=2e-4)
    with chunked_loss(model):
        plain = model.train()(**batch(data, 3)).loss
    assert abs(float(plain.detach()) - float(expected.detach())) > 0.1


@pytest.mark.parametrize("recompute", [False, True])
def test_no_gradient_is_lost_in_bfloat16(make_tiny: Any, recompute: bool) -> None:
    """Weights are cast in passes without gradients and in passes with them, under one autocast, which keeps them."""
    model, data = sharp(make_tiny, "llama"), Answers(3, TARGET)
    set_recompute(model, recompute)
    with chunked_loss(model, CONTEXT), torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch(data, 3)).loss
    loss.backward()
    set_recompute(model, False)
    got = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    expected, _ = weighted(model.eval(), data, 3)
    expected.backward()
    for name, weight in model.named_parameters():
        assert torch.cosine_similarity(got[name].flatten(), weight.grad.flatten(), dim=0) > 0.97, name


def test_a_training_begins_with_that_loss_and_goes_on_to_the_same_weights(make_tiny: Any, tmp_path: Path) -> None:
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(per_head_encoding((5e4, 9e4), geometry), TARGET, 1.0)]
    more = {"longce_context": CONTEXT, "tokens": 8 * 4 * TARGET, "batch_tokens": 4 * TARGET, "save_every": 2}
    found = weights(train(make_tiny, tmp_path / "1", Counting(100, TARGET), stages, **more))
    train(make_tiny, tmp_path / "4", Counting(100, TARGET), stages, micro_batch=4, **more)
    one, four = (read_jsonl(tmp_path / name / "stage-1" / "log.jsonl") for name in ("1", "4"))
    model = apply_encoding(make_tiny("llama", max_position_embeddings=32), stages[0].encoding, geometry, TARGET)
    first, factors = weighted(model.eval(), Counting(100, TARGET), 4)
    assert one[0]["loss"] == pytest.approx(float(first.detach()), abs=2e-5) and len(set(factors)) > 100
    assert [row["loss"] for row in four] == pytest.approx([row["loss"] for row in one], abs=2e-4)
    with pytest.raises(Stop):
        train(make_tiny, tmp_path / "broken", Breaking(100, TARGET), stages, **more)
    assert last_complete(tmp_path / "broken" / "stage-1") is not None
    resumed = weights(train(make_tiny, tmp_path / "broken", Counting(100, TARGET), stages, **more))
    assert all(torch.equal(resumed[name], value) for name, value in found.items())
    plain = weights(
        train(make_tiny, tmp_path / "plain", Counting(100, TARGET), stages, **{**more, "longce_context": 0})
    )
    assert any(not torch.equal(plain[name], value) for name, value in found.items())


def test_what_does_not_go_with_it_is_refused(make_tiny: Any) -> None:
    geometry = read_geometry(make_tiny("llama").config, "tiny")
    plain = Stage(shared_encoding(2e4, geometry), TARGET, 1.0)
    with pytest.raises(HarpeError, match="--sequence-parallel 1"):
        check_stages([plain], options(longce_context=CONTEXT), Layout(2, 2))
    dynamic = Stage(stock_encoding({"rope_type": "dynamic", "factor": 4.0}, geometry), TARGET, 1.0)
    with pytest.raises(HarpeError, match="rope type dynamic rotates short texts otherwise"):
        check_stages([dynamic], options(longce_context=CONTEXT))
    others: tuple[dict[str, Any], ...] = ({"document_mask": "run-on"}, {"pose_length": 16})
    for other, told in zip(others, ("--document-mask run-on", "--pose-length 16"), strict=True):
        with pytest.raises(HarpeError, match=f"{told} changes which tokens"):
            check_stages([plain], options(longce_context=CONTEXT, **other))
    for size in (-4, 1, TARGET, 100):
        with pytest.raises(HarpeError, match=f"--longce-context is {size}; it must be 2 tokens at least and fewer"):
            check_stages([plain], options(longce_context=size))
    check_stages([plain], options(longce_context=2))
