"""Documents out of tar archives: of WebDataset's samples, and of any other files that harpe reads.

An archive is read once, from its beginning to its end. Nothing of it is written to the disk, and the paths in it name
documents and are never opened.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from harpe.data.files import LINE_SUFFIXES, METADATA, TEXT_SUFFIXES, inner_suffix, suffix_of
from harpe.data.rows import (
    JSON_BYTES,
    Document,
    Fields,
    has_field,
    json_values,
    line_documents,
    row_document,
    spells_field,
    text_document,
)
from harpe.data.unpacking import opened, unpacked
from harpe.errors import HarpeError

BLOCK = 2**18
"""Bytes of an archive that are read at a time."""

HEADER = 2**20
"""Bytes that a member's name and what else describes it may have: they are read as a whole."""

DESCRIBING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Headers with such a description behind them."""

WORD = re.compile(r"\.[a-z][a-z0-9_+-]{0,11}(\.[a-z0-9]+)?")
"""A suffix that is worth counting by itself: not the number in 2301.00001."""


def read_tar(
    path: Path, name: str, fields: Fields, folder: str, passed_over: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """Documents of the members of a tar in their order, each with its suffix.

    Members that have one name but for their suffix are a sample (000001.txt, 000001.json): where its .json has the text
    field, that is the document, and its texts are passed over. `passed_over` counts these, and members that are not
    read, by what they are.

    Raises HarpeError for an archive that is damaged or cut off, with how many of its members could be read, and for
    what is wrong with a member.
    """
    members, last = 0, ""
    sample = _Sample("", fields, folder, passed_over)
    try:
        with opened(path) as stream, _archive(stream) as tar:
            while (member := _next(tar)) is not None:
                inside = _Inside(member.name, name, str(path))
                if _is_taken(member, inside, passed_over):
                    if not sample.takes(inside):
                        yield from sample.texts()
                        sample = _Sample(inside.stem, fields, folder, passed_over)
                    yield from sample.read(inside, cast(io.BufferedReader, tar.extractfile(member)))
                _go_behind(tar)
                members, last = members + 1, f", up to {inside.shown}"
            yield from sample.texts()
            _check_end(tar)
    except tarfile.TarError as error:
        raise HarpeError(
            f"--data: {path} is no whole tar archive ({error}): {members:,} members of it could be read{last}. Copy it "
            "again, or leave it out."
        ) from error


class _Inside:
    """Where in an archive a member is, in the words for documents and for errors."""

    def __init__(self, member: str, archive: str, path: str) -> None:
        self.shown = member if member.isprintable() else ascii(member)[1:-1]
        self.path = PurePosixPath(self.shown)
        self.name, self.place = f"{archive}:{self.shown}", f"{self.shown} in {path}"
        self.suffix, self.kind = suffix_of(self.path), inner_suffix(self.path)
        self.packing = f".{self.suffix.rsplit('.', 1)[-1]}"

    @property
    def stem(self) -> str:
        """The path without its suffix, which the members of a sample share.

        WebDataset cuts at the first dot; but then all of 2301.00001.txt, 2301.00002.txt … would be one sample.
        """
        return str(self.path)[: len(str(self.path)) - len(self.suffix)]

    @property
    def is_hidden(self) -> bool:
        return any(part.startswith(".") and part != ".." for part in self.path.parts)


@dataclass
class _Sample:
    """Members of one stem, that follow each other; texts wait for a .json, which may come behind them."""

    stem: str
    fields: Fields
    folder: str
    passed_over: Counter[str]
    _texts: dict[str, tuple[_Inside, bytes]] = field(default_factory=dict)
    _in_json: bool = False

    def takes(self, inside: _Inside) -> bool:
        return inside.stem == self.stem and inside.suffix not in self._texts  # or else one name, again and again

    def read(self, inside: _Inside, raw: io.BufferedReader) -> Iterator[tuple[str, Document]]:
        """The documents of a member that are sure to be some."""
        stream = unpacked(raw, inside.packing if inside.suffix != inside.kind else "", inside.place)
        if inside.kind in TEXT_SUFFIXES:
            self._texts[inside.suffix] = inside, stream.read()
            if self._in_json:
                self._drop_texts()
            return
        rows = (
            line_documents(stream, inside.place, inside.name, self.fields, self.folder)
            if inside.kind in LINE_SUFFIXES
            else self._json(inside, stream)
        )
        for document in rows:
            yield _in_tars(inside), document

    def _json(self, inside: _Inside, stream: BinaryIO) -> Iterator[Document]:
        head = stream.read(JSON_BYTES)
        values = json_values(cast(BinaryIO, _Again(head, stream)), inside.place)
        try:
            first = next(values, None)
        except HarpeError:
            if spells_field(head, self.fields):
                raise
            first = None
        if not has_field(first, self.fields):  # as in a folder: settings, or what describes a text beside it
            self.passed_over[f"{_in_tars(inside)} without documents"] += 1
            return
        self._in_json = True
        self._drop_texts()
        number = 0
        for number, row in enumerate(_chain(first, values), 1):
            where = f"row {number} of {inside.place}"
            yield row_document(row, f"{inside.name}:{number}", self.fields, self.folder, where)

    def _drop_texts(self) -> None:
        for inside, _ in self._texts.values():
            self.passed_over[f"{_in_tars(inside)} beside their .json"] += 1
        self._texts.clear()

    def texts(self) -> Iterator[tuple[str, Document]]:
        """The texts that no .json stands for."""
        for inside, raw in self._texts.values():
            yield _in_tars(inside), text_document(raw, inside.place, inside.name, self.fields, self.folder)


class _Again:
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int) -> bytes:
        head, self._head = self._head, b""
        return head or self._rest.read(size)


def _chain(first: object, rest: Iterator[object]) -> Iterator[object]:
    yield first
    yield from rest


def _in_tars(inside: _Inside) -> str:
    return f"{inside.suffix if WORD.fullmatch(inside.suffix) else 'without a suffix'} in tars"


def _is_taken(member: tarfile.TarInfo, inside: _Inside, passed_over: Counter[str]) -> bool:
    """Whether documents may be in a member; if not it is counted, but for folders."""
    if member.isdir():
        return False
    if not member.isreg() or member.issparse():
        passed_over["links, devices and files with holes in tars"] += 1
    elif inside.is_hidden:
        passed_over["hidden in tars"] += 1
    elif inside.path.name.lower() in METADATA:
        passed_over["of a data set's metadata in tars"] += 1
    elif inside.kind not in (*TEXT_SUFFIXES, *LINE_SUFFIXES, ".json"):  # a .parquet is read from its end
        passed_over[_in_tars(inside)] += 1
    else:
        return True
    return False


class _Header(tarfile.TarInfo):
    """A member's header. `tarfile` itself takes whatever is none for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end, as it should be
            raise tarfile.ReadError("it is cut off" if len(buf) < tarfile.BLOCKSIZE else str(error)) from error
        if header.size < 0 or (header.size > HEADER and header.type in DESCRIBING):
            raise tarfile.ReadError("it is damaged: a header has an impossible size")
        return header


