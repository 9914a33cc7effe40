"""Rotations that depend on a text's length (dynamic NTK, LongRoPE): figures are those of a freshly loaded stock
model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from harpe.evaluation.cache import cache_reuse
from harpe.evaluation.needles.answers import answer_batch
from harpe.evaluation.needles.samples import NeedleSample, Turn
from harpe.evaluation.perplexity.by_position import document_records
from harpe.evaluation.perplexity.curves import document_losses, prefix_losses, prefix_record, window_totals
from harpe.models.angles import moving_rope, start_anew

BEFORE = 32
"""Trained context of the models here, in tokens."""
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": BEFORE,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 3 * i for i in range(8)],
}
MOVING = pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])


def model_of(make_tiny: Any, rope: dict[str, Any]) -> Any:
    return make_tiny(
        "llama", rope_parameters=dict(rope), max_position_embeddings=BEFORE if rope is DYNAMIC else 4 * BEFORE
    )


def ids_of(count: int) -> list[int]:
    return torch.randint(1, 97, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def fresh_loss(model: Any, ids: list[int]) -> float:
    """Sum of the losses of one text by a model that has read nothing before."""
    row = torch.tensor([ids])
    with torch.inference_mode():
        return float(copy.deepcopy(model)(input_ids=row, labels=row, use_cache=False).loss) * (len(ids) - 1)


@MOVING
def test_a_curve_is_that_of_the_stock_model_at_every_length(make_tiny: Any, rope: dict[str, Any]) -> None:
    model, ids, lengths = model_of(make_tiny, rope), ids_of(128), [16, 33, 48, 64, 128]
    fresh = copy.deepcopy(model)
    for _ in range(2):  # the second document is read behind the first one's longest length
        record = prefix_record(prefix_losses(model, ids, lengths), lengths)
        assert record["nll"] == pytest.approx([fresh_loss(fresh, ids[:length]) for length in lengths], rel=1e-5)
    assert sum(record["position_nll"]) == pytest.approx(record["nll"][-1])
    # one pass for all would show
    assert abs(document_losses(model, ids)[: 16 - 1].sum() - fresh_loss(fresh, ids[:16])) > 0.01


@MOVING
def test_a_document_is_not_read_in_pieces(make_tiny: Any, rope: dict[str, Any]) -> None:
    model, ids = model_of(make_tiny, rope), ids_of(100)
    assert document_losses(model, ids, prefill=20).sum() == pytest.approx(
        fresh_loss(model_of(make_tiny, rope), ids), rel=1e-5
    )


@MOVING
def test_windows_and_short_contexts_do_not_depend_on_what_was_read_before(make_tiny: Any, rope: dict[str, Any]) -> None:
    model, ids = model_of(make_tiny, rope), ids_of(4 * BEFORE + 1)
    fresh = copy.deepcopy(model)
    records: list[dict[str, Any]] = []
    document_records(model, [ids], BEFORE, 4 * BEFORE, records.append)
    windows = [torch.tensor(ids[start : start + BEFORE + 1]) for start in range(0, 4 * BEFORE, BEFORE)]
    with torch.inference_mode():  # a window is the trained context, and one token more that is predicted and not read
        logits = [copy.deepcopy(fresh)(input_ids=window[None, :-1]).logits[0] for window in windows]
    wanted = [
        torch.nn.functional.cross_entropy(x, w[1:], reduction="sum").item()
        for x, w in zip(logits, windows, strict=True)
    ]
    assert records[0]["short_nll"] == pytest.approx(sum(wanted), rel=1e-5)
    (total, count), *_ = window_totals(model, ids, 40, 8)
    assert count == 39 and total == pytest.approx(fresh_loss(fresh, ids[:40]), rel=1e-5)


def test_a_text_is_read_as_by_a_model_that_has_read_nothing(make_tiny: Any) -> None:
    model, text = model_of(make_tiny, DYNAMIC), torch.tensor([ids_of(50)])
    wanted = model(input_ids=text).logits
    model(input_ids=torch.tensor([ids_of(120)]))
    # transformers keeps the longest text's frequencies
    assert not torch.allclose(model(input_ids=text).logits, wanted, atol=1e-3)
    start_anew(model)
    assert torch.equal(model(input_ids=text).logits, wanted)


def test_answers_do_not_depend_on_the_samples_before(make_tiny: Any) -> None:
    class Numbers:
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    def sample(length: int) -> NeedleSample:
        return NeedleSample("single", 0, length, tuple(ids_of(length)), (Turn((5, 6), ("1",), 12),), None, (0.5,))

    model: Any = model_of(make_tiny, DYNAMIC)
    tokenizer: Any = Numbers()
    wanted = answer_batch(copy.deepcopy(model), tokenizer, [sample(48)])
    answer_batch(model, tokenizer, [sample(127)])
    assert answer_batch(model, tokenizer, [sample(48)]) == wanted


def test_which_ropes_move(make_tiny: Any) -> None:
    still = {**LONGROPE, "long_factor": LONGROPE["short_factor"], "attention_factor": 1.2}
    assert moving_rope(model_of(make_tiny, LONGROPE).config) == "longrope"
    assert cache_reuse(model_of(make_tiny, DYNAMIC))[0] == "none"
    assert cache_reuse(model_of(make_tiny, still)) == ("crop", None)
    nested = {"full_attention": dict(DYNAMIC), "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    assert moving_rope(make_tiny("gemma3_text", rope_parameters=nested, sliding_window=16).config) == "dynamic"
