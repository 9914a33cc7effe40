"""`harpe perplexity`: prefix curves and sliding windows of one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.data.token_ids import begin_ids
from harpe.distributed.processes import Processes, join
from harpe.errors import HarpeError
from harpe.evaluation.identity import MEASURING, identity_of
from harpe.evaluation.perplexity.curves import (
    prefix_curve,
    prefix_losses,
    prefix_record,
    window_curve,
    window_totals,
)
from harpe.evaluation.perplexity.key_tokens import key_record, key_summary
from harpe.evaluation.records import Records, record_files
from harpe.evaluation.run import HeldOut
from harpe.files import read_json, write_json, write_text
from harpe.measurement import Measurement, records_of, refuse_other
from harpe.models.angles import moving_rope
from harpe.models.dtype import choose_dtype
from harpe.models.head import check_head
from harpe.models.load import load_config, load_model, load_tokenizer, to_accelerator
from harpe.models.vocabulary import check_vocabulary
from harpe.options.measuring import PerplexityOptions
from harpe.ownership import refuse_foreign
from harpe.report.figures.perplexity import ENDINGS, perplexity_figures
from harpe.reporter import Reporter
from harpe.runs.directory import held_scores
from harpe.runs.overlap import training_overlap
from harpe.runs.texts import held_out_texts
from harpe.suites.key_tokens import Judge, check_key_tokens, planned_judge


def parse_lengths(text: str) -> list[int]:
    """Lengths out of `FIRST:LAST:STEP` or `A,B,C`, ascending.

    Raises HarpeError for anything else, and for lengths below two tokens.
    """
    try:
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            if step < 1:
                raise ValueError("lengths ascend")
            lengths = list(range(first, last + 1, step))
        else:
            lengths = sorted({int(part) for part in text.replace(",", " ").split()})
    except ValueError as error:
        raise HarpeError(
            f"--lengths {text} is neither FIRST:LAST:STEP nor numbers with commas between them."
        ) from error
    if not lengths or lengths[0] < 2:
        raise HarpeError(f"--lengths {text} holds no length of at least two tokens.")
    if ":" in text and lengths[-1] != last:
        nearest = f"{first}:{lengths[-1]}:{step} or {first}:{lengths[-1] + step}:{step}"
        raise HarpeError(f"--lengths {text} does not reach {last} in steps of {step}; give {nearest}.")
    return lengths


@dataclass(frozen=True)
class _Work:
    """What the options come to; plain values, which the first process tells the others."""

    lengths: list[int]
    """Empty where a window slides."""
    held_out: HeldOut
    behind: int
    """How many ids the tokenizer begins the documents with; they are left out, for `begin` to stand in their place."""
    begin: tuple[int, ...]
    """What every document and every window begins with."""
    reason: str
    """Of the dtype."""
    judge: Judge | None
    """Of key tokens, where those are asked for."""
    of: Measurement

    @property
    def dtype(self) -> str:
        return str(self.of["dtype"])


def measure_perplexity(options: PerplexityOptions, reporter: Reporter | None = None) -> Path:
    """Measure what `options` asks for; returns the file. Records of documents that lie beside it are not measured
    again.

    Started as several processes, each of them calls this and reads its share of the documents; the first one writes the
    file.

    Raises HarpeError for bad options or input, before any model is loaded; where the file or the records beside it are
    of another measurement, or were not written by harpe.
    """
    ranks = join()
    reporter = (reporter if ranks.first else None) or Reporter()
    path = Path(options.out)
    work = ranks.broadcast_from_rank0(lambda: _planned(options, path, reporter))
    with held_scores(path, ranks):
        _measure(options, path, work, ranks, reporter)
    return path


def _measure(options: PerplexityOptions, path: Path, work: _Work, ranks: Processes, reporter: Reporter) -> None:
    """Measure the documents that are not measured yet, and write the summary."""
    documents = [ids[work.behind :] for ids in work.held_out.documents]
    reporter.say(
        f"{len(documents)} documents of more than {_longest(options, work.lengths)} tokens. Arithmetic in "
        f"{work.reason}."
    )
    records = Records(_records(path), lambda row: int(row["document"]), ranks, reporter.say, work.of)
    if ranks.first and records.rows:
        reporter.say(f"Going on behind the {len(records.rows)} documents that {records.path} holds.")
    missing = [number for number in range(len(documents)) if number not in records.rows]
    if missing:
        before = len(records.rows)
        mine = ranks.share(sorted(missing, key=lambda number: -len(documents[number])))

        def load() -> PreTrainedModel:
            return to_accelerator(check_head(load_model(options.model, torch.float32, options.revision), options.model))

        model = ranks.on_every_rank(load).eval()
        judge = ranks.on_every_rank(lambda: work.judge.load(model) if work.judge else model)
        if moving := moving_rope(model.config):
            reporter.say(
                f"Rope type {moving} rotates by a text's length: every length is read by itself, in one piece."
            )
        with torch.autocast(model.device.type, torch.bfloat16, enabled=work.dtype == "bfloat16"):
            for done, number in enumerate(mine, 1):
                ids = documents[number]
                if work.lengths:
                    losses = prefix_losses(model, [*work.begin, *ids], work.lengths)
                    record = prefix_record(losses, work.lengths)
                    if work.judge:
                        keys = work.judge.keys(judge, number, [*work.begin, *ids], losses[-1])
                        record["key"] = key_record(losses, keys, work.lengths)
                else:
                    totals = window_totals(model, ids, int(options.window or 0), options.stride, work.begin)
                    record = {"nll": [s for s, _ in totals], "tokens": [n for _, n in totals]}
                records.add({"document": number, **record})
                reporter.progress("perplexity", before + done, before + len(mine), ranks.note)
    rows = records.gather()
    if ranks.first:
        _write(options, path, work, rows, reporter)
    ranks.wait()


def _planned(options: PerplexityOptions, path: Path, reporter: Reporter) -> _Work:
    """Check the options, read the texts, and see what is there already."""
    if options.server is not None:
        raise HarpeError(
            "--server: perplexity needs the probability of every token that the model reads, and servers give text. "
            "Leave --server out: the model then runs in this process. `harpe ruler` can ask a server."
        )
    if (options.lengths is None) == (options.window is None):
        raise HarpeError(
            "Give either --lengths (documents cut to each length) or --window (a window that slides over whole "
            "documents)."
        )
    if path.suffix != ".json":
        raise HarpeError(f"--out {options.out} must end in .json; its records and figures are written beside it.")
    lengths = parse_lengths(options.lengths) if options.lengths else []
    check_key_tokens(options, lengths)
    figures = [path.with_name(f"{path.stem}{ending}.svg") for ending in ENDINGS]
    refuse_foreign(path, _records(path), *record_files(_records(path)), *figures)
    tokenizer = load_tokenizer(*options.tokenizer_of(options.model))
    check_vocabulary(load_config(options.model, options.revision), tokenizer, options.model)
    longest = _longest(options, lengths)
    held_out = held_out_texts(options.data, tokenizer, longest, options.documents, options, say=reporter.say)
    own = begin = begin_ids(tokenizer)
    if options.average == "yarn":  # as its script, which asks the tokenizer for BOS, and not whether it sets that
        begin = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    judge = planned_judge(options, tokenizer, [ids[len(own) :] for ids in held_out.documents], longest, begin)
    of = _measurement(options, tokenizer, held_out, lengths, begin)
    if judge is not None:
        of["options"] |= {"key_tokens": judge.identity}
    of, reason = _begun(path, of, options.dtype)
    return _Work(lengths, held_out, len(own), begin, reason, judge, of)


def _longest(options: PerplexityOptions, lengths: list[int]) -> int:
    return lengths[-1] if lengths else int(options.window or 0)


def _write(options: PerplexityOptions, path: Path, work: _Work, rows: list[dict[str, Any]], reporter: Reporter) -> None:
    """The curve and its figures from the documents' records."""
    facts = {"model": Path(work.of["name"]).name, "data": work.held_out.description, "average": options.average}
    value: dict[str, Any] = {**facts, "dtype": work.dtype, "measurement": work.of, "read": work.held_out.read}
    if work.lengths:
        value |= {"kind": "prefixes", **prefix_curve(rows, work.lengths, options.average)}
        if work.judge:
            value["key_tokens"] = work.judge.facts | key_summary(
                [row["key"] for row in rows], work.lengths, work.judge.short_context
            )
    else:
        value |= {"kind": "windows", "window": options.window, "stride": options.stride}
        value |= window_curve(rows, int(options.window or 0), options.stride, options.average, len(work.begin))
        value["documents"] = rows
    tokenizer = load_tokenizer(*options.tokenizer_of(options.model))
    value["overlap"] = training_overlap(options.model, tokenizer, work.held_out, reporter)
    written = [path]
    for ending, figure in perplexity_figures(value).items():
        written.append(path.with_name(f"{path.stem}{ending}.svg"))
        write_text(written[-1], figure)
    write_json(path, value)  # last: a comparison takes its being there for all of it
    if work.judge:
        reporter.say(work.judge.found(value["key_tokens"]))
    reporter.say(f"Written: {', '.join(map(str, written))}")


