"""What a folder of prepared training data holds, out of its index and the places where its documents start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harpe.data.boundaries import Boundary
from harpe.data.description import DocumentLengths, SequenceLayout, document_lengths, sequence_layout
from harpe.data.packed import PackedDataset
from harpe.report.read.fields import build, parse_file


@dataclass(frozen=True)
class Source:
    """Documents and tokens of a source, as they were there and as they were drawn; shares are of all tokens, those of
    long documents of the source's."""

    source: str
    documents: int
    documents_drawn: int
    tokens: int
    tokens_drawn: int
    share: float
    share_drawn: float
    long_share: float
    long_share_drawn: float


@dataclass(frozen=True)
class Index:
    """What is shown of index.json."""

    hash: str
    dtype: str
    packed_length: int
    seed: int | None = None
    targets: int | None = None
    """Tokens that are trained on, where those are not all."""
    description: str = ""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    corpus: dict[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    """With which `harpe prepare` was called; none where a run packed its texts itself."""


@dataclass(frozen=True)
class Prepared:
    """Everything that the page, the tables and the JSON file say."""

    name: str
    """Of the folder, or where in a run it lies."""
    tokens: int
    index: Index
    lengths: DocumentLengths
    layout: SequenceLayout
    boundaries: tuple[Boundary, ...]
    boundaries_left_out: str
    """Why none are shown; empty where some are."""

    @property
    def long_length(self) -> int | None:
        """From how many tokens on a document was long for what drew them; None where the index does not say it."""
        length = self.index.options.get("upsample_length")
        return length if isinstance(length, int) else None


def read_prepared(data: PackedDataset, boundaries: Sequence[Boundary], left_out: str) -> Prepared:
    """Count what a packed data set holds. No token is read.

    Raises HarpeError where index.json lacks an entry or has one of another type.
    """
    return Prepared(
        name=_name(data.path),
        tokens=data.tokens,
        index=parse_file(data.path / "index.json", _index),
        lengths=document_lengths(data.starts, data.tokens),
        layout=sequence_layout(data.starts, data.tokens, data.length),
        boundaries=tuple(boundaries),
        boundaries_left_out=left_out,
    )


def _name(path: Path) -> str:
    """Of the folder; of a run's data, from the name of the run on: the folder itself has a length for its name."""
    above = next((n for n in (1, 2) if len(path.parts) > n + 2 and path.parents[n - 1].name == "data"), None)
    return path.name if above is None else "/".join(path.parts[-2 - above :])


def _index(value: dict[str, Any]) -> Index:
    return build(Index, {**value, "packed_length": value["length"]}, "the index")


def as_json(value: Prepared) -> dict[str, Any]:
    """The figures as a JSON object; docs/data.md says what its keys are."""
    index = asdict(value.index)
    return {
        "name": value.name,
        "tokens": value.tokens,
        **{key: index[key] for key in ("hash", "dtype", "packed_length", "targets", "seed", "description")},
        "tokenizer": index["tokenizer"],
        "corpus": index["corpus"],
        "sources": index["sources"],
        "options": index["options"],
        "document_lengths": asdict(value.lengths),
        "sequences": asdict(value.layout),
        "boundaries": [asdict(boundary) for boundary in value.boundaries],
        "boundaries_left_out": value.boundaries_left_out,
    }
