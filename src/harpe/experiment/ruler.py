"""`harpe ruler` and `harpe fetch-data`."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.ruler.fetch import fetch
from harpe.evaluation.ruler.generate import RulerGenerator
from harpe.evaluation.ruler.sources import SOURCES, DataFolder, cache_folder
from harpe.evaluation.ruler.tasks import chosen
from harpe.evaluation.ruler.templates import template_of
from harpe.experiment.evaluation_options import FetchDataOptions, RulerOptions
from harpe.experiment.reporter import Reporter
from harpe.models.load import load_tokenizer


def any_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of a folder that holds a tokenizer and nothing else."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise HarpeError(f"--tokenizer {name}: no tokenizer could be loaded from it ({str(error).splitlines()[0]}).") from error
    return load_tokenizer(name, revision)


def write_ruler(options: RulerOptions, reporter: Reporter | None = None) -> Path:
    """Write the samples that `options` asks for; returns the folder.

    Raises
    ------
    HarpeError
        For unknown tasks and formats, missing data, and lengths that a task cannot be made with.
    """
    reporter = reporter or Reporter()
    tasks = chosen(options.tasks.replace(",", " ").split())
    for task in tasks:
        template_of(task.kind, options.template)
    generator = RulerGenerator(any_tokenizer(options.tokenizer, options.revision), DataFolder(options.data))
    folder = Path(options.out)
    for done, task in enumerate(tasks):
        reporter.progress("RULER", done, len(tasks), task.name)
        generator.write(task, options.length, options.samples, folder, options.seed, options.template)
    reporter.progress("RULER", len(tasks), len(tasks))
    reporter.say(f"{options.samples} samples of {len(tasks)} tasks at {options.length} tokens are in {folder}.")
    return folder


def fetch_data(options: FetchDataOptions, reporter: Reporter | None = None) -> None:
    """Fetch what is missing.

    Raises
    ------
    HarpeError
        Naming everything that could not be fetched, after all was tried.
    """
    reporter = reporter or Reporter()
    names = list(SOURCES) if options.only == "all" else options.only.replace(",", " ").split()
    if unknown := [name for name in names if name not in SOURCES]:
        raise HarpeError(f"--only {', '.join(unknown)} is not known; there are {', '.join(SOURCES)}.")
    folder = Path(options.out) if options.out else cache_folder()
    problems = []
    for name in names:
        try:
            there = DataFolder(folder).find(name) if options.out and folder.is_dir() else DataFolder().find(name)
            reporter.say(f"{name}: there already, {there}")
            continue
        except HarpeError:
            pass
        try:
            reporter.say(f"{name}: fetched into {fetch(name, folder)}")
        except HarpeError as error:
            problems.append(str(error))
    if problems:
        raise HarpeError("\n".join(["Not everything could be fetched:", *problems]))
