"""The page of `harpe heads`, and the JSON file with its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.files import write_json, write_text
from harpe.ownership import refuse_foreign
from harpe.report.environment import environment
from harpe.report.figures.heads import head_map, ratios
from harpe.report.tables.heads import head_facts, head_table, ratio_table, wants
from harpe.report.wording import printable

PAGE, FIGURES = "index.html", "heads.json"


def check_place(folder: Path) -> None:
    """Refuse a folder in which something has the name of what will be written and was not written by `harpe heads`."""
    refuse_foreign(folder / PAGE, folder / FIGURES)
    if (folder / PAGE).exists() and not (folder / FIGURES).exists():
        raise HarpeError(f"{folder / PAGE} is the page of something else than heads. Name another --out.")


def write_heads_page(value: dict[str, Any], folder: Path) -> Path:
    """Write `heads.json` and `index.html` into `folder`, each whole or not at all; returns the page.

    Raises HarpeError as `check_place` does, and where the folder cannot be written to.
    """
    check_place(folder)
    page = render(value)
    try:
        write_json(folder / FIGURES, value)
        write_text(folder / PAGE, page)
    except OSError as error:
        raise HarpeError(f"{folder} cannot be written to ({error.strerror}). Name another folder by --out.") from error
    return folder / PAGE


def _maps(value: dict[str, Any]) -> list[tuple[str, Any]]:
    layers, heads = value["layers"], value["key_value_heads"]

    def rows(name: str) -> list[list[float]]:
        flat = [head[name] for head in value["heads"]]
        return [flat[start : start + heads] for start in range(0, len(flat), heads)]

    distance = "How far they look, in tokens: dark near, light far"
    found = [(distance, head_map(distance, layers, rows("distance"), lambda v: f"{v:,.1f} tokens", "log"))]
    if value["samples"]:
        copies = "How much they copy: dark nothing, light all of the needles' answers"
        found.append((copies, head_map(copies, layers, rows("copies"), lambda v: f"{v:.3f}", "share")))
    for band in (band for band in value["bands"] if band["name"] != "all"):
        name = f"What they want of the {band['name']} pairs: red slower, blue faster"
        found.append((name, head_map(name, layers, wants(value, band), lambda v: f"{v:+.3f} mnat", "signed")))
    return found


def render(value: dict[str, Any]) -> str:
    """The page. Everything in it that is from the model or the texts is escaped; it has no script."""
    return (
        environment()
        .get_template("heads.html.j2")
        .render(
            value=value,
            name=printable(value["model"]),
            facts_of=head_facts(value),
            ratio_figure=ratios(value["bands"]),
            ratio_table=ratio_table(value),
            maps=_maps(value),
            heads=head_table(value),
        )
    )
