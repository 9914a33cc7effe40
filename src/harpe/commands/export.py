"""Export a model of a run directory or of a comparison, or an extended checkpoint."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import torch

from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.files import check_new_folder, read_json
from harpe.models.card import model_card
from harpe.models.export import export_checkpoint
from harpe.models.export_code import MODULE
from harpe.models.export_gguf import check_gguf, write_gguf
from harpe.models.fold import fold_attention_factor
from harpe.models.load import load_config, load_model, load_tokenizer
from harpe.models.vocabulary import check_vocabulary
from harpe.options.runs import ExportOptions
from harpe.report.read.run import Row, Run, is_comparison, read_run
from harpe.report.read.scores import Perplexity, Score
from harpe.reporter import Reporter
from harpe.runs.corpus import MIXED
from harpe.runs.directory import check_disk


@dataclass(frozen=True)
class _Chosen:
    """A model of a run directory."""

    run: Run
    row: Row
    before: Row | None
    """The untouched model, where it was measured."""
    seed: int | None
    """Of training, in a comparison."""
    folder: Path


def export(options: ExportOptions, reporter: Reporter | None = None) -> Path:
    """Write what `options.source` names to `options.out`; returns that folder.

    Raises HarpeError for a source without an extended model, and a folder that exists.
    """
    refuse_several("harpe export", "one process writes the model.")
    reporter = reporter or Reporter()
    out, source = Path(options.out), Path(options.source)
    check_new_folder(out)
    chosen = _choose(source, options.method, options.seed)
    folder = str(chosen.folder) if chosen else options.source
    config = load_config(folder)
    tokenizer = load_tokenizer(options.tokenizer or folder)
    check_vocabulary(config, tokenizer, folder)
    converter = Path(options.gguf).expanduser() if options.gguf else None
    if converter and not options.fold:
        check_gguf(config, converter)
    model = load_model(folder, config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
    size = sum(weight.nbytes for weight in model.state_dict().values())
    check_disk(out, (2 if converter else 1) * size + 50_000_000, "The exported model")
    folded = {"Weights": fold_attention_factor(model)} if options.fold else {}
    if options.fold:
        reporter.say(folded["Weights"])
        config = model.config
        if converter:
            check_gguf(config, converter)
    card = None
    if chosen:
        name, on_hub = chosen.run.model.name, _on_hub(source, chosen)
        shown = name if on_hub else PurePath(name).name
        title = f"{shown}, {chosen.run.target_length} tokens, {chosen.row.title}"
        card = model_card(config, title, name if on_hub else None, {**_sections(chosen, shown), **folded})
    export_checkpoint(model, out, tokenizer, card, folded)
    code = (out / f"{MODULE}.py").is_file()
    how = (
        "loads by trust_remote_code=True; its code is modeling_harpe.py"
        if code
        else "is a stock checkpoint and needs no code"
    )
    reporter.say(f"The exported model is in {out}. It {how}.")
    if converter:
        reporter.say(f"For llama.cpp: {write_gguf(out, model.config, converter)}.")
    return out


def _choose(source: Path, name: str | None, seed: int | None) -> _Chosen | None:
    """The model that is meant; None where the source is no run directory."""
    if is_comparison(source):
        return _of_comparison(source, name, seed)
    if seed is not None:
        raise HarpeError(f"--seed chooses a model of a comparison, and {source} is none; leave it out.")
    if (source / "plan.json").is_file():
        return _of_run(source, name)
    if name is not None:
        raise HarpeError(f"--method chooses a model of a run directory, and {source} is none; leave it out.")
    return None


def _of_run(folder: Path, name: str | None) -> _Chosen:
    run = read_run(folder)
    trained = {row.name: row for row in run.rows if row.trained}
    if name is None:
        found = run.after
        if found is None or not found.trained:
            raise HarpeError(f"{folder} has no trained model.")
    else:
        found = trained.get(name)
        if found is None:
            raise HarpeError(
                f"{folder} has no trained model {name}; --method may be {', '.join(trained) or 'none of them'}."
            )
    if not (folder / found.name / "model").is_dir():
        raise HarpeError(
            f"{folder} is not finished: {found.title} has no model yet. Go on with it by its --resume first."
        )
    return _Chosen(run, found, run.before, None, folder / found.name / "model")


def _of_comparison(folder: Path, name: str | None, seed: int | None) -> _Chosen:
    """Methods without training that change the checkpoint have one model, under seed 0."""
    plan = read_json(folder / "plan.json")
    rows = {entry["name"]: entry for entry in plan["methods"] if entry["method"] != "none"}
    trained = [key for key, entry in rows.items() if entry["trained"]]
    if name is None and len(trained) != 1:
        raise HarpeError(f"{folder} has several models; choose one by --method: {', '.join(rows)}.")
    name = name or trained[0]
    if name not in rows:
        raise HarpeError(f"{folder} has no model {name}; --method may be {', '.join(rows) or 'none of them'}.")
    seeds = plan["seeds"] if rows[name]["trained"] else [0]
    if seed is not None and seed not in seeds:
        raise HarpeError(
            f"{folder} has no {rows[name]['title']} with seed {seed}; --seed may be {', '.join(map(str, seeds))}."
        )
    for each in seeds if seed is None else [seed]:
        model = folder / name / f"seed-{each}" / "model"
        if model.is_dir():
            run = read_run(folder, each)
            by_name = {row.name: row for row in run.rows}
            untouched = next((by_name[entry["name"]] for entry in plan["methods"] if entry["method"] == "none"), None)
            return _Chosen(run, by_name[name], untouched, each, model)
    which = f" with seed {seed}" if seed is not None else ""
    raise HarpeError(
        f"{folder} is not finished: {rows[name]['title']}{which} has no model. Start its `harpe compare` again first."
    )


def without_folders(description: str) -> str:
    """A line on data for the card: of local paths nothing but their ends are told."""
    parts = re.split(f"({MIXED.format(0, '').replace('0%', '[^ ]+%')})", description)
    return "".join(_end(part) for part in parts)


def _end(part: str) -> str:
    """Of one of the texts, with what was done with them; runs of earlier versions have relative paths as they are."""
    how = re.search(", (documents of at least|conversations of) .*", part, re.DOTALL)
    name, rest = (part[: how.start()], how[0]) if how else (part, "")
    local = name.startswith((".", "/", "~")) or os.path.exists(name)
    return (PurePath(name).name or "a folder" if local else name) + rest


def _on_hub(source: Path, chosen: _Chosen) -> bool:
    """Whether the original model was taken from the hub: then what the run began with is a commit."""
    if is_comparison(source):
        return "commit" in read_json(source / "plan.json").get("inputs", {}).get("model", {})
    stages = source / chosen.row.name / "stages.json"
    return stages.is_file() and "commit" in read_json(stages)["model"]["identity"]


def _sections(chosen: _Chosen, original: str) -> dict[str, str]:
    """Headings and texts of a model card: method, plan, data and scores; `original` is the model before."""
    run, row = chosen.run, chosen.row
    training, corpus = run.training, run.corpus
    versions = ", ".join(
        f"{name} {run.environment[name]}" for name in ("harpe", "torch", "transformers") if name in run.environment
    )
    plan = list(run.reasons)
    if row.trained:
        plan.append(f"{training['tokens']} tokens in {training['steps']} steps of {training['batch_tokens']} tokens.")
        plan += [f"One of several trainings of a comparison, that with seed {chosen.seed}."] * (chosen.seed is not None)
    plan += [f"Made with {versions}."] * bool(versions)
    data = (
        f"{without_folders(corpus['description'])}\n\n{corpus['tokens']} tokens in {corpus['documents']} documents; "
        "SHA-256 of the packed data: "
    )
    origin = f"The original model: {original}, {run.model.parameters:,} parameters. Its licence applies."
    packed = corpus["hash"] if chosen.seed is None else corpus["hashes"].get(str(chosen.seed))
    return {
        "Method": f"{row.explanation}\n\n{origin}",
        "Plan": "\n".join(f"* {reason}" for reason in plan),
        "Data": f"{data}`{packed}`." if row.trained else "Not trained: the weights are those of the original model.",
        "Scores": _scores(chosen.before, row),
    }


def _scores(untouched: Row | None, row: Row) -> str:
    rows = [("measure", "before", "after"), ("---", "---", "---")]
    before, after = untouched.runs[0] if untouched else None, row.runs[0]
    if after.perplexity is not None:
        old, new = before.perplexity if before else None, after.perplexity
        short = f"perplexity, windows of {new.short.length} tokens"
        rows.append((short, _perplexity(old, "short"), _perplexity(new, "short")))
        long = f"perplexity, positions {new.long.start} to {new.long.end}"
        rows.append((long, _perplexity(old, "long"), _perplexity(new, "long")))
    for value in after.needles or ():
        earlier = before.needle(value.task, value.length) if before else None
        rows.append((f"needles: {value.task}, {value.length} tokens", _needles(earlier), _needles(value)))
    if len(rows) == 2:
        return "Not measured."
    table = "\n".join(f"| {' | '.join(line)} |" for line in rows)
    return f"{table}\n\nIn brackets 95% intervals and the number of documents or samples."


def _perplexity(value: Perplexity | None, which: Literal["short", "long"]) -> str:
    if value is None:
        return "not measured"
    found = value.short if which == "short" else value.long
    return f"{found.perplexity:.2f} [{found.low:.2f} – {found.high:.2f}], n = {value.documents}"


def _needles(value: Score | None) -> str:
    if value is None:
        return "not measured"
    score, low, high = (f"{100 * share:.0f}" for share in (value.score, value.low, value.high))
    return f"{score}% [{low} – {high}], n = {value.samples}"


def run(options: ExportOptions, terminal: Any) -> None:
    """Write a checkpoint that loads without harpe."""
    export(options, terminal)
