"""What a folder of prepared training data holds, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from harpe.data.boundaries import Piece
from harpe.report.read.prepared import Prepared
from harpe.report.tables.prepared import bin_table, folder_facts, layout_facts, length_facts, long_table, source_table
from harpe.report.tables.table import Table as Cells
from harpe.report.wording import printable


def prepared_tables(value: Prepared) -> Iterator[Table | Text]:
    """The tables one after the other, and the boundaries below them."""
    yield _pairs(printable(value.name), folder_facts(value))
    if value.index.sources:
        yield _sources(source_table(value))
    yield _grid("The last document may be cut by the end of the stream.", bin_table(value), long_table(value))
    yield _pairs("Lengths of documents", length_facts(value))
    yield _pairs("Documents in sequences", layout_facts(value))
    yield from boundary_texts(value)


def boundary_texts(value: Prepared) -> Iterator[Text]:
    """Each boundary as the end of a document and the beginning of the next; special tokens reversed, trained ones
    underlined where not all are."""
    answers = value.index.targets is not None
    for b in value.boundaries:
        place = f"Document {b.document:,} begins at token {b.offset:,} of sequence {b.sequence:,}:"
        yield Text.assemble(
            (place, "bold"), "\n", *_shown(b.before, answers), ("\n┈┈┈┈\n", "dim"), *_shown(b.after, answers), "\n"
        )


def _shown(pieces: Sequence[Piece], answers: bool) -> Iterator[tuple[str, str]]:
    for p in pieces:
        styles = ["reverse"] * p.special + ["underline"] * (p.trained and answers)
        yield printable(p.text).replace("␊", "⏎"), " ".join(styles)


def _pairs(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = _empty(title, "")
    table.show_header = False
    table.add_column(overflow="fold", max_width=36)
    table.add_column(overflow="fold")
    for key, words in rows:
        table.add_row(Text(key), Text(words, style="bold"))
    return table


def _sources(cells: Cells) -> Table:
    """The table of sources with what was there and what was drawn one below the other: it fits 80 columns."""
    table = _empty(cells.title, cells.caption.replace(". ", ".\n"))
    table.padding = (0, 1, 1, 0)
    table.add_column(Text(cells.first), overflow="fold", max_width=20)
    table.add_column("")
    for column in cells.columns[::2]:
        table.add_column(Text(column.head), justify="right", overflow="fold")
    for row in cells.rows:
        words = [cell.value if cell else "" for cell in row.cells]
        pairs = (Text(f"{there}\n{drawn}") for there, drawn in zip(words[::2], words[1::2], strict=True))
        table.add_row(Text(row.title), "there\ndrawn", *pairs)
    return table


def _grid(caption: str, *parts: Cells) -> Table:
    """Tables of the same columns, one below the other."""
    table = _empty(parts[0].title, caption)
    table.add_column(Text(parts[0].first), overflow="fold")
    for column in parts[0].columns:
        table.add_column(Text(column.head), justify="right", overflow="fold")
    for part in parts:
        for row in part.rows:
            table.add_row(Text(row.title), *(Text(cell.value if cell else "") for cell in row.cells))
        table.add_section()
    return table


def _empty(title: str, caption: str) -> Table:
    return Table(
        title=Text(title),
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
