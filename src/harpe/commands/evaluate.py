"""Evaluate a checkpoint, or every model of a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.distributed.processes import Processes, is_first, join
from harpe.errors import HarpeError
from harpe.evaluation.identity import identity_of
from harpe.evaluation.run import EvaluationProtocol, HeldOut, check_needles, check_protocol, measurement, score_files
from harpe.files import read_json, write_json
from harpe.models.geometry import text_config
from harpe.models.load import load_config, load_tokenizer
from harpe.models.vocabulary import check_vocabulary
from harpe.options.measuring import EvaluateOptions
from harpe.ownership import refuse_foreign
from harpe.report.page import write_report
from harpe.report.read.run import is_comparison
from harpe.report.terminal import main_table, score_table
from harpe.reporter import Reporter
from harpe.runs.differences import renew_summary
from harpe.runs.directory import held_scores, read_recipe, resume_dtype
from harpe.runs.length_scores import write_lengths
from harpe.runs.position_losses import write_positions
from harpe.runs.scored import check_untouched
from harpe.runs.texts import held_out_texts
from harpe.suites.standard import evaluate_checkpoint


@dataclass(frozen=True)
class _Model:
    """One model to measure."""

    name: str | Path
    revision: str | None
    scores: Path
    title: str = ""


@dataclass(frozen=True)
class _Work:
    """What the options come to; plain values, which the first process tells the others."""

    models: list[_Model]
    tokenizer: tuple[str, str | None]
    """Name and revision."""
    protocol: EvaluationProtocol
    held_out: HeldOut
    dtype: str
    reason: str
    plan: dict[str, Any] | None = None
    """Of a run directory."""


def evaluate(options: EvaluateOptions, reporter: Reporter | None = None) -> Path:
    """Measure what `options.model` names; returns the folder of the scores, or the run directory.

    Started as several processes, each of them calls this and does its share; the first one writes the summaries and the
    page.

    Raises HarpeError for bad options or input, before any model is loaded.
    """
    ranks = join()
    reporter = (reporter if ranks.first else None) or Reporter()
    work = ranks.broadcast_from_rank0(lambda: _planned(options, reporter))
    place = work.models[0].scores if work.plan is None else Path(options.model)
    with held_scores(place, ranks):
        _measure(options, work, ranks, reporter)
    if work.plan is None:
        reporter.say(f"The scores are in {place}.")
    return place


def _measure(options: EvaluateOptions, work: _Work, ranks: Processes, reporter: Reporter) -> None:
    """Measure all models and, of a run, write its page."""
    reporter.say(
        f"{len(work.held_out.documents)} documents of more than {work.protocol.length} tokens. Arithmetic in "
        f"{work.reason}."
    )
    tokenizer = ranks.on_every_rank(lambda: load_tokenizer(*work.tokenizer))
    ranks.broadcast_from_rank0(lambda: _check(options, work, tokenizer))
    for model in work.models:
        evaluate_checkpoint(
            model.name,
            tokenizer,
            work.held_out,
            work.protocol,
            model.scores,
            work.dtype,
            reporter,
            title=model.title,
            revision=model.revision,
            ranks=ranks,
        )
    if ranks.first and work.plan is not None:
        run = Path(options.model)
        work.plan["corpus"] |= {"held_out_documents": len(work.held_out.documents), "held_out_read": work.held_out.read}
        write_json(run / "plan.json", {k: v for k, v in work.plan.items() if k != "schema_version"})
        write_positions(run)
        write_lengths(run)
        renew_summary(run)
        reporter.say(f"The report is in {write_report(run)}.")


def _check(options: EvaluateOptions, work: _Work, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, before any model is measured, what would be refused behind the first ones."""
    check_needles(tokenizer, work.held_out, work.protocol)
    if work.plan is not None:
        run = Path(options.model)
        refuse_foreign(run / "plan.json", run / "positions.json", run / "lengths.json", run / "report" / "index.html")
    for model in work.models:
        identity = identity_of(model.name, model.revision, tokenizer)
        if work.plan is not None and model.name == work.plan["model"]["name"]:
            check_untouched(Path(options.model), identity["model"], str(model.name))
        of = measurement(work.protocol, work.held_out, work.dtype, identity)
        check_protocol(model.scores, work.protocol, of)


