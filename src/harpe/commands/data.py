"""What a folder of prepared training data holds: `harpe data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from harpe.data.boundaries import Boundary, boundaries
from harpe.data.packed import PackedDataset
from harpe.data.packing import tokenizer_identity
from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.models.load import load_tokenizer
from harpe.options.runs import DataOptions
from harpe.options.shared import ModelOptions
from harpe.report.prepared_page import check_place, write_prepared_page
from harpe.report.prepared_terminal import prepared_tables
from harpe.report.read.prepared import Prepared, read_prepared
from harpe.report.wording import printable
from harpe.reporter import Reporter

RUN_ABOVE = 3
"""A run keeps its data in RUN/data/LENGTH, a comparison in RUN/data/seed-SEED/LENGTH."""


def describe(options: DataOptions, reporter: Reporter | None = None) -> tuple[Prepared, Path]:
    """Count what the folder holds, decode some boundaries, and write page and figures; returns what was found, and the
    page.

    Raises HarpeError for a folder that holds no prepared data or damaged ones, a length that cannot be cut from its
    sequences, and a place that holds something else or cannot be written to.
    """
    refuse_several("harpe data", "one process counts what the folder holds.")
    reporter = reporter or Reporter()
    folder = Path(options.folder).expanduser()
    _refuse_run(folder)
    data = PackedDataset(folder, options.length or None)
    out = Path(options.out).expanduser() if options.out else data.path / "report"
    check_place(out)
    shown, why = _boundaries(data, options)
    value = read_prepared(data, shown, why)
    page = write_prepared_page(value, out)
    if why:
        reporter.say(f"No boundaries of documents are shown: {printable(why)}")
    return value, page


def _refuse_run(folder: Path) -> None:
    """Say of a run directory which of its folders are meant."""
    inside = [index.parent for depth in ("*", "*/*") for index in sorted((folder / "data").glob(f"{depth}/index.json"))]
    if inside and not (folder / "index.json").is_file():
        named = ", ".join(map(str, inside))
        raise HarpeError(f"{folder} is a run directory. Name the folder of its training data: {named}.")


def _boundaries(data: PackedDataset, options: DataOptions) -> tuple[list[Boundary], str]:
    """The boundaries that are shown, or why none are."""
    if len(data.starts) == 1:
        return [], "The stream is one document."
    named = (options.tokenizer, options.revision) if options.tokenizer else _named(data)
    if named is None:
        return [], "Neither the index nor a run around it says which tokenizer made the tokens; name it by --tokenizer."
    try:
        tokenizer = load_tokenizer(*named)
    except HarpeError as error:
        return [], f"{str(error).rstrip('.')}. Name the one that made the tokens by --tokenizer."
    if tokenizer_identity(tokenizer) != data.index.get("tokenizer"):
        return [], (
            f"The tokenizer of {named[0]} is not the one that made the tokens: the index has another class, vocabulary "
            "or SHA-256. Name that one by --tokenizer."
        )
    return boundaries(data, tokenizer), ""


def _named(data: PackedDataset) -> tuple[str, str | None] | None:
    """Name and revision of the tokenizer in the options of `harpe prepare`, or of the run that the folder lies in."""
    told = data.index.get("options")
    if not isinstance(told, dict):
        runs = (parent for parent in list(data.path.parents)[1:RUN_ABOVE] if (parent / "recipe.yaml").is_file())
        told = next(map(_of_run, runs), {})
    model, tokenizer, revision = (told.get(key) for key in ("model", "tokenizer", "revision"))
    if not all(isinstance(each, str | None) for each in (model, tokenizer, revision)) or not (tokenizer or model):
        return None
    return ModelOptions(tokenizer=tokenizer, revision=revision).tokenizer_of(model or "")


def _of_run(run: Path) -> dict[str, Any]:
    """The recipe of a run, and the model in its plan, which a quickstart's recipe does not name; nothing where they
    cannot be read, since only a name is wanted of them."""
    found: dict[str, Any] = {}
    for name, read in (("plan.json", _model_of_plan), ("recipe.yaml", yaml.safe_load)):
        try:
            found |= read((run / name).read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue
    return found


def _model_of_plan(text: str) -> dict[str, Any]:
    model = json.loads(text)["model"]
    return {"model": model["name"], "revision": model.get("revision")}


def run(options: DataOptions, terminal: Any) -> None:
    """Print what the folder holds, and say where the page is."""
    value, page = describe(options, terminal)
    for table in prepared_tables(value):
        terminal.table(table)
    terminal.say(f"The page: {page}")
