"""Choose, describe and draw a base set for `harpe bases`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from harpe.bases.choice import choose_rows
from harpe.bases.complementarity import MINIMUM_LENGTH, complementarity, random_sets
from harpe.data.special_tokens import reading_tokenizer
from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.files import SCHEMA_VERSION, write_json, write_text
from harpe.options.bases import BasesOptions
from harpe.ownership import refuse_foreign

MEASURED_LENGTH = 2_000_000
"""Up to here complementarity is measured whenever bases are chosen (2 s for 32 heads of 128); beyond it only for
--out."""


def choose(options: BasesOptions) -> dict[str, Any]:
    """The base set as a JSON object: bases (ascending), order (as picked), heads (head order), layers (a row for each,
    where they differ; null for a layer that keeps its positions), complementarity, and what they were chosen from.

    Raises HarpeError where neither a model nor heads, head size and range are given, or an option does not fit.
    """
    refuse_several("harpe bases", "one process chooses all bases.")
    head_distances, note, changed = None, "", None
    notes: list[str] = []
    if options.assignment != "adaptive" and options.data is not None:
        raise HarpeError("--data is read for --assignment adaptive only; leave one out or give both.")
    if options.model is not None:
        shape, (low, high, why), changed, notes = _of_model(options)
        if options.assignment == "adaptive" and options.data is not None:
            head_distances, note = _distances(options, shape["original_length"])
    else:
        shape, (low, high, why) = _of_numbers(options)
    choice = choose_rows(
        options,
        heads=shape["heads"],
        layers=shape["layers"],
        head_dim=shape["head_dim"],
        length=options.length,
        low=low,
        high=high,
        head_distances=head_distances,
        changed=changed,
    )
    chosen, head_dim = choice.chosen, shape["head_dim"]
    measured = MINIMUM_LENGTH <= options.length <= MEASURED_LENGTH or options.out is not None
    return {
        "schema_version": SCHEMA_VERSION,
        "bases": list(chosen.ascending),
        "order": list(chosen.order),
        "heads": list(choice.first),
        "layers": [None if row is None else list(row) for row in choice.rows] if len(set(choice.rows)) > 1 else None,
        "strategy": chosen.strategy,
        "rule": chosen.rule,
        "rule_reason": chosen.reason,
        "assignment": choice.assignment,
        "layer_bases": choice.layer_bases,
        "reach": head_distances,
        "reach_note": note,
        "head_dim": head_dim,
        "length": options.length,
        "min": low,
        "max": high,
        "range": why,
        "notes": notes,
        "complementarity": complementarity(chosen.bases, head_dim, options.length).as_dict() if measured else None,
    }


def _of_model(
    options: BasesOptions,
) -> tuple[dict[str, int], tuple[float, float, str], tuple[int, ...] | None, list[str]]:
    """Shape of a checkpoint, from its configuration alone with what the options override, the range for it, the layers
    that change, and sentences on how the configuration was read."""
    from harpe.bases.ranges import base_range
    from harpe.models.geometry import layer_notes, read_geometry
    from harpe.models.load import load_config

    assert options.model is not None
    if options.layers is not None:
        raise HarpeError("--layers is read from --model; give one or the other.")
    config = load_config(options.model, options.revision)
    geometry = read_geometry(config, options.model, options.original_length)
    bases = base_range(geometry, options.length, options.min, options.max, options.range)
    shape = {
        "heads": geometry.key_value_heads if options.heads is None else options.heads,
        "head_dim": geometry.rotary_dim if options.head_dim is None else options.head_dim,
        "layers": geometry.layers,
        "original_length": geometry.original_length,
    }
    return shape, (bases.low, bases.high, bases.why), geometry.changed_layers, layer_notes(config, geometry)


def _of_numbers(options: BasesOptions) -> tuple[dict[str, int], tuple[float, float, str]]:
    given = {"--heads": options.heads, "--head-dim": options.head_dim, "--min": options.min, "--max": options.max}
    missing = [name for name, value in given.items() if value is None]
    if options.layer_bases != "same" and options.layers is None:
        missing.append("--layers")
    if missing:
        raise HarpeError(f"Give --model, or {', '.join(given)}; missing: {', '.join(missing)}.")
    assert options.heads is not None and options.head_dim is not None
    assert options.min is not None and options.max is not None
    if options.layers is not None and options.layers < 1:
        raise HarpeError(f"--layers is {options.layers}; there must be at least one.")
    shape = {"heads": options.heads, "head_dim": options.head_dim, "layers": options.layers or 1}
    return shape, (options.min, options.max, "given by --min and --max")


def _distances(options: BasesOptions, context: int) -> tuple[list[list[float]], str]:
    import torch

    from harpe.models.load import load_model, load_tokenizer, to_accelerator
    from harpe.runs.head_distances import measured_distances

    assert options.model is not None and options.data is not None
    if options.heads is not None:
        raise HarpeError("--assignment adaptive measures the heads of --model; leave --heads out.")
    model = to_accelerator(load_model(options.model, torch.float32, options.revision))
    return measured_distances(
        model, reading_tokenizer(load_tokenizer(options.model, options.revision), True), options.data, "text", context
    )


def write(value: dict[str, Any], folder: Path) -> list[Path]:
    """bases.json with a comparison (random sets, even spacing, one base), and the figures; returns what was written.

    The comparison takes as many bases as the set has, from the same range: 1000 random sets, evenly spaced ones, and
    one base.
    """
    from harpe.bases.base_sets import PUBLISHED_SET, uniform_bases
    from harpe.report.figures.base_sets import FIGURES

    figures = {name: folder / f"{name}.svg" for name in FIGURES}
    refuse_foreign(folder / "bases.json", *figures.values())
    bases, head_dim, length, low, high = (value[name] for name in ("bases", "head_dim", "length", "min", "max"))
    random = random_sets(len(bases), head_dim, length, low, high)
    value["comparison"] = {
        "uniform": complementarity(uniform_bases(len(bases), low, high), head_dim, length).as_dict(),
        "one_base": complementarity([(low + high) / 2], head_dim, length).as_dict(),
        "published_set": complementarity(PUBLISHED_SET, head_dim, length).as_dict(),
        "random_sets": {
            "sets": len(random),
            "median": float(random[len(random) // 2]),
            "p95": float(random[int(0.95 * len(random))]),
        },
    }
    write_json(folder / "bases.json", value)
    written = [folder / "bases.json"]
    for name, draw in FIGURES.items():
        write_text(figures[name], draw(value))
        written.append(figures[name])
    return written


def base_table(value: dict[str, Any]) -> Table:
    """Head, base, and the wavelength of the slowest pair in tokens; layers in columns where they differ."""
    rows = value["layers"] or [value["heads"]]
    names = {None: ""} | {rule: f", rule {rule}" for rule in ("published", "printed", "general")}
    caption = [f"range {value['min']:,.0f} to {value['max']:,.0f}: {value['range']}"]
    caption += value["notes"]
    caption += [f"rule: {value['rule_reason']}"] if value["rule_reason"] else []
    caption += [value["reach_note"]] if value["reach_note"] else []
    caption.append(f"bases span a factor of {value['bases'][-1] / value['bases'][0]:.3g}")
    found = value["complementarity"]
    if found:
        caption.append(
            f"complementarity: {found['covered']:.4%} of the distances {found['start']:,} to {found['length']:,} lie "
            f"under a peak of some base; the longest stretch that does not has {found['longest_uncovered']} positions"
        )
    table = Table(
        title=f"{len(value['bases'])} bases for {value['length']:,} tokens, {value['strategy']}{names[value['rule']]}, "
        f"{value['assignment']}",
        caption="\n".join(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("key/value head", justify="right")
    if len(rows) == 1:
        for column in ("base", "longest wavelength (tokens)"):
            table.add_column(column, justify="right")
        slowest = 1 - 2 / value["head_dim"]
        for head, base in enumerate(rows[0]):
            table.add_row(str(head), f"{base:,.0f}", f"{2 * math.pi * base**slowest:,.0f}")
        return table
    by_layer = {layer: row for layer, row in enumerate(rows) if row is not None}
    for layer in by_layer:
        table.add_column(f"layer {layer}", justify="right")
    for head in range(len(value["heads"])):
        table.add_row(str(head), *(f"{row[head]:.4g}" for row in by_layer.values()))
    return table


def run(options: BasesOptions, terminal: Any) -> None:
    """Print a base set, as a table or as JSON, and draw it where a folder is named; or search tables."""
    if options.strategy == "searched":
        from harpe.runs.searched_tables import run as search  # needs torch, which bases do not

        refuse_several("harpe bases", "one process searches all tables.")
        search(options, terminal)
        return
    if options.level is not None or options.passes is not None or options.sliding_window != "keep":
        raise HarpeError(
            "--level, --passes and --sliding-window are those of --strategy searched; leave them out, or name it."
        )
    value = choose(options)
    written = write(value, Path(options.out)) if options.out is not None else []
    if options.json:
        print(json.dumps(value))
        return
    terminal.table(base_table(value))
    if written:
        terminal.say(f"Written: {', '.join(map(str, written))}")
