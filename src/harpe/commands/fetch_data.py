"""`harpe fetch-data`: the data that RULER is made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.evaluation.ruler.fetch import fetch
from harpe.evaluation.ruler.sources import SOURCES, DataFolder
from harpe.files import cache_folder
from harpe.options.measuring import FetchDataOptions


def run(options: FetchDataOptions, terminal: Any) -> None:
    """Fetch what is missing. Raises HarpeError naming everything that could not be fetched, after all was tried."""
    names = list(SOURCES) if options.only == "all" else options.only.replace(",", " ").split()
    if unknown := [name for name in names if name not in SOURCES]:
        raise HarpeError(f"--only {', '.join(unknown)} is not known; there are {', '.join(SOURCES)}.")
    folder = Path(options.out) if options.out else cache_folder()
    problems = []
    for name in names:
        try:
            there = DataFolder(folder).find(name) if options.out and folder.is_dir() else DataFolder().find(name)
            terminal.say(f"{name}: there already, {there}")
            continue
        except HarpeError:
            pass
        try:
            terminal.say(f"{name}: fetched into {fetch(name, folder)}")
        except HarpeError as error:
            problems.append(str(error))
    if problems:
        raise HarpeError("\n".join(["Not everything could be fetched:", *problems]))
