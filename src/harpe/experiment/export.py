"""Export the model of a run directory, or an extended checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from harpe.errors import HarpeError
from harpe.experiment.directory import check_disk
from harpe.experiment.options import ExportOptions
from harpe.experiment.reporter import Reporter
from harpe.models.card import model_card
from harpe.models.export import export_checkpoint
from harpe.models.export_code import MODULE
from harpe.models.load import check_vocabulary, load_config, load_model, load_tokenizer
from harpe.report.read import Estimate, Method, Run, read_run


def export(options: ExportOptions, reporter: Reporter | None = None) -> Path:
    """Write what `options.source` names to `options.out`; returns that folder.

    Raises
    ------
    HarpeError
        For a source without an extended model, and a folder that exists.
    """
    reporter = reporter or Reporter()
    out, source = Path(options.out), Path(options.source)
    if out.exists():
        raise HarpeError(f"--out {out} exists already; it is not overwritten. Name another folder.")
    run = read_run(source) if (source / "plan.json").is_file() else None
    if run is None and options.method is not None:
        raise HarpeError(f"--method chooses a model of a run directory, and {source} is none; leave it out.")
    method = _choose(run, source, options.method) if run else None
    folder = str(source / method.name / "model") if method else options.source
    config = load_config(folder)
    tokenizer = load_tokenizer(options.tokenizer or folder)
    check_vocabulary(config, tokenizer, folder)
    model = load_model(folder, config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
    check_disk(out, sum(weight.nbytes for weight in model.state_dict().values()) + 50_000_000, "The exported model")
    card = None
    if run and method:
        shown = _public(run.model.name)
        title = f"{shown}, {run.target_length} tokens, {method.title}"
        card = model_card(config, title, shown if "/" in shown else None, run_sections(run, method))
    export_checkpoint(model, out, tokenizer, card)
    code = (out / f"{MODULE}.py").is_file()
    how = "loads by trust_remote_code=True; its code is modeling_harpe.py" if code else "is a stock checkpoint and needs no code"
    reporter.say(f"The exported model is in {out}. It {how}.")
    return out


def _choose(run: Run, folder: Path, name: str | None) -> Method:
    trained = {method.name: method for method in run.methods if method.trained}
    if name is None:
        found = trained.get("harpe") or (next(iter(trained.values())) if len(trained) == 1 else None)
        if found is None:
            raise HarpeError(f"{folder} has several models; choose one by --method: {', '.join(trained)}.")
    else:
        found = trained.get(name)
        if found is None:
            raise HarpeError(f"{folder} has no trained model {name}; --method may be {', '.join(trained) or 'none of them'}.")
    if not (folder / found.name / "model").is_dir():
        raise HarpeError(f"{folder} is not finished: {found.title} has no model yet. Go on with it by its --resume first.")
    return found


def _public(name: str) -> str:
    """A model's or data set's name for the card: of a local path nothing but its end is told."""
    return Path(name).name if name.startswith((".", "/", "~")) or Path(name).exists() else name


def run_sections(run: Run, method: Method) -> dict[str, str]:
    """Headings and texts of a model card: method, plan, data and scores of one model of a run."""
    training, corpus = run.training, run.corpus
    versions = ", ".join(f"{name} {run.environment[name]}" for name in ("harpe", "torch", "transformers") if name in run.environment)
    plan = [*run.reasons, f"{training['tokens']} tokens in {training['steps']} steps at {training['sequence_length']} tokens a sequence."]
    plan += [f"Made with {versions}."] * bool(versions)
    data = f"{_public(corpus['description'])}\n\n{corpus['tokens']} tokens in {corpus['documents']} documents; SHA-256 of the packed data: "
    origin = f"The original model: {_public(run.model.name)}, {run.model.parameters:,} parameters. Its licence applies."
    return {
        "Method": f"{method.explanation}\n\n{origin}",
        "Plan": "\n".join(f"* {reason}" for reason in plan),
        "Data": f"{data}`{corpus['hash']}`.",
        "Scores": _scores(run, method),
    }


def _scores(run: Run, method: Method) -> str:
    before = run.before
    rows = [("measure", "before", "after"), ("---", "---", "---")]
    if method.perplexity is not None:
        old, new = before.perplexity if before else None, method.perplexity
        short = f"perplexity, windows of {new.short_length} tokens"
        rows.append((short, _estimate(old.short if old else None), _estimate(new.short)))
        long = f"perplexity, positions {new.long_start} to {new.long_end}"
        rows.append((long, _estimate(old.long if old else None), _estimate(new.long)))
    for key, value in (method.needles or {}).items():
        earlier = (before.needles or {}).get(key) if before else None
        rows.append((f"needles: {key[0]}, {key[1]} tokens", _estimate(earlier, 100, "%"), _estimate(value, 100, "%")))
    if len(rows) == 2:
        return "Not measured."
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\nIn brackets 95% intervals and the number of documents or samples."


def _estimate(value: Estimate | None, factor: float = 1, unit: str = "") -> str:
    if value is None:
        return "not measured"
    digits = 0 if unit else 2
    numbers = [f"{factor * x:.{digits}f}" for x in (value.value, value.low, value.high)]
    return f"{numbers[0]}{unit} [{numbers[1]} – {numbers[2]}], n = {value.n}"
