"""Methods by name: harpe's own, and those of other packages (entry points of the group `harpe.methods`).

A method is a function `method(geometry, length, …) -> list[Stage]`. Its further parameters are its options, by keyword.
Two are filled in where a function names them: `bounds`, the range of bases for this model and length (`BaseRange`), and
`measure`, which measures the heads of the model on texts (`harpe.methods.measured.MeasureHeads`).
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from harpe.bases.ranges import RangeRule, base_range
from harpe.errors import HarpeError
from harpe.methods.abf import abf, abf_staged, base_kept, one_base
from harpe.methods.dual_chunk import dca
from harpe.methods.harpe import harpe
from harpe.methods.interpolation import longrope, ntk, ntk_dynamic, pi, yarn
from harpe.methods.layer_scale import layer_scale
from harpe.methods.measured import MeasureHeads
from harpe.methods.ms_poe import ms_poe
from harpe.methods.p_rope import p_rope
from harpe.methods.parts import by_parts, harpe_parts, mrrope
from harpe.methods.rerope import rerope_parts
from harpe.methods.self_extend import self_extend, self_extend_dynamic
from harpe.methods.tables import tables
from harpe.methods.types import Stage, shared_encoding, untrained
from harpe.positions.geometry import ModelGeometry
from harpe.typed import typed

GROUP = "harpe.methods"
GIVEN = ("bounds", "measure")
"""Parameters that are filled in, not written in a recipe."""
RANGE: dict[str, Any] = {"min": float | None, "max": float | None, "range": RangeRule}
"""Options of every method that has a parameter `bounds`, with their types."""


def none(geometry: ModelGeometry, length: int) -> list[Stage]:
    """The checkpoint as it is, read beyond its context."""
    return untrained(shared_encoding(geometry.base, geometry), length)


@dataclass(frozen=True)
class Method:
    """A method and what is said of it."""

    name: str
    function: Callable[..., list[Stage]]
    title: str
    source: str
    """Citation."""
    control: bool = False
    """A row without which the others cannot be read."""
    trains: bool = True
    """False: none of its stages is trained."""


_HARPE, _XIONG = "Lian et al. 2024, arXiv 2412.07171", "Xiong et al. 2023, arXiv 2309.16039"
BUILT_IN = (
    Method("none", none, "untouched", "the checkpoint", control=True, trains=False),
    Method("base-kept", base_kept, "base kept", "control: trained long, positions as they were", control=True),
    Method("pi", pi, "PI", "Chen et al. 2023, arXiv 2306.15595"),
    Method("ntk", ntk, "NTK-aware", "bloc97 2023; Peng et al. 2023, arXiv 2309.00071"),
    Method("ntk-dynamic", ntk_dynamic, "dynamic NTK", "emozilla 2023; Peng et al. 2023, arXiv 2309.00071"),
    Method("abf", abf, "ABF", _XIONG),
    Method("abf-staged", abf_staged, "ABF in stages", f"{_XIONG}; stages of {_HARPE}"),
    Method("yarn", yarn, "YaRN", "Peng et al. 2023, arXiv 2309.00071"),
    Method("longrope", longrope, "LongRoPE", "Ding et al. 2024, arXiv 2402.13753"),
    Method("mrrope", mrrope, "MrRoPE", "after arXiv 2601.22181"),
    Method("by-parts", by_parts, "by parts", "control: harpe-parts with one exponent for all heads", control=True),
    Method("p-rope", p_rope, "p-RoPE", "Barbero et al. 2024, arXiv 2410.06205"),
    Method("layer-scale", layer_scale, "a scale by layer", "after arXiv 2503.04355"),
    Method("ms-poe", ms_poe, "Ms-PoE", "after Zhang et al. 2024, arXiv 2403.04797", trains=False),
    Method("self-extend", self_extend, "Self-Extend", "Jin et al. 2024, arXiv 2401.01325", trains=False),
    Method("self-extend-dynamic", self_extend_dynamic, "dynamic Self-Extend", "after arXiv 2607.07740", trains=False),
    Method("dca", dca, "DCA", "An et al. 2024, arXiv 2402.17463", trains=False),
    Method("harpe", harpe, "HARPE", _HARPE),
    Method("harpe-parts", harpe_parts, "HARPE by parts", f"ours, from {_HARPE} and YaRN"),
    Method(
        "rerope-parts",
        rerope_parts,
        "ReRoPE near, by parts far",
        "ours, from Su 2023, https://kexue.fm/archives/9708, and YaRN",
        trains=False,
    ),
    Method("tables", tables, "tables", "tables of frequencies from a file"),
    Method("one-base", one_base, "one base", "control: one base of HARPE's range", control=True),
)


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


@lru_cache(maxsize=1)
def methods() -> dict[str, Method]:
    """All methods by name.

    Raises HarpeError for an entry point that takes the name of another method, or cannot be loaded.
    """
    found = {method.name: method for method in BUILT_IN}
    for point in _points():
        if point.name in found:
            raise HarpeError(
                f"The entry point {point.name} = {point.value} has the name of another method; its package must rename "
                "it."
            )
        try:
            function = point.load()
        except Exception as error:
            raise HarpeError(
                f"The method {point.name} of another package could not be loaded from {point.value}: {error}"
            ) from error
        source = (inspect.getdoc(function) or point.value).splitlines()[0]
        found[point.name] = Method(point.name, function, point.name, source)
    return found


def method_named(name: str) -> Method:
    """The method; HarpeError with the nearest names where there is none."""
    known = methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(known)}."
        raise HarpeError(f"There is no method {name}. {hint}")
    return known[name]


def default_method(geometry: ModelGeometry) -> tuple[str, dict[str, Any], str]:
    """The method for a checkpoint where none is named, with its options, and why (docs/results.md)."""
    if geometry.trained_angles is None and geometry.attention_factor == 1.0:
        return "yarn", {}, "yarn: no method was shown to do better where we measured, and stock programs load it."
    own = "a scaling" if geometry.trained_angles is not None else "an attention factor"
    why = (
        "one base in the middle of HARPE's range, with YaRN's attention factor: this checkpoint was trained with "
        f"{own} of its own, which yarn would lose."
    )
    return "one-base", {"attention_factor": "yarn"}, why


def takes_range(method: Method) -> bool:
    """Whether a method takes bases from the range."""
    return "bounds" in inspect.signature(method.function).parameters


def defaults(name: str) -> dict[str, Any]:
    """The values that a method's options have where they are not given; those that are worked out are left out."""
    parameters = inspect.signature(method_named(name).function).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in GIVEN and p.default is not p.empty]
    return {p.name: p.default for p in own if p.default is not None}


