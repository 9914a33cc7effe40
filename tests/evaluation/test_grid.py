"""The needle grid reads what its cells share once, and answers as one prefill a cell does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import harpe
from harpe.distributed.processes import Processes
from harpe.errors import HarpeError
from harpe.evaluation import greedy
from harpe.evaluation.cache import cache_reuse
from harpe.evaluation.flops import reading_cost
from harpe.evaluation.needles.answers import key_of
from harpe.evaluation.needles.grid import Cell, GridSample, answer_grid, grid_samples, reading_report
from harpe.evaluation.needles.samples import NeedleWriter
from harpe.models.load import load_tokenizer

LENGTHS, DEPTHS = (64, 128, 192), (0.0, 0.25, 0.5, 0.6, 1.0)
CELLS = [(length, depth) for length in LENGTHS for depth in DEPTHS]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def samples(tokenizer: Any) -> list[GridSample]:
    """Haystacks out of tokens that stand in no needle, so that texts part where the needle begins and not by chance
    later."""
    used = set(tokenizer("\n# magic number: 0123456789").input_ids)
    others = [i for i in range(1000, 1900) if i not in used]
    rng = np.random.default_rng(0)
    writer = NeedleWriter(tokenizer, [rng.choice(others, 400).tolist() for _ in range(4)], seed=5)
    return grid_samples(writer, max(LENGTHS), min(LENGTHS), 3)


def make(make_tiny: Any, tokenizer: Any, kind: str) -> Any:
    vocabulary = {"vocab_size": len(tokenizer)}
    if kind == "per-head":
        with pytest.warns(UserWarning, match="not trained with"):
            return harpe.apply(make_tiny("llama", **vocabulary), "harpe", length=1024, bases=[5e4, 7e5])
    if kind == "window":
        return make_tiny("mistral", sliding_window=40, **vocabulary)
    return make_tiny(kind, **vocabulary)


def every_record(model: Any, tokenizer: Any, samples: Sequence[GridSample], **changes: Any) -> list[dict[str, Any]]:
    given = {"cells": CELLS, "reuse": cache_reuse(model)[0], **changes}
    return [record for batch in answer_grid(model, tokenizer, samples, **given) for record in batch]


def whole_texts(sample: GridSample, cell: Cell) -> list[int]:
    document = sample.cell(*cell)
    return [*document.context, *document.turns[0].question]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "per-head", "window"])
@pytest.mark.parametrize("pieces", [48, 4096])
def test_answers_and_logits_are_those_of_one_prefill_a_cell(
    make_tiny: Any, tokenizer: Any, samples: list[GridSample], kind: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side is a loop without any cache. Logits are caught at the output layer."""
    monkeypatch.setattr(greedy, "READ", pieces)
    model, caught = make(make_tiny, tokenizer, kind), []
    catch = model.lm_head.register_forward_hook(lambda module, inputs, output: caught.append(output[:, -1].clone()))
    records = every_record(model, tokenizer, samples)
    catch.remove()
    assert cache_reuse(model) == ("copy" if kind == "window" else "crop", None)
    assert len(records) == len(CELLS) * len(samples)
    logits = torch.cat(caught)
    for record in records:
        ids = whole_texts(samples[record["index"]], (record["length"], record["depth"]))
        budget, margins = samples[record["index"]].turn.budget, []
        start = len(ids)
        for _ in range(budget):
            with torch.inference_mode():
                row = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert (logits - row).abs().amax(1).min() < 1e-4
            values = row.topk(2).values
            margins.append(float(values[0] - values[1]))
            ids.append(int(row.argmax()))
        assert record["answers"] == [tokenizer.decode(ids[start:])] or min(margins) < 1e-3
        assert record["margin"] == pytest.approx(min(margins), abs=1e-4)


def test_one_prefill_a_cell_gives_the_same_records(make_tiny: Any, tokenizer: Any, samples: list[GridSample]) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))

    def plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [{k: v for k, v in r.items() if k not in ("margin", "seconds")} for r in records]
        return sorted(kept, key=lambda r: (r["length"], r["depth"], r["index"]))

    assert plain(every_record(model, tokenizer, samples)) == plain(
        every_record(model, tokenizer, samples, reuse="none")
    )


@pytest.mark.parametrize("reuse", ["crop", "none"])
def test_processes_share_the_grid_and_a_batch_that_is_left_is_read_as_a_whole(
    make_tiny: Any, tokenizer: Any, samples: list[GridSample], reuse: Any
) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))

    def records(**changes: Any) -> dict[Any, Any]:
        found = every_record(model, tokenizer, samples, reuse=reuse, batch_tokens=192, **changes)
        assert len({key_of(record) for record in found}) == len(found)
        return {key_of(record): {k: v for k, v in record.items() if k != "seconds"} for record in found}

    whole, shares = records(), [records(ranks=Processes(rank, 2)) for rank in (0, 1)]
    assert len(whole) == len(CELLS) * len(samples) and shares[0] | shares[1] == whole and min(map(len, shares)) > 0
    assert not shares[0].keys() & shares[1].keys()
    first = ("single", CELLS[0][0], 0, CELLS[0][1])
    done = {key for key in whole if key[2] > 0} | {first}  # all of two samples and one cell of the third
    left = records(done=done)
    assert all(whole[key] == record for key, record in left.items()) and whole.keys() - done <= left.keys()
    assert (first in left) == (reuse == "crop")  # cells that share nothing are batches of their own


def prefixes(sample: GridSample, answers: dict[Cell, list[int]]) -> set[tuple[int, ...]]:
    """Every beginning of every text that is read: document, question and all of the answer but its last token."""
    texts = [(*whole_texts(sample, cell), *answers[cell][:-1]) for cell in CELLS]
    return {text[:n] for text in texts for n in range(1, len(text) + 1)}