def _records(path: Path) -> Path:
    """Beside the file, with an ending of its own: NAME.jsonl may be the texts that are measured."""
    return path.with_suffix(".records.jsonl")


def _measurement(
    options: PerplexityOptions,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    lengths: list[int],
    begin: tuple[int, ...],
) -> Measurement:
    """What the records are of, but for the dtype."""
    asked = {"lengths": lengths} if lengths else {"window": options.window, "stride": options.stride}
    identity = identity_of(options.model, options.revision, tokenizer)
    facts = {"options": {**asked, "average": options.average, "begin": list(begin)}}
    return {**identity, "held_out": held_out.identity(), **facts, "measuring": MEASURING["perplexity"]}


def _begun(path: Path, of: Measurement, wanted: str) -> tuple[Measurement, str]:
    """What is measured, with the dtype of the arithmetic, and why in that: a measurement that was begun goes on in its
    own."""
    there = {file: records_of(file) for file in record_files(_records(path))}
    if path.is_file():
        there[path] = read_json(path).get("measurement", {})
    began = next((str(each["dtype"]) for each in there.values() if "dtype" in each), None)
    dtype, reason = choose_dtype(wanted, began, "this measurement")
    # a copy of the model changes no byte
    named = next(({"name": each["name"]} for each in there.values() if "name" in each), {})
    of = {**of, "dtype": dtype, **named}
    for file, each in there.items():
        refuse_other(each, of, file, "Delete it to measure again, or name another file with --out.")
    return of, reason
