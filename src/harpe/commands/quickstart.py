"""The demonstration: the embedded model before and after three trainings on this machine's Python files: by the default
method, by HARPE as published, and by the control."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harpe.bases.ranges import RangeRule, base_range
from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.evaluation.run import EvaluationProtocol
from harpe.files import read_json, write_json
from harpe.methods.registry import default_method, method_named
from harpe.options.runs import QuickstartOptions
from harpe.options.shared import TextOptions
from harpe.report.page import write_report
from harpe.report.terminal import main_table
from harpe.reporter import Reporter
from harpe.runs.decided import model_facts, settled_plan, settled_row
from harpe.runs.differences import gated_mean, summarise_run
from harpe.runs.directory import held, open_run, removed_on_refusal
from harpe.runs.length_scores import write_lengths
from harpe.runs.plan import Plan, plan_text
from harpe.runs.position_losses import write_positions
from harpe.runs.preflight import (
    check_budget,
    check_space,
    reading_seconds,
    seconds_per_token,
    settle_training,
    tell_environment,
    training_texts,
)
from harpe.runs.reload import reload_and_generate
from harpe.runs.rows import make_row
from harpe.runs.source import open_source
from harpe.runs.texts import EMBEDDED, held_out_texts, silent
from harpe.runs.train import train_row
from harpe.suites.standard import evaluate_checkpoint

TITLE = "The embedded model from {short} to {length} tokens"
RANGE: RangeRule = "ntk"
"""The range of bases that comparisons of the embedded model were measured with (docs/results.md)."""
TIMING_SLACK = 1.25
"""Expected time over measured time: generation, loading and saving are not in the measurement."""


def quickstart(options: QuickstartOptions, reporter: Reporter | None = None) -> Path:
    """Run the demonstration into `options.out`; returns the path of the report page.

    Raises HarpeError when the directory holds something else, the disk is full, or an option is out of range.
    """
    refuse_several("harpe quickstart", "it uses the processor's cores as it is.")
    if options.samples < 1:
        raise HarpeError(f"--samples is {options.samples}; the demonstration counts needles, and needs 1 at least.")
    reporter, out = reporter or Reporter(), Path(options.out)
    with held(out):
        return _demonstrate(options, out, reporter)


def _demonstrate(options: QuickstartOptions, run: Path, reporter: Reporter) -> Path:
    """`quickstart` in a directory that is held."""
    going_on = (run / "recipe.yaml").is_file()
    source = open_source(EMBEDDED, options.length, None, None, None, "keep")
    geometry, tokenizer = source.geometry, source.tokenizer
    chosen, own, why = default_method(geometry)
    rows = [
        make_row("none", geometry, options.length, name="base"),
        make_row(chosen, geometry, options.length, own, title=f"{method_named(chosen).title} (default)"),
        make_row("harpe", geometry, options.length, {"strategy": "peak-valley"}, range_rule=RANGE),
        make_row("one-base", geometry, options.length, title="one base (control)", range_rule=RANGE),
    ]
    trained = sum(row.trained for row in rows)
    model = source.load()
    check_space(run, model.num_parameters(), rows=trained)
    training, reason = settle_training(
        options, run, tokens=options.tokens, gradient_checkpointing=False, save_every=8, seed=options.seed
    )
    training.check(options.length)
    open_run(run, options, resume=going_on)
    if going_on:
        reporter.say(f"Going on with the run in {run}: its recipe is the same, and what is there is not done again.")
    with removed_on_refusal(run, unless=going_on):
        tell_environment(run, reporter)
        facts = model_facts(EMBEDDED, None, geometry)
        rows = [settled_row(run, row.name, facts, partial(replace, row), []) if row.trained else row for row in rows]
        data = training_texts(
            run / "data" / str(options.length),
            EMBEDDED,
            source,
            training,
            options.length,
            tokens=options.tokens,
            reading=TextOptions(),
            going_on=going_on,
            say=silent,
        )
        check_budget(training, data)
        held_out = held_out_texts(EMBEDDED, tokenizer, options.length, options.documents, tuning=options.tuning)
    protocol = EvaluationProtocol.of(options, geometry.original_length, options.length, 2 if options.tuning else 1)
    per_trained, per_read = seconds_per_token(model, training, options.length)
    reading = reading_seconds(model.config, options.length, per_read, protocol.reads())
    plan = Plan(
        title=TITLE.format(short=geometry.original_length, length=options.length),
        model=EMBEDDED,
        revision=None,
        geometry=geometry,
        parameters=model.num_parameters(),
        length=options.length,
        bases=base_range(geometry, options.length, rule=RANGE),
        rows=rows,
        training=training,
        dtype_reason=reason,
        data=data,
        held_out=held_out,
        extended=chosen,
        notes=[
            f"The default is what `harpe extend` takes where no --method is given; {why}",
            "Text only: no needle is trained on. Held-out files and training files are told apart by their SHA-256.",
        ],
    )
    del model
    settled = settled_plan(run, plan.as_dict())
    expected = trained * settled["training"]["tokens"] * per_trained + len(rows) * reading
    reporter.say(plan_text(settled, TIMING_SLACK * expected))
    for row in rows:
        path = (
            train_row(run / row.name, row, source, data, training, options.length, reporter)
            if row.trained
            else EMBEDDED
        )
        evaluate_checkpoint(
            path, tokenizer, held_out, protocol, run / row.name / "scores", training.dtype, reporter, title=row.title
        )
        if not row.trained:
            reporter.say(_failure(run, options.length))
    extended = run / chosen / "model"
    made = reload_and_generate(str(extended), options.length)
    reporter.say(
        f"Loaded {extended} in a fresh process: asked at the end of {made['tokens']:,} tokens for the number in the "
        f"middle, it answered {made['text'].strip()!r} (right: {made['expected']})."
    )
    write_json(run / "summary.json", summarise_run(run, generation={"prompt": made["prompt"], "text": made["text"]}))
    write_positions(run)
    write_lengths(run)
    page = write_report(run)
    reporter.table(main_table(run))
    reporter.say(f"The extended model: {extended}\nThe report: {page}")
    return page


def _failure(run: Path, length: int) -> str:
    """One sentence on the untouched model beyond its context."""
    scores = run / "base" / "scores"
    perplexity = read_json(scores / "perplexity.json")
    short, long = perplexity["short"], perplexity["long"]
    return (
        f"Before: perplexity {short['perplexity']:.1f} in windows of {short['length']} tokens, "
        f"{long['perplexity']:.1f} at positions {long['start']} to {long['end']}; needles found "
        f"{gated_mean(scores, short['length']):.0%} at {short['length']} tokens, {gated_mean(scores, length):.0%} at "
        f"{length}."
    )


def run(options: QuickstartOptions, terminal: Any) -> None:
    """Run the demonstration."""
    quickstart(options, terminal)
