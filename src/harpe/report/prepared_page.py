"""The page of a folder of prepared training data, and the JSON file with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harpe.data.boundaries import Piece
from harpe.errors import HarpeError
from harpe.files import write_json, write_text
from harpe.ownership import refuse_foreign
from harpe.report.environment import environment
from harpe.report.figures.lengths import document_histogram, token_histogram
from harpe.report.read.prepared import Prepared, as_json
from harpe.report.tables.prepared import (
    bin_table,
    folder_facts,
    layout_facts,
    length_facts,
    long_table,
    options_facts,
    source_table,
)
from harpe.report.wording import printable

PAGE, FIGURES = "index.html", "data.json"


def check_place(folder: Path) -> None:
    """Refuse a folder in which something has the name of what will be written and was not written by `harpe data`.

    Raises HarpeError for what harpe did not write, and for the page of a run, which has no data.json beside it.
    """
    refuse_foreign(folder / PAGE, folder / FIGURES)
    if (folder / PAGE).exists() and not (folder / FIGURES).exists():
        raise HarpeError(f"{folder / PAGE} is the page of something else than prepared data. Name another --out.")


def write_prepared_page(value: Prepared, folder: Path) -> Path:
    """Write `data.json` and `index.html` into `folder`, each whole or not at all; returns the page.

    Raises HarpeError as `check_place` does, and where the folder cannot be written to.
    """
    check_place(folder)
    page = render(value)
    try:
        write_json(folder / FIGURES, as_json(value))
        write_text(folder / PAGE, page)
    except OSError as error:
        raise HarpeError(f"{folder} cannot be written to ({error.strerror}). Name another folder by --out.") from error
    return folder / PAGE


def marked(pieces: Sequence[Piece], answers: bool) -> list[tuple[str, str]]:
    """The pieces of a text as they are shown, each with its classes.

    Parameters
    ----------
    answers
        Whether tokens that are trained on differ from others, and are marked.
    """
    return [
        (" ".join(["special"] * p.special + ["trained"] * (p.trained and answers)), printable(p.text, "\n\t"))
        for p in pieces
    ]


def render(value: Prepared) -> str:
    """The page. Everything in it that is from the corpus is escaped, with control characters shown as signs; it has no
    script, and its policy lets none run."""
    answers = value.index.targets is not None
    return (
        environment()
        .get_template("prepared.html.j2")
        .render(
            value=value,
            name=printable(value.name),
            facts_of=folder_facts(value),
            sources=source_table(value),
            long=long_table(value),
            bins=bin_table(value),
            lengths=length_facts(value),
            layout=layout_facts(value),
            options=options_facts(value),
            token_figure=token_histogram(value.lengths, value.layout.length),
            document_figure=document_histogram(value.lengths, value.layout.length),
            left_out=printable(value.boundaries_left_out),
            boundaries=[(b, marked(b.before, answers), marked(b.after, answers)) for b in value.boundaries],
        )
    )
