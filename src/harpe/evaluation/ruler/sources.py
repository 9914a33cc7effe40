"""The files that the benchmark is made from: where they are looked for, and where they come from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.files import cache_folder


@dataclass(frozen=True)
class Source:
    """One file or folder of benchmark data."""

    places: tuple[str, ...]
    """Where it may lie in a data folder, first one first."""
    what: str
    """What it is, for messages."""


SOURCES = {
    "essays": Source(("ruler/PaulGrahamEssays.json", "PaulGrahamEssays.json"), "the essays that needles are hidden in"),
    "squad": Source(("ruler/squad.json", "squad.json"), "the questions of qa_1 (SQuAD 2.0, development set)"),
    "hotpotqa": Source(
        ("ruler/hotpotqa.json", "hotpotqa.json"), "the questions of qa_2 (HotpotQA, development set with distractors)"
    ),
    "english_words": Source(
        ("ruler/english_words.json", "english_words.json"),
        "the second word list, which cwe needs for contexts of more than the 8,166 words of wonderwords",
    ),
    "punkt": Source(
        ("nltk_data/tokenizers/punkt_tab/english", "tokenizers/punkt_tab/english", "punkt_tab/english"),
        "the parameters by which essays are split into sentences",
    ),
}


class DataFolder:
    """Benchmark data by name, in the folder given, in the one that HARPE_DATA names, or in the cache.

    Parameters
    ----------
    folder
        Of --data. Where it is given, nothing is looked for elsewhere.

    Raises
    ------
    HarpeError
        When `folder` is no folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise HarpeError(f"--data {folder} is no folder.")
        named = os.environ.get("HARPE_DATA")
        self.folders = [Path(folder)] if folder is not None else [*([Path(named)] if named else []), cache_folder()]

    def find(self, name: str) -> Path:
        """The path of a source. Raises HarpeError where it is in none of the folders."""
        source = SOURCES[name]
        for folder in self.folders:
            for place in source.places:
                if (folder / place).exists():
                    return folder / place
        looked = " or ".join(str(folder / source.places[0]) for folder in self.folders)
        raise HarpeError(
            f"{Path(source.places[0]).name} is missing: {source.what}. It was looked for at {looked}. `harpe "
            "fetch-data` downloads it where there is a network; --data or HARPE_DATA names a folder that has it."
        )

    def json(self, name: str) -> Any:
        """The content of a JSON source."""
        path = self.find(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise HarpeError(f"{path} is not valid JSON ({error}). Fetch it again.") from error
