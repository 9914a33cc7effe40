"""Documents out of files, folders and Hugging Face data sets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harpe.errors import HarpeError

TEXT_SUFFIXES = (".txt", ".md", ".tex", ".py", ".rst")
"""Files that are one document each."""

ROW_SUFFIXES = (".jsonl", ".parquet")
"""Files that hold one document a row, in the field that --text-field names."""

SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES)

PARQUET_ROWS = 256
"""Rows of a Parquet file that are decoded at a time."""

_HUB_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>.+))?")


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    name: str
    """Where the text is from: a path inside the folder, `FILE:LINE`, `FILE:ROW` or `DATASET:ROW`."""
    text: str
    source: str = ""
    """The part of the corpus that it belongs to, where parts are told apart: a value of the source field, or a sub-folder."""


@dataclass(frozen=True)
class Fields:
    """Where a row's text stands, and what names the source of a document."""

    text: str = "text"
    """Field of a JSONL object, column of a Parquet file or of a data set."""
    source: str | None = None
    """Another such field, with dots into nested ones (meta.redpajama_set_name)."""
    by_folder: bool = False
    """In place of a field: the first sub-folder of the folder that is read."""


def read_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    source_field: str | None = None,
    by_folder: bool = False,
    split: str = "train",
    revision: str | None = None,
) -> Iterator[Document]:
    """Documents of a file, of a folder or of a Hugging Face data set, one at a time and in a fixed order.

    Text is taken as it is, but for a byte order mark. Documents without any text (null, empty or nothing but white space)
    are left out.

    Parameters
    ----------
    source
        A file (.txt .md .tex .py .rst: one document; .jsonl .parquet: one document a row), a folder of such files, or, where no
        such path exists, the name of a Hugging Face data set, `ORG/NAME` or `ORG/NAME:CONFIG`. A folder is walked recursively
        in the order of the files' POSIX paths; hidden files and files with other suffixes are passed over.
    text_field
        Field of a JSONL object, column of a Parquet file or of a data set that holds the text.
    source_field, by_folder
        What names the source of a document: another field, with dots into nested ones, or the first sub-folder of the folder that is read
        ("." for files that lie in no sub-folder). By default all documents have the source "".
    split, revision
        Of a Hugging Face data set; they say nothing about files.

    Raises
    ------
    HarpeError
        At the call: when nothing can be read from `source`. While iterating: when a file or a row of it is not what its suffix
        says, or the field is missing or holds no text.
    """
    fields = Fields(text_field, source_field, by_folder)
    if (files := find_files(source)) is not None:
        path = Path(source).expanduser()
        return _read_files(files, fields, path if path.is_dir() else path.parent)
    name = _HUB_NAME.fullmatch(str(source))
    assert name is not None
    if by_folder:
        raise HarpeError(f"--by-folder: {source} is a data set and has no folders; name the field of its rows by --source-field.")
    return _read_hub(str(source), name["path"], name["config"], fields, split, revision)


