"""Needle tasks: numbers hidden in long documents, asked for at the end.

Four tasks in the manner of RULER's (Hsieh et al. 2024, arXiv 2404.06654), in a wording short enough for a context of
256 tokens:

* `single`       one needle, one question;
* `multi_key`    eight needles with different keys, one question;
* `multi_query`  eight needles, four questions one after the other;
* `multi_value`  one key with three values among two other needles; all three are to be listed.

This module makes samples (token ids and expected answers). It holds no model; `generation.py` answers and scores them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from harpe.data.token_ids import begin_ids, piece_ids
from harpe.errors import HarpeError

KEYS = tuple(
    """falcon tiger otter badger raven eagle salmon lizard turtle rabbit donkey camel panda koala jaguar leopard
    walrus beaver ferret hamster pigeon sparrow heron pelican penguin ostrich parrot toucan magpie cuckoo robin finch
    maple willow cedar birch spruce poplar walnut almond cherry lemon mango papaya banana orange grape melon
    potato tomato carrot onion garlic pepper ginger basil mint saffron vanilla cocoa coffee barley rye oats
    london paris berlin madrid lisbon vienna prague warsaw oslo dublin athens cairo lima quito havana boston
    denver dallas chicago seattle austin tokyo osaka seoul delhi mumbai lagos nairobi sydney perth geneva milan
    copper silver gold nickel cobalt zinc marble granite basalt quartz amber coral pearl ruby topaz jade
    anchor bridge castle harbor island meadow canyon desert glacier river valley forest temple garden market
    tower""".split()
)
"""The 128 keys that a needle can have."""

QUESTION = "\n# magic number: {key}"
LIST_QUESTION = "\n# magic numbers: {key}"
NEEDLE = "\n# magic number: {key} {value}\n"


@dataclass(frozen=True)
class NeedleTask:
    """How many needles a document holds and what is asked."""

    name: str
    keys: int
    """Number of different keys among the needles."""
    values: int
    """Values of the asked key (all other keys have one)."""
    queries: int
    """Number of keys asked for, one after the other."""


NEEDLE_TASKS = {
    task.name: task
    for task in (
        NeedleTask("single", 1, 1, 1),
        NeedleTask("multi_key", 8, 1, 1),
        NeedleTask("multi_query", 8, 1, 4),
        NeedleTask("multi_value", 3, 3, 1),
    )
}


@dataclass(frozen=True)
class Turn:
    """One question and what is expected after it."""

    question: tuple[int, ...]
    """Token ids that are fed before the answer is generated."""
    answers: tuple[str, ...]
    """The values that must appear in the answer, as strings of digits."""
    budget: int
    """Number of tokens that the answer may take."""


@dataclass(frozen=True)
class NeedleSample:
    """One document with its questions; `len(context)` + questions + budgets is exactly `length` tokens."""

    task: str
    index: int
    length: int
    context: tuple[int, ...]
    turns: tuple[Turn, ...]
    depth: float | None
    """The depth that was asked for; None where the places were drawn."""
    depths: tuple[float, ...]
    """Where each needle starts, as a share of the haystack, in the order of the document."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths that must agree for samples to be answered in one batch."""
        return (len(self.context), *(n for turn in self.turns for n in (len(turn.question), turn.budget)))


def hits(answers: Sequence[str], text: str) -> int:
    """How many of the answers stand in a text as whole numbers."""
    there = re.findall(r"\d+", text)
    return sum(answer in there for answer in answers)


