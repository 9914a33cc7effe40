"""Tables of frequencies from a file: learned ones (`harpe.attention_heads.learned`), or of any other program.

A JSON object with

    frequencies         inverse frequencies in radians a position: a row for every key/value head, or a list of such
                        tables, one for every layer (null for layers that keep their positions)
    attention_factor    multiplies queries and keys, beside what the checkpoint has: a number, or one per key/value
                        head; default 1
    made_for            what of a checkpoint has to be the same: base, original_length; default: anything goes
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.files import write_json
from harpe.methods.types import Encoding, Stage, table_encoding, with_attention_factor
from harpe.ownership import refuse_foreign
from harpe.positions.geometry import ModelGeometry

KEYS = ("frequencies", "attention_factor", "made_for", "made_by", "schema_version", "written_by")


def tables(geometry: ModelGeometry, length: int, *, file: str) -> list[Stage]:
    """The tables of `file` for all heads.

    Raises HarpeError for a file that holds no such tables, or those of a checkpoint of another shape, base or trained
    context.
    """
    path = Path(file).expanduser()
    value = _read(path)
    for name, wanted in dict(value.get("made_for") or {}).items():
        there = {"base": geometry.base, "original_length": geometry.original_length}.get(name)
        if there is None:
            raise HarpeError(f"made_for of {path} has {name}; it takes base and original_length.")
        if not math.isclose(wanted, there, rel_tol=1e-6):
            raise HarpeError(f"The tables of {path} were made for {name} {wanted}, and this checkpoint has {there}.")
    given: list[Any] = value["frequencies"]
    first = next((each for each in given if each is not None), None)
    by_layer = isinstance(first, list) and first and isinstance(first[0], list)
    layers = given if by_layer else [given]
    for table in layers:
        _check_numbers(path, table)
    try:
        encoding = table_encoding(layers, geometry)
        encoding = with_attention_factor(encoding, value.get("attention_factor", 1.0), geometry, 1.0)
    except HarpeError as error:
        raise HarpeError(f"{path} does not fit this checkpoint: {error}") from error
    return [Stage(encoding, length, share=1.0, note=f"from {path}")]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HarpeError(f"The tables of the option file, {path}, cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise HarpeError(f"{path} is no JSON file of tables ({error}).") from error
    if not isinstance(value, dict) or not isinstance(value.get("frequencies"), list):
        raise HarpeError(f"{path} has no tables: a JSON object with frequencies, a row for every key/value head.")
    if unknown := [key for key in value if key not in KEYS]:
        raise HarpeError(f"{path} has {unknown[0]}, which tables do not have; they have {', '.join(KEYS[:4])}.")
    factor, told = value.get("attention_factor", 1.0), value.get("made_for")
    numbers = [*(factor if isinstance(factor, list) else [factor]), *(told.values() if isinstance(told, dict) else [])]
    if not all(_is_number(each) for each in numbers) or not isinstance(told, dict | None):
        raise HarpeError(f"attention_factor and made_for of {path} hold numbers; something else is there.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_numbers(path: Path, table: Any) -> None:
    rows = [] if table is None else table if isinstance(table, list) else [None]
    if not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
        raise HarpeError(f"frequencies of {path} hold something else than rows of numbers.")


def write_tables(path: str | Path, encoding: Encoding, geometry: ModelGeometry, **made_by: Any) -> Path:
    """Write an encoding's tables as the method `tables` reads them; returns the file.

    Parameters
    ----------
    made_by
        What there is to say of how they were made; not read.

    Raises
    ------
    HarpeError
        For an encoding without tables, or with more than tables hold, and a file that harpe did not write.
    """
    if encoding.tables is None:
        raise HarpeError(f"These positions are no tables: {encoding.describe()}.")
    if encoding.attention is not None or encoding.length_scale:
        raise HarpeError(f"These positions are more than tables, which would lose the rest: {encoding.describe()}.")
    path = Path(path)
    if path.suffix != ".json":
        raise HarpeError(f"{path} must end in .json.")
    refuse_foreign(path)
    one = len(encoding.tables) == 1
    factor = encoding.attention_factor
    write_json(
        path,
        {
            "frequencies": encoding.tables[0] if one else encoding.tables,
            "attention_factor": list(factor) if isinstance(factor, tuple) else factor,
            "made_for": {"base": geometry.base, "original_length": geometry.original_length},
            "made_by": made_by,
        },
    )
    return path
