"""What suites of written samples have in common (RULER, the long-context tasks): all rows are asked the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harpe.comparison.suites.base import Measure, Measured
from harpe.errors import HarpeError
from harpe.files import read_json, sha256_once, write_json, write_text


@dataclass(frozen=True)
class Mean:
    """A mean over tasks."""

    name: str
    """In ids."""
    title: str
    group: str
    tasks: Sequence[str]


def check_asked(
    lengths: Sequence[int], tasks: str, chosen: Callable[[Iterable[str]], Sequence[Any]], called: str, where: str
) -> None:
    """Refuse lengths that are no different numbers, and names that `chosen` does not know."""
    if not lengths or len(set(lengths)) != len(lengths) or min(lengths) < 1:
        raise HarpeError(f"{where} has the {called} lengths {list(lengths)}; give different numbers of tokens.")
    try:
        chosen(names_of(tasks))
    except HarpeError as error:
        raise HarpeError(f"{called} in {where}: {error}") from error


def names_of(tasks: str) -> list[str]:
    """Names with commas between them."""
    return tasks.replace(",", " ").split()


def sample_files(folder: Path) -> dict[Path, str]:
    """Files of samples with their SHA-256."""
    return {path: sha256_once(path) for path in sorted(folder.glob("*.jsonl")) if path.name != "answers.jsonl"}


def lay_samples(written: Path, folder: Path) -> None:
    """Put the samples that were written before the training where a row answers them, so that no row makes them anew;
    what is there stays."""
    protocol = folder / "protocol.json"
    if not protocol.is_file():
        write_json(protocol, read_json(written / "protocol.json"))
    named = read_json(protocol).get("files", {})  # a file that it does not name would be somebody else's
    for path, digest in sample_files(written).items():
        if named.get(path.stem) == digest and not (file := folder / path.name).exists():
            write_text(file, path.read_text(encoding="utf-8"))


def measures_at(
    key: str, called: str, length: int, rows: Sequence[dict[str, Any]], hashes: Mapping[str, str], means: Sequence[Mean]
) -> Iterator[Measured]:
    """Every task at a length, a number a sample, and means over tasks, each of which weighs the same.

    Parameters
    ----------
    rows
        Answers, with task, sample and score.
    hashes
        Of the samples, by task: what is paired has to be the same.
    """
    for task in dict.fromkeys(row["task"] for row in rows):
        measure = Measure(
            f"{key}-{task}-{length}", f"{called} {task} at {length:,} tokens", "%", "higher", key, task, length
        )
        asked = [row for row in rows if row["task"] == task]
        yield measure, [((hashes.get(task, ""), row["sample"]), 0, row["score"], 1.0) for row in asked]
    for mean in means:
        title = f"{mean.title} at {length:,} tokens"
        measure = Measure(f"{key}-{mean.name}-{length}", title, "%", "higher", mean.group, None, length)
        those = [(hashes.get(row["task"], ""), row) for row in rows if row["task"] in mean.tasks]
        yield measure, [((of, r["task"], r["sample"]), mean.tasks.index(r["task"]), r["score"], 1.0) for of, r in those]
