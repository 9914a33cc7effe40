"""`harpe bases --strategy searched`: tables searched on a checkpoint, written for the method `tables`."""

from __future__ import annotations

import json
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

from harpe.attention_heads.copying import TASK, copy_prompts
from harpe.attention_heads.searched import search_tables
from harpe.data.special_tokens import reading_tokenizer
from harpe.errors import HarpeError
from harpe.evaluation.needles.samples import NEEDLE_TASKS, NeedleWriter
from harpe.methods.parts import by_parts
from harpe.methods.tables import write_tables
from harpe.models.float_tables import encoding_tables
from harpe.options.bases import BasesOptions
from harpe.ownership import refuse_foreign
from harpe.reporter import Reporter
from harpe.runs.source import open_source
from harpe.runs.texts import training_ids

TEXTS, PROMPTS, PASSES = 4, 4, 60
UNUSED = ("heads", "head_dim", "layers", "min", "max", "stride", "rule", "assignment")
CHOICES = ("layer_bases", "range", "force")
"""With UNUSED the options of bases, which tables have no use for."""


def search(options: BasesOptions, reporter: Reporter) -> dict[str, Any]:
    """Search tables and write tables.json into the folder --out; returns what --json prints.

    Raises HarpeError, before weights are read, for options that it has no use for, texts that are too few or too short,
    and checkpoints and lengths that cannot be extended.
    """
    given = [name for name in UNUSED if getattr(options, name) is not None]
    given += [name for name in CHOICES if getattr(options, name) != getattr(BasesOptions, name)]
    if given:
        raise HarpeError(f"--strategy searched searches tables, not bases: leave --{given[0].replace('_', '-')} out.")
    if options.model is None or options.data is None or options.out is None:
        raise HarpeError("--strategy searched reads a model and texts, and writes tables: give --model, --data, --out.")
    passes = PASSES if options.passes is None else options.passes
    if passes < 2:
        raise HarpeError(f"--passes is {passes}; the first is the start's own: give 2 or more.")
    file = Path(options.out) / "tables.json"
    refuse_foreign(file)
    source = open_source(
        options.model, options.length, options.revision, None, options.original_length, options.sliding_window
    )
    geometry, length = source.geometry, options.length
    if length <= geometry.original_length:
        raise HarpeError(
            f"--length is {length:,}, and {options.model} was trained with {geometry.original_length:,} tokens: there "
            "is nothing to search. Give a longer --length."
        )
    if geometry.trained_angles is not None:
        raise HarpeError(
            f"--strategy searched starts from RoPE without a scaling, and {options.model} was trained with one of its "
            "own, which would be lost. Leave --strategy searched out: bases follow from the angles it was trained on."
        )
    encoding_tables(source.config(), by_parts(geometry, length)[-1].encoding, geometry, length)
    tokenizer = reading_tokenizer(source.tokenizer, True)
    ids, described = training_ids(options.data, tokenizer, "text", 400 * length)
    texts = list(islice((each for each in ids if len(each) >= length), TEXTS))
    if len(texts) < TEXTS:
        raise HarpeError(
            f"--data {options.data} has {len(texts)} texts of {length:,} tokens or more, and the search reads {TEXTS}. "
            "Give more or longer texts, or a shorter --length."
        )
    writer = NeedleWriter(tokenizer, texts, options.seed)
    writer.check(NEEDLE_TASKS[TASK], length, PROMPTS)
    prompts = copy_prompts(writer, length, PROMPTS)
    level = options.level or "head"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)  # before the search, not after it
    except OSError as error:
        raise HarpeError(f"--out {options.out} cannot be made a folder ({error.strerror}). Name another.") from error
    reporter.say(f"{passes} passes over {TEXTS} texts and {len(prompts)} needle samples, in float32.")
    found = search_tables(
        source.load(),
        texts,
        geometry,
        length,
        level=level,
        passes=passes,
        prompts=prompts,
        seed=options.seed,
        sliding_window=options.sliding_window,
        reporter=reporter,
    )
    made = {
        "strategy": "searched",
        "level": level,
        "passes": passes,
        "length": length,
        "seed": options.seed,
        "texts": described,
        "sequences": len(texts),
        "prompts": len(prompts),
        "dtype": "float32",
        "history": [round(value, 5) for value in found.history],
        "exponents": found.exponents,
    }
    write_tables(file, found.encoding, geometry, **made)
    return {**made, "start": found.history[0], "objective": found.objective, "file": str(file)}


def run(options: BasesOptions, terminal: Any) -> None:
    """Search, and say what was found and how it is used."""
    value = search(options, Reporter() if options.json else terminal)
    if options.json:
        print(json.dumps(value))
        return
    terminal.say(
        f"Objective {value['objective']:.4f} nats, from {value['start']:.4f}, by {value['passes']} passes on the "
        f"search's own texts. Written: {value['file']}"
    )
    again = {"--length": options.length, "--revision": options.revision, "--original-length": options.original_length}
    words = ["harpe", "extend", str(options.model), "--method", "tables"]
    words += [word for name, said in again.items() if said is not None for word in (name, str(said))]
    words += ["--sliding-window", "off"] if options.sliding_window == "off" else []
    words += ["--method-options", json.dumps({"file": value["file"]})]
    terminal.say(f"Use it, with --data and --out: {shlex.join(words)}")
