"""Atomic writing and reading of the JSON and JSONL files that a run leaves behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError

SCHEMA_VERSION = 1
"""Raised whenever a key of a written JSON file changes its meaning."""


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part (temporary file, fsync, rename).

    Raises
    ------
    HarpeError
        When the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HarpeError(f"The disk is full: {path} could not be written. Free some space and resume.") from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that is renamed to it at the end: whole or not at all.

    Raises
    ------
    HarpeError
        When `path` exists, also as a link to nowhere; when the disk is full.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise HarpeError(f"{path} exists already; it is not overwritten.")
    temporary = path.absolute().with_name(f".{path.absolute().name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HarpeError(f"The disk is full: {path} could not be written. Free some space and try again.") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with `schema_version` as its first key."""
    write_text(path, json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that harpe wrote; refuse a newer schema than this version knows."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise HarpeError(f"{path} is not valid JSON ({error}). Delete it, or restore it from a copy.") from error
    if not isinstance(value, dict):
        raise HarpeError(f"{path} holds no JSON object.")
    if value.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
        raise HarpeError(f"{path} was written by a newer harpe (schema {value['schema_version']}); update harpe.")
    return value


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON object as a line; a crash can cut at most this last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        stream.flush()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file; a last line that a crash cut short is dropped, a broken line elsewhere is an error."""
    return whole_lines(path)[0]


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a JSONL file, and whether the last line was none and is dropped; HarpeError for a broken line elsewhere.

    Only a newline ends a line: texts may hold other separators, and half a character.
    """
    lines = [line for line in Path(path).read_bytes().split(b"\n") if line]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                return rows, True
            raise HarpeError(f"Line {number} of {path} is not valid JSON ({error}).") from error
    return rows, False


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: equal for equal values on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
