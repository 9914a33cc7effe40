"""The classic needle grid: one number in a text of a length, at a depth, for every length and every depth.

The protocol is that of the Large World Model (Liu et al. 2024, arXiv 2402.08268) with exact match, lengths and depths
in tokens: in a cell of length L and depth d the needle starts at token d L, or as late as question and answer allow. A
sample of the grid is one haystack with one needle and one question, in all cells: what two cells have in common up to
some token is read once.

* All cells begin with the haystack up to their needle: one pass over the clean haystack serves all of them.
* Cells whose needles start at the same token (d L is the same) are one text cut at several lengths: one pass serves
  these too.

So the tokens that are read are those of the prefix tree of a sample's cells. The key/value cache goes from node to
node: after a branch it is cropped back to where the branch began, or, where a layer keeps a window and cannot be
cropped, the branch is read into a copy.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from harpe.distributed.processes import ALONE, Processes
from harpe.evaluation.cache import Reuse
from harpe.evaluation.flops import ReadingCost
from harpe.evaluation.greedy import answer, read
from harpe.evaluation.needles.answers import Key, record_of
from harpe.evaluation.needles.samples import NeedleSample, NeedleWriter, Turn

CLOSE = 1e-3
"""Answers with two first logits this close at some token are counted: reading in other pieces may turn these round, and
no others."""

Cell = tuple[int, float]
"""Length and depth."""


@dataclass(frozen=True)
class GridSample:
    """One haystack, needle and question for all cells."""

    index: int
    haystack: tuple[int, ...]
    """Token ids from the tokenizer's own prefix on, enough for the longest cell."""
    prefix: int
    """How many of them are the tokenizer's prefix."""
    needle: tuple[int, ...]
    turn: Turn

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths that must agree for samples to be answered in one batch."""
        return self.prefix, len(self.needle), len(self.turn.question), self.turn.budget

    def end(self, length: int) -> int:
        """Where the question starts in cells of a length."""
        return length - len(self.turn.question) - self.turn.budget

    def needle_offset(self, length: int, depth: float) -> int:
        """The needle's start: token depth * length, but after the prefix, and all of it before the question."""
        return min(max(int(depth * length), self.prefix), self.end(length) - len(self.needle))

    def cell(self, length: int, depth: float) -> NeedleSample:
        """The sample as a document of its own."""
        needle_offset, text = self.needle_offset(length, depth), self.end(length) - len(self.needle)
        context = (*self.haystack[:needle_offset], *self.needle, *self.haystack[needle_offset:text])
        share = (needle_offset - self.prefix) / max(1, text - self.prefix)
        return NeedleSample("single", self.index, length, context, (self.turn,), depth, (share,))

    def nodes(self, cells: Sequence[Cell]) -> list[tuple[int, list[Cell]]]:
        """Needle places, ascending, each with its cells by ascending length."""
        placed = sorted((self.needle_offset(*cell), *cell) for cell in cells)
        by_offset = groupby(placed, key=lambda item: item[0])
        return [(needle_offset, [(n, d) for _, n, d in group]) for needle_offset, group in by_offset]

    def cost_alone(self, cells: Sequence[Cell], cost: ReadingCost) -> int:
        """Floating-point operations of one prefill a cell, answers included (their last token is not read)."""
        return sum(cost.reading(0, length - 1) + self.turn.budget * cost.head for length, _ in cells)

    def cost_shared(self, cells: Sequence[Cell], cost: ReadingCost) -> int:
        """Floating-point operations where everything that cells share is read once."""
        nodes = self.nodes(cells)
        branches = sum(cost.reading(needle_offset, self.end(group[-1][0])) for needle_offset, group in nodes)
        answers = sum(cost.reading(self.end(length), length - 1) + self.turn.budget * cost.head for length, _ in cells)
        return cost.reading(0, nodes[-1][0]) + branches + answers


def grid_samples(writer: NeedleWriter, longest: int, shortest: int, count: int) -> list[GridSample]:
    """The first `count` samples of a grid; they depend on the writer's seed and texts and on `longest`.

    Raises HarpeError when needle, question and answer do not fit into `shortest` tokens.
    """
    samples = []
    for index in range(count):
        rng, needle, turn = _drawn(writer, longest, shortest, index)
        text = writer.haystack(rng, longest - len(writer.prefix))
        samples.append(GridSample(index, (*writer.prefix, *text.tolist()), len(writer.prefix), needle, turn))
    return samples


def check_grid(writer: NeedleWriter, longest: int, shortest: int, count: int) -> None:
    """HarpeError where `grid_samples` would raise it; no haystack is drawn."""
    for index in range(count):
        writer.check_returned(_drawn(writer, longest, shortest, index)[2])


def _drawn(
    writer: NeedleWriter, longest: int, shortest: int, index: int
) -> tuple[np.random.Generator, tuple[int, ...], Turn]:
    rng = writer.generator("grid", longest, index)
    needle, turn = writer.single(rng)
    writer.check_fits("single", len(writer.prefix) + len(needle) + len(turn.question) + turn.budget, shortest)
    return rng, needle, turn


@contextmanager
def forgotten(cache: DynamicCache, reuse: Reuse) -> Iterator[DynamicCache]:
    """A cache to read on with; after the block, `cache` is what it was before."""
    if reuse == "copy":
        yield copy.deepcopy(cache)
    else:
        length = cache.get_seq_length()
        yield cache
        cache.crop(length - cache.get_seq_length())  # negative: how many tokens go


