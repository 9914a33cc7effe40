"""Evaluate a checkpoint, or every model of a run directory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.run import HeldOut, Protocol, evaluate_model
from harpe.experiment.directory import settled_dtype
from harpe.experiment.options import EvaluateOptions
from harpe.experiment.overlap import training_overlap
from harpe.experiment.reporter import Reporter
from harpe.experiment.texts import held_out_texts
from harpe.files import read_json, write_json
from harpe.models.geometry import text_config
from harpe.models.load import check_vocabulary, load_config, load_model, load_tokenizer, to_accelerator
from harpe.report.comparison_read import is_comparison
from harpe.report.page import write_report


def evaluate_checkpoint(
    name: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    protocol: Protocol,
    folder: Path,
    dtype: str,
    reporter: Reporter,
    *,
    title: str = "",
    revision: str | None = None,
) -> None:
    """Load one model (float32 weights) and write its scores into `folder`, unless they are all there."""
    wanted = ["perplexity.json"] + ["needles.json"] * bool(protocol.samples) + ["grid.json"] * bool(protocol.grid_samples)
    if all((folder / file).exists() for file in wanted):
        return
    overlap = training_overlap(name, tokenizer, held_out, reporter)
    model = load_model(name, torch.float32, revision)
    check_vocabulary(model, tokenizer, str(name))
    to_accelerator(model)
    evaluate_model(
        model,
        tokenizer,
        held_out,
        protocol,
        folder,
        dtype=dtype,
        identity={"model": Path(name).name, "revision": revision},
        overlap=overlap,
        progress=lambda what, done, total: reporter.progress(f"{what}{title and ': ' + title}", done, total),
        tell=reporter.say,
    )
    del model
    gc.collect()


def evaluate(options: EvaluateOptions, reporter: Reporter | None = None) -> Path:
    """Measure what `options.model` names; returns the folder of the scores, or the run directory.

    Raises
    ------
    HarpeError
        For bad options or input, before any model is loaded.
    """
    reporter = reporter or Reporter()
    if is_comparison(Path(options.model)):
        raise HarpeError(
            f"{options.model} is a comparison, and its recipe says what is measured: start `harpe compare` again, which measures what is "
            "missing. A single model of it is measured by its folder, METHOD/seed-SEED/model, with --out."
        )
    if (Path(options.model) / "plan.json").is_file():
        return _evaluate_run(Path(options.model), options, reporter)
    if options.out is None:
        raise HarpeError("--out is missing: name the folder that the scores of this checkpoint go to.")
    config = load_config(options.model, options.revision)
    tokenizer = load_tokenizer(options.tokenizer or options.model, options.revision if options.tokenizer is None else None)
    check_vocabulary(config, tokenizer, options.model)
    config = text_config(config)
    length = options.length or config.max_position_embeddings
    short = options.original_length or getattr(config, "harpe_original_length", None) or config.max_position_embeddings
    protocol, held_out = _protocol(options, tokenizer, min(short, length), length)
    folder = Path(options.out)
    dtype, reason = settled_dtype(options.dtype, folder / "protocol.json", "dtype")
    reporter.say(f"{len(held_out.documents)} documents of more than {length} tokens. Arithmetic in {reason}.")
    evaluate_checkpoint(options.model, tokenizer, held_out, protocol, folder, dtype, reporter, revision=options.revision)
    reporter.say(f"The scores are in {folder}.")
    return folder


def _protocol(options: EvaluateOptions, tokenizer: PreTrainedTokenizerBase, short: int, length: int) -> tuple[Protocol, HeldOut]:
    held_out = held_out_texts(options.data, tokenizer, length, options.documents, text_field=options.text_field)
    protocol = Protocol(
        original_length=short,
        length=length,
        documents=options.documents,
        samples=options.samples,
        grid_samples=options.grid_samples,
        seed=options.seed,
    )
    return protocol, held_out


def _evaluate_run(run: Path, options: EvaluateOptions, reporter: Reporter) -> Path:
    if options.out is not None:
        raise HarpeError(f"{run} is a run directory and keeps its scores itself; leave --out out.")
    plan: dict[str, Any] = read_json(run / "plan.json")
    missing = [m["title"] for m in plan["methods"] if m["trained"] and not (run / m["name"] / "model").is_dir()]
    if missing:
        raise HarpeError(f"{run} is not finished: {', '.join(missing)} has no model yet. Go on with it by its --resume first.")
    source, revision = plan["model"]["name"], plan["model"].get("revision")
    tokenizer = load_tokenizer(options.tokenizer or source, revision if options.tokenizer is None else None)
    length = options.length or plan["target_length"]
    protocol, held_out = _protocol(options, tokenizer, options.original_length or plan["original_length"], length)
    dtype, reason = settled_dtype(options.dtype, run / plan["methods"][0]["name"] / "scores" / "protocol.json", "dtype")
    reporter.say(f"{len(held_out.documents)} documents of more than {length} tokens. Arithmetic in {reason}.")
    for method in plan["methods"]:
        name = run / method["name"] / "model" if method["trained"] else source
        evaluate_checkpoint(
            name,
            tokenizer,
            held_out,
            protocol,
            run / method["name"] / "scores",
            dtype,
            reporter,
            title=method["title"],
            revision=None if method["trained"] else revision,
        )
    plan["corpus"]["held_out_documents"] = len(held_out.documents)
    write_json(run / "plan.json", {k: v for k, v in plan.items() if k != "schema_version"})
    reporter.say(f"The report is in {write_report(run)}.")
    return run
