"""Tables of `harpe heads`, from its JSON object."""

from __future__ import annotations

from typing import Any

from harpe.report.tables.table import Cell, Column, Table, TableRow
from harpe.report.wording import printable

KINDS = {"all": "all heads", "layers": "between layers", "heads": "between heads of a layer"}


def wants(value: dict[str, Any], band: dict[str, Any]) -> list[list[float]]:
    """Far loss by the log frequency of all pairs of a band, in thousandths of a nat, [layers][heads]: above 0, slower
    turning would lower it."""
    return [[1e3 * sum(head[band["first"] : band["last"] + 1]) for head in layer] for layer in value["gradient"]]


def head_facts(value: dict[str, Any]) -> list[tuple[str, str]]:
    """What was looked at, in words."""
    copied = "not looked at"
    if value["samples"]:
        groups = value["query_heads"] // value["key_value_heads"]
        mean = f", mean of {groups} query heads a key/value head" if groups > 1 else ""
        copied = f"{value['samples']} samples of {value['task']}, {value['context']:,} tokens each{mean}"
    method = f"{value['method']}: " if value["method"] else ""
    return [
        ("model", printable(value["model"])),
        ("positions", printable(f"{method}{value['positions']}")),
        ("texts", printable(value["data"])),
        ("far loss", f"{value['far_loss']:.4f} nats"),
        (
            "far tokens",
            f"{value['far_tokens']:,}: number {value['original_length']:,} to {value['length']:,} of "
            f"{value['documents']} texts",
        ),
        ("distance", f"mean of the attention inside {value['context']:,} tokens, without the first token"),
        ("copying", copied),
    ]


def _ratio(ratio: dict[str, float | None]) -> Cell:
    shown = ["no bound" if ratio[key] is None else f"{ratio[key]:.3g}" for key in ("value", "low", "high")]
    return Cell("unclear" if ratio["value"] is None else shown[0], f"{shown[1]} to {shown[2]}", order=ratio["value"])


def ratio_table(value: dict[str, Any]) -> Table:
    """R2 by bands of pairs."""
    columns = (
        Column("wavelengths", "tokens"),
        *(Column(f"R2, {words}") for words in KINDS.values()),
        Column("halves agree", "cosine"),
    )
    rows = []
    for band in value["bands"]:
        ends = [value["wavelengths"][band[end]] for end in ("first", "last")]
        cells = [Cell(f"{ends[0]:,.0f} to {ends[1]:,.0f}"), *(_ratio(band["heterogeneity"][kind]) for kind in KINDS)]
        rows.append(TableRow("", f"{band['name']} pairs", "", (*cells, _cosine(band["agreement"]))))
    return Table(
        columns,
        tuple(rows),
        "Do heads want different frequencies?",
        "R2 is 1 where all heads want the same, and larger the less one table can give them all. Unclear: the halves "
        "of the texts agree on no common direction. An end below 0: in some draws they disagree head by head as well.",
        "Band",
    )


def _cosine(value: float | None) -> Cell:
    return Cell("none" if value is None else f"{value:.2f}", order=value)


def head_table(value: dict[str, Any]) -> Table:
    """A line for every key/value head."""
    bands = [band for band in value["bands"] if band["name"] != "all"]
    columns = (
        Column("looks back", "tokens", falling=True),
        Column("copies", "share of answers", falling=True),
        *(Column(f"wants, {band['name']}", "mnat", falling=True) for band in bands),
        Column("halves agree", "cosine, middle pairs"),
    )
    wanted = [[number for row in wants(value, band) for number in row] for band in bands]
    agreed = [number for row in value["agreement"] for number in row]
    rows = []
    for number, head in enumerate(value["heads"]):
        copies = None if head["copies"] is None else Cell(f"{head['copies']:.3f}", order=head["copies"])
        pulls = [Cell(f"{row[number]:+.2f}".replace("-", "−"), order=row[number]) for row in wanted]
        cells = (Cell(f"{head['distance']:,.1f}", order=head["distance"]), copies, *pulls, _cosine(agreed[number]))
        note = "retrieval" if head["retrieval"] else ""
        rows.append(TableRow("", f"layer {head['layer']}, {head['head']}", note, cells))
    return Table(
        columns,
        tuple(rows),
        "Heads",
        "Wants: far loss by log frequency, in thousandths of a nat; above 0, slower turning would lower the loss. "
        "Retrieval heads copy 0.1 or more.",
        "Head",
    )
