"""Values out of JSON files, checked against the type hints of the dataclasses that hold them.

Unlike a recipe (`harpe.typed.build`), files may have entries that no field has: other commands read those, and later
versions add some.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.typed import typed

T = TypeVar("T")


def parse_file(path: Path, parse: Callable[[dict[str, Any]], T]) -> T:
    """`parse` of a JSON file, with everything that can be wrong with the file told as a HarpeError naming it.

    `parse` reads no other file: its errors are all about this one.
    """
    value = read_json(path)
    try:
        return parse(value)
    except KeyError as error:
        raise HarpeError(f"{path} lacks the entry {error}. Delete it and run that step again.") from error
    except (HarpeError, AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise HarpeError(f"{path} is damaged ({str(error).rstrip('.')}). Delete it and run that step again.") from error


def parse_if_there(path: Path, parse: Callable[[dict[str, Any]], T]) -> T | None:
    """`parse_file`; None where there is no such file."""
    return parse_file(path, parse) if path.is_file() else None


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def build(cls: type[T], value: Any, where: str, **given: Any) -> T:
    """A dataclass out of a JSON object: each field from the entry of its name.

    Parameters
    ----------
    given
        Fields that do not come from the object.

    Raises
    ------
    KeyError, TypeError, ValueError, HarpeError
        For missing entries, and values of another type; `where` says where they stand.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{where} is {value!r} and no object")
    fields, hints = dict(given), _hints(cls)  # type: ignore[arg-type]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name not in given and (required or field.name in value):
            fields[field.name] = parse(hints[field.name], value[field.name], f"{field.name} of {where}")
    return cls(**fields)


def parse(hint: Any, value: Any, where: str) -> Any:
    """A value as a hint wants it: tuples out of lists, dataclasses out of objects, numbers that are no text."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else parse(inside[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{where} is {value!r} and no list")
        return tuple(parse(inside[0], item, f"an entry in {where}") for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{where} is {value!r} and no object")
        return {key: parse(inside[1], item, f"{key} in {where}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{where} is {value!r} and no number")
        return float(value)
    return typed(value, hint, where)
