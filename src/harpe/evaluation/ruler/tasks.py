"""The 13 tasks, their published settings and scores: the share of references in an answer, or whether any is there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harpe.errors import HarpeError

_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class NeedleSettings:
    """What is hidden in what, and what is asked for."""

    haystack: str
    """noise (one sentence over and over), essay, or needle (other needles)."""
    keys: str
    """Kind of key: words or uuids."""
    values: str
    """Kind of value: numbers or uuids."""
    keys_hidden: int = 1
    values_per_key: int = 1
    keys_asked: int = 1


@dataclass(frozen=True)
class RulerTask:
    """One task of the benchmark."""

    name: str
    kind: str
    """niah, vt, cwe, fwe or qa: which generator, which wording."""
    tokens: int
    """Tokens that an answer may take; they count towards the length of a sample."""
    needle: NeedleSettings | None = None
    dataset: str = ""
    """File of a qa task, squad or hotpotqa."""

    def record(self, number: int, sample: dict[str, Any], answer: str) -> dict[str, Any]:
        """The record of an answer; token_position_answer is null where a task has none."""
        said = {"task": self.name, "sample": number, "prediction": answer, "outputs": sample["outputs"]}
        place = sample.get("token_position_answer")
        return {**said, "score": score(self, answer, sample["outputs"]), "token_position_answer": place}

    def decided(self, sample: dict[str, Any], answer: str) -> bool:
        """Whether an answer has the full score, whatever follows.

        Counted are references in ASCII alone, as later text cannot change how these compare: a Greek sigma in lower
        case looks otherwise at the end of a word, and the end of an answer may hold a part of a character.
        """
        plain = [reference for reference in sample["outputs"] if reference.isascii()]
        if self.kind != "qa" and len(plain) < len(sample["outputs"]):
            return False
        return bool(plain) and score(self, answer, plain) == 1.0


def _niah(name: str, haystack: str, keys: str, values: str, **counts: int) -> RulerTask:
    return RulerTask(f"niah_{name}", "niah", 128, NeedleSettings(haystack, keys, values, **counts))


RULER_TASKS = {
    task.name: task
    for task in (
        _niah("single_1", "noise", "words", "numbers"),
        _niah("single_2", "essay", "words", "numbers"),
        _niah("single_3", "essay", "words", "uuids"),
        _niah("multikey_1", "essay", "words", "numbers", keys_hidden=4),
        _niah("multikey_2", "needle", "words", "numbers"),
        _niah("multikey_3", "needle", "uuids", "uuids"),
        _niah("multivalue", "essay", "words", "numbers", values_per_key=4),
        _niah("multiquery", "essay", "words", "numbers", keys_hidden=4, keys_asked=4),
        RulerTask("vt", "vt", 30),
        RulerTask("cwe", "cwe", 120),
        RulerTask("fwe", "fwe", 50),
        RulerTask("qa_1", "qa", 32, dataset="squad"),
        RulerTask("qa_2", "qa", 32, dataset="hotpotqa"),
    )
}

GROUPS = {"all": tuple(RULER_TASKS), "niah": tuple(name for name in RULER_TASKS if name.startswith("niah"))}
"""Names that stand for several tasks: all 13, and the eight needle tasks that the paper reports on their own."""


def chosen(names: Iterable[str]) -> list[RulerTask]:
    """The tasks of these names and groups, in the benchmark's own order.

    Raises HarpeError for a name that is neither (the nearest ones are offered), and where there is none.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in RULER_TASKS:
            near = difflib.get_close_matches(name, [*RULER_TASKS, *GROUPS], 3)
            there = f"There are {', '.join(RULER_TASKS)}, and the groups {', '.join(GROUPS)}."
            hint = f"Did you mean {' or '.join(near)}?" if near else there
            raise HarpeError(f"--tasks {name} is no task of RULER. {hint}")
        wanted.update(GROUPS.get(name, (name,)))
    if not wanted:
        raise HarpeError(f"--tasks names no task. There are {', '.join(GROUPS)}, and {', '.join(RULER_TASKS)}.")
    return [task for name, task in RULER_TASKS.items() if name in wanted]


def cleaned(prediction: str) -> str:
    """An answer without control characters and white space around it, as the published scores see it."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """The share of the references that stand somewhere in the answer, without regard to case."""
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1.0 where any reference stands in the answer, without regard to case, else 0.0."""
    return float(any(reference.lower() in prediction.lower() for reference in references))


def score(task: RulerTask, prediction: str, references: Sequence[str]) -> float:
    """An answer's score, 0 to 1: `string_match_part` for questions about documents, else `string_match_all`."""
    return (string_match_part if task.kind == "qa" else string_match_all)(cleaned(prediction), references)