class NeedleWriter:
    """Writes needle samples for one tokenizer from one set of haystack documents.

    Parameters
    ----------
    tokenizer
        Any tokenizer; what it begins texts with (BOS), where it does, starts every sample.
    haystacks
        Token ids of the documents that needles are hidden in, without special tokens.
    seed
        Together with task, length and index it decides a sample completely: samples do not depend on which others are
        drawn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, haystacks: Sequence[Sequence[int]], seed: int) -> None:
        self.tokenizer = tokenizer
        self.haystacks = [np.asarray(h, dtype=np.int64) for h in haystacks if len(h)]
        self.seed = seed
        if not self.haystacks:
            raise HarpeError("There is no text to hide needles in: the held-out documents are empty.")
        self.prefix = begin_ids(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` in the middle of a document."""
        return piece_ids(self.tokenizer, text)

    def haystack(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """`length` tokens, int64 [length], from one document, or from several in a row if none is long enough."""
        sizes = np.array([len(h) for h in self.haystacks])
        long_enough = np.flatnonzero(sizes >= length)
        if len(long_enough):
            chosen = self.haystacks[rng.choice(long_enough, p=sizes[long_enough] / sizes[long_enough].sum())]
            start = int(rng.integers(0, len(chosen) - length + 1))
            return chosen[start : start + length]
        order, parts, total = rng.permutation(len(sizes)), [], 0
        while total < length:
            for i in order:
                parts.append(self.haystacks[i])
                total += len(parts[-1])
                if total >= length:
                    break
        return np.concatenate(parts)[:length]

    def _turns(self, task: NeedleTask, keys: list[str], values: dict[str, list[str]]) -> tuple[Turn, ...]:
        turns = []
        for key in keys[: task.queries]:
            wording = LIST_QUESTION if task.values > 1 else QUESTION
            budget = sum(len(self.encode(f" {value}")) for value in values[key])
            turns.append(Turn(tuple(self.encode(wording.format(key=key))), tuple(values[key]), budget))
        return tuple(turns)

    def check_fits(self, task: str, needed: int, length: int) -> None:
        """HarpeError where a sample of `length` tokens has no room for needles, questions and answers."""
        if needed > length:
            raise HarpeError(
                f"{task} needs at least {needed} tokens with this tokenizer; the length {length} is too short. Give a "
                "longer --original-length, or leave the needles out with --samples 0 --grid-samples 0."
            )

    def generator(self, name: str, length: int, index: int) -> np.random.Generator:
        """The random numbers of sample `index` of a kind of sample."""
        return np.random.default_rng([self.seed, length, index, *name.encode()])

    def single(self, rng: np.random.Generator) -> tuple[tuple[int, ...], Turn]:
        """Token ids of one needle, and its question."""
        key, value = KEYS[rng.integers(len(KEYS))], str(rng.integers(1000, 10000))
        (turn,) = self._turns(NEEDLE_TASKS["single"], [key], {key: [value]})
        return tuple(self.encode(NEEDLE.format(key=key, value=value))), turn

    def _drawn(
        self, task: NeedleTask, length: int, index: int, depth: float | None
    ) -> tuple[np.random.Generator, tuple[Turn, ...], list[list[int]], int]:
        """All of a sample but its haystack: the generator as it is then, questions, needles, number of tokens."""
        rng = np.random.default_rng(
            [self.seed, length, index, *task.name.encode(), int(1e6 * depth) if depth is not None else 0]
        )
        keys = [KEYS[i] for i in rng.choice(len(KEYS), task.keys, replace=False)]
        counts = [task.values] + [1] * (task.keys - 1)
        numbers = iter(rng.choice(np.arange(1000, 10000), sum(counts), replace=False))
        values = {key: [str(next(numbers)) for _ in range(n)] for key, n in zip(keys, counts, strict=True)}
        needles = [(key, value) for key in keys for value in values[key]]
        needles = [needles[i] for i in rng.permutation(len(needles))]
        values = {key: [v for k, v in needles if k == key] for key in keys}  # asked for in the order of the document
        turns = self._turns(task, keys, values)
        pieces = [self.encode(NEEDLE.format(key=key, value=value)) for key, value in needles]
        fixed = len(self.prefix) + sum(map(len, pieces)) + sum(len(t.question) + t.budget for t in turns)
        self.check_fits(task.name, fixed, length)
        return rng, turns, pieces, fixed

    def check(self, task: NeedleTask, length: int, count: int) -> None:
        """HarpeError if one of a task's first `count` samples does not fit into `length` tokens, or its answers do not
        come back from their tokens. Draws no haystack."""
        for index in range(count):
            for turn in self._drawn(task, length, index, None)[1]:
                self.check_returned(turn)

    def check_returned(self, turn: Turn) -> None:
        """HarpeError where the right answer would score nothing: some tokenizers give back digits with spaces."""
        right = "".join(f" {answer}" for answer in turn.answers)
        text = str(self.tokenizer.decode(self.encode(right)))
        if hits(turn.answers, text) < len(turn.answers):
            raise HarpeError(
                f"Needles cannot be asked with this tokenizer: the right answer,{right}, comes back from its tokens as "
                f"{text!r}, which scores nothing. Leave them out with --samples 0 --grid-samples 0."
            )

    def sample(self, task: NeedleTask, length: int, index: int, depth: float | None = None) -> NeedleSample:
        """Draw sample `index` of a task at a length in tokens.

        Parameters
        ----------
        depth
            Puts every needle at this share of the haystack (0 start, 1 end) instead of at random places.

        Raises
        ------
        HarpeError
            When the needles alone are longer than `length`.
        """
        rng, turns, pieces, fixed = self._drawn(task, length, index, depth)
        hay = self.haystack(rng, length - fixed)
        shares = np.full(len(pieces), depth) if depth is not None else np.sort(rng.random(len(pieces)))
        context, last = list(self.prefix), 0
        for piece, place in zip(pieces, (shares * len(hay)).astype(int), strict=True):
            context += [*hay[last:place].tolist(), *piece]
            last = place
        context += hay[last:].tolist()
        return NeedleSample(task.name, index, length, tuple(context), turns, depth, tuple(float(s) for s in shares))

    def samples(self, task: NeedleTask, length: int, count: int, depth: float | None = None) -> Iterator[NeedleSample]:
        """The first `count` samples of a task at a length."""
        return (self.sample(task, length, index, depth) for index in range(count))
