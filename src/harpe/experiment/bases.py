"""Choose a base set for `harpe bases`."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from harpe.errors import HarpeError
from harpe.experiment.options import BasesOptions
from harpe.files import SCHEMA_VERSION
from harpe.methods.ranges import provisional_range
from harpe.positions.base_sets import choose_bases


def choose(options: BasesOptions) -> dict[str, Any]:
    """The base set as a JSON object: bases (ascending), order (as picked), heads (head order) and what they were chosen from.

    Raises
    ------
    HarpeError
        Where neither a model nor heads, head size and range are given, or an option does not fit.
    """
    why = "given by --min and --max"
    if options.model is not None:
        if options.heads is not None or options.head_dim is not None:
            raise HarpeError("--heads and --head-dim are read from --model; give one or the other.")
        from harpe.models.geometry import read_geometry
        from harpe.models.load import load_config

        geometry = read_geometry(load_config(options.model, options.revision), options.model, options.original_length)
        heads, head_dim = geometry.key_value_heads, geometry.rotary_dim
        bases = provisional_range(geometry, options.length, options.min, options.max)
        low, high, why = bases.low, bases.high, bases.why
    else:
        given = {"--heads": options.heads, "--head-dim": options.head_dim, "--min": options.min, "--max": options.max}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise HarpeError(f"Give --model, or {', '.join(given)}; missing: {', '.join(missing)}.")
        heads, head_dim, low, high = (value for value in given.values())  # type: ignore[assignment]
    chosen = choose_bases(
        options.strategy,
        heads=heads,
        head_dim=head_dim,
        length=options.length,
        low=low,
        high=high,
        stride=options.stride,
        rule=options.rule,
        force=options.force,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "bases": list(chosen.ascending),
        "order": list(chosen.order),
        "heads": list(chosen.bases),
        "strategy": chosen.strategy,
        "rule": chosen.rule,
        "head_dim": head_dim,
        "length": options.length,
        "min": low,
        "max": high,
        "range": why,
    }


def base_table(value: dict[str, Any]) -> Table:
    """Head, base, and the wavelength of the slowest pair in tokens."""
    table = Table(
        title=f"{len(value['heads'])} bases for {value['length']:,} tokens, {value['strategy']}",
        caption=f"range {value['min']:,.0f} to {value['max']:,.0f}: {value['range']}",
        box=box.SIMPLE_HEAD,
    )
    for column in ("key/value head", "base", "longest wavelength (tokens)"):
        table.add_column(column, justify="right")
    slowest = 1 - 2 / value["head_dim"]
    for head, base in enumerate(value["heads"]):
        table.add_row(str(head), f"{base:,.0f}", f"{2 * 3.141592653589793 * base**slowest:,.0f}")
    return table
