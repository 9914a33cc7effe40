"""`harpe ruler` and `harpe fetch-data`."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harpe.data.token_ids import tokens_around
from harpe.errors import HarpeError
from harpe.evaluation.processes import join, world_size
from harpe.evaluation.ruler.fetch import fetch
from harpe.evaluation.ruler.generate import RulerGenerator
from harpe.evaluation.ruler.sources import SOURCES, DataFolder, cache_folder
from harpe.evaluation.ruler.tasks import RulerTask, chosen
from harpe.evaluation.ruler.templates import template_of
from harpe.evaluation.server import CompletionServer
from harpe.experiment.against import compare_ruler
from harpe.experiment.evaluation_options import FetchDataOptions, RulerOptions
from harpe.experiment.reporter import Reporter
from harpe.experiment.ruler_answers import write_answers
from harpe.files import read_json, sha256_json, write_json
from harpe.models.geometry import text_config
from harpe.models.load import load_config, load_tokenizer
from harpe.models.vocabulary import check_vocabulary


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
    server = _server(options) if options.server is not None else None
    named = options.tokenizer or options.model
    if named is None:
        raise HarpeError("Neither --tokenizer nor --model is given: name the tokenizer in whose tokens lengths are counted.")
    tokenizer = load_tokenizer(named, options.revision if options.tokenizer is None or options.model is None else None)
    team = join()
    reporter = reporter if team.first else Reporter()
    if server is not None:
        _check_server(options, tokenizer, server, reporter)
    elif options.model is not None:
        _check_model(options, tokenizer, reporter)
    folder = Path(options.out)
    team.from_first(lambda: _write_samples(options, tokenizer, tasks, folder, reporter))
    if options.model is not None:
        write_answers(options, tokenizer, tasks, folder, server, team, reporter)
    if options.against is not None and team.first:
        compare_ruler(Path(options.against), folder, [task.name for task in tasks])
    return folder


def _write_samples(
    options: RulerOptions, tokenizer: PreTrainedTokenizerBase, tasks: list[RulerTask], folder: Path, reporter: Reporter
) -> None:
    _check_folder(folder, options, tokenizer)
    generator = RulerGenerator(tokenizer, DataFolder(options.data))
    for done, task in enumerate(tasks):
        reporter.progress("RULER", done, len(tasks), task.name)
        if not (folder / f"{task.name}.jsonl").is_file():
            generator.write(task, options.length, options.samples, folder, options.seed, options.template)
    reporter.progress("RULER", len(tasks), len(tasks))
    reporter.say(f"{options.samples} samples of {len(tasks)} tasks at {options.length} tokens are in {folder}.")


def _server(options: RulerOptions) -> CompletionServer:
    """The server that answers, after a look at the options that go with it."""
    if options.model is None or options.tokenizer is None:
        raise HarpeError(
            "--server needs --model, the name that the server gives the model, and --tokenizer, in whose tokens lengths are counted."
        )
    if options.endpoint == "chat" and options.template != "base":
        raise HarpeError(
            f"--endpoint chat puts the server's own chat format around the prompt; --template {options.template} would be a second one."
        )
    if options.requests < 1:
        raise HarpeError(f"--requests {options.requests}: at least one request at a time has to be made.")
    if world_size() > 1:
        raise HarpeError("--server is asked by one process, --requests at a time; start harpe without a launcher of several processes.")
    return CompletionServer(str(options.server), options.model, options.endpoint)


def _check_server(options: RulerOptions, tokenizer: PreTrainedTokenizerBase, server: CompletionServer, reporter: Reporter) -> None:
    models = server.models()
    context = models.get(str(options.model))
    if context is not None and options.length > context:
        raise HarpeError(
            f"--length {options.length} is beyond the {context} tokens that the server takes for {options.model}. Start it with more "
            "(vLLM: --max-model-len)."
        )
    if ends := tokens_around(tokenizer)[1]:
        reporter.say(
            f"The tokenizer sets {tokenizer.decode(list(ends))} behind every text. A server sets it behind the prompts too, and answers "
            "are worth nothing then: serve the model with a tokenizer that does not (add_eos_token false)."
        )
    if models and options.model not in models:
        reporter.say(f"The server lists {', '.join(models)}, and not {options.model}, which it is asked for all the same.")


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
    if options.server is not None:
        value["endpoint"] = options.endpoint
    path = folder / "protocol.json"
    if not path.is_file():
        write_json(path, value)
    elif {k: v for k, v in read_json(path).items() if k not in ("schema_version", "dtype")} != value:
        raise HarpeError(f"--out {folder} holds samples that were made in another way (see protocol.json there). Name another folder.")


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
