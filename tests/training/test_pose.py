"""Short sequences with skipped positions train what a long sequence would, had nothing stood in the gap."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.files import read_jsonl
from harpe.methods.types import SelfExtend, Stage, per_head_encoding, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.training import pose
from harpe.training.checkpoints import last_complete
from harpe.training.loss import chunked_loss
from harpe.training.pieces import Pieces
from harpe.training.pose import SkippedPositions, check_skips, skipped_positions
from harpe.training.stages import check_stages

from .test_stages import Breaking, Counting, Stop, options, train, weights

TARGET, SIZE = 64, 16


def test_positions_are_two_chunks_that_reach_everywhere_below_the_target() -> None:
    """The published program's draws: the first chunk from 1 to half the tokens, the second farther by 0 to T - n."""
    size, target, count = 8, 24, 3000
    data = SkippedPositions(Counting(count, size), target, seed=3)
    firsts, gaps = [0] * (size + 1), [0] * (target - size + 1)
    for i in range(count):
        places = data[i]["position_ids"].tolist()
        steps = [b - a for a, b in pairwise(places)]
        wide = [n for n, step in enumerate(steps, 1) if step != 1]
        assert places[0] == 0 and places[-1] < target and len(wide) <= 1 and min(steps) >= 1
        gaps[places[-1] - (size - 1)] += 1
        if wide:
            firsts[wide[0]] += 1
    assert all(count / len(gaps) * 0.6 < n < count / len(gaps) * 1.4 for n in gaps)
    share = (count - gaps[0]) / 4
    assert firsts[0] == 0 and not any(firsts[5:]) and all(0.8 * share < n < 1.2 * share for n in firsts[1:5])
    again, other = (SkippedPositions(Counting(count, size), target, seed) for seed in (3, 4))
    assert torch.equal(again[5]["position_ids"], data[5]["position_ids"])
    assert any(not torch.equal(other[i]["position_ids"], data[i]["position_ids"]) for i in range(5))


def batch(rows: range = range(3)) -> dict[str, torch.Tensor]:
    pieces = Pieces(SkippedPositions(Counting(6, SIZE), TARGET, seed=1))
    return torch.utils.data.default_collate([pieces[i] for i in rows])


