"""Makes the samples of a task and writes them as the published program does, byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.ruler.counting import TokenCounter
from harpe.evaluation.ruler.counting_words import CommonWordsMaker, FrequentWordsMaker
from harpe.evaluation.ruler.essays import Essays
from harpe.evaluation.ruler.needles import NeedleMaker, step_of
from harpe.evaluation.ruler.questions import STEP as DOCUMENTS_STEP
from harpe.evaluation.ruler.questions import QuestionMaker
from harpe.evaluation.ruler.search import Budget, Draft, Shuffler, fitting, largest_size
from harpe.evaluation.ruler.sources import DataFolder
from harpe.evaluation.ruler.tasks import RulerTask
from harpe.evaluation.ruler.templates import split_prefix, template_of
from harpe.evaluation.ruler.tracking import TrackingMaker
from harpe.files import write_text

Drawn = Iterator[tuple[Draft, int]]
"""Samples with their lengths in tokens, answer included."""


class RulerGenerator:
    """Makes samples for one tokenizer from one folder of data.

    Parameters
    ----------
    tokenizer
        Lengths are counted in its tokens, as `len(tokenizer.tokenize(text))`: without BOS or other special tokens.
    data
        Where essays and questions are found. The tasks that need none (niah_single_1, niah_multikey_2 and _3, vt, cwe,
        fwe) run without.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataFolder | None = None) -> None:
        self._data = data or DataFolder()
        self.count = TokenCounter(tokenizer)

    @cached_property
    def _essays(self) -> Essays:
        return Essays.load(self._data)

    def samples(
        self, task: RulerTask, length: int, count: int, seed: int = 42, template: str = "base"
    ) -> Iterator[dict[str, Any]]:
        """The first `count` samples of a task, each a dict with the keys of the published files.

        Parameters
        ----------
        length
            Tokens of a sample at most, the answer's included.
        seed
            Starts every task's stream of random numbers.
        template
            Format of the prompt: `base`, or one of the published chat formats.

        Raises
        ------
        HarpeError
            For a length that the task cannot be made with, and for missing data.
        """
        if length < 1 or count < 0:
            raise HarpeError(f"--length {length} --samples {count}: both have to be positive.")
        draw = {
            "niah": self._needles,
            "vt": self._tracking,
            "cwe": self._common,
            "fwe": self._frequent,
            "qa": self._questions,
        }
        drawn = draw[task.kind](
            task, template_of(task.kind, template), length, count, random.Random(seed), Shuffler(seed), seed
        )
        for index, (draft, tokens) in enumerate(drawn):
            text, prefix = split_prefix(draft.text, task.kind)
            row = {
                "index": index,
                "input": text,
                "outputs": draft.answers,
                "length": tokens,
                "length_w_model_temp": tokens,
                "answer_prefix": prefix,
            }
            if task.kind == "niah":  # here `index` is where the first answer stands, in characters
                place = text.find(draft.answers[0])
                row |= {"index": place, "token_position_answer": self.count(text[:place])}
            yield row

    def write(
        self, task: RulerTask, length: int, count: int, folder: Path, seed: int = 42, template: str = "base"
    ) -> Path:
        """Write `<task>.jsonl` into a folder: the bytes of the published program's file."""
        path = folder / f"{task.name}.jsonl"
        write_text(path, self.text(task, length, count, seed, template))
        return path

    def text(self, task: RulerTask, length: int, count: int, seed: int = 42, template: str = "base") -> str:
        """What `write` writes."""
        return "".join(json.dumps(row) + "\n" for row in self.samples(task, length, count, seed, template))

    def _upper(self, make: Callable[[int], Draft], budget: Budget) -> int:
        """Three times the size that a first, small context lets expect."""
        return int(budget.length / (self.count(make(budget.step).text) / budget.step) * 3)

    def _needles(
        self, task: RulerTask, template: str, length: int, count: int, rng: random.Random, shuffle: Shuffler, seed: int
    ) -> Drawn:
        assert task.needle is not None
        make = NeedleMaker(task.needle, template, rng, shuffle, lambda: self._essays)
        budget = Budget(task.name, length, task.tokens, step_of(task.needle.haystack, length))
        size = largest_size(make, self.count, budget, self._upper(make, budget))
        for _ in range(count):
            yield fitting(make, self.count, budget, size)

    def _tracking(
        self, task: RulerTask, template: str, length: int, count: int, rng: random.Random, shuffle: Shuffler, seed: int
    ) -> Drawn:
        make = TrackingMaker(template, rng, np.random.RandomState(seed), self.count)
        budget = Budget(task.name, length, task.tokens, 5 if length < 4096 else 10)
        size = largest_size(make.bare, self.count, budget, self._upper(make.bare, budget), make.example_tokens)
        for _ in range(count):
            yield fitting(make, self.count, budget, size)

    def _common(
        self, task: RulerTask, template: str, length: int, count: int, rng: random.Random, shuffle: Shuffler, seed: int
    ) -> Drawn:
        make = CommonWordsMaker(template, rng, shuffle, length, lambda: list(self._data.json("english_words").values()))
        budget = Budget(task.name, length, task.tokens, 10)
        per_word = self.count(make(4096).text) / 4096
        size = largest_size(make, self.count, budget, int(length // per_word) * 2)
        for _ in range(count):
            yield fitting(make, self.count, budget, size)

    def _frequent(
        self, task: RulerTask, template: str, length: int, count: int, rng: random.Random, shuffle: Shuffler, seed: int
    ) -> Drawn:
        make = FrequentWordsMaker(template, rng, shuffle, length - task.tokens, self.count)
        for _ in range(count):
            draft, tokens = make()
            yield draft, tokens + task.tokens

    def _questions(
        self, task: RulerTask, template: str, length: int, count: int, rng: random.Random, shuffle: Shuffler, seed: int
    ) -> Drawn:
        make = QuestionMaker(task.dataset, self._data, template, rng, shuffle, count)
        budget = Budget(task.name, length, task.tokens, DOCUMENTS_STEP)
        size = largest_size(make, self.count, budget, self._upper(make, budget))
        for index in range(count):
            make.index = index
            yield fitting(make, self.count, budget, size)