Answers = tuple[Cell, list[str], list[float]]
"""A cell and, for every sample of the batch, the text of the answer and the least distance of its two first logits."""


def _texts(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> list[str]:
    return [str(tokenizer.decode(row)) for row in ids.tolist()]


def _answer_shared(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: list[GridSample],
    cells: Sequence[Cell],
    reuse: Reuse,
) -> Iterator[Answers]:
    """Walk the prefix tree of the cells of samples of one shape; one cell at a time, by the needle's offset."""
    first, device = batch[0], model.device
    text = torch.tensor([sample.haystack for sample in batch], device=device)
    needle = torch.tensor([sample.needle for sample in batch], device=device)
    question = torch.tensor([sample.turn.question for sample in batch], device=device)
    clean, done = DynamicCache(config=model.config), 0
    for needle_offset, group in first.nodes(cells):
        if needle_offset > done:
            read(model, text[:, done:needle_offset], clean)
            done = needle_offset
        branch = torch.cat([needle, text[:, needle_offset:]], dim=1)
        with forgotten(clean, reuse) as cache:
            at = 0
            for number, (length, depth) in enumerate(group, 1):
                rest = branch[:, at : first.end(length) - needle_offset]
                at += rest.shape[1]
                if number == len(group):
                    ids, margins, _ = answer(model, torch.cat([rest, question], dim=1), cache, first.turn.budget)
                else:
                    if rest.shape[1]:
                        read(model, rest, cache)
                    with forgotten(cache, reuse) as end:
                        ids, margins, _ = answer(model, question, end, first.turn.budget)
                yield (length, depth), _texts(tokenizer, ids), margins


def _answer_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[GridSample], cells: Sequence[Cell]
) -> Iterator[Answers]:
    """One prefill a cell, in one piece."""
    for cell in cells:
        documents = [sample.cell(*cell) for sample in batch]
        pending = torch.tensor([(*each.context, *each.turns[0].question) for each in documents], device=model.device)
        ids, margins, _ = answer(model, pending, None, batch[0].turn.budget, whole=True)
        yield cell, _texts(tokenizer, ids), margins


Unit = tuple[list[GridSample], Sequence[Cell]]
"""Samples of one shape and the cells that they are read in; what one unit gives does not depend on the others."""


def _units(samples: Sequence[GridSample], cells: Sequence[Cell], reuse: Reuse, batch_tokens: int) -> list[Unit]:
    """As many samples as fit into a batch: in all cells, or, where cells share nothing, in one cell each."""
    units: list[Unit] = []
    for _, group in groupby(sorted(samples, key=lambda s: (s.shape, s.index)), key=lambda s: s.shape):
        same = list(group)
        for together in [cells] if reuse != "none" else [[cell] for cell in cells]:
            size = max(1, batch_tokens // max(length for length, _ in together))
            units += [(same[start : start + size], together) for start in range(0, len(same), size)]
    return units


@torch.inference_mode()
def answer_grid(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[GridSample],
    cells: Sequence[Cell],
    reuse: Reuse,
    batch_tokens: int = 16384,
    done: Container[Key] = (),
    ranks: Processes = ALONE,
) -> Iterator[list[dict[str, Any]]]:
    """Answer and score the samples in all cells; yields the records of one cell of one batch at a time.

    Records are those of `answer_samples`, and have `margin` (the least distance of the two first logits at a token of
    the answer) and `seconds` (the sample's share of the time since the records before) as well.

    Parameters
    ----------
    reuse
        From `harpe.evaluation.cache.cache_reuse`; "none" reads every cell by itself.
    done
        Keys of records that are there already. A batch that lacks any is read as a whole, so that a resumed evaluation
        computes what an uninterrupted one does.
    ranks
        Processes that share the batches that are left.
    """
    model.eval()
    units = _units(samples, cells, reuse, batch_tokens)
    units = [
        (batch, of)
        for batch, of in units
        if not all(("single", n, s.index, depth) in done for s in batch for n, depth in of)
    ]
    for batch, of in ranks.share(units):
        began = time.perf_counter()
        if reuse == "none":
            answers = _answer_alone(model, tokenizer, batch, of)
        else:
            answers = _answer_shared(model, tokenizer, batch, of, reuse)
        for cell, texts, margins in answers:
            now = time.perf_counter()
            share, began = (now - began) / len(batch), now
            rows = zip(batch, texts, margins, strict=True)
            yield [record_of(s.cell(*cell), [text]) | {"margin": margin, "seconds": share} for s, text, margin in rows]
            began = time.perf_counter()


def reading_report(
    samples: Sequence[GridSample],
    cells: Sequence[Cell],
    cost: ReadingCost,
    way: tuple[Reuse, str | None],
    records: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """What sharing saves by count, and what was measured; for grid.json."""
    alone = sum(sample.cost_alone(cells, cost) for sample in samples)
    shared = sum(sample.cost_shared(cells, cost) for sample in samples) if way[0] != "none" else alone
    return {
        "reuse": way[0],
        "reason": way[1],
        "flops_one_prefill_a_cell": alone,
        "flops_shared_prefix": shared,
        "bound": alone / shared,
        "seconds": sum(record["seconds"] for record in records),
        "answers": len(records),
        "close": sum(record["margin"] < CLOSE for record in records),
        "close_within": CLOSE,
    }
