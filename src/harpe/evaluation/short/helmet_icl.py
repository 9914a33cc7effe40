"""HELMET's in-context learning (Yen et al. 2024, arXiv 2410.02694; princeton-nlp/HELMET, commit 4526dfb): texts to be
given the number of their label, behind hundreds to thousands of solved examples with balanced labels.

Which number stands for a label is drawn anew for every question, and so are its examples. Its program reads data sets
that are programs on the hub, which `datasets` runs no more; the hub's own conversion of them to Parquet has their rows
in their order.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from harpe.errors import HarpeError

Rows = list[dict[str, Any]]

QUESTIONS, ANSWER = 500, 20
"""Of every task at most, and how many tokens an answer may take."""
BEGIN = "label:"
TEMPLATES = (
    'Use the provided mapping from the text to label to assign a label to the text. Only output "label: {{label}}" and '
    "nothing else. \n\n{context}\n\n{question}",
    BEGIN,
)


@dataclass(frozen=True)
class Labelled:
    """A task: the data set on the hub, its folder below `helmet/icl`, and which of its rows and columns are read.

    `test` None: a tenth of train's rows is drawn for the questions. `shots`: solved examples at each of HELMET's
    lengths, 8k to 128k.
    """

    hub: str
    folder: str
    config: str
    test: str | None
    label: str
    labels: int
    shots: tuple[int, int, int, int, int]


TREC, BANKING = "CogComp/trec", "PolyAI/banking77"
CLINC, NLU = "clinc/clinc_oos", "xingkunliuxtracta/nlu_evaluation_data"
ICL = {
    "trec_coarse": Labelled(TREC, "trec", "default", "test", "coarse_label", 6, (400, 800, 1600, 3300, 6600)),
    "trec_fine": Labelled(TREC, "trec", "default", "test", "fine_label", 50, (400, 800, 1600, 3200, 6400)),
    "banking77": Labelled(BANKING, "banking77", "default", "test", "label", 77, (360, 720, 1450, 2900, 5900)),
    "clinic150": Labelled(CLINC, "clinc_oos", "plus", "validation", "intent", 151, (440, 880, 1750, 3525, 7050)),
    "nlu": Labelled(NLU, "nlu", "default", None, "label", 68, (510, 1020, 2040, 4080, 8296)),
}


def labelled(folder: Path, task: str, shots: int, seed: int) -> Rows:
    """The questions of a task of `ICL`: context, question and answer.

    Parameters
    ----------
    folder
        Holds FOLDER/CONFIG/SPLIT/*.parquet, as the hub's conversion (its branch refs/convert/parquet) has them.

    Raises
    ------
    HarpeError
        For missing, empty and unreadable files.
    """
    from datasets import Dataset

    of = ICL[task]
    known = _split(folder, of, "train")
    if of.test is None:
        parts = Dataset.from_list(known).train_test_split(test_size=0.1, seed=seed)
        known, asked = parts["train"].to_list(), parts["test"].to_list()
    else:
        asked = _split(folder, of, of.test)
    if len(asked) > QUESTIONS:
        shuffled = Dataset.from_list(asked).shuffle(seed=seed).to_list()
        asked = _balanced(_by_label(shuffled, of.label), QUESTIONS, seed)
    by_label = _by_label(known, of.label)
    found = []
    for question in asked:
        own = (int(hashlib.sha256(question["text"].encode()).hexdigest(), 16) + seed) % 2**31
        numbers = list(range(of.labels))
        random.Random(own).shuffle(numbers)
        examples = [f"{row['text']}\n{BEGIN} {numbers[row[of.label]]}" for row in _balanced(by_label, shots, own)]
        found.append(
            {
                "context": "\n\n".join(examples),
                "question": question["text"],
                "answer": str(numbers[question[of.label]]),
            }
        )
    return found


def _by_label(rows: Rows, label: str) -> list[Rows]:
    """Rows of each label, in the order in which labels first come."""
    found: dict[int, Rows] = {}
    for row in rows:
        found.setdefault(row[label], []).append(row)
    return list(found.values())


def _balanced(by_label: list[Rows], count: int, seed: int) -> Rows:
    """So many rows, in rounds that have one of each label, in an order of their own."""
    draw = random.Random(seed)
    rounds: list[Rows] = [[] for _ in range(math.ceil(count / len(by_label)))]
    for rows in by_label:
        places = draw.sample(range(len(rows)), len(rounds) % len(rows))  # of few rows: the rest, then all, again
        while len(places) < len(rounds):
            places += draw.sample(range(len(rows)), min(len(rounds) - len(places), len(rows)))
        for each, place in zip(rounds, places, strict=True):
            each.append(rows[place])
    for each in rounds:
        draw.shuffle(each)
    return [row for each in rounds for row in each][:count]


def _split(folder: Path, of: Labelled, split: str) -> Rows:
    place, rows = folder / of.folder / of.config / split, Rows()
    fetch = (
        f"Fetch the hub's conversion of {of.hub} where there is a network: hf download {of.hub} --repo-type dataset "
        f"--revision refs/convert/parquet --local-dir {folder / of.folder} "
        f"(https://huggingface.co/datasets/{of.hub}/tree/refs%2Fconvert%2Fparquet)."
    )
    for file in sorted(place.glob("*.parquet")):
        try:
            rows += pq.ParquetFile(file).read().select(["text", of.label]).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            told = f"{type(error).__name__}: {error}"
            raise HarpeError(f"{file} could not be read as rows of text and {of.label} ({told}). {fetch}") from error
    if not rows:
        raise HarpeError(f"{place} is missing, or has no rows in files .parquet. {fetch}")
    return rows
