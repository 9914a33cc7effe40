"""How numbers, lists and JSON objects are written for readers."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any


def plain(value: float) -> str:
    """A perplexity: two decimals, fewer where it is large."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.{2 if abs(value) < 1000 else 0}f}"


def signed(value: float, low: float, high: float, decimals: int | None = None) -> tuple[str, str]:
    """A difference and its interval, with as many decimals as their size asks for where no number of them is given."""
    if decimals is None:
        largest = max((abs(v) for v in (value, low, high) if math.isfinite(v)), default=0.0)
        decimals = 1 if largest >= 10 else 2 if largest >= 1 else 3

    def one(number: float) -> str:
        return f"{number:+,.{decimals}f}".replace("-", "−") if math.isfinite(number) else "not finite"

    return one(value), f"{one(low)} to {one(high)}"


def percent(value: float) -> str:
    """A score in per cent; an interval can end a rounding error below nothing."""
    return f"{max(0.0, value):.1f}" if math.isfinite(value) else "not finite"


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 5.2 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def facts(entries: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys and values of a JSON object as readable text."""

    def words(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, float):
            return f"{value:,.10g}" if value == 0 or abs(value) >= 1e-3 else f"{value:g}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return [(key.replace("_", " "), words(value)) for key, value in entries.items() if key != "schema_version"]


REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text around them."""


def printable(text: str, keep: str = "") -> str:
    """Text from a corpus with what would steer a terminal, or reorder the line that it stands in, shown in place of
    working: an escape as ␛, an override of direction as \\u202e.

    Parameters
    ----------
    keep
        Characters that stay as they are, such as newlines.
    """

    def shown(character: str) -> str:
        number = ord(character)
        if character in keep or not (
            character in REORDERING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        ):
            return character
        if number < 32 or number == 127:
            return chr(0x2400 + number if number < 32 else 0x2421)
        return f"\\u{number:04x}"

    return "".join(map(shown, text))


def listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def first_upper(text: str) -> str:
    """The text as the beginning of a sentence."""
    return text[:1].upper() + text[1:]
