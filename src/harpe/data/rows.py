"""Documents out of the rows of JSON and Parquet files, and the fields that they stand in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from harpe.data.chat import ChatTemplate, Conversation
from harpe.data.unpacking import POINTER, opened
from harpe.errors import HarpeError

PARQUET_ROWS = 256
"""Rows of a Parquet file that are decoded at a time."""

JSON_BYTES = 2**20
"""Of a .json file that are read at a time; of an object that is longer, as many as have been read already."""

SPACE = re.compile(r"[ \t\r\n]*")

CUT = 16
"""An error so near the end of what was read may be no error: a word or an escape that goes on behind it."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    name: str
    """Where the text is from: a path inside the folder, `FILE:LINE`, `FILE:ROW` or `DATASET:ROW`."""
    text: str
    source: str = ""
    """The part of the corpus that it belongs to, if parts are named: a value of the source field, or a sub-folder."""
    chat: Conversation | None = None
    """Of a text that was rendered from messages."""


@dataclass(frozen=True)
class Fields:
    """Where a row's text stands, and what names the source of a document."""

    text: str = "text"
    """Field of a JSON object, column of a Parquet file or of a data set, with dots into nested ones (data.text)."""
    source: str | None = None
    """Another such field (meta.redpajama_set_name)."""
    by_folder: bool = False
    """In place of a field: the first sub-folder of the folder that is read."""
    chat: ChatTemplate | None = None
    """For conversations: what renders the messages that stand in the field `text`."""

    @property
    def option(self) -> str:
        """That names the field `text`."""
        return "--text-field" if self.chat is None else "--chat"


def decode(raw: bytes, where: str) -> str:
    """UTF-8 without its byte order mark; HarpeError for anything else."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HarpeError(
            f"--data: {where} is not UTF-8 (byte {error.start}: {error.reason}). Convert it, or leave it out."
        ) from error


def read_lines(path: Path, name: str, fields: Fields, folder: str) -> Iterator[Document]:
    """Documents of a file of one JSON object a line."""
    with opened(path) as stream:
        yield from line_documents(stream, str(path), name, fields, folder)


def line_documents(stream: BinaryIO, place: str, name: str, fields: Fields, folder: str) -> Iterator[Document]:
    """Documents of one JSON object a line; `place` names the stream in errors."""
    for number, raw in enumerate(stream, 1):  # as bytes, so that nothing but a newline ends a line
        where = f"line {number} of {place}"
        line = decode(raw, where)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise HarpeError(f"--data: {where} is not valid JSON ({error}). Mend the line, or remove it.") from error
        yield row_document(row, f"{name}:{number}", fields, folder, where)


def text_document(raw: bytes, place: str, name: str, fields: Fields, folder: str) -> Document:
    """The document that a whole text is; HarpeError where rows are asked for."""
    if fields.chat is not None:
        raise HarpeError(f"--chat: {place} is one text and no rows of messages. Leave it out.")
    if fields.source is not None:
        raise HarpeError(
            f"--source-field {fields.source}: {place} is one text without fields. Use --by-folder, or leave it out."
        )
    return Document(name, decode(raw, place), folder)


def read_json_rows(path: Path, name: str, fields: Fields, folder: str) -> Iterator[Document]:
    """Documents of a .json file: an array of objects, or one object after the other."""
    with opened(path) as stream:
        for number, row in enumerate(json_values(stream, str(path)), 1):
            yield row_document(row, f"{name}:{number}", fields, folder, f"row {number} of {path}")


def holds_rows(path: Path, fields: Fields) -> bool:
    """Whether a .json file begins as one of documents does: with an object that has the text field. Settings and the
    like do not.

    Of a file that is broken from the beginning, whether it spells the field: it is kept, to be reported when it is
    read.

    Raises HarpeError where nobody can tell: for a pointer of Git LFS, and for a packed file that is damaged or cut off.
    """
    with opened(path) as stream:
        head = stream.read(JSON_BYTES)
    try:
        with opened(path) as stream:
            row = next(json_values(stream, str(path)), None)
    except HarpeError:
        return spells_field(head, fields)
    return has_field(row, fields)


def spells_field(head: bytes, fields: Fields) -> bool:
    """Whether the text field's name stands in what is no valid JSON."""
    return f'{fields.text.split(".")[-1]}"'.encode() in head.replace(b"\0", b"")  # without the zeros of UTF-16


