"""`harpe ruler` and `harpe fetch-data`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.token_ids import tokens_around
from harpe.distributed.processes import join, world_size
from harpe.errors import HarpeError
from harpe.evaluation.against import WRITTEN, compare_ruler
from harpe.evaluation.identity import MEASURING, identity_of, reading_identity
from harpe.evaluation.records import record_files
from harpe.evaluation.ruler.generate import RulerGenerator
from harpe.evaluation.ruler.sources import DataFolder
from harpe.evaluation.ruler.tasks import RULER_TASKS, RulerTask, chosen
from harpe.evaluation.ruler.templates import template_of
from harpe.evaluation.server import CompletionServer
from harpe.files import read_json, sha256_file, write_json, write_text
from harpe.measurement import Measurement, refuse_other
from harpe.models.dtype import choose_dtype
from harpe.models.geometry import text_config
from harpe.models.load import load_config, load_tokenizer
from harpe.models.vocabulary import check_vocabulary
from harpe.options.measuring import RulerOptions
from harpe.ownership import refuse_foreign
from harpe.reporter import Reporter
from harpe.runs.directory import held_scores
from harpe.suites.ruler_answers import write_answers

ADVICE = "Name another folder with --out, or delete this one to begin anew."
MOVED = "Where it is the same server in another place, give it the address that it had (a tunnel does). " + ADVICE


def run_ruler(options: RulerOptions, reporter: Reporter | None = None) -> Path:
    """Write the samples that `options` asks for, and answer them where it names a model; returns the folder.

    Raises HarpeError for unknown tasks and formats, missing data, lengths that a task cannot be made with or that the
    model was not made for, and a folder that holds something else.
    """
    reporter = reporter or Reporter()
    tasks = chosen(options.tasks.replace(",", " ").split())
    for task in tasks:
        template_of(task.kind, options.template)
    server = _server(options) if options.server is not None else None
    named = options.tokenizer or options.model
    if named is None:
        raise HarpeError(
            "Neither --tokenizer nor --model is given: name the tokenizer in whose tokens lengths are counted."
        )
    tokenizer = load_tokenizer(named, options.revision if options.tokenizer is None or options.model is None else None)
    ranks = join()
    reporter = reporter if ranks.first else Reporter()
    if server is not None:
        _check_server(options, tokenizer, server, reporter)
    elif options.model is not None:
        _check_model(options, tokenizer, reporter)
    folder = Path(options.out)
    with held_scores(folder, ranks):
        of, reason = ranks.broadcast_from_rank0(
            lambda: _write_samples(options, tokenizer, tasks, folder, server, reporter)
        )
        if of is not None:
            write_answers(options, tokenizer, tasks, folder, server, of, reason, ranks, reporter)
    if options.against is not None and ranks.first:
        compare_ruler(Path(options.against), folder, [task.name for task in tasks])
    return folder


def _write_samples(
    options: RulerOptions,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[RulerTask],
    folder: Path,
    server: CompletionServer | None,
    reporter: Reporter,
) -> tuple[Measurement | None, str]:
    """Samples that are not there yet; returns what their answers are of, and why in that dtype, where answers are asked
    for.

    protocol.json names every file of samples by its hash, before it is written: the published format has no place for a
    mark.
    """
    path, files, answers = folder / "protocol.json", folder / "ruler.json", record_files(folder / "answers.jsonl")
    refuse_foreign(path, files, *answers, *(folder / name for name in WRITTEN if options.against is not None))
    there = {key: value for key, value in read_json(path).items() if key != "schema_version"} if path.is_file() else {}
    samples = {"length": options.length, "samples": options.samples, "seed": options.seed, "template": options.template}
    samples |= {"tokenizer": reading_identity(tokenizer)}
    if there:
        refuse_other({"samples": there.get("samples")}, {"samples": samples}, folder, ADVICE)
    hashes: dict[str, str] = there.get("files", {})
    wanted = [task for task in RULER_TASKS.values() if task in tasks or task.name in hashes]
    for task in wanted:
        _check_samples(folder / f"{task.name}.jsonl", hashes.get(task.name))
    of, reason = _answers_of(options, tokenizer, samples, there, server)
    if of is not None and "answers" in there:
        refuse_other(there["answers"], of, folder, MOVED if "server" in of and "server" in there["answers"] else ADVICE)
    value = {"samples": samples, "files": hashes}
    if of or "answers" in there:
        value["answers"] = there.get("answers", of)
    generator = RulerGenerator(tokenizer, DataFolder(options.data))
    for done, task in enumerate(wanted):
        reporter.progress("RULER", done, len(wanted), task.name)
        if not (file := folder / f"{task.name}.jsonl").is_file():
            text = generator.text(task, options.length, options.samples, options.seed, options.template)
            digest = hashlib.sha256(text.encode()).hexdigest()
            if hashes.setdefault(task.name, digest) != digest:
                raise HarpeError(
                    f"The samples of {task.name} would not be those that were in {folder}: the data are others now. "
                    f"{ADVICE}"
                )
            write_json(path, value)
            write_text(file, text)
    write_json(path, value)
    reporter.progress("RULER", len(wanted), len(wanted))
    reporter.say(f"{options.samples} samples of {len(wanted)} tasks at {options.length} tokens are in {folder}.")
    return of, reason


def _check_samples(file: Path, digest: str | None) -> None:
    if os.path.lexists(file):
        if digest is None or not file.is_file():
            raise HarpeError(
                f"{file} is there already, and harpe did not write it: it is neither overwritten nor answered. Name "
                "another --out."
            )
        if sha256_file(file) != digest:
            raise HarpeError(
                f"{file} was changed after harpe had written it (see protocol.json there). Delete it, or name another "
                "--out."
            )
    else:
        refuse_foreign(file)


def _answers_of(
    options: RulerOptions,
    tokenizer: PreTrainedTokenizerBase,
    samples: dict[str, Any],
    there: Measurement,
    server: CompletionServer | None,
) -> tuple[Measurement | None, str]:
    """What the answers are of, and why in that dtype: answers that were begun go on in theirs."""
    if options.model is None:
        return None, ""
    facts = {"samples": samples, "measuring": MEASURING["ruler"]}
    if server is not None:
        known = "by its name alone: which weights answered is not known"
        named = {"name": options.model, "model": {"at_server": options.model, "known": known}, "server": server.shown}
        return {**named, "options": {"endpoint": options.endpoint}, **facts}, ""
    began = there.get("answers", {}).get("dtype")
    dtype, reason = choose_dtype(options.dtype, began, "these answers")
    return {**identity_of(options.model, options.revision, tokenizer), "dtype": dtype, **facts}, reason


def _server(options: RulerOptions) -> CompletionServer:
    """The server that answers, after a look at the options that go with it."""
    if options.model is None or options.tokenizer is None:
        raise HarpeError(
            "--server needs --model, the name that the server gives the model, and --tokenizer, in whose tokens "
            "lengths are counted."
        )
    if options.endpoint == "chat" and options.template != "base":
        raise HarpeError(
            f"--endpoint chat puts the server's own chat format around the prompt; --template {options.template} would "
            "be a second one."
        )
    if options.requests < 1:
        raise HarpeError(f"--requests {options.requests}: at least one request at a time has to be made.")
    if world_size() > 1:
        raise HarpeError(
            "--server is asked by one process, --requests at a time; start harpe without a launcher of several "
            "processes."
        )
    return CompletionServer(str(options.server), options.model, options.endpoint)


def _check_server(
    options: RulerOptions, tokenizer: PreTrainedTokenizerBase, server: CompletionServer, reporter: Reporter
) -> None:
    models = server.models()
    context = models.get(str(options.model))
    if context is not None and options.length > context:
        raise HarpeError(
            f"--length {options.length} is beyond the {context} tokens that the server takes for {options.model}. "
            "Start it with more (vLLM: --max-model-len)."
        )
    if ends := tokens_around(tokenizer)[1]:
        reporter.say(
            f"The tokenizer sets {tokenizer.decode(list(ends))} behind every text. A server sets it behind the prompts "
            "too, and answers are worth nothing then: serve the model with a tokenizer that does not (add_eos_token "
            "false)."
        )
    if models and options.model not in models:
        reporter.say(
            f"The server lists {', '.join(models)}, and not {options.model}, which it is asked for all the same."
        )


def _check_model(options: RulerOptions, tokenizer: PreTrainedTokenizerBase, reporter: Reporter) -> None:
    config = load_config(str(options.model), options.revision)
    check_vocabulary(config, tokenizer, str(options.model))
    context = text_config(config).max_position_embeddings
    if options.length > context and not options.beyond_context:
        raise HarpeError(
            f"--length {options.length} is beyond the {context} tokens that {options.model} states as its context. "
            "Give --beyond-context to ask it all the same."
        )
    if options.length > context:
        reporter.say(
            f"{options.model} states a context of {context} tokens; it is asked at {options.length}, beyond it."
        )
