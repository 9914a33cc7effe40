"""`harpe ruler` and `harpe fetch-data`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.ruler.answer import answer_task, summary
from harpe.evaluation.ruler.fetch import fetch
from harpe.evaluation.ruler.generate import RulerGenerator
from harpe.evaluation.ruler.sources import SOURCES, DataFolder, cache_folder
from harpe.evaluation.ruler.tasks import RulerTask, chosen
from harpe.evaluation.ruler.templates import template_of
from harpe.experiment.directory import settled_dtype
from harpe.experiment.evaluation_options import FetchDataOptions, RulerOptions
from harpe.experiment.reporter import Reporter
from harpe.files import append_jsonl, read_json, read_jsonl, sha256_json, write_json, write_jsonl
from harpe.models.geometry import text_config
from harpe.models.load import check_vocabulary, load_config, load_model, load_tokenizer, to_accelerator


def any_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of a folder that holds a tokenizer and nothing else."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise HarpeError(f"--tokenizer {name}: no tokenizer could be loaded from it ({str(error).splitlines()[0]}).") from error
    return load_tokenizer(name, revision)


def run_ruler(options: RulerOptions, reporter: Reporter | None = None) -> Path:
    """Write the samples that `options` asks for, and answer them where it names a model; returns the folder.

    Raises
    ------
    HarpeError
        For unknown tasks and formats, missing data, lengths that a task cannot be made with or that the model was not made for, and a
        folder that holds something else.
    """
    reporter = reporter or Reporter()
    tasks = chosen(options.tasks.replace(",", " ").split())
    for task in tasks:
        template_of(task.kind, options.template)
    named = options.tokenizer or options.model
    if named is None:
        raise HarpeError("Neither --tokenizer nor --model is given: name the tokenizer in whose tokens lengths are counted.")
    tokenizer = any_tokenizer(named, options.revision if options.tokenizer is None or options.model is None else None)
    if options.model is not None:
        _check_model(options, tokenizer, reporter)
    folder = Path(options.out)
    _check_folder(folder, options, tokenizer)
    generator = RulerGenerator(tokenizer, DataFolder(options.data))
    for done, task in enumerate(tasks):
        reporter.progress("RULER", done, len(tasks), task.name)
        if not (folder / f"{task.name}.jsonl").is_file():
            generator.write(task, options.length, options.samples, folder, options.seed, options.template)
    reporter.progress("RULER", len(tasks), len(tasks))
    reporter.say(f"{options.samples} samples of {len(tasks)} tasks at {options.length} tokens are in {folder}.")
    if options.model is not None:
        _answer(options, tokenizer, tasks, folder, reporter)
    return folder


def _check_model(options: RulerOptions, tokenizer: PreTrainedTokenizerBase, reporter: Reporter) -> None:
    config = load_config(str(options.model), options.revision)
    check_vocabulary(config, tokenizer, str(options.model))
    context = text_config(config).max_position_embeddings
    if options.length > context and not options.beyond_context:
        raise HarpeError(
            f"--length {options.length} is beyond the {context} tokens that {options.model} states as its context. Give --beyond-context "
            "to ask it all the same."
        )
    if options.length > context:
        reporter.say(f"{options.model} states a context of {context} tokens; it is asked at {options.length}, beyond it.")


def _check_folder(folder: Path, options: RulerOptions, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep beside the samples what they are made from, and refuse a folder that holds others."""
    vocabulary = sha256_json(sorted(tokenizer.get_vocab().items()))
    value = {"length": options.length, "samples": options.samples, "seed": options.seed, "template": options.template}
    value |= {"vocabulary": vocabulary, "model": options.model and Path(options.model).name, "revision": options.revision}
    path = folder / "protocol.json"
    if path.is_file() and {k: v for k, v in read_json(path).items() if k != "schema_version"} != value:
        raise HarpeError(f"--out {folder} holds samples that were made in another way (see protocol.json there). Name another folder.")
    write_json(path, value)


def _answer(options: RulerOptions, tokenizer: PreTrainedTokenizerBase, tasks: list[RulerTask], folder: Path, reporter: Reporter) -> None:
    """Write answers.jsonl and ruler.json."""
    path = folder / "answers.jsonl"
    rows = read_jsonl(path) if path.is_file() else []
    if path.is_file():
        if len(rows) < len(path.read_text(encoding="utf-8").splitlines()):
            reporter.say(f"The last line of {path} was cut short; its sample is answered again.")
        write_jsonl(path, rows)
    dtype, reason = settled_dtype(options.dtype, folder / "ruler.json", "dtype")
    reporter.say(f"Arithmetic in {reason}.")
    model = to_accelerator(load_model(str(options.model), torch.float32, options.revision))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        for task in tasks:
            samples = read_jsonl(folder / f"{task.name}.jsonl")
            done = {row["sample"] for row in rows if row["task"] == task.name}
            reporter.progress(task.name, len(done), len(samples))
            for batch in answer_task(model, tokenizer, task, samples, options.batch_tokens, done):
                for record in batch:
                    if record["sample"] not in done:
                        append_jsonl(path, record)
                        rows.append(record)
                        done.add(record["sample"])
                reporter.progress(task.name, len(done), len(samples))
    write_json(folder / "ruler.json", {"length": options.length, "dtype": dtype, **summary(rows)})


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