def make_stages(
    method: Method,
    geometry: ModelGeometry,
    length: int,
    options: Mapping[str, Any],
    *,
    range_rule: RangeRule = "critical",
    measure: MeasureHeads | None = None,
    train: bool | None = None,
) -> list[Stage]:
    """The stages of a method.

    Parameters
    ----------
    options
        By name; besides those of the function, `min`, `max` and `range` where it takes bases from a range.
    range_rule
        Of the range, where `options` has none.
    train
        False: put the last stage's positions into the model without training. None or True: as the method has it.

    Raises
    ------
    HarpeError
        For an option that the method does not have, a missing one, and whatever the method refuses.
    """
    parameters = inspect.signature(method.function).parameters
    own = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name not in GIVEN]
    allowed = [*own, *(RANGE if "bounds" in parameters else ())]
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(allowed) or 'no options'}."
            raise HarpeError(f"{method.name} has no option {name}. {hint}")
    missing = [name for name in own if parameters[name].default is inspect.Parameter.empty and name not in options]
    if missing:
        raise HarpeError(f"{method.name} needs the option {missing[0]}.")
    hints = {**_hints(method.function), **RANGE}
    options = {
        name: typed(value, hints.get(name, Any), f"The option {name} of {method.name}")
        for name, value in options.items()
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if name in own}
    if "bounds" in parameters:
        rule = options.get("range", range_rule)
        given["bounds"] = base_range(geometry, length, options.get("min"), options.get("max"), rule)
    if "measure" in parameters:
        given["measure"] = measure
    stages = method.function(geometry, length, **given)
    check_stages(method.name, stages, length)
    if train and not any(stage.share for stage in stages):
        raise HarpeError(f"{method.name} is a method without training; leave train out.")
    return [replace(stages[-1], share=0.0)] if train is False else stages


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Type hints; none where another package's refer to names that only a type checker sees."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        return {}


def check_stages(name: str, stages: list[Stage], length: int) -> None:
    """Refuse what a method of another package may have got wrong."""
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise HarpeError(f"The method {name} gave {stages!r}; it must return a list of Stage objects.")
    if stages[-1].length != length:
        raise HarpeError(
            f"The last stage of {name} has {stages[-1].length} tokens and must have the target's {length}."
        )
    shares = [stage.share for stage in stages]
    if not (shares == [0.0] or (min(shares) > 0 and abs(sum(shares) - 1) < 1e-6)):
        raise HarpeError(
            f"The stages of {name} have the shares {shares}; they must add up to 1, or be one stage of share 0 (no "
            "training)."
        )