def in_a_long_sequence(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean loss of the same tokens in whole sequences of the target length, where what stands in the gap is masked:
    stock positions, stock mask, no harpe but for the rotation."""
    losses = []
    for ids, places, targets in zip(*(given[key] for key in ("input_ids", "position_ids", "labels")), strict=True):
        whole, seen = torch.full((1, TARGET), 7), torch.zeros(1, TARGET, dtype=torch.int64)
        whole[0, places], seen[0, places] = ids, 1
        logits = model(input_ids=whole, attention_mask=seen).logits[0, places]
        losses.append(F.cross_entropy(logits, targets, reduction="sum"))  # -100: the last one has none
    return torch.stack(losses).sum() / (given["labels"] != -100).sum()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "glm"])
def test_losses_and_gradients_are_those_of_a_long_sequence_with_nothing_in_the_gap(
    make_tiny: Any, family: str, per_head: bool, attention: str
) -> None:
    model = make_tiny(family, max_position_embeddings=SIZE).double()
    model.set_attn_implementation(attention)
    geometry = read_geometry(model.config, family)
    bases = [1e3 * (2 + head) for head in range(geometry.key_value_heads)]
    encoding = per_head_encoding(bases, geometry) if per_head else shared_encoding(2e3, geometry)
    apply_encoding(model, encoding, geometry, TARGET)
    given = batch()
    assert (given["position_ids"].diff() > 1).any(1).all()
    with chunked_loss(model), skipped_positions(model, SIZE, TARGET):
        check_skips(model, SIZE)
        loss = model.train()(**given).loss
        loss.backward()
    got = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    expected = in_a_long_sequence(model.eval(), given)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=2e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(got[name], weight.grad, atol=3e-6, rtol=1e-4)


def test_a_training_begins_with_that_loss_and_goes_on_to_the_same_weights(make_tiny: Any, tmp_path: Path) -> None:
    """As many tokens a step as with whole sequences, in any micro-batch; broken off in an accumulated step."""
    more = {"pose_length": SIZE, "tokens": 8 * 2 * TARGET, "batch_tokens": 2 * TARGET, "seed": 1}
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(per_head_encoding((5e4, 9e4), geometry), TARGET, 1.0)]
    train(make_tiny, tmp_path / "4", Counting(100, TARGET), stages, micro_batch=4, **more)
    found = weights(train(make_tiny, tmp_path / "1", Counting(100, TARGET), stages, **more))
    rows = read_jsonl(tmp_path / "1" / "stage-1" / "log.jsonl")
    assert [row["tokens"] for row in rows] == [2 * TARGET * step for step in range(1, 9)]
    model = apply_encoding(make_tiny("llama", max_position_embeddings=32), stages[0].encoding, geometry, TARGET)
    first = in_a_long_sequence(model.eval(), batch(range(8)))
    assert rows[0]["loss"] == pytest.approx(float(first.detach()), abs=1e-5) and rows[-1]["loss"] < rows[0]["loss"]
    together = read_jsonl(tmp_path / "4" / "stage-1" / "log.jsonl")
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in rows], abs=1e-5)
    with pytest.raises(Stop):
        train(make_tiny, tmp_path / "broken", Breaking(100, TARGET), stages, save_every=2, **more)
    assert last_complete(tmp_path / "broken" / "stage-1") is not None
    resumed = weights(train(make_tiny, tmp_path / "broken", Counting(100, TARGET), stages, save_every=2, **more))
    assert all(torch.equal(resumed[name], value) for name, value in found.items())
    plain = train(make_tiny, tmp_path / "plain", Counting(100, TARGET), stages, **{**more, "pose_length": 0})
    assert any(not torch.equal(weights(plain)[name], value) for name, value in found.items())


def test_a_step_may_have_fewer_tokens_than_the_length_that_it_trains(make_tiny: Any, tmp_path: Path) -> None:
    """Sequences are short, so that a step of two of them is one; none is trained on twice, and none is left out."""
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(per_head_encoding((5e4, 9e4), geometry), length, 0.5) for length in (SIZE, TARGET)]
    more = {"pose_length": SIZE, "tokens": 3 * TARGET + SIZE, "batch_tokens": 2 * SIZE + 1}
    data = Counting(3, TARGET)
    train(make_tiny, tmp_path, data, stages, **more)
    rows = [read_jsonl(tmp_path / f"stage-{number}" / "log.jsonl") for number in (1, 2)]
    assert [len(each) for each in rows] == [3, 3] and rows[1][0]["tokens"] == 2 * SIZE  # 6 steps of 2 of 12 sequences
    assert options(pose_length=SIZE, batch_tokens=1).step_tokens(TARGET) == SIZE
    assert options(pose_length=SIZE, batch_tokens=0).step_tokens(TARGET) == TARGET
    assert options(batch_tokens=1).step_tokens(TARGET) == TARGET


def test_what_does_not_go_with_it_is_refused(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = read_geometry(make_tiny("llama").config, "tiny")
    plain = Stage(shared_encoding(2e4, geometry), TARGET, 1.0)
    extended = replace(plain, encoding=replace(plain.encoding, attention=SelfExtend(8, 16)))
    skipped = options(pose_length=SIZE)
    with pytest.raises(HarpeError, match="--sequence-parallel 1"):
        check_stages([plain], skipped, Layout(2, 2))
    with pytest.raises(HarpeError, match="attention of their own"):
        check_stages([extended], skipped)
    with pytest.raises(HarpeError, match="--document-mask restart keeps apart"):
        check_stages([plain], options(pose_length=SIZE, document_mask="restart"))
    for size in (-16, 1, 24, TARGET, 2 * TARGET):
        with pytest.raises(HarpeError, match=f"--pose-length is {size}; it must divide --length 64"):
            check_stages([plain], options(pose_length=size))
    stages = [Stage(plain.encoding, length, 0.5) for length in (24, 48)]
    with pytest.raises(HarpeError, match="--pose-length 16 does not divide the 24 tokens of stage 1"):
        check_stages(stages, options(pose_length=16))
    stages = [Stage(plain.encoding, length, 0.5) for length in (12, 48)]
    with pytest.raises(HarpeError, match="--pose-length 16 is no multiple of the 12 tokens of stage 1"):
        check_stages(stages, options(pose_length=16, batch_tokens=16, tokens=480))
    for family, changes, told in (
        ("gemma2", {"sliding_window": 16}, "a window of 16 tokens"),
        ("phi3", {"sliding_window": 32}, "a window of 32 tokens"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, "rope type dynamic"),
    ):
        model = make_tiny(family, **changes)
        with pytest.raises(HarpeError, match=told), skipped_positions(model, SIZE, TARGET):
            pass
    model = make_tiny("llama")
    with pytest.raises(HarpeError, match="do not depend on the tokens before a gap"):
        check_skips(model, SIZE)  # as transformers has it: the gap begins another text
    monkeypatch.setattr(pose, "hidden_states", lambda model, ids, **more: model.model(input_ids=ids).last_hidden_state)
    with pytest.raises(HarpeError, match="do not depend on how wide a gap"), skipped_positions(model, SIZE, TARGET):
        check_skips(model, SIZE)
