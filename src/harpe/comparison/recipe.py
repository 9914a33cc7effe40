"""The recipe of a comparison: a YAML file with the checkpoint, the budget, the methods and what is measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harpe.comparison.suites.base import check_names
from harpe.comparison.suites.registry import KEYED, asked_suites
from harpe.errors import HarpeError
from harpe.options.recipe import ComparisonRecipe, EvaluationRecipe, RowRecipe
from harpe.runs.directory import BEFORE
from harpe.typed import build, check_keys, typed

LONGEST_TITLE = 80
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""
OF_A_RUN = ("data", "report", "samples", "model", "scores", "positions", "lock")
"""Names of folders and files of a run that a row may not have."""


def read_recipe(path: str | Path, *, absent: Mapping[str, Any] | None = None, **changes: Any) -> ComparisonRecipe:
    """Read a recipe; `changes` replace what it says, where they are not None, and `absent` stands for keys that it
    lacks.

    Raises HarpeError for a file that is not there or no YAML, unknown or missing keys (with the nearest names), and
    values of another type.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise HarpeError(f"The recipe {path} could not be read ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise HarpeError(f"The recipe {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise HarpeError(f"The recipe {path} holds no keys; see recipes/ for examples.")
    if any(changes.get(key) is not None for key in ("model", "data", "evaluation_data")):
        value["published"] = None  # the paper's figures stand beside the paper's own setting only
    value = {**(absent or {}), **value}
    value |= {key: change for key, change in changes.items() if change is not None and key != "evaluation_data"}
    if changes.get("evaluation_data") is not None and isinstance(value.get("evaluation"), dict):
        value["evaluation"]["data"] = changes["evaluation_data"]
    return parse(value, f"the recipe {path}")


def begun_recipe(run: Path) -> ComparisonRecipe:
    """The recipe that a comparison was begun with; what its version lacked is read as it did it."""
    return read_recipe(run / "recipe.yaml", absent=BEFORE)


def parse(value: Mapping[str, Any], where: str) -> ComparisonRecipe:
    """A recipe out of what YAML holds, or out of `ComparisonRecipe.recipe`."""
    rows = value.get("methods")
    if not isinstance(rows, list) or not rows:
        raise HarpeError(f"{where} has no list of methods; name at least one under methods.")
    parts: dict[str, Any] = {"methods": [_row(row, where) for row in rows]}
    if isinstance(value.get("evaluation"), Mapping):
        parts["evaluation"] = read_evaluation(value["evaluation"], f"evaluation of {where}")
    recipe = build(ComparisonRecipe, {**value, **parts}, where)
    check_recipe(recipe, where)
    if recipe.baseline not in (names := [row.name for row in recipe.methods]):
        raise HarpeError(
            f"{where} has the baseline {recipe.baseline}, which is none of its methods: {', '.join(names)}."
        )
    return recipe


def read_evaluation(value: Mapping[str, Any], where: str) -> EvaluationRecipe:
    """What a recipe or a plan says under evaluation; keys of suites become their settings."""
    own = [f.name for f in dataclasses.fields(EvaluationRecipe) if f.name != "suites"]
    check_keys(value, [*own, *KEYED], where)
    suites = {
        key: typed(value[key], suite.settings, f"{key} of {where}") if key in value else suite.default
        for key, suite in KEYED.items()
        if suite.kept or value.get(key) is not None
    }
    return build(EvaluationRecipe, {**{k: v for k, v in value.items() if k not in KEYED}, "suites": suites}, where)


def _row(value: Any, where: str) -> RowRecipe:
    if isinstance(value, str):
        return RowRecipe(name=value, method=value)
    if isinstance(value, RowRecipe):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("method", value.get("name")), str):
        raise HarpeError(f"{where} has the method {value!r}; write its name, or a mapping with name and method.")
    own = {f.name for f in dataclasses.fields(RowRecipe)}
    method, options = value.get("method", value.get("name")), value.get("options") or {}
    if not isinstance(options, dict):
        raise HarpeError(f"{where}: the options of {method} are {options!r}; write a mapping of names and values.")
    options = {**options, **{key: item for key, item in value.items() if key not in own}}
    if odd := [key for key in options if not isinstance(key, str)]:
        raise HarpeError(f"{where}: {odd[0]!r} is no name of an option of {method}.")
    fields = {"name": value.get("name", method), "method": method, "options": options}
    return build(
        RowRecipe, {**fields, "title": value.get("title"), "train": value.get("train")}, f"a method of {where}"
    )


def check_recipe(recipe: ComparisonRecipe, where: str) -> None:
    """See that every name is one plain part of a path and different from all others, and that numbers are possible.

    Raises HarpeError naming the first one that cannot be, and what to write instead.
    """
    rows = [row.name for row in recipe.methods]
    check_names(rows, "a method", where)
    for name in rows:
        kind = re.fullmatch(
            r"(seed|stage|checkpoint|environment)(-\d+)?|.*\.(json|jsonl|yaml|lock|partial)", name, re.IGNORECASE
        )
        if name.casefold() in OF_A_RUN or kind:
            raise HarpeError(
                f"{where} has a method named {name}, which is a folder or file of the run; give it another name."
            )
    for row in recipe.methods:
        if row.title is not None and (
            len(row.title) > LONGEST_TITLE or not row.title.strip() or not row.title.isprintable()
        ):
            raise HarpeError(f"{where}: the title of {row.name} has to be one line of 1 to {LONGEST_TITLE} characters.")
    seeds = recipe.seeds
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
        raise HarpeError(f"{where} has the seeds {seeds}; give different numbers from 0 to {LARGEST_SEED}.")
    for suite, settings in asked_suites(recipe.evaluation):
        suite.check(settings, recipe, where)