def _archive(stream: BinaryIO) -> tarfile.TarFile:
    with _Telling():
        return tarfile.open(
            fileobj=stream, mode="r|", bufsize=BLOCK, tarinfo=_Header, encoding="utf-8", errors="replace"
        )


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _Telling():
        member = tar.next()
    if member is not None and (member.size < 0 or tar.offset < cast(BinaryIO, tar.fileobj).tell()):
        raise tarfile.ReadError("it is damaged: a member ends before it begins")
    tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
    return member


class _Telling:
    """What a damaged header makes `tarfile` stumble over, it does not always call an error of the archive."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        stumbled = isinstance(error, (ValueError, LookupError, ArithmeticError, RecursionError))
        if stumbled and not isinstance(error, HarpeError):
            raise tarfile.ReadError(f"it is damaged: {error}") from error


def _go_behind(tar: tarfile.TarFile) -> None:
    """Skip what was not read of a member; `tarfile` would count up to a size of exabytes that a header claims."""
    stream = cast(BinaryIO, tar.fileobj)
    while (left := tar.offset - stream.tell()) > 0:
        if not stream.read(min(left, BLOCK)):
            raise tarfile.ReadError("it is cut off")


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse what stands behind the mark of the end, which other programs pass over without a word."""
    stream = cast(BinaryIO, tar.fileobj)
    while rest := stream.read(BLOCK):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("something stands behind its end, as where archives were joined by cat")