def has_field(row: Any, fields: Fields) -> bool:
    """Whether a value is an object that has the text field."""
    return isinstance(row, dict) and _value(row, fields.text) is not _NONE


def json_values(stream: BinaryIO, place: str) -> Iterator[Any]:
    """The elements of an array, or values that stand one after the other, as they are read; `place` names the stream in
    errors."""
    decoder, pending, text, number = json.JSONDecoder(), b"", "", 0
    first, at, wanted, ended = True, 0, JSON_BYTES, False
    in_array = closed = False

    def broken(error: object) -> HarpeError:
        return HarpeError(
            f"--data: {place} is not valid JSON behind its row {number} ({error}). Mend it, or leave it out."
        )

    while True:
        at = SPACE.match(text, at).end()  # type: ignore[union-attr]
        if at < len(text) and first:
            in_array, first = text[at] == "[", False
            at += in_array
            continue
        if at < len(text) and closed:
            raise broken("something stands behind the array")
        if at < len(text) and in_array and (text[at] == "]" or (text[at] == "," and number)):
            closed, at = text[at] == "]", at + 1
            continue
        if at < len(text):
            try:
                value, at = decoder.raw_decode(text, at)
                number += 1
                yield value
                continue
            except RecursionError as error:
                raise broken(error) from error
            except json.JSONDecodeError as error:
                if ended or not (error.msg.startswith("Unterminated string") or error.pos >= len(text) - CUT):
                    raise broken(error.msg) from error
            except ValueError as error:  # a number of thousands of digits
                raise broken(error) from error
        if ended:
            if in_array and not closed:
                raise broken("the file ends inside its array")
            return
        # twice as much for an object that goes on: its beginning is read again
        raw = stream.read(max(wanted, len(text) - at))
        ended = not raw
        pending += raw
        whole = len(pending) if ended else _whole_characters(pending)
        piece = decode(pending[:whole], place) if first and not text else _decode_inside(pending[:whole], place)
        text, at, pending = text[at:] + piece, 0, pending[whole:]


def _whole_characters(raw: bytes) -> int:
    """How many of the bytes are whole UTF-8 characters, where the last one may be cut."""
    for back in range(1, min(4, len(raw)) + 1):
        if raw[-back] & 0xC0 == 0xC0:  # the first byte of a character
            return len(raw) - back
        if raw[-back] < 0x80:
            break
    return len(raw)


