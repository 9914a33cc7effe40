"""Titles by which the rows of a table, a page and a figure can be told apart."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

R = TypeVar("R", bound=Any)

LONG = 48
"""Characters of options that a title may take; longer ones do not tell a reader anything, and the row's name does."""


@dataclass(frozen=True)
class Titled:
    """What tells one row from another."""

    name: str
    """Unique."""
    title: str
    method: str
    trained: bool
    options: Mapping[str, Any]
    """Those that were not given are the method's defaults."""


def retitled(rows: Sequence[R]) -> tuple[R, ...]:
    """Rows (dataclasses with name, title, trained and options) with titles that tell them apart: earlier versions gave
    one title to several."""
    titles = distinct_titles([Titled(row.name, row.title, "", row.trained, row.options) for row in rows])
    return tuple(replace(row, title=title) for row, title in zip(rows, titles, strict=True))


def distinct_titles(rows: Sequence[Titled]) -> list[str]:
    """The rows' titles; those that are alike get the options in which their rows differ, or else their names.

    Alike are titles that differ in case, spaces or forms of a letter alone.
    """
    titles = [" ".join(row.title.split()) or row.name for row in rows]
    for attempt in range(len(rows) + 1):
        for group in alike(titles):
            words = _differences([rows[i] for i in group]) if attempt == 0 else None
            for number, i in enumerate(group):
                titles[i] = f"{titles[i]} ({words[number] if words else rows[i].name})"
    return titles


def alike(titles: Sequence[str]) -> list[list[int]]:
    """Numbers of the titles that are alike, group by group."""
    groups: dict[str, list[int]] = {}
    for i, title in enumerate(titles):
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", title).casefold().split()), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _differences(rows: Sequence[Titled]) -> list[str] | None:
    """What differs between rows, for each of them; None where that is nothing, or too long to be read."""
    words = []
    for row in rows:
        same = [other for other in rows if other.method == row.method]
        parts = [row.method] if len(same) < len(rows) else []
        keys = dict.fromkeys(key for other in same for key in other.options)
        for key in keys:
            if any(other.options.get(key) != row.options.get(key) for other in same):
                parts.append(
                    f"{key} {_value(row.options[key])}" if row.options.get(key) is not None else f"default {key}"
                )
        if any(other.trained != row.trained for other in same):
            parts.append("trained" if row.trained else "not trained")
        words.append(", ".join(parts))
    whole = all(words) and len({word.casefold() for word in words}) == len(words) and max(map(len, words)) <= LONG
    return words if whole else None


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.12g}" if abs(value) < 1e15 else f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
