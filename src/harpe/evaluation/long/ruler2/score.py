"""How RULER v2 scores an answer: eval_ruler2 and eval_mcq of nemo_skills/evaluation/evaluator, in our own words.

A reference counts fully where it stands in the answer, else by one minus the word error rate of the whole answer, if
that is positive; case does not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_COPIED = re.compile(r"Document \d+:(?:.*\n)+?\n")
"""A document that was copied, up to the empty line behind it."""
_LETTER = re.compile(r"\b[A-J]\b")
_TOLD = re.compile(r"answer[*_]{0,2}\s*:[\s*_]{0,2}\s*([a-z])(?![a-z0-9])", re.IGNORECASE)
_BOX = "\\boxed{"


def word_distance(said: Sequence[str], wanted: Sequence[str]) -> int:
    """The fewest words to insert, leave out or exchange (Levenshtein's distance of words)."""
    numbers: dict[str, int] = {}
    short, long = sorted(
        (np.array([numbers.setdefault(word, len(numbers)) for word in words]) for words in (said, wanted)), key=len
    )
    places = np.arange(len(long) + 1)
    row = places
    for done, word in enumerate(short, 1):
        best = np.concatenate(([done], np.minimum(row[1:] + 1, row[:-1] + (long != word))))
        # a word that is inserted costs one more than the place to its left
        row = np.minimum.accumulate(best - places) + places
    return int(row[-1])


def _alike(answer: str, reference: str) -> float:
    answer, reference = answer.lower(), reference.lower()
    if reference in answer:
        return 1.0
    wanted = reference.split()
    return max(0.0, 1 - word_distance(answer.split(), wanted) / len(wanted))


def _last(answer: str) -> str:
    """What stands behind thinking and behind the last `Answer:`."""
    return answer.split("</think>")[-1].split("Answer:")[-1]


def match_all(answer: str, references: Sequence[str]) -> float:
    """The mean over the references."""
    said = _last(answer)
    return sum(_alike(said, reference) for reference in references) / len(references)


def match_all_at_end(answer: str, references: Sequence[str]) -> float:
    """`match_all` of the last paragraph."""
    return match_all(_last(answer).split("\n\n")[-1], references)


def match_any(answer: str, references: Sequence[str]) -> float:
    """The best of the references, in an answer from which copied documents are taken out."""
    said = _COPIED.sub("", _last(answer))
    return max(_alike(said, reference) for reference in references)


def _boxed(answer: str) -> str | None:
    """What the last `\\boxed{…}` holds."""
    start, depth = answer.rfind("\\boxed"), 0
    if start < 0:
        return None
    for place in range(start, len(answer)):
        depth += (answer[place] == "{") - (answer[place] == "}")
        if answer[place] == "}" and not depth:
            found = answer[start : place + 1]
            return found[len(_BOX) : -1] if found.startswith(_BOX) else None
    return None


def chosen_letter(answer: str) -> str | None:
    """The letter of the last box (of a longer text in it, the last single A to J), else of the last `Answer: X`."""
    if (boxed := _boxed(answer)) is None:
        told = _TOLD.findall(answer)
        return told[-1] if told else None
    letters = _LETTER.findall(boxed) if len(boxed) != 1 else []
    return letters[-1] if letters else boxed


def match_letter(answer: str, references: Sequence[str]) -> float:
    """1.0 for the right letter."""
    return float([chosen_letter(answer)] == list(references))
