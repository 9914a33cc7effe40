"""Whether the names and numbers of a recipe can become folders, files and keys: all of them in one place, before
anything runs."""

from __future__ import annotations

import re

from harpe.comparison.suites.base import check_names
from harpe.comparison.suites.registry import asked_suites
from harpe.errors import HarpeError
from harpe.options.recipe import ComparisonRecipe

LONGEST_TITLE = 80
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""
OF_A_RUN = ("data", "report", "samples", "model", "scores", "positions", "lock")
"""Names of folders and files of a run that a row may not have."""


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
    if (
        not recipe.seeds
        or len(set(recipe.seeds)) != len(recipe.seeds)
        or min(recipe.seeds) < 0
        or max(recipe.seeds) > LARGEST_SEED
    ):
        raise HarpeError(f"{where} has the seeds {recipe.seeds}; give different numbers from 0 to {LARGEST_SEED}.")
    for suite, settings in asked_suites(recipe.evaluation):
        suite.check(settings, where)
