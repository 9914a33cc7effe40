"""Tables and sentences on a folder of prepared training data."""

from __future__ import annotations

from typing import Any

from harpe.report.read.prepared import Prepared, Source
from harpe.report.tables.table import Cell, Column, Table, TableRow
from harpe.report.wording import facts, printable


def folder_facts(value: Prepared) -> list[tuple[str, str]]:
    """What the folder is, in words."""
    index, tokenizer = value.index, value.index.tokenizer
    trained = "all"
    if index.targets is not None:
        trained = f"{index.targets:,} ({index.targets / value.tokens:.1%}): of conversations answers alone"
    sequences = f"{value.layout.sequences:,} of {value.layout.length:,} tokens"
    if value.layout.length != index.packed_length:
        sequences += f", cut from those of {index.packed_length:,} that were packed"
    found = {
        "made of": printable(index.description) or "not told",
        "tokens": f"{value.tokens:,}",
        "documents": f"{value.lengths.documents:,}",
        "sequences": sequences,
        "tokens trained on": trained,
        "tokenizer": _tokenizer(tokenizer),
        "SHA-256 of the stream": printable(index.hash),
    }
    if {"documents", "tokens"} <= index.corpus.keys():
        found["corpus"] = f"{_count(index.corpus['documents'])} documents, {_count(index.corpus['tokens'])} tokens"
    return list(found.items())


def _tokenizer(identity: dict[str, Any]) -> str:
    if not identity:
        return "not told"
    name, words, digest = (identity.get(key, "unknown") for key in ("class", "vocabulary", "sha256"))
    return printable(f"{name}, {_count(words)} ids, SHA-256 {digest}")


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else printable(str(number))


def options_facts(value: Prepared) -> list[tuple[str, str]]:
    """The options of `harpe prepare`, without those that were left out and have no default."""
    given = {key: each for key, each in value.index.options.items() if each is not None}
    return [(printable(key), printable(words)) for key, words in facts(given)]


def source_name(source: Source) -> str:
    """What a source is called."""
    return printable(source.source) or "all texts"


def source_table(value: Prepared) -> Table:
    """Documents and tokens of every source, as they were there and as they were drawn."""
    columns = [Column(head, note) for head in ("documents", "tokens", "share") for note in ("there", "drawn")]
    rows = [
        [
            *(_number(n) for n in (s.documents, s.documents_drawn, s.tokens, s.tokens_drawn)),
            *(_percent(share) for share in (s.share, s.share_drawn)),
            *((_percent(share) for share in (s.long_share, s.long_share_drawn)) if value.long_length else ()),
        ]
        for s in value.index.sources
    ]
    caption = (
        "There: in the texts that were read. Drawn: in the stream; of documents, how many different ones. "
        "Share: of all tokens."
    )
    if value.long_length:
        columns += [Column("long", note) for note in ("there", "drawn")]
        caption += f" Long: share of the source's tokens in documents of at least {value.long_length:,} tokens."
    named = zip(value.index.sources, rows, strict=True)
    return Table(
        tuple(columns),
        tuple(TableRow("", source_name(source), "", tuple(row)) for source, row in named),
        "Sources",
        caption,
        "Source",
    )


def long_table(value: Prepared) -> Table:
    """Tokens in documents of at least 4,096, 32,768 and 131,072 tokens."""
    rows = tuple(
        TableRow("", f"at least {row.length:,}", "", (_percent(row.share), _number(row.tokens), _number(row.documents)))
        for row in value.lengths.long
    )
    return Table(_LENGTH_COLUMNS, rows, "Long documents", "", "Tokens of the document")


def bin_table(value: Prepared) -> Table:
    """The histogram in numbers."""
    rows = tuple(
        TableRow("", f"{b.first:,} to {b.last:,}", "", (_percent(b.share), _number(b.tokens), _number(b.documents)))
        for b in value.lengths.bins
    )
    return Table(_LENGTH_COLUMNS, rows, "Documents by length", "", "Tokens of the document")


_LENGTH_COLUMNS = (Column("share of the tokens"), Column("tokens"), Column("documents"))


def length_facts(value: Prepared) -> list[tuple[str, str]]:
    """Lengths of the documents in single numbers."""
    of = value.lengths
    return [
        ("shortest", f"{of.shortest:,} tokens"),
        ("median", f"{of.median:,.10g} tokens"),
        ("mean", f"{of.mean:,.1f} tokens"),
        ("longest", f"{of.longest:,} tokens"),
    ]


def layout_facts(value: Prepared) -> list[tuple[str, str]]:
    """How documents lie across sequences, in words and numbers."""
    of = value.layout
    return [
        (
            "documents in a sequence",
            f"mean {of.documents_mean:,.2f}, median {of.documents_median:,.10g}, most {of.documents_most:,}",
        ),
        ("sequences of one document alone, or of a part of one", f"{of.single_share:.1%}"),
        ("documents that a boundary of sequences cuts", f"{of.cut_share:.1%}"),
        ("tokens of a sequence that are of its longest document, mean", f"{of.longest_share:.1%}"),
        (
            "tokens of its own document before a token in its sequence, mean",
            f"{of.look_back:,.1f} ({of.look_back_most:,.1f} were every sequence one document)",
        ),
    ]


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", order=value)


def _percent(share: float) -> Cell:
    return Cell(f"{share:.1%}", order=share)