def _decode_inside(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HarpeError(f"--data: {place} is not UTF-8 ({error.reason}). Convert it, or leave it out.") from error


def read_parquet(path: Path, name: str, fields: Fields, folder: str) -> Iterator[Document]:
    """Documents of a Parquet file, one a row."""
    number, columns = 0, [fields.text]
    try:
        with path.open("rb") as head:
            if head.read(len(POINTER)) == POINTER:
                raise HarpeError(
                    f"--data: {path} is a pointer of Git LFS and not the file itself. Fetch it (git lfs pull)."
                )
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            for field in filter(None, (fields.text, fields.source)):
                if len(schema.get_all_field_indices(top_column(field, schema.names) or field)) > 1:
                    raise HarpeError(
                        f"--data: {path} has several columns of one name, for {field}. Rename all but one."
                    )
            kind = _column_type(schema, fields.text)
            if kind is None:
                raise missing(fields.option, fields.text, _schema_paths(schema), str(path))
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            if fields.chat is None and not is_text:
                raise _no_text(fields.text, f"values of type {kind}", str(path))
            if fields.source is not None:
                if _column_type(schema, fields.source) is None:
                    raise missing("--source-field", fields.source, _schema_paths(schema), str(path))
                columns.append(fields.source)
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield row_document(row, f"{name}:{number}", fields, folder, f"row {number} of {path}")
    except UnicodeDecodeError as error:
        raise HarpeError(f"--data: {' or '.join(columns)} of {path} is not UTF-8 after row {number}.") from error
    except pa.ArrowException as error:
        raise HarpeError(f"--data: {path} is not a whole Parquet file ({error}). Write or copy it again.") from error


def _column_type(schema: pa.Schema, field: str) -> pa.DataType | None:
    """The type of a column, or of what lies in structs under a name with dots."""
    if field in schema.names:
        return schema.field(field).type
    top, *inner = field.split(".")
    kind = schema.field(top).type if top in schema.names else None
    for part in inner:
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _schema_paths(schema: pa.Schema) -> list[str]:
    def below(name: str, kind: pa.DataType) -> list[str]:
        if not pa.types.is_struct(kind):
            return [f"{name} (a list)" if pa.types.is_nested(kind) else name]
        return [path for each in kind.fields for path in below(f"{name}.{each.name}", each.type)]

    return [path for each in schema for path in below(each.name, each.type)]


def row_document(row: Any, name: str, fields: Fields, folder: str, where: str) -> Document:
    """The document that a row holds; its text is empty where the row has none.

    Raises HarpeError for a row that is no object, a field that is not there, and one that holds something else than
    text.
    """
    if not isinstance(row, dict):
        raise HarpeError(f"--data: {where} is no JSON object but {_kind(row)}. Every row has to be one object.")
    source = _source(row, fields, folder, where)
    if fields.chat is None:
        return Document(name, _text(row, fields.text, where), source)
    if (messages := _value(row, fields.text)) is _NONE:
        raise missing("--chat", fields.text, _paths(row), where)
    text, chat = fields.chat.render(messages, where)
    return Document(name, _in_utf8(text, where), source, chat)


_NONE = object()


def _value(row: dict[str, Any], field: str) -> Any:
    """A row's value in a field that may be nested; None if an object around it is null, `_NONE` without the field."""
    value: Any = row
    for part in [field] if field in row else field.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            return _NONE
        value = value[part]
    return value


def top_column(field: str, names: list[str]) -> str | None:
    """The column that a field with dots lies in: itself, or its first part; None where there is neither."""
    return next((name for name in (field, field.split(".")[0]) if name in names), None)


def _source(row: dict[str, Any], fields: Fields, folder: str, where: str) -> str:
    """The source of a row: the value of the source field, or else the folder."""
    if fields.source is None:
        return folder
    value = _value(row, fields.source)
    if value is _NONE:
        raise missing("--source-field", fields.source, _paths(row), where)
    if not isinstance(value, str) or not value:
        found = "an empty text" if value == "" else _kind(value)
        raise HarpeError(
            f"--source-field {fields.source}: {where} holds {found} there. Name a field that says which source a text "
            "is from."
        )
    return _in_utf8(value, where)


def _paths(row: dict[str, Any]) -> list[str]:
    """The fields of a row, those of objects in it with dots; no dot leads into a list."""
    return [f"{key}.{inner}" for key, value in row.items() if isinstance(value, dict) for inner in _paths(value)] + [
        f"{key} (a list)" if isinstance(value, list) else key
        for key, value in row.items()
        if not isinstance(value, dict)
    ]


def _text(row: dict[str, Any], text_field: str, where: str) -> str:
    """The text of a row; a null counts as no text."""
    value = _value(row, text_field)
    if value is _NONE:
        raise missing("--text-field", text_field, _paths(row), where)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _no_text(text_field, _kind(value), where)
    return _in_utf8(value, where)


def _in_utf8(value: str, where: str) -> str:
    """The value itself; HarpeError for half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise HarpeError(f"--data: {where} holds a character that does not exist in UTF-8 ({error.reason}).") from error
    return value


def missing(option: str, field: str, fields: list[str], where: str) -> HarpeError:
    """A field that is not there, with those that are."""
    there = ", ".join(sorted(fields)) or "none"
    return HarpeError(f"{option} {field}: {where} has no such field. The fields there are: {there}.")


def _no_text(text_field: str, found: str, where: str) -> HarpeError:
    return HarpeError(
        f"--text-field {text_field}: {where} holds {found} there, not text. Name the field that holds the text."
    )


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "int": "a number", "float": "a number", "bool": "a truth value"}
    kind = type(value).__name__
    return {**names, "str": "a string", "NoneType": "null"}.get(kind, f"a value of type {kind}")
