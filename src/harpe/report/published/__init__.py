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

    def figure(self, method: str, column: str) -> float | None:
        """The figure of a method in a column, where there is one."""
        row = self.rows.get(method)
        return row[self.columns.index(column)] if row is not None and column in self.columns else None


@dataclass(frozen=True)
class Published:
    """All tables that share a setting."""

    citation: str
    setting: str
    titles: dict[str, str]
    """What the paper calls the methods."""
    tables: dict[int, PublishedTable]


def published(name: str) -> Published:
    """The figures of a setting.

    Raises
    ------
    HarpeError
        For a setting that has none.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    if name not in known:
        raise HarpeError(f"published: there are no published figures named {name}, only {', '.join(known)}. Leave it out of the recipe.")
    value = read_json(FOLDER / f"{name}.json")
    tables = {
        int(number): PublishedTable(tuple(table["columns"]), {m: tuple(row) for m, row in table["rows"].items()}, table["note"])
        for number, table in value["tables"].items()
    }
    return Published(value["citation"], value["setting"], value["titles"], tables)