def find_files(source: str | Path) -> list[Path] | None:
    """The files that `read_documents` reads, in its order; None for the name of a Hugging Face data set.

    Raises
    ------
    HarpeError
        When `source` is none of the two, or nothing in it can be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _walk(path)
    if path.exists():
        if path.suffix.lower() not in SUFFIXES:
            raise HarpeError(f"--data {source} has a suffix that harpe cannot read; give one of {' '.join(SUFFIXES)}.")
        return [path]
    if isinstance(source, Path) or _looks_like_a_path(source) or not _HUB_NAME.fullmatch(source):
        raise HarpeError(f"--data {source}: there is no such file or folder. Check the path.")
    return None


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or "\\" in source or Path(source).suffix.lower() in SUFFIXES


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise HarpeError(f"--data: the folder {error.filename} cannot be read ({error.strerror}).") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            # a link to nothing is kept, to be reported when it is read; pipes and devices are passed over
            if path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists()):
                found.append(path)
    if not found:
        raise HarpeError(f"--data {folder} is a folder without any file that harpe reads ({' '.join(SUFFIXES)}).")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _read_files(paths: list[Path], fields: Fields, root: Path) -> Iterator[Document]:
    for path in paths:
        relative = path.relative_to(root)
        name, folder = relative.as_posix(), (relative.parts[0] if len(relative.parts) > 1 else ".") if fields.by_folder else ""
        try:
            if path.suffix.lower() == ".jsonl":
                documents = _read_jsonl(path, name, fields, folder)
            elif path.suffix.lower() == ".parquet":
                documents = _read_parquet(path, name, fields, folder)
            elif fields.source is not None:
                raise HarpeError(f"--source-field {fields.source}: {path} is one text without fields. Use --by-folder, or leave it out.")
            else:
                documents = iter([Document(name, _decode(path.read_bytes(), str(path)), folder)])
            yield from (document for document in documents if document.text and not document.text.isspace())
        except OSError as error:
            raise HarpeError(f"--data: {path} cannot be read ({error.strerror or error}).") from error


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HarpeError(f"--data: {where} is not UTF-8 (byte {error.start}: {error.reason}). Convert it, or leave it out.") from error


def _read_jsonl(path: Path, name: str, fields: Fields, folder: str) -> Iterator[Document]:
    with path.open("rb") as stream:  # as bytes, so that nothing but a newline ends a line
        for number, raw in enumerate(stream, 1):
            where = f"line {number} of {path}"
            line = _decode(raw, where)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise HarpeError(f"--data: {where} is not valid JSON ({error}). Mend the line, or remove it.") from error
            if not isinstance(row, dict):
                raise HarpeError(f"--data: {where} is no JSON object but {_kind(row)}. Every line has to be one object.")
            yield Document(f"{name}:{number}", _text(row, fields.text, where), _source(row, fields, folder, where))


def _read_parquet(path: Path, name: str, fields: Fields, folder: str) -> Iterator[Document]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if fields.text not in schema.names:
                raise _missing("--text-field", fields.text, schema.names, str(path))
            kind = schema.field(fields.text).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise _no_text(fields.text, f"values of type {kind}", str(path))
            columns = [fields.text]
            if fields.source is not None:
                if (top := _top(fields.source, schema.names)) is None:
                    raise _missing("--source-field", fields.source, schema.names, str(path))
                columns.append(top)
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield Document(f"{name}:{number}", row[fields.text] or "", _source(row, fields, folder, f"row {number} of {path}"))
    except UnicodeDecodeError as error:
        raise HarpeError(f"--data: the field {fields.text!r} of {path} is not UTF-8 after row {number}.") from error
    except pa.ArrowException as error:
        raise HarpeError(f"--data: {path} is not a whole Parquet file ({error}). Write or copy it again.") from error


def _read_hub(source: str, path: str, config: str | None, fields: Fields, split: str, revision: str | None) -> Iterator[Document]:
    import datasets  # here, since it takes longer to import than a folder of files takes to be found

    try:
        rows = datasets.load_dataset(path, config, split=split, revision=revision, streaming=True)
        columns = rows.column_names
    except Exception as error:  # the hub, the network, the configuration, the format: many kinds, one answer
        raise _unreachable(source, error, datasets.config.HF_HUB_OFFLINE) from error
    where = f"the data set {source}"
    if columns is not None:
        if fields.text not in columns:
            raise _missing("--text-field", fields.text, columns, where)
        wanted = [fields.text]
        if fields.source is not None:
            if (top := _top(fields.source, columns)) is None:
                raise _missing("--source-field", fields.source, columns, where)
            wanted.append(top)
        rows = rows.select_columns(wanted)

    def documents() -> Iterator[Document]:
        remaining = iter(rows)
        number = 0
        while True:
            try:
                row = next(remaining, None)
            except Exception as error:
                raise HarpeError(f"--data: reading {where} failed after row {number} ({_line(error)}). Try again.") from error
            if row is None:
                return
            number += 1
            at = f"row {number} of {where}"
            text = _text(row, fields.text, at)
            if text and not text.isspace():
                yield Document(f"{source}:{number}", text, _source(row, fields, "", at))

    return documents()


def _unreachable(source: str, error: Exception, offline: bool) -> HarpeError:
    if offline:
        return HarpeError(
            f"--data {source} is neither a file nor a folder, and HF_HUB_OFFLINE forbids asking the Hugging Face Hub for a "
            "data set of that name. Check the path, or unset HF_HUB_OFFLINE."
        )
    return HarpeError(
        f"--data {source} is neither a file nor a folder, and loading it as a Hugging Face data set failed ({_line(error)}). "
        "Check the name (ORG/NAME, or ORG/NAME:CONFIG where there are several configurations), and log in or set HF_TOKEN if "
        "it is private or gated."
    )


def _top(field: str, names: list[str]) -> str | None:
    """The column that a field with dots lies in: itself, or its first part; None where there is neither."""
    return next((name for name in (field, field.split(".")[0]) if name in names), None)


def _source(row: dict[str, Any], fields: Fields, folder: str, where: str) -> str:
    """The source of a row: the value of the source field, or else the folder."""
    if fields.source is None:
        return folder
    value: Any = row
    for part in [fields.source] if fields.source in row else fields.source.split("."):
        if not isinstance(value, dict) or part not in value:
            raise _missing("--source-field", fields.source, _paths(row), where)
        value = value[part]
    if not isinstance(value, str) or not value:
        found = "an empty text" if value == "" else _kind(value)
        raise HarpeError(
            f"--source-field {fields.source}: {where} holds {found} there. Name a field that says which source a text is from."
        )
    return value


def _paths(row: dict[str, Any]) -> list[str]:
    """The fields of a row, those of objects in it with dots."""
    return [f"{key}.{inner}" for key, value in row.items() if isinstance(value, dict) for inner in value] + [
        key for key, value in row.items() if not isinstance(value, dict)
    ]


def _text(row: dict[str, Any], text_field: str, where: str) -> str:
    """The text of a row; a null counts as no text."""
    if text_field not in row:
        raise _missing("--text-field", text_field, list(row), where)
    value = row[text_field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _no_text(text_field, _kind(value), where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer takes
        raise HarpeError(f"--data: {where} holds a character that does not exist in UTF-8 ({error.reason}).") from error
    return value


def _missing(option: str, field: str, fields: list[str], where: str) -> HarpeError:
    there = ", ".join(sorted(fields)) or "none"
    return HarpeError(f"{option} {field}: {where} has no such field. The fields there are: {there}.")


def _no_text(text_field: str, found: str, where: str) -> HarpeError:
    return HarpeError(f"--text-field {text_field}: {where} holds {found} there, not text. Name the field that holds the text.")


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "int": "a number", "float": "a number", "bool": "a truth value"}
    kind = type(value).__name__
    return {**names, "str": "a string", "NoneType": "null"}.get(kind, f"a value of type {kind}")


def _line(error: Exception) -> str:
    """An exception of another library in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} …"
