"""Samples in files, written once and then answered: the way of `harpe ruler` and `harpe long`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.token_ids import tokens_around
from harpe.distributed.processes import join, world_size
from harpe.errors import HarpeError
from harpe.evaluation.against import WRITTEN, check_answers, compare_answers
from harpe.evaluation.identity import MEASURING, identity_of, reading_identity
from harpe.evaluation.records import record_files
from harpe.evaluation.server import CompletionServer
from harpe.files import read_json, sha256_file, write_json, write_text
from harpe.measurement import Measurement, refuse_other
from harpe.models.dtype import choose_dtype
from harpe.models.geometry import text_config
from harpe.models.load import load_config, load_tokenizer
from harpe.models.vocabulary import check_vocabulary
from harpe.options.measuring import AnswerOptions
from harpe.ownership import refuse_foreign
from harpe.reporter import Reporter
from harpe.runs.directory import held_scores
from harpe.suites.answers import write_answers
from harpe.suites.asking import Asking

ADVICE = "Name another folder with --out, or delete this one to begin anew."
MOVED = "Where it is the same server in another place, give it the address that it had (a tunnel does). " + ADVICE


def server_of(options: AnswerOptions) -> CompletionServer | None:
    """The server that answers, if one is named, after a look at the options that go with it."""
    if options.server is None:
        return None
    if options.model is None or options.tokenizer is None:
        raise HarpeError(
            "--server needs --model, the name that the server gives the model, and --tokenizer, in whose tokens "
            "lengths are counted."
        )
    if options.requests < 1:
        raise HarpeError(f"--requests {options.requests}: at least one request at a time has to be made.")
    if world_size() > 1:
        raise HarpeError(
            "--server is asked by one process, --requests at a time; start harpe without a launcher of several "
            "processes."
        )
    return CompletionServer(options.server, options.model, options.endpoint)


def tokenizer_for(options: AnswerOptions) -> PreTrainedTokenizerBase:
    """The tokenizer in whose tokens lengths are counted."""
    named = options.tokenizer or options.model
    if named is None:
        raise HarpeError(
            "Neither --tokenizer nor --model is given: name the tokenizer in whose tokens lengths are counted."
        )
    return load_tokenizer(named, options.revision if options.tokenizer is None or options.model is None else None)


def ask(
    asking: Asking, tokenizer: PreTrainedTokenizerBase, server: CompletionServer | None, reporter: Reporter
) -> Path:
    """Write the samples that are not there yet, and answer them where a model is named; returns the folder.

    Raises HarpeError for missing data, lengths that a task cannot be made with or that the model was not made for, and
    a folder that holds something else.
    """
    options, folder = asking.options, asking.folder
    ranks = join()
    reporter = reporter if ranks.first else Reporter()
    if server is not None:
        _check_server(asking, tokenizer, server, reporter)
    elif options.model is not None:
        _check_model(asking, tokenizer, reporter)
    with held_scores(folder, ranks):
        of, reason = ranks.broadcast_from_rank0(lambda: _write_samples(asking, tokenizer, server, reporter))
        names = [each.name for each in asking.asked]
        if options.against is not None:
            against = Path(options.against)
            ranks.broadcast_from_rank0(lambda: check_answers(asking.verb, against, folder, names, asking.file_of))
        if of is not None:
            write_answers(asking, tokenizer, server, of, reason, ranks, reporter)
    if options.against is not None and ranks.first:
        compare_answers(asking.verb, Path(options.against), folder, names, asking.file_of)
    return folder


def _write_samples(
    asking: Asking, tokenizer: PreTrainedTokenizerBase, server: CompletionServer | None, reporter: Reporter
) -> tuple[Measurement | None, str]:
    """Samples that are not there yet; returns what their answers are of, and why in that dtype, where answers are asked
    for.

    protocol.json names every file of samples by its hash, before it is written: the published format has no place for a
    mark.
    """
    options, folder = asking.options, asking.folder
    path, answers = folder / "protocol.json", record_files(folder / "answers.jsonl")
    refuse_foreign(path, *asking.results, *answers, *(folder / name for name in WRITTEN if options.against is not None))
    there = {key: value for key, value in read_json(path).items() if key != "schema_version"} if path.is_file() else {}
    samples = asking.samples | {"tokenizer": reading_identity(tokenizer)}
    if there:
        refuse_other({"samples": there.get("samples")}, {"samples": samples}, folder, ADVICE)
    hashes: dict[str, str] = there.get("files", {})
    names = sorted({each.name for each in asking.asked} | hashes.keys(), key=asking.place)
    for name in names:
        _check_samples(folder / f"{name}.jsonl", hashes.get(name))
    of, reason = _answers_of(asking, tokenizer, samples, there, server)
    if of is not None and "answers" in there:
        refuse_other(there["answers"], of, folder, MOVED if "server" in of and "server" in there["answers"] else ADVICE)
    value: dict[str, Any] = {"samples": samples, "files": hashes}
    if of or "answers" in there:
        value["answers"] = there.get("answers", of)
    for done, name in enumerate(names):
        reporter.progress(asking.title, done, len(names), name)
        if not (file := folder / f"{name}.jsonl").is_file():
            text = asking.text(name)
            digest = hashlib.sha256(text.encode()).hexdigest()
            if hashes.setdefault(name, digest) != digest:
                raise HarpeError(
                    f"The samples of {name} would not be those that were in {folder}: the data are others now. {ADVICE}"
                )
            value["files"] = {each: hashes[each] for each in names if each in hashes}
            write_json(path, value)
            write_text(file, text)
    write_json(path, value)
    reporter.progress(asking.title, len(names), len(names))
    reporter.say(f"{asking.told(len(names))} are in {folder}.")
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
    asking: Asking,
    tokenizer: PreTrainedTokenizerBase,
    samples: dict[str, Any],
    there: Measurement,
    server: CompletionServer | None,
) -> tuple[Measurement | None, str]:
    """What the answers are of, and why in that dtype: answers that were begun go on in theirs."""
    options = asking.options
    if options.model is None:
        return None, ""
    facts = {"samples": samples, "measuring": MEASURING[asking.verb]}
    if server is not None:
        known = "by its name alone: which weights answered is not known"
        named = {"name": options.model, "model": {"at_server": options.model, "known": known}, "server": server.shown}
        return {**named, "options": {"endpoint": options.endpoint}, **facts}, ""
    began = there.get("answers", {}).get("dtype")
    dtype, reason = choose_dtype(options.dtype, began, "these answers")
    facts["answers"] = "full" if options.full_answers else "until the score is decided"
    return {**identity_of(options.model, options.revision, tokenizer), "dtype": dtype, **facts}, reason


def _check_server(
    asking: Asking, tokenizer: PreTrainedTokenizerBase, server: CompletionServer, reporter: Reporter
) -> None:
    options, (told, longest) = asking.options, asking.longest
    models = server.models()
    context = models.get(str(options.model))
    if context is not None and longest > context:
        raise HarpeError(
            f"{told} is beyond the {context} tokens that the server takes for {options.model}. "
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


def _check_model(asking: Asking, tokenizer: PreTrainedTokenizerBase, reporter: Reporter) -> None:
    options, (told, longest) = asking.options, asking.longest
    config = load_config(str(options.model), options.revision)
    check_vocabulary(config, tokenizer, str(options.model))
    context = text_config(config).max_position_embeddings
    if longest > context and not options.beyond_context:
        raise HarpeError(
            f"{told} is beyond the {context} tokens that {options.model} states as its context. "
            "Give --beyond-context to ask it all the same."
        )
    if longest > context:
        reporter.say(f"{options.model} states a context of {context} tokens; it is asked at {longest}, beyond it.")
