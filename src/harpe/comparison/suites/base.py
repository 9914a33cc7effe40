"""What a suite is to a comparison."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harpe.errors import HarpeError
from harpe.evaluation.run import HeldOut
from harpe.evaluation.statistics.resampling import Units
from harpe.files import read_json
from harpe.options.recipe import ComparisonRecipe
from harpe.reporter import Reporter
from harpe.runs.length_scores import AnsweredTask
from harpe.runs.source import Source

LONGEST = 64
"""Characters of a name: files that are made from it have endings, and file systems take 255 bytes."""
Key = tuple[Any, ...]
Record = tuple[Key, int, float, float]
"""A unit's key, its stratum (a task's number), its total and its weight."""


@dataclass(frozen=True)
class Measure:
    """One measured quantity of all methods."""

    id: str
    title: str
    unit: str
    """`nats` a token, or `%`."""
    better: str
    """`lower` or `higher`."""
    group: str
    task: str | None = None
    length: int | None = None
    found: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    """By method and seed."""

    def units(self) -> Units:
        """Of any method: they are alike. Raises HarpeError where two methods were measured on different units."""
        first = next(iter(self.found.values()))
        for (method, seed), records in self.found.items():
            if [(key, stratum, weight) for key, stratum, _, weight in records] != [(k, s, w) for k, s, _, w in first]:
                raise HarpeError(
                    f"{method} (seed {seed}) was measured on other documents or samples than the other methods "
                    f"({self.title}). Delete its scores and run the comparison again."
                )
        return Units.of([weight for *_, weight in first], [stratum for _, stratum, _, _ in first])

    def totals(self, method: str, seeds: Sequence[int]) -> np.ndarray:
        """float64 [seeds, units]."""
        return np.array([[total for _, _, total, _ in self.found[method, seed]] for seed in seeds])

    def seeds(self, method: str) -> list[int]:
        return sorted(seed for name, seed in self.found if name == method)


Measured = tuple[Measure, list[Record]]
"""A measure, and what a row has of it."""


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    model: str
    """Its folder, or the name of the untouched checkpoint."""
    revision: str | None
    dtype: str
    title: str
    recipe: ComparisonRecipe
    source: Source
    held_out: HeldOut
    samples: Path
    """Folder of the samples that all rows are asked."""


class Suite(ABC):
    """A suite of measurements. A method that a suite does not need does nothing here.

    `of` is everywhere what the recipe says under the suite's key, of type `settings`; it is called only where that is
    given.
    """

    key: ClassVar[str]
    """In the recipe's evaluation."""
    settings: ClassVar[Any]
    """Type of what stands there: a dataclass, or whatever `harpe.typed` knows."""
    default: ClassVar[Any] = None
    """Where the recipe has no such key: nothing is measured."""
    kept: ClassVar[bool] = True
    """Whether recipes and plans name the suite also where it was not asked for. Not of one that came later: those files
    stay as earlier versions wrote them."""
    pinned: ClassVar[str] = ""
    """Key of plan.json's inputs under which `inputs` is kept."""
    nothing: ClassVar[Any] = None
    """What is kept there where the suite was not asked for."""

    def check(self, of: Any, recipe: ComparisonRecipe, where: str) -> None:
        """Refuse names that cannot be files and numbers that cannot be; `where` says which recipe it is."""
        return

    def prepare(self, of: Any, recipe: ComparisonRecipe, run: Path) -> None:
        """Before the training: write what all rows are asked, and refuse what is missing on this machine."""
        return

    def inputs(self, of: Any, recipe: ComparisonRecipe, source: Source, run: Path) -> Any:
        """What rows read, by content, as JSON has it; kept in plan.json."""
        return None

    def facts(self, inputs: Any) -> dict[str, Any]:
        """Every part of `inputs` by what it is called in a sentence."""
        return {}

    @abstractmethod
    def score(self, of: Any, subject: Subject, scores: Path, reporter: Reporter) -> None:
        """Measure a model into a folder; what is there is not measured again."""

    def told(self, scores: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Files of a row, and the facts (as of `facts`) that each says it was made from."""
        yield from ()

    @abstractmethod
    def measures(self, scores: Path) -> Iterator[Measured]:
        """What was measured of a row, a number a unit."""

    def notes(self, scores: Path) -> Iterator[str]:
        """What has to be known of a row's values, in sentences."""
        yield from ()

    def by_length(self, scores: Path) -> Iterator[AnsweredTask]:
        """What was asked of a row at one or more lengths, for the effective length and the length score."""
        yield from ()

    def reads(self, of: Any) -> Mapping[int, int]:
        """Tokens that a row reads, by the length of the texts that they are read in: for the expected time."""
        return {}

    def asked(self, of: Any) -> dict[str, str]:
        """Beginnings of the ids of the measures that were asked for ({} stands for anything in between), and what they
        are called."""
        return {}


def asked_of(scores: Path, key: str) -> dict[str, Any]:
    """What the comparison of a row asks under a suite's key, as its plan.json has it; empty where that does not say."""
    plan = scores.parents[2] / "plan.json"
    return (plan.is_file() and read_json(plan).get("evaluation", {}).get(key)) or {}


WAY = "way of measuring"
"""How facts begin that hold a number of `harpe.evaluation.identity.MEASURING`."""


def way_of(of: Any, called: str) -> dict[str, Any]:
    """Facts for `told`, by names that no other suite has: how something was measured, of a measurement as files of
    scores keep it. What earlier versions did not keep is None, and compared with nothing."""
    there = of if isinstance(of, dict) else {}
    found = {WAY: there.get("measuring"), "dtype": there.get("dtype"), **there.get("options", {})}
    return {f"{name} of {called}": value for name, value in found.items()}


def check_names(names: Sequence[str], what: str, where: str) -> None:
    """See that every name is one plain part of a path and different from all others.

    Raises HarpeError naming the first one that is not.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise HarpeError(f"{where} has {what} named {name!r}, which YAML takes for no text; write it in quotes.")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name.endswith("."):
            raise HarpeError(
                f"{where} has {what} named {name!r}; a name has letters, digits, dots, - and _ only, and begins with a "
                "letter or digit."
            )
        if len(name) > LONGEST:
            raise HarpeError(
                f"{where} has {what} with a name of {len(name)} characters ({name[:20]}…); {LONGEST} are allowed."
            )
        same = seen.setdefault(name.casefold(), name)
        if same != name:
            raise HarpeError(
                f"{where} has {same} and {name}, which are one name on many disks; give one of the two another name."
            )
    for name in names:
        if list(names).count(name) > 1:
            raise HarpeError(
                f"{where} names {name} twice; give one of the two another name (name: …), or leave it out."
            )


def check_least(counts: Sequence[tuple[str, int, int]], where: str) -> None:
    """Refuse numbers that are below the least they can be: (what, number, least)."""
    for what, number, least in counts:
        if number < least:
            raise HarpeError(f"{where} has {number} {what}; the least is {least}.")
