"""The two tasks with questions about documents, among documents that have no answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from harpe.errors import HarpeError
from harpe.evaluation.ruler.search import Draft, Shuffler
from harpe.evaluation.ruler.sources import DataFolder
from harpe.evaluation.ruler.templates import DOCUMENT

STEP = 10
"""Documents that the search starts from and by which samples are shortened."""


@dataclass(frozen=True)
class Question:
    """A question with the numbers of its documents."""

    text: str
    answers: list[str]
    documents: list[int]
    """Those that hold the answer."""
    near: list[int]
    """Others of the same article, which are taken before any others."""


def read_squad(data: Any) -> tuple[list[Question], list[str]]:
    """Questions that have an answer, and all paragraphs, sorted."""
    documents = sorted({p["context"] for article in data["data"] for p in article["paragraphs"]})
    number = {text: i for i, text in enumerate(documents)}
    questions = []
    for article in data["data"]:
        paragraphs = [number[p["context"]] for p in article["paragraphs"]]
        for own, paragraph in zip(paragraphs, article["paragraphs"], strict=True):
            near = [i for i in paragraphs if i != own]
            for qa in paragraph["qas"]:
                if not qa["is_impossible"]:
                    questions.append(Question(qa["question"], [a["text"] for a in qa["answers"]], [own], near))
    return questions, documents


def read_hotpotqa(data: Any) -> tuple[list[Question], list[str]]:
    """Questions with their ten paragraphs, and all paragraphs under their titles, sorted."""
    texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in data]
    documents = sorted({text for row in texts for text in row})
    number = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(row["question"], [row["answer"]], [number[t] for t in own], [])
        for row, own in zip(data, texts, strict=True)
    ]
    return questions, documents


READERS = {"squad": read_squad, "hotpotqa": read_hotpotqa}


class QuestionMaker:
    """Draws contexts for one question after the other.

    Raises HarpeError at once, where more samples are wanted than the file has questions (the published program would go
    on for ever).
    """

    def __init__(
        self, dataset: str, data: DataFolder, template: str, rng: random.Random, shuffle: Shuffler, samples: int
    ) -> None:
        try:
            self._questions, self._documents = READERS[dataset](data.json(dataset))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, HarpeError):
                raise
            raise HarpeError(
                f"{data.find(dataset)} is not in the format of {dataset} ({type(error).__name__}: {error})."
            ) from error
        if samples > len(self._questions):
            raise HarpeError(
                f"--samples {samples}: {data.find(dataset)} has only {len(self._questions)} questions. Ask for fewer."
            )
        self._template, self._rng, self._shuffle = template, rng, shuffle
        self.index = 0
        """Which question is drawn for."""

    def __call__(self, size: int) -> Draft:
        """The question `index` among `size` documents, shuffled."""
        question = self._questions[self.index]
        own, near, total = question.documents, question.near, len(self._documents)
        if size >= total:
            chosen = [i % total for i in range(size)]
        elif size - len(own) > len(near):
            taken = {*own, *near}
            others = [i for i in range(total) if i not in taken]
            chosen = own + near + self._rng.sample(others, size - len(own) - len(near))
        else:
            chosen = own + self._rng.sample(near, size - len(own))
        texts = self._shuffle([self._documents[i] for i in chosen])
        context = "\n\n".join([DOCUMENT.format(i=i, document=text) for i, text in enumerate(texts, 1)])
        return Draft(self._template.format(context=context, query=question.text), question.answers)
