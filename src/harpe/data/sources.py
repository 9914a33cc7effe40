"""Documents out of files, folders and Hugging Face data sets, and the account of what was read and what was not."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harpe.data.chat import ChatTemplate
from harpe.data.files import ARCHIVE, LINE_SUFFIXES, LISTED, Found, counted, inner_suffix, is_read, suffix_of, walk
from harpe.data.rows import (
    Document,
    Fields,
    holds_rows,
    missing,
    read_json_rows,
    read_lines,
    read_parquet,
    row_document,
    text_document,
    top_column,
)
from harpe.data.tars import read_tar
from harpe.data.unpacking import opened
from harpe.errors import HarpeError

Shard = tuple[int, int]
"""The number of a part, from 1, and how many there are."""

_HUB_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>.+))?")


class Documents(Iterator[Document]):
    """Documents one at a time, and an account of their sources. Documents without text are counted and left out."""

    def __init__(
        self, documents: Iterator[tuple[str, Document]], found: Found | None = None, listing: str | None = None
    ) -> None:
        self._documents = documents
        self.listing = listing
        """SHA-256 of the names and sizes of all files of the corpus, those of other shards too; None for data sets."""
        self._read: Counter[str] = Counter()
        self._empty: Counter[str] = Counter()
        self._files = Counter(suffix_of(path) for path in found.files) if found is not None else Counter[str]()
        self._passed_over = found.passed_over if found is not None else Counter[str]()

    def __next__(self) -> Document:
        for suffix, document in self._documents:
            if document.text and not document.text.isspace():
                self._read[suffix] += 1
                return document
            self._empty[suffix] += 1
        raise StopIteration

    def account(self) -> dict[str, dict[str, int]]:
        """Counts by suffix (of a data set: `rows`): files, documents that were read so far and empty ones among them,
        and files that were passed over, by what they are."""
        counts = {"files": self._files, "documents": self._read, "empty_documents": self._empty}
        counts["passed_over"] = self._passed_over
        return {name: dict(sorted(each.items())) for name, each in counts.items()}


def account_text(account: dict[str, dict[str, int]]) -> str:
    """In words: `Read: 12 documents (10 .jsonl.gz, 2 .txt) of 3 files (...). Passed over: 2 .bin, 1 hidden.`"""
    documents, files = account["documents"], account["files"]
    read = _number(sum(documents.values()), "document") + (
        f" ({counted(documents)})" if documents and documents.keys() != {"rows"} else ""
    )
    of = f" of {_number(sum(files.values()), 'file')} ({counted(files)})" if files else ""
    over = Counter(account["passed_over"]) + Counter(
        {f"empty documents of {k}": n for k, n in account["empty_documents"].items()}
    )
    return f"Read: {read}{of}." + (f" Passed over: {counted(over)}." if over else "")


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def read_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    source_field: str | None = None,
    by_folder: bool = False,
    chat: ChatTemplate | None = None,
    shard: Shard = (1, 1),
    to_train: bool = True,
    split: str = "train",
    revision: str | None = None,
) -> Documents:
    """Documents of a file, of a folder or of a Hugging Face data set, one at a time and in a fixed order.

    Text is taken as it is, but for a byte order mark. Documents without any text (null, empty or nothing but white
    space) are left out. `Documents.account` says what was read and what was passed over.

    Parameters
    ----------
    source
        A file (.txt .md .tex .py .rst: one document; .jsonl .ndjson .json .parquet: one document a row; .tar of such
        files; packed too, .gz .zst .bz2 .xz), a folder of them, or, where no such path exists, the name of a Hugging
        Face data set, `ORG/NAME` or `ORG/NAME:CONFIG`. A folder is walked recursively in the order of the files' POSIX
        paths, and links are followed. Hidden files, files with other suffixes, .json files without the text field, and
        what tells of a cloned data set (card, licence, loader script) are passed over.
    text_field
        Field of a JSON object, column of a Parquet file or of a data set that holds the text, with dots into nested
        ones.
    source_field, by_folder
        What names the source of a document: another field, or the first sub-folder of the folder that is read
        ("." for files that lie in no sub-folder). By default all documents have the source "".
    chat
        For conversations: what renders the messages that stand in `text_field`. Files of plain text are refused then.
    shard
        (i, n): the i-th part of n, counted from 1, of the files, of which each part has equally many, in their order.
    to_train
        Of a folder that holds splits of a data set (train, validation, test), train is read and the others are passed
        over. False, for texts to be measured on: such a folder is refused, since it does not say which is meant.
    split, revision
        Of a Hugging Face data set; they say nothing about files.

    Raises
    ------
    HarpeError
        At the call: when nothing can be read from `source`. While iterating: when a file or a row of it is not what its
        suffix says, or the field is missing or holds no text.
    """
    fields = Fields(text_field, source_field, by_folder, chat)
    if (found := _find(source, fields)) is not None:
        if found.splits and not to_train:
            raise HarpeError(
                f"--data {source} holds the splits {', '.join(found.splits)} and train of a data set. Name the one to "
                "measure on: its folder, or a file of it."
            )
        path = Path(source).expanduser()
        root = path if path.is_dir() else path.parent
        listing = _listing(found.files, root)
        found = _part(found, shard, source)
        return Documents(_read_files(found, fields, root), found, listing)
    name = _HUB_NAME.fullmatch(str(source))
    assert name is not None
    if by_folder:
        raise HarpeError(
            f"--by-folder: {source} is a data set and has no folders; name the field of its rows by --source-field."
        )
    return Documents(
        ("rows", each) for each in _read_hub(str(source), name["path"], name["config"], fields, shard, split, revision)
    )


def _listing(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size if path.exists() else -1
        digest.update(os.fsencode(path.relative_to(root)) + f"\n{size}\n".encode())
    return digest.hexdigest()


def _part(found: Found, shard: Shard, source: str | Path) -> Found:
    """The files of a shard; what was passed over is the first one's to tell."""
    number, count = shard
    if len(found.files) < count:
        raise _too_few(len(found.files), shard, source)
    first, last = ((number + step) * len(found.files) // count for step in (-1, 0))
    return Found(found.files[first:last], found.passed_over if number == 1 else Counter())


def _too_few(files: int, shard: Shard, source: str | Path) -> HarpeError:
    return HarpeError(
        f"--shard {shard[0]}/{shard[1]} divides files, and --data {source} has {files}. Divide it into more files, or "
        "make fewer shards."
    )


def is_on_disk(source: str | Path) -> bool:
    """Whether `source` is a file or folder; HarpeError if it cannot be a Hugging Face data set's name either."""
    if Path(source).expanduser().exists():
        return True
    if isinstance(source, Path) or _looks_like_a_path(source) or not _HUB_NAME.fullmatch(source):
        raise HarpeError(f"--data {source}: there is no such file or folder. Check the path.")
    return False


def named(source: str | Path) -> str:
    """A source as plans name it: a path so that nobody takes it for the name of a data set."""
    local = not os.path.isabs(source) and os.path.exists(source) and not str(source).startswith((".", "~"))
    return f"./{source}" if local else str(source)


def _find(source: str | Path, fields: Fields) -> Found | None:
    """The files that are read, in their order; None for the name of a Hugging Face data set."""
    path = Path(source).expanduser()
    if path.is_dir():
        return walk(path, lambda file: holds_rows(file, fields))
    if not is_on_disk(source):
        return None
    if not is_read(path):
        raise HarpeError(f"--data {source} has a suffix that harpe cannot read; give one of {LISTED}.")
    return Found([path])


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or "\\" in source or is_read(Path(source))


def _read_files(found: Found, fields: Fields, root: Path) -> Iterator[tuple[str, Document]]:
    for path in found.files:
        relative = path.relative_to(root)
        folder = (relative.parts[0] if len(relative.parts) > 1 else ".") if fields.by_folder else ""
        if os.fsencode(folder) != folder.encode(errors="replace"):
            raise HarpeError(f"--by-folder: the name of the folder {folder!r} is not UTF-8. Rename it.")
        try:
            if inner_suffix(path) == ARCHIVE:
                yield from read_tar(path, relative.as_posix(), fields, folder, found.passed_over)
                continue
            for document in _read_file(path, relative.as_posix(), fields, folder):
                yield suffix_of(path), document
        except OSError as error:
            raise HarpeError(f"--data: {path} cannot be read ({error.strerror or error}).") from error


def _read_file(path: Path, name: str, fields: Fields, folder: str) -> Iterator[Document]:
    kind = inner_suffix(path)
    if kind in LINE_SUFFIXES:
        return read_lines(path, name, fields, folder)
    if kind == ".json":
        return read_json_rows(path, name, fields, folder)
    if kind == ".parquet":
        return read_parquet(path, name, fields, folder)
    with opened(path) as stream:
        return iter([text_document(stream.read(), str(path), name, fields, folder)])


def _read_hub(
    source: str, path: str, config: str | None, fields: Fields, shard: Shard, split: str, revision: str | None
) -> Iterator[Document]:
    import datasets  # here, since it takes longer to import than a folder of files takes to be found

    try:
        rows = datasets.load_dataset(path, config, split=split, revision=revision, streaming=True)
        columns = rows.column_names
    except Exception as error:  # the hub, the network, the configuration, the format: many kinds, one answer
        raise _unreachable(source, error, datasets.config.HF_HUB_OFFLINE) from error
    where = f"the data set {source}"
    if shard[1] > 1:
        if rows.num_shards < shard[1]:
            raise _too_few(rows.num_shards, shard, source)
        rows = rows.shard(shard[1], shard[0] - 1)
        where = f"shard {shard[0]}/{shard[1]} of {where}"
    if columns is not None:
        wanted = []
        for option, field in ((fields.option, fields.text), ("--source-field", fields.source)):
            if field is None:
                continue
            if (top := top_column(field, columns)) is None:
                raise missing(option, field, columns, where)
            wanted.append(top)
        rows = rows.select_columns(list(dict.fromkeys(wanted)))

    def documents() -> Iterator[Document]:
        remaining = iter(rows)
        number = 0
        while True:
            try:
                row = next(remaining, None)
            except Exception as error:
                raise HarpeError(
                    f"--data: reading {where} failed after row {number} ({_line(error)}). Try again."
                ) from error
            if row is None:
                return
            number += 1
            yield row_document(row, f"{source}:{number}", fields, "", f"row {number} of {where}")

    return documents()


def _unreachable(source: str, error: Exception, offline: bool) -> HarpeError:
    if offline:
        return HarpeError(
            f"--data {source} is neither a file nor a folder, and HF_HUB_OFFLINE forbids asking the Hugging Face Hub "
            "for a data set of that name. Check the path, or unset HF_HUB_OFFLINE."
        )
    return HarpeError(
        f"--data {source} is neither a file nor a folder, and loading it as a Hugging Face data set failed "
        f"({_line(error)}). Check the name (ORG/NAME, or ORG/NAME:CONFIG where there are several configurations), and "
        "log in or set HF_TOKEN if it is private or gated."
    )


def _line(error: Exception) -> str:
    """An exception of another library in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} …"
