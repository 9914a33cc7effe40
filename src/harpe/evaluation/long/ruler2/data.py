"""The questions of MMLU and the documents of HotpotQA, out of a data folder or from the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow.parquet as pq

from harpe.errors import HarpeError
from harpe.evaluation.ruler.sources import DataFolder

LETTERS = "ABCD"
T = TypeVar("T")
_PART = re.compile(r"-\d+-of-(\d+)\.parquet$")


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub, as the published program names it."""

    hub: str
    config: str
    place: str
    """Below a data folder."""
    columns: tuple[str, ...]
    rows: dict[str, int]
    """Of its splits."""

    @property
    def where_to_get(self) -> str:
        """In a sentence."""
        folder = str(Path(self.place).parent)
        return (
            f"Fetch it where there is a network: hf download {self.hub} --repo-type dataset "
            f"--include '{self.config}/*' --local-dir DATA/{folder}, and name DATA with --data or HARPE_DATA."
        )


MMLU = DataSet(
    "cais/mmlu",
    "all",
    "ruler2/mmlu/all",
    ("question", "choices", "answer"),
    {"test": 14042, "auxiliary_train": 99842},
)
HOTPOTQA = DataSet(
    "hotpotqa/hotpot_qa",
    "distractor",
    "ruler2/hotpot_qa/distractor",
    ("question", "answer", "supporting_facts", "context"),
    {"train": 90447, "validation": 7405},
)


class Question(NamedTuple):
    """A question of MMLU with its four choices, on one line."""

    text: str
    letter: str
    """Of the right choice."""


class Sourced(NamedTuple):
    """A question of HotpotQA."""

    question: str
    answer: str
    documents: list[str]
    """That answer it."""
    distractors: list[str]


class Rows(NamedTuple):
    """A split."""

    where: str
    size: int
    read: Callable[[], Iterator[dict[str, Any]]]


class Ruler2Data:
    """Questions and documents, read when they are first asked for.

    Parameters
    ----------
    folder
        Of --data. Where it is given, nothing is looked for elsewhere; else the folder that HARPE_DATA names, harpe's
        cache and the hub are tried.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._given, self._folders = folder is not None, DataFolder(folder).folders
        self._found: dict[tuple[str, str], Rows] = {}

    def check(self, of: DataSet) -> list[str]:
        """Find all rows of a data set; returns sentences on splits that have other numbers of rows than the published
        ones.

        Raises HarpeError where it is neither in a folder nor to be had from the hub.
        """
        splits = [(self._rows(of, split), split, rows) for split, rows in of.rows.items()]
        return [
            f"{rows.where} has {rows.size:,} rows, where {split} of {of.hub} had {published:,}: samples are not those "
            "of the published program."
            for rows, split, published in splits
            if rows.size != published
        ]

    @cached_property
    def mmlu(self) -> tuple[list[Question], list[Question]]:
        """What is asked for (test), and what contexts are filled with (auxiliary_train)."""
        return self._each(MMLU, "test", _question), self._each(MMLU, "auxiliary_train", _question)

    @cached_property
    def hotpotqa(self) -> tuple[list[Sourced], list[str]]:
        """What is asked for (validation), and what contexts are filled with (the documents of train, sorted, since the
        published program leaves their order to the hashes of a process)."""
        documents = {text for texts in self._each(HOTPOTQA, "train", _documents) for text in texts}
        return self._each(HOTPOTQA, "validation", _sourced), sorted(documents)

    def _each(self, of: DataSet, split: str, made: Callable[[dict[str, Any]], T]) -> list[T]:
        rows = self._rows(of, split)
        try:
            return [made(row) for row in rows.read()]
        except (KeyError, TypeError, IndexError, ValueError, OSError) as error:
            raise HarpeError(
                f"{rows.where} is not in the format of {of.hub} ({type(error).__name__}: {error})."
            ) from error

    def _rows(self, of: DataSet, split: str) -> Rows:
        if (of.hub, split) not in self._found:
            local = [folder / of.place for folder in self._folders if (folder / of.place).is_dir()]
            self._found[of.hub, split] = _from_files(of, split, local[0]) if local else self._from_hub(of, split)
        return self._found[of.hub, split]

    def _from_hub(self, of: DataSet, split: str) -> Rows:
        looked = " or ".join(str(folder / of.place) for folder in self._folders)
        if self._given:
            raise HarpeError(f"{of.hub} is missing: it was looked for at {looked}. {of.where_to_get}")
        import datasets  # here, since it takes longer to import than a folder of files takes to be found

        try:
            rows = datasets.load_dataset(of.hub, of.config, split=split)
        except Exception as error:  # the hub, the network, the configuration, the format: many kinds, one answer
            why = " ".join(str(error).split())
            raise HarpeError(
                f"{of.hub} is missing: it was looked for at {looked}, and the hub does not give it ({why}). "
                f"{of.where_to_get}"
            ) from error
        rows = rows.select_columns(list(of.columns))
        return Rows(f"{split} of {of.hub}", len(rows), lambda: iter(rows))


def _from_files(of: DataSet, split: str, folder: Path) -> Rows:
    if (file := folder / f"{split}.jsonl").is_file():
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        return Rows(str(file), len(lines), lambda: map(json.loads, lines))
    files = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    parts = {int(found[1]) for file in files if (found := _PART.search(file.name))}
    if not files or parts != {len(files)}:
        raise HarpeError(
            f"{folder} has {len(files)} files {split}-*.parquet, and not all that belong together. {of.where_to_get}"
        )
    try:
        count = sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, ValueError) as error:
        raise HarpeError(f"{folder}: {split} cannot be read ({error}). {of.where_to_get}") from error

    def read() -> Iterator[dict[str, Any]]:
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(columns=list(of.columns)):
                    yield from batch.to_pylist()

    return Rows(str(folder / f"{split}-*.parquet"), count, read)


def _question(row: dict[str, Any]) -> Question:
    first, second, third, fourth = row["choices"]
    text = f"{row['question']}\nA. {first}\nB. {second}\nC. {third}\nD. {fourth}"
    return Question(re.sub(r"\s+", " ", text), LETTERS[row["answer"]])


def _documents(row: dict[str, Any]) -> list[str]:
    """Each under its title."""
    pairs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
    return [f"{title}\n{''.join(sentences)}" for title, sentences in pairs]


def _sourced(row: dict[str, Any]) -> Sourced:
    texts, titles = _documents(row), row["context"]["title"]
    own = [texts[i] for i, title in enumerate(titles) if title in row["supporting_facts"]["title"]]
    near = [texts[i] for i, title in enumerate(titles) if title not in row["supporting_facts"]["title"]]
    if not own:
        raise ValueError("a question without a document that supports it")
    return Sourced(row["question"], row["answer"], own, near)
