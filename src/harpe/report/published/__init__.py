"""Figures of the paper, by the setting that they were measured in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harpe.errors import HarpeError
from harpe.files import read_json

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PublishedTable:
    """One table: figures by column and method; None where the paper has none."""

    columns: tuple[str, ...]
    """Length in tokens, task or corpus; `mean`: the average that the paper prints."""
    rows: dict[str, tuple[float | None, ...]]
    """By the name of the method in a comparison."""
    note: str
    over: dict[str, tuple[str, ...]]
    """The lengths or tasks that a column is the mean over, where it is a mean."""

    def has(self, column: str, over: tuple[str, ...]) -> bool:
        """Whether there is such a column, and it is the mean over the same lengths or tasks as ours."""
        return column in self.columns and self.over.get(column, over) == over

    def figure(self, method: str, column: str) -> float | None:
        """The figure of a method in a column, where there is one."""
        row = self.rows.get(method)
        return row[self.columns.index(column)] if row is not None else None


@dataclass(frozen=True)
class Published:
    """All tables that share a setting."""

    citation: str
    setting: str
    titles: dict[str, str]
    """What the paper calls the methods."""
    tables: dict[int, PublishedTable]


def published(name: str) -> Published:
    """The figures of a setting. Raises HarpeError for a setting that has none."""
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    if name not in known:
        raise HarpeError(
            f"published: there are no published figures named {name}, only {', '.join(known)}. Leave it out of the "
            "recipe."
        )
    value = read_json(FOLDER / f"{name}.json")
    tables = {}
    for number, table in value["tables"].items():
        rows = {method: tuple(row) for method, row in table["rows"].items()}
        over = {column: tuple(keys) for column, keys in table["over"].items()}
        tables[int(number)] = PublishedTable(tuple(table["columns"]), rows, table["note"], over)
    return Published(value["citation"], value["setting"], value["titles"], tables)
