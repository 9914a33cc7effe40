"""Data sets of lm-eval's tasks, from the hub or from clones of their repositories, and the names of long tasks.

A clone holds what the hub would give, and transformers' `datasets` reads a folder as it reads the hub. So nothing of a
task changes, and its numbers are lm-eval's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError, optional_module
from harpe.evaluation.short.helmet import helmet_names, is_helmet
from harpe.evaluation.short.offline import LOCAL
from harpe.files import sha256_file, sha256_json

LONG = "long"
"""Stands for LongBench v2, and BABILong at the lengths that fit."""
BABILONG = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k")
"""Lengths of BABILong's data: thousands of tokens of filler around the facts; instructions and solved examples come on
top."""


def expanded(names: Iterable[str], context: int) -> list[str]:
    """Names of tasks, with those that `LONG` and HELMET's sets stand for in a context of so many tokens."""
    lengths = [length for length in BABILONG if int(length[:-1]) * 1000 < context]
    long = ["longbench2", *(f"babilong-{length}" for length in lengths)]
    sets = ((long if name == LONG else helmet_names(name) if is_helmet(name) else [name]) for name in names)
    return list(dict.fromkeys(each for several in sets for each in several))


@cache
def task_manager() -> Any:
    """lm-eval's, with its thousands of definitions, which take seconds to read: once in a process."""
    optional_module("lm_eval", "lm-eval", "The short benchmarks need")
    from lm_eval.tasks import TaskManager

    return TaskManager()


def as_lm_eval(name: str) -> str | dict[str, Any]:
    """What lm-eval is asked for: babilong-4k are the tasks of its babilong_longctx, told 4k as by its --metadata."""
    task, _, length = name.partition("-")
    if task != "babilong" or not re.fullmatch(r"\d+[kM]", length):
        return name
    if length not in BABILONG:
        raise HarpeError(f"--tasks {name}: lm-eval's BABILong has the lengths {', '.join(BABILONG)}.")
    told = {"metadata": {"max_seq_lengths": length}}
    return {"group": name, "task": [{"task": f"babilong_qa{number}", **told} for number in range(1, 6)]}


class DataSets:
    """Where data sets are read from.

    Parameters
    ----------
    folder
        Clones of repositories as OWNER/NAME; what is not in it comes from the hub. None: all from the hub.
    offline
        What is not in the folder is refused.
    """

    def __init__(self, folder: Path | None, offline: bool = False) -> None:
        self._folder, self._offline = folder, offline
        self.used: set[str] = set()
        """Those that were last read from the folder."""
        self._hashes: dict[str, str] = {}

    def check(self, name: str) -> None:
        """Refuse a task that lm-eval does not know, and one whose data sets are not in the folder."""
        for needed in self.needed(name):
            if self._clone(needed) is None:
                part = f" {name}_local is a part of it." if f"{name}_local" in LOCAL else ""
                raise HarpeError(f"--tasks {name} has no offline form here. {self._missing(needed)}{part}")

    @staticmethod
    def needed(name: str) -> list[str]:
        """The data sets of a task; HarpeError for one that lm-eval does not know."""
        spec = as_lm_eval(name)
        tasks = [spec] if isinstance(spec, str) else [each["task"] for each in spec["task"]]
        return sorted({each for task in tasks for each in data_sets(task, task_manager().task_index)})

    @contextmanager
    def given(self) -> Iterator[None]:
        """Gives lm-eval, and the functions of its tasks, the clones in the place of the hub's."""
        datasets: Any = optional_module("datasets", "lm-eval", "The short benchmarks need")
        from_hub: Callable[..., Any] = datasets.load_dataset
        self.used = set()

        def load(path: Any, *arguments: Any, **named: Any) -> Any:
            clone = self._clone(str(path))
            if clone is None and self._offline:
                raise HarpeError(f"--offline: no hub is asked. {self._missing(str(path))}")
            if clone is not None:  # of folders with one name and README.md, `datasets` would give the first one's rows
                (mark,) = self.hashes([str(path)]).values()
                named["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / f"harpe-{mark[:16]}")
            try:
                found = from_hub(path if clone is None else str(clone), *arguments, **named)
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                advice = self._missing(str(path)) if clone is None else "Are its large files there (git lfs pull)?"
                where = "from the hub" if clone is None else f"from {clone}"
                raise HarpeError(f"The data set {path} could not be read {where} ({told}). {advice}") from error
            self.used |= {str(path)} if clone is not None else set()
            return found

        datasets.load_dataset = load
        try:
            yield
        finally:
            datasets.load_dataset = from_hub

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 of each of these data sets, as far as they are in the folder."""
        there = {name: clone for name in sorted(names) if (clone := self._clone(name)) is not None}
        self._hashes |= {name: folder_hash(clone) for name, clone in there.items() if name not in self._hashes}
        return {name: self._hashes[name] for name in there}

    def _clone(self, path: str) -> Path | None:
        inside = self._folder is not None and not Path(path).is_absolute() and ".." not in Path(path).parts
        return self._folder / path if inside and self._folder and (self._folder / path).is_dir() else None

    def _missing(self, path: str) -> str:
        return (
            f"To read the data set {path} without a hub, put a clone of https://huggingface.co/datasets/{path} "
            f"(with its large files) into {self._folder or 'DATA/hub'}/{path}"
            f"{'' if self._folder else ', and name DATA by --data'}."
        )


def data_sets(name: str, index: Mapping[str, Any]) -> set[str]:
    """The data sets of a task, a group or a tag of lm-eval's; none of tasks that are programs.

    Parameters
    ----------
    index
        `TaskManager.task_index` of lm-eval.

    Raises HarpeError for a name that lm-eval does not know.
    """
    if name not in index:
        raise HarpeError(f"--tasks {name} is no task of lm-eval's (`lm_eval ls tasks` lists them).")
    entry = index[name]
    value = entry.cfg or {}
    if isinstance(value.get("task"), list):
        found: set[str] = set()
        for part in value["task"]:
            inner = part if isinstance(part, str) else part.get("task") or part.get("group")
            own = None if isinstance(part, str) else part.get("dataset_path")
            found |= {own} if own else data_sets(inner, index) if isinstance(inner, str) and inner in index else set()
        return found
    if not value and entry.tags:
        return {each for tagged in entry.tags for each in data_sets(tagged, index)}
    return {path} if isinstance(path := value.get("dataset_path"), str) and "/" in path else set()


def folder_hash(folder: Path) -> str:
    """SHA-256 of the files in a folder, hidden ones left out."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sha256_json([[str(file.relative_to(folder)), sha256_file(file)] for file in files])
