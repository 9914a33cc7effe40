"""The published scores: the share of references that stand in an answer, or whether any of them does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harpe.evaluation.ruler.tasks import RulerTask

_CONTROL = re.compile(r"[\x00-\x1f]")


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
    return (string_match_part if task.any_answer else string_match_all)(cleaned(prediction), references)