def _planned(options: EvaluateOptions, reporter: Reporter) -> _Work:
    if is_comparison(Path(options.model)):
        raise HarpeError(
            f"{options.model} is a comparison, and its recipe says what is measured: start `harpe compare` again, "
            "which measures what is missing. A single model of it is measured by its folder, METHOD/seed-SEED/model, "
            "with --out."
        )
    if (Path(options.model) / "plan.json").is_file():
        return _planned_run(Path(options.model), options, reporter)
    if options.out is None:
        raise HarpeError("--out is missing: name the folder that the scores of this checkpoint go to.")
    refuse_foreign(*score_files(Path(options.out)))
    config = load_config(options.model, options.revision)
    named = options.tokenizer_of(options.model)
    tokenizer = load_tokenizer(*named)
    check_vocabulary(config, tokenizer, options.model)
    config = text_config(config)
    length = options.length or config.max_position_embeddings
    short = options.original_length or getattr(config, "harpe_original_length", None) or config.max_position_embeddings
    protocol, held_out = _protocol(options, tokenizer, min(short, length), length, reporter)
    folder = Path(options.out)
    dtype, reason = resume_dtype(options.dtype, folder / "protocol.json", "dtype")
    return _Work([_Model(options.model, options.revision, folder)], named, protocol, held_out, dtype, reason)


def _protocol(
    options: EvaluateOptions, tokenizer: PreTrainedTokenizerBase, short: int, length: int, reporter: Reporter
) -> tuple[EvaluationProtocol, HeldOut]:
    for name in ("samples", "grid_samples"):
        if (count := getattr(options, name)) < 0:
            option = name.replace("_", "-")
            raise HarpeError(f"--{option} {count} is no number of samples; 0 leaves them out.")
    held_out = held_out_texts(options.data, tokenizer, length, options.documents, options, say=reporter.say)
    return EvaluationProtocol.of(options, short, length, options.seed), held_out


def _planned_run(run: Path, options: EvaluateOptions, reporter: Reporter) -> _Work:
    if options.out is not None:
        raise HarpeError(f"{run} is a run directory and keeps its scores itself; leave --out out.")
    plan: dict[str, Any] = read_json(run / "plan.json")
    missing = [m["title"] for m in plan["methods"] if m["trained"] and not (run / m["name"] / "model").is_dir()]
    if missing:
        raise HarpeError(
            f"{run} is not finished: {', '.join(missing)} has no model yet. Go on with it by its --resume first."
        )
    source, revision = plan["model"]["name"], plan["model"].get("revision")
    tokenizer = options.tokenizer or _tokenizer_of(run)
    named = (tokenizer or source, None if tokenizer else revision)
    length = options.length or plan["target_length"]
    short = min(options.original_length or plan["original_length"], length)
    protocol, held_out = _protocol(options, load_tokenizer(*named), short, length, reporter)
    dtype, reason = resume_dtype(options.dtype, run / plan["methods"][0]["name"] / "scores" / "protocol.json", "dtype")
    models = []
    for m in plan["methods"]:
        name, commit = (run / m["name"] / "model", None) if m["trained"] else (source, revision)
        models.append(_Model(name, commit, run / m["name"] / "scores", m["title"]))
    return _Work(models, named, protocol, held_out, dtype, reason, plan)


def _tokenizer_of(run: Path) -> str | None:
    """What a run was given in place of its model's tokenizer."""
    path = run / "recipe.yaml"
    return read_recipe(path).get("tokenizer") if path.is_file() else None


def run(options: EvaluateOptions, terminal: Any) -> None:
    """Measure, and show the scores."""
    folder = evaluate(options, terminal)
    if is_first():
        terminal.table(main_table(folder) if (folder / "plan.json").is_file() else score_table(folder))