def test_every_token_that_cells_share_is_read_once_and_counted_once(
    make_tiny: Any, tokenizer: Any, samples: list[GridSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the set of all beginnings of all texts: what is read is its size, what is counted is the sum over its
    members."""
    model, sizes = make_tiny("llama", vocab_size=len(tokenizer)), []
    monkeypatch.setattr(greedy, "READ", 32)
    cost = reading_cost(model)
    for sample in samples:
        sizes.clear()
        hook = model.register_forward_pre_hook(lambda m, a, k: sizes.append(k["input_ids"].numel()), with_kwargs=True)
        records = every_record(model, tokenizer, [sample])
        hook.remove()
        answers = {
            (r["length"], r["depth"]): tokenizer(r["answers"][0], add_special_tokens=False).input_ids for r in records
        }
        answers = {cell: (ids + [0] * sample.turn.budget)[: sample.turn.budget] for cell, ids in answers.items()}
        tree = prefixes(sample, answers)
        assert sum(sizes) == len(tree)
        assert max(sizes) <= 32  # whatever the length, a forward pass holds no more tokens
        logits = len(CELLS) * sample.turn.budget * cost.head
        assert sample.cost_shared(CELLS, cost) == sum(cost.reading(len(text) - 1, len(text)) for text in tree) + logits
        assert sample.cost_alone(CELLS, cost) == sum(cost.reading(0, length - 1) for length, _ in CELLS) + logits


def counted(model: Any, ids: torch.Tensor, start: int) -> int:
    """What torch counts for reading ids[start:], one token at a time, behind a cache of those before; logits left out.

    Angles are left out too: one row for all layers, which some versions of transformers make by a product of matrices
    and others by none.
    """
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for i in range(start):
            model.base_model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
        with FlopCounterMode(display=False) as counter:
            for i in range(start, ids.shape[1]):
                model.base_model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
    angles = [
        sum(counts.values()) for module, counts in counter.get_flop_counts().items() if module.endswith(".rotary_emb")
    ]
    return counter.get_total_flops() - sum(angles)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"key_value_heads": 4, "layers": 3}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 6}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    ],
)
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 9), (5, 17)])
def test_operations_are_those_that_torch_counts(
    make_tiny: Any, family: str, changes: dict[str, Any], start: int, end: int
) -> None:
    model = make_tiny(family, **changes)
    model.set_attn_implementation("eager")  # fused kernels of the CPU are not counted
    if family == "mixtral":
        model.set_experts_implementation("eager")
    ids = torch.randint(1, 97, (1, end), generator=torch.Generator().manual_seed(0))
    cost = reading_cost(model)
    assert cost.reading(start, end) == counted(model, ids, start)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.lm_head(torch.zeros(1, 64))
    assert cost.head == counter.get_total_flops()


def test_the_needle_starts_at_the_token_that_the_depth_names(tokenizer: Any, samples: list[GridSample]) -> None:
    for sample in samples:
        key = tokenizer.decode(sample.turn.question).split()[-1]
        for length, depth in CELLS:
            document = sample.cell(length, depth)
            assert len(document.context) + len(sample.turn.question) + sample.turn.budget == length
            latest = length - len(sample.turn.question) - sample.turn.budget - len(sample.needle)
            at = min(max(int(depth * length), sample.prefix), latest)
            found = document.context[at : at + len(sample.needle)]
            assert tokenizer.decode(found).split() == ["#", "magic", "number:", key, sample.turn.answers[0]]
            assert (
                tuple(x for i, x in enumerate(document.context) if not at <= i < at + len(sample.needle))
                == sample.haystack[:latest]
            )


def test_a_grid_that_went_on_reads_whole_batches_and_gives_the_same(
    make_tiny: Any, tokenizer: Any, samples: list[GridSample]
) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))
    whole = every_record(model, tokenizer, samples, batch_tokens=192)
    done = {("single", r["length"], r["index"], r["depth"]) for r in whole[: len(CELLS) + 4]}
    rest = every_record(model, tokenizer, samples, batch_tokens=192, done=done)
    assert [r["margin"] for r in rest] == [r["margin"] for r in whole[len(CELLS) :]]  # to the bit


def test_what_cannot_be_reused_is_told_and_read_cell_by_cell(
    make_tiny: Any, tokenizer: Any, samples: list[GridSample]
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    model = make_tiny("llama", vocab_size=len(tokenizer))
    model.config.rope_parameters = rope
    reuse, reason = cache_reuse(model)
    assert reuse == "none" and reason is not None and "dynamic" in reason
    records = every_record(model, tokenizer, samples)
    report = reading_report(samples, CELLS, reading_cost(model), (reuse, reason), records)
    assert (report["bound"], report["reason"], report["answers"]) == (1.0, reason, len(records))
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert cache_reuse(model)[0] == "none" and "linear_attention" in str(cache_reuse(model)[1])


def test_close_answers_are_counted(make_tiny: Any, samples: list[GridSample]) -> None:
    cost = reading_cost(make_tiny("llama"))
    records = [{"seconds": 0.25, "margin": margin} for margin in (0.0, 9e-4, 1.1e-3, 2.0)]
    report = reading_report(samples, CELLS, cost, ("crop", None), records)
    assert (report["close"], report["answers"], report["seconds"]) == (2, 4, 1.0)
    assert report["bound"] == report["flops_one_prefill_a_cell"] / report["flops_shared_prefix"] > 1.3


def test_a_length_without_room_for_the_needle_is_refused(tokenizer: Any) -> None:
    with pytest.raises(HarpeError, match="the length 10 is too short"):
        grid_samples(NeedleWriter(tokenizer, [[5] * 100], seed=0), 50, 10, 1)
