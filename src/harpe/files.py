"""Atomic writing and reading of the JSON and JSONL files that a run leaves behind."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from harpe.errors import HarpeError
from harpe.locks import holds_something, is_held, locked
from harpe.ownership import RECORDS, WRITTEN_BY, refuse_foreign

SCHEMA_VERSION = 1
"""Raised whenever a key of a written JSON file changes its meaning."""


PARTIAL = re.compile(r"\.(.+)\.\d+\.[0-9a-f]{12}\.partial")
"""Names of what is being written: .NAME.PID.RANDOM.partial. A killed process leaves one behind."""

FULL = ("No space left on device", "Disk quota exceeded", "unexpected pos", "file write failed", "iostream error")
"""What safetensors (Rust's words for the two errors of the system) and torch.save (its archive's) say of a full
disk."""

TOO_LARGE = "File too large"
"""What safetensors says of a file behind a limit; torch.save says what it says of a full disk."""


def cache_folder() -> Path:
    """Where harpe keeps data and measurements for later: HARPE_CACHE, else its folder in the user's cache."""
    named = os.environ.get("HARPE_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harpe"


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part (temporary file, fsync, rename).

    Raises HarpeError when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _partial(path)
    try:
        with full_disk_told(path), temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that is renamed to it at the end: whole or not at all, and on the disk when this
    returns.

    Of several processes that make the same folder, one works, and the others are told so at once. What a killed one
    left is removed. Permissions are those that the umask gives.

    Parameters
    ----------
    path
        May be an empty folder, or a link to one.
    replace
        Take the place of the folder that is there; it goes when the new one is on the disk.

    Raises
    ------
    HarpeError
        As `check_new_folder`; when the disk is full.
    """
    if not replace:
        check_new_folder(path)
    target = Path(path).resolve()
    with locked(_beside(target)):
        if not replace:
            check_new_folder(path)
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
            if PARTIAL.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        temporary = _partial(target)
        temporary.mkdir()
        try:
            with full_disk_told(path):
                yield temporary
                _settle(temporary)
            if old := _partial(target) if replace and target.exists() else None:
                target.rename(old)
            try:
                temporary.rename(target)
            except OSError as error:  # taken meanwhile
                raise HarpeError(f"{path} cannot be written: {error.strerror}. Name another folder.") from error
            _sync(target.parent)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _remove_lock(_beside(target))  # where a killed process had made it


@contextmanager
def held_place(path: Path) -> Iterator[None]:
    """Hold a file or folder that is written to piece by piece, and remove what a killed process was writing there.

    The lock lies beside it, since the folder may be anybody's.

    Raises HarpeError where another process holds it.
    """
    target = Path(path).resolve()
    with locked(_beside(target)):
        for left in (*target.parent.glob(f".{glob.escape(target.name)}.*.partial"), *target.glob(".*.partial")):
            if PARTIAL.fullmatch(left.name) and left.is_file() and not left.is_symlink():
                left.unlink()
        yield
    _remove_lock(_beside(target))  # where a killed process had made it


def check_new_folder(path: Path) -> None:
    """Refuse, before any work, a folder that could not be put in its place at the end.

    Raises HarpeError for a file, a folder that holds something, a link to nowhere, a mount point, the folder that the
    command runs in, and a place where nothing can be written.
    """
    path, target = Path(path), Path(path).resolve()
    if os.fsencode(target).decode("utf-8", "ignore") != str(target):
        raise HarpeError(f"The name of the folder {str(path)!a} is not UTF-8, which tokenizers cannot write to.")
    if path.is_symlink() and not path.exists():
        raise HarpeError(f"{path} is a link to {target}, which is not there. Name another folder.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        _remove_lock(_beside(target))  # of a process that was killed when the folder had its name
        raise HarpeError(f"{path} exists already and is not an empty folder; it is not overwritten. Name another one.")
    if path.exists() and path.samefile(Path.cwd()):
        raise HarpeError(
            f"{path} is the folder that this command runs in. The new folder appears as a whole: name one inside it."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        trial = _partial(target)
        trial.mkdir()
        try:
            if path.exists():  # the same rename, with nothing in it: mount points and other hindrances show now
                trial.rename(target)
        finally:
            if trial.exists():
                trial.rmdir()
    except OSError as error:
        raise HarpeError(
            f"{path} cannot be made or replaced by a whole new folder ({error.strerror}), as where it is a mount "
            "point. Name another one, or one inside it."
        ) from error


def remove_folder(path: Path) -> None:
    """Delete a folder of harpe's: renamed first, so that a kill leaves no half of it under its name."""
    path.rename(going := _partial(path))
    shutil.rmtree(going)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing in a folder and in those below it. Its caller holds the lock.

    What others may be writing there under locks of their own stays: folders that are being made, and all that lies in a
    folder that is held.
    """
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_held(Path(root, name))]
        for name in names:
            if PARTIAL.fullmatch(name):
                Path(root, name).unlink(missing_ok=True)
        for path in (Path(root, name) for name in folders):
            if (left := PARTIAL.fullmatch(path.name)) and not path.is_symlink():
                if not is_held(path.with_name(f".{left[1]}.lock")):
                    shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(".") and path.name.endswith(".lock"):
                _remove_lock(path)


def _remove_lock(folder: Path) -> None:
    """Remove the folder in which another was being made (`_beside`), unless it is held or has other content."""
    if folder.is_dir() and not folder.is_symlink() and not holds_something(folder):
        with suppress(HarpeError, OSError):
            with locked(folder):
                pass
            folder.rmdir()


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk, and of a limit to the size of files, by whichever library, into a sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EFBIG or (number is None and TOO_LARGE in str(error)):
            raise HarpeError(
                f"{path} could not be written: files may not be so large there (ulimit -f, or the file system). Lift "
                "the limit, or name another place."
            ) from error
        full = number in (errno.ENOSPC, errno.EDQUOT)
        if full or (not isinstance(error, OSError) and any(words in str(error) for words in FULL)):
            raise HarpeError(
                f"The disk is full: {path} could not be written. Free some space and start again or resume."
            ) from error
        raise


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}.partial")


def _beside(target: Path) -> Path:
    """The folder whose lock stands for a folder that is not there yet; it is gone when the lock is."""
    return target.with_name(f".{target.name}.lock")


def _settle(folder: Path) -> None:
    """Give a folder's files the permissions of the umask (safetensors writes 0600), and fsync them."""
    permissions = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            if not file.is_symlink():
                file.chmod(permissions)
                _sync(file)
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that do not do it for folders
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with `schema_version` as its first key and harpe's mark as its second.

    Raises HarpeError when the disk is full; where a file would be replaced that has no mark (`harpe.ownership`).
    """
    refuse_foreign(Path(path))
    write_text(
        path, json.dumps({"schema_version": SCHEMA_VERSION, **WRITTEN_BY, **value}, indent=2, ensure_ascii=False) + "\n"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that harpe wrote; refuse a newer schema than this version knows."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise HarpeError(f"{path} is not valid JSON ({error}). Delete it, or restore it from a copy.") from error
    if not isinstance(value, dict):
        raise HarpeError(f"{path} holds no JSON object.")
    version = value.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int):
        raise HarpeError(f"{path} has {version!r} for its schema_version, which is a number. Restore it from a copy.")
    if version > SCHEMA_VERSION:
        raise HarpeError(f"{path} was written by a newer harpe (schema {value['schema_version']}); update harpe.")
    return {key: each for key, each in value.items() if key not in WRITTEN_BY}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON object as a line; a crash can cut at most this last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_told(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        stream.flush()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file; a last line that a crash cut short is dropped, a broken line elsewhere is an error."""
    return whole_lines(path)[0]


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a JSONL file, and whether the last line was none and is dropped; HarpeError for a broken line
    elsewhere.

    Only a newline ends a line: texts may hold other separators, and half a character.
    """
    lines = [line for line in Path(path).read_bytes().split(b"\n") if line]
    first = bool(lines) and lines[0].startswith(RECORDS.encode())  # says whose the rows are, and is none
    rows = []
    for number, line in enumerate(lines[first:], 1 + first):
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


@lru_cache(maxsize=4096)
def _sha256_in_state(path: str, *state: int) -> str:
    return sha256_file(Path(path))


def sha256_once(path: Path) -> str:
    """`sha256_file`, read once in a process as long as the file stays as it is (by device, inode, size and times)."""
    there = path.stat()
    state = (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns)
    return _sha256_in_state(str(path.absolute()), *state)


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: equal for equal values on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
