"""Values from YAML and JSON checked against type hints, with sentences for what does not fit."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from harpe.errors import HarpeError

T = TypeVar("T")


def build(cls: type[T], value: Mapping[str, Any], where: str) -> T:
    """A dataclass out of a mapping.

    Raises HarpeError for unknown keys (with the nearest name), missing ones, and values of another type; `where` says
    where they stand.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(value, list(known), where)
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise HarpeError(f"{where} lacks {name}.")
    return cls(**{key: typed(item, hints[key], f"{key} of {where}") for key, item in value.items()})


def check_keys(value: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse unknown keys, with the nearest name that there is."""
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
            raise HarpeError(f"{where} has the key {key}, which is not known. {hint}")


def typed(value: Any, hint: Any, where: str) -> Any:
    """The value as a hint wants it: None, numbers (also as text, because YAML reads 1e-3 as text), strings, truth
    values, literals, lists, mappings, dataclasses, and unions of them; other hints are not checked.

    Raises HarpeError where the value is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    name = (
        getattr(hint, "__name__", str(hint))
        if origin is None
        else str(hint).replace("typing.", "").replace("collections.abc.", "")
    )
    refusal = HarpeError(f"{where} is {value!r} and should be of type {name}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        several = [argument for argument in arguments if argument is not type(None)]
        for argument in several:
            try:
                return typed(value, argument, where)
            except HarpeError:
                if len(several) == 1:
                    raise
        raise refusal
    if origin is Literal:
        if value not in arguments:
            raise HarpeError(f"{where} is {value!r}; choose {', '.join(map(str, arguments))}.")
        return value
    if origin in (list, collections.abc.Sequence):
        if not isinstance(value, list | tuple):
            raise refusal
        return [typed(item, arguments[0], where) for item in value]
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise refusal
        return {key: typed(item, arguments[1], f"{key} in {where}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if isinstance(value, Mapping):
            return build(typing.cast(type, hint), value, where)
        raise refusal
    if hint is float:
        try:
            if not isinstance(value, bool):
                return float(value)
        except (TypeError, ValueError):
            pass
        raise refusal
    if hint in (int, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise refusal
    return value
