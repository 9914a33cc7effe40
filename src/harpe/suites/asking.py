"""What a verb asks by files of samples, for those who write and answer them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harpe.evaluation.answers import Asked
from harpe.options.measuring import AnswerOptions


@dataclass(frozen=True)
class Asking:
    """What a verb asks, and of whom."""

    verb: str
    """ruler or long; the scores go into VERB.json."""
    title: str
    """For lines of progress."""
    options: AnswerOptions
    asked: Sequence[Asked]
    """What is asked this time, in the order of `place`."""
    place: Callable[[str], Any]
    """Where a file of that name stands among the others."""
    file_of: Callable[[dict[str, Any]], str]
    """The name of the file that a record's sample is in."""
    text: Callable[[str], str]
    """Makes the file of samples of that name; also one of an earlier call."""
    samples: dict[str, Any]
    """What decides the samples, beside the tokenizer and the names of the files."""
    longest: tuple[str, int]
    """The option with the longest length, for messages, and the most tokens that a sample may take with its answer."""
    told: Callable[[int], str]
    """Says what so many files of samples hold."""
    summary: Callable[[list[dict[str, Any]]], dict[str, Any]]
    """Of all records, for VERB.json."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What VERB.json begins with."""
    figure: Callable[[dict[str, Any], str], str] | None = None
    """Draws VERB.svg from VERB.json and the name of the model."""

    @property
    def folder(self) -> Path:
        return Path(self.options.out)

    @property
    def results(self) -> list[Path]:
        """VERB.json, and the figure where there is one."""
        return [self.folder / f"{self.verb}{ending}" for ending in (".json", ".svg")[: 2 if self.figure else 1]]
