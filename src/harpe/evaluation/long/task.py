"""What a long-context task is, for the generator, the answering loop and the list of suites."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from harpe.evaluation.long.filler import Filler

Sample = dict[str, Any]
"""A sample as its file has it: input, answer_prefix, outputs (references), answer (what is right behind the prefix),
chance, length (tokens, the answer's budget included), index, and the task's own facts."""


class Draft(NamedTuple):
    """A sample before its tokens are counted."""

    input: str
    prefix: str
    """The beginning of the answer, which the model is given."""
    outputs: list[str]
    """The references that the score reads."""
    answer: str
    """What somebody who knows would write behind the prefix."""
    chance: float
    """Expected score, 0..1, of the task's guesser."""
    facts: dict[str, Any]
    """What else the sample tells."""


Build = Callable[[int], Draft]
"""Gives the sample with a context of so many units; a larger one has more tokens, and asks the same."""


class Task(Protocol):
    """One task of a suite, wherever its samples come from."""

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> int:
        """Tokens that an answer may take."""

    @property
    def score(self) -> Callable[[str, Sample], float]:
        """Of an answer, 0..1."""

    @property
    def decided(self) -> Callable[[str], bool]:
        """Whether no text that follows an answer so far can change its score; its end may be a part of a character."""

    def whole(self, length: int, begin: int) -> int:
        """Tokens of a sample of that length with the `begin` that the tokenizer begins texts with, and the answer."""


@dataclass(frozen=True)
class LongTask:
    """A task whose samples are made here."""

    name: str
    tokens: int
    """Tokens that an answer may take; they count towards the length of a sample."""
    draw: Callable[[random.Random, Filler], Build]
    score: Callable[[str, Sample], float]
    """Of an answer, 0..1."""
    decided: Callable[[str], bool] = lambda answer: False
    """Whether no text that follows an answer so far can change its score; its end may be a part of a character."""

    def whole(self, length: int, begin: int) -> int:
        return length


T = TypeVar("T", bound=Task, covariant=True)


@dataclass(frozen=True)
class AtLength(Generic[T]):
    """A task at one length: a file of samples."""

    task: T
    length: int
    """Tokens of a sample at most, with what the tokenizer begins texts with and the answer; of RULER v2, of the prompt
    alone."""

    @property
    def name(self) -> str:
        """Of its file."""
        return set_name(self.task.name, self.length)

    @property
    def tokens(self) -> int:
        return self.task.tokens

    def decided(self, sample: Sample, answer: str) -> bool:
        return self.task.decided(answer)

    def record(self, number: int, sample: Sample, answer: str) -> dict[str, Any]:
        """The record of an answer."""
        said = {"task": self.task.name, "length": self.length, "sample": number, "prediction": answer}
        scored = {"score": self.task.score(answer, sample), "chance": sample["chance"]}
        return {**said, "outputs": sample["outputs"], **scored}


def set_name(task: str, length: int) -> str:
    """Of the file that holds a task's samples at a length, without its ending."""
    return f"{task}-{length}"


@dataclass(frozen=True)
class Suite:
    """What `harpe suites` and docs/evaluation.md say of a suite."""

    name: str
    verb: str
    """How it is run."""
    asks: str
    needs: str
    """Files or packages."""
    lengths: str
    models: str
    """base, chat or both."""
    chance: str
    """What a guesser scores."""
    comparable: str
    """The published numbers that its own can be compared with."""
