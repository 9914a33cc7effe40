"""Whether the names and numbers of a recipe can become folders, files and keys: all of them in one place, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harpe.errors import HarpeError
from harpe.suites.perplexity import parse_lengths

if TYPE_CHECKING:
    from harpe.options.recipe import ComparisonRecipe, EvaluationRecipe

LONGEST = 64
"""Characters of a name: files that are made from it have endings, and file systems take 255 bytes."""
LONGEST_TITLE = 80
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""
OF_A_RUN = ("data", "report", "samples", "model", "scores", "positions", "lock")
"""Names of folders and files of a run that a row may not have."""
FIGURES = "-positions"
"""`harpe perplexity` writes NAME.svg and NAME-positions.svg."""


def check_names(recipe: ComparisonRecipe, where: str) -> None:
    """See that every name is one plain part of a path and different from all others, and that numbers are possible.

    Raises
    ------
    HarpeError
        Naming the first one that cannot be, and what to write instead.
    """
    rows, of = [row.name for row in recipe.methods], recipe.evaluation
    _check(rows, "a method", where)
    for name in rows:
        kind = re.fullmatch(r"(seed|stage|checkpoint|environment)(-\d+)?|.*\.(json|jsonl|yaml|lock|partial)", name, re.IGNORECASE)
        if name.casefold() in OF_A_RUN or kind:
            raise HarpeError(f"{where} has a method named {name}, which is a folder or file of the run; give it another name.")
    for row in recipe.methods:
        if row.title is not None and (len(row.title) > LONGEST_TITLE or not row.title.strip() or not row.title.isprintable()):
            raise HarpeError(f"{where}: the title of {row.name} has to be one line of 1 to {LONGEST_TITLE} characters.")
    _check(list(of.perplexity), "a corpus (perplexity)", where)
    for name in of.perplexity:
        if f"{name}{FIGURES}".casefold() in map(str.casefold, of.perplexity):
            raise HarpeError(f"{where} has the corpora {name} and {name}{FIGURES}, whose figures have one name; rename one of them.")
    if of.short is not None:
        _check(tasks := of.short.tasks.replace(",", " ").split(), "a task (short)", where)
        if "mean" in tasks:
            raise HarpeError(f"{where} has a short benchmark named mean, which is what their mean is called.")
    if not recipe.seeds or len(set(recipe.seeds)) != len(recipe.seeds) or min(recipe.seeds) < 0 or max(recipe.seeds) > LARGEST_SEED:
        raise HarpeError(f"{where} has the seeds {recipe.seeds}; give different numbers from 0 to {LARGEST_SEED}.")
    _check_numbers(of, where)


def _check(names: Sequence[str], what: str, where: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise HarpeError(f"{where} has {what} named {name!r}, which YAML takes for no text; write it in quotes.")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name.endswith("."):
            raise HarpeError(
                f"{where} has {what} named {name!r}; a name has letters, digits, dots, - and _ only, and begins with a letter or digit."
            )
        if len(name) > LONGEST:
            raise HarpeError(f"{where} has {what} with a name of {len(name)} characters ({name[:20]}…); {LONGEST} are allowed.")
        same = seen.setdefault(name.casefold(), name)
        if same != name:
            raise HarpeError(f"{where} has {same} and {name}, which are one name on many disks; give one of the two another name.")
    for name in names:
        if list(names).count(name) > 1:
            raise HarpeError(f"{where} names {name} twice; give one of the two another name (name: …), or leave it out.")


def _check_numbers(of: EvaluationRecipe, where: str) -> None:
    counts = [("documents", of.documents, 1), ("samples", of.samples, 0), ("grid_samples", of.grid_samples, 0)]
    if of.ruler is not None:
        lengths = of.ruler.lengths
        if not lengths or len(set(lengths)) != len(lengths) or min(lengths) < 1:
            raise HarpeError(f"{where} has the RULER lengths {lengths}; give different numbers of tokens.")
        counts.append(("samples of ruler", of.ruler.samples, 1))
    if of.short is not None and of.short.limit is not None:
        counts.append(("limit of short", of.short.limit, 1))
    for name, each in of.perplexity.items():
        if (each.lengths is None) == (each.window is None):
            raise HarpeError(f"{where}: the corpus {name} needs either lengths or a window.")
        if each.lengths is not None:
            parse_lengths(each.lengths)
        elif not 1 <= each.stride < int(each.window or 0):
            raise HarpeError(f"{where}: the corpus {name} needs a stride of at least 1 and less than the window.")
        counts.append((f"documents of {name}", each.documents, 1))
    for what, number, least in counts:
        if number < least:
            raise HarpeError(f"{where} has {number} {what}; the least is {least}.")
