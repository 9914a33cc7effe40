"""Documents as token ids on the disk, in the order in which they were read: what `harpe prepare` spends its hours on.

A killed process goes on where it was. OUT.unfinished holds a folder for every shard of the corpus (`1-of-1` where it is
not divided), and that:

* `tokens.bin`: the ids of all documents, end to end.
* `lengths.bin`, `sources.bin`: int64 and int32, one a document: its ids, and its source as a number.
* `masked.bin`: uint8, one an id, 1 where it is not trained on. May end early or be missing: the rest is 0.
* `journal.jsonl`: what was asked for, and a line for every part that is on the disk whole. Going on, everything behind
  the last one is cut off, and texts up to there are read again and compared, but not tokenised.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from harpe.data.chat import conversation_ids
from harpe.data.rows import Document
from harpe.data.sampling import SHORT
from harpe.data.special_tokens import reading_tokenizer
from harpe.data.token_ids import document_ids
from harpe.errors import HarpeError
from harpe.files import append_jsonl, full_disk_told, read_jsonl, write_jsonl

BATCH_CHARACTERS = 2_000_000
"""Characters that are tokenised at a time: some hundred megabytes of memory, and work for every core."""

BATCH_DOCUMENTS = 4096
"""Documents that are tokenised at a time, where they are short."""

PART_CHARACTERS = 100_000_000
"""Of a part: a minute or so of work, which is what a killed process loses. Less than that is not kept at all."""

FORMAT = 3
"""Of the files, and of how texts become tokens and targets; another one is not gone on with."""

MAX_SOURCES = 1000
"""More of them are a wrong field: a title or an address."""


@dataclass(frozen=True)
class Tokenised:
    """The documents of one folder."""

    folder: Path
    lengths: NDArray[np.int64]
    sources: NDArray[np.int32]
    names: tuple[str, ...]
    digest: int
    """Sum of the SHA-256 of all documents modulo 2^256: the same in whichever order, and however they are divided."""
    account: dict[str, Any]
    """What the caller had to say of what it read."""
    request: dict[str, Any]

    @property
    def masked(self) -> bool:
        """Whether some ids are not trained on."""
        return (self.folder / "masked.bin").is_file()


@dataclass
class _Batch:
    """Some documents with their ids; without those that have none, or too few."""

    rows: list[tuple[str, NDArray[Any], NDArray[np.uint8] | None]]
    """Source, ids, and which of these are not trained on, where there are such."""
    too_short: int
    characters: int
    hashes: list[bytes]
    """Of all that were read."""


def number_of(source: str, names: dict[str, int]) -> int:
    """The number of a source; a new one gets the next. HarpeError for more sources than a corpus has."""
    if len(names) == MAX_SOURCES and source not in names:
        raise HarpeError(
            f"--data has more than {MAX_SOURCES} sources, the last one {source!r}. Name a field that has few values."
        )
    return names.setdefault(source, len(names))


def tokenise(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    dtype: np.dtype[Any],
    folder: Path,
    request: dict[str, Any],
    account: Callable[[], dict[str, Any]],
    say: Callable[[str], None],
    shortest: int = 0,
) -> Tokenised:
    """Tokenise what is not in `folder` yet; all documents are read. The caller holds a lock on it.

    Parameters
    ----------
    documents
        The same ones, in the same order, however often this is called for `folder`.
    dtype
        Of the ids.
    request
        What decides which documents these are, and their ids; of strings, numbers and the like.
    account
        Called when all documents were read; kept.
    say
        Is told where this goes on.
    shortest
        Documents of fewer ids are left out and counted, but for short texts that are mixed in.

    Raises
    ------
    HarpeError
        Where `folder` holds a part or more of another request, or what it holds is of other texts, also where that is
        all; when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = {"format": FORMAT, **request}
    state = _begin(folder, request, dtype)
    names = {name: number for number, name in enumerate(state["names"])}
    reading = iter(documents)
    if state["read"]:
        say(f"Going on behind {state['read']:,} documents that are tokenised in {folder}; they are read again.")
        _pass_over(reading, state, folder)
    digest, chain, unwritten = int(state["digest"], 16), bytes.fromhex(state["chain"]), 0

    def line() -> dict[str, Any]:
        return {**state, "digest": f"{digest:064x}", "chain": chain.hex(), "names": list(names)}

    with full_disk_told(folder), _Files(folder) as files:
        for batch in _tokenised(reading, tokenizer, dtype, shortest):
            files.write(batch, [number_of(source, names) for source, _, _ in batch.rows], state)
            digest, chain = _chained(digest, chain, batch.hashes)
            unwritten += batch.characters
            if unwritten >= PART_CHARACTERS:
                files.sync()
                append_jsonl(folder / "journal.jsonl", line())
                unwritten = 0
        files.sync()
        told = {**account(), "too_short_left_out": state["too_short"]}
        append_jsonl(folder / "journal.jsonl", {**line(), "account": told})
    return whole(folder, request)


def worth_keeping(folder: Path) -> bool:
    """Whether a part or more is there; less is made again in no time."""
    file = folder / "journal.jsonl"
    return file.is_file() and any("account" not in row for row in read_jsonl(file)[1:])


def is_complete(folder: Path) -> bool:
    """Whether all documents are tokenised."""
    file = folder / "journal.jsonl"
    return file.is_file() and "account" in (read_jsonl(file) or [{}])[-1]


def whole(folder: Path, request: dict[str, Any] | None = None) -> Tokenised:
    """What `tokenise` has finished in a folder.

    Raises HarpeError where that was another request, and where a file is missing or has another size than then.
    """
    head, *_, last = read_jsonl(folder / "journal.jsonl")
    if request is not None and head["request"] != {"format": FORMAT, **request}:
        _refuse(folder, head["request"], {"format": FORMAT, **request})
    for name, size in _sizes(last).items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there != size:
            raise HarpeError(f"{folder / name} has {there} bytes and should have {size}. Copy or make it again.")
    lengths = np.fromfile(folder / "lengths.bin", "<i8").astype(np.int64)
    sources = np.fromfile(folder / "sources.bin", "<i4").astype(np.int32)
    names, digest = tuple(last["names"]), int(last["digest"], 16)
    return Tokenised(folder, lengths, sources, names, digest, last["account"], head["request"])


def _sizes(state: dict[str, Any]) -> dict[str, int]:
    """Bytes of every file."""
    count = state["documents"]
    return {
        "tokens.bin": state["bytes"],
        "lengths.bin": 8 * count,
        "sources.bin": 4 * count,
        "masked.bin": state["masked"],
    }


def _begin(folder: Path, request: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """What was done for this request: the last line of the journal, everything behind it cut off."""
    state: dict[str, Any] = dict.fromkeys(("read", "too_short", "documents", "bytes", "masked"), 0)
    state |= {"digest": "0", "chain": "", "names": []}
    journal = folder / "journal.jsonl"
    rows = read_jsonl(journal) if journal.is_file() else []
    if rows and rows[0].get("request") != request:
        if worth_keeping(folder):
            _refuse(folder, rows[0]["request"], request)
        rows = []
    if len(rows) > 1:
        state = {key: value for key, value in rows[-1].items() if key != "account"}
    for name, size in _sizes(state).items():
        file = folder / name
        there = file.stat().st_size if file.is_file() else 0
        if there < size:
            raise HarpeError(f"{file} has {there} bytes and should have {size}. Delete {folder}.")
        if file.is_file():
            os.truncate(file, size)
        if name == "masked.bin" and not size:
            file.unlink(missing_ok=True)
    # without what it said at the end: this goes on, and may be killed
    write_jsonl(
        journal, [{"request": request}, *({k: v for k, v in row.items() if k != "account"} for row in rows[1:])]
    )
    return state


def _refuse(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = [key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key)]
    what = "; ".join(f"{key}: {there.get(key)!r} there, {wanted.get(key)!r} now" for key in other)
    raise HarpeError(
        f"{folder} holds documents that were tokenised for another request ({what}). Give the same again to go on, or "
        "delete it."
    )


def _pass_over(documents: Iterator[Document], state: dict[str, Any], folder: Path) -> None:
    """Read as many documents as are tokenised, and compare them."""
    passed, chain = 0, b""
    for document in islice(documents, state["read"]):
        passed += 1
        _, chain = _chained(0, chain, [_sha256(document)])
    if passed != state["read"] or chain.hex() != state["chain"]:
        raise HarpeError(
            f"The texts are no longer those of which {state['read']:,} are tokenised in {folder}. Delete it to start "
            "again, or put them back."
        )


def _sha256(document: Document) -> bytes:
    raw = document.text.encode()
    digest = hashlib.sha256(f"{document.source}\n{len(raw)}\n".encode())
    digest.update(raw)
    if document.chat is not None:
        digest.update(repr((document.chat.answers, document.chat.spelled)).encode())
    return digest.digest()


def _chained(total: int, chain: bytes, hashes: Iterable[bytes]) -> tuple[int, bytes]:
    """The sum of hashes, which no order changes, and one over another, where it counts."""
    for each in hashes:
        total, chain = (total + int.from_bytes(each)) % 2**256, hashlib.sha256(chain + each).digest()
    return total, chain


class _Files:
    """The open files of a folder, at their ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._streams: list[IO[bytes]] = []

    def __enter__(self) -> _Files:
        self._streams = [(self._folder / name).open("ab") for name in ("tokens.bin", "lengths.bin", "sources.bin")]
        self._masked: IO[bytes] | None = None
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (*self._streams, *([self._masked] if self._masked is not None else [])):
            stream.close()

    def write(self, batch: _Batch, sources: Sequence[int], state: dict[str, Any]) -> None:
        """Write a batch; `state` is as it was before, and is brought up to date but for its digest."""
        tokens, lengths, numbers = self._streams
        for _, ids, masked in batch.rows:
            if masked is not None:
                self._open_masked().seek(state["bytes"] // ids.dtype.itemsize)
                self._open_masked().write(masked.tobytes())
                state["masked"] = state["bytes"] // ids.dtype.itemsize + len(masked)
            tokens.write(ids.tobytes())
            state["bytes"] += ids.nbytes
        lengths.write(np.array([len(ids) for _, ids, _ in batch.rows], "<i8").tobytes())
        numbers.write(np.array(sources, "<i4").tobytes())
        state["documents"] += len(batch.rows)
        state["read"] += len(batch.hashes)
        state["too_short"] += batch.too_short

    def sync(self) -> None:
        for stream in (*self._streams, *([self._masked] if self._masked is not None else [])):
            stream.flush()
            os.fsync(stream.fileno())

    def _open_masked(self) -> IO[bytes]:
        if self._masked is None:
            (self._folder / "masked.bin").touch()
            self._masked = (self._folder / "masked.bin").open("r+b")
        return self._masked


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if batch and (characters + len(document.text) > BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch


def _tokenised(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, dtype: np.dtype[Any], shortest: int
) -> Iterator[_Batch]:
    """All documents in batches; while one is tokenised, the next one is read."""
    tokens, plain = (reading_tokenizer(tokenizer, split) for split in (False, True))

    # TOKENIZERS_PARALLELISM stays as it is: unset, a list runs on all cores, and a process that is forked off later (a
    # loader's worker) runs on one, where "true" could let it hang
    def work(batch: list[Document]) -> _Batch:
        rows: list[tuple[str, NDArray[Any], NDArray[np.uint8] | None]] = []
        too_short = 0
        texts = document_ids(tokenizer, [each.text for each in batch if each.chat is None])
        for document in batch:
            ids, masked = None, None
            if document.chat is None:
                ids = next(texts)
            else:
                ids, answers = conversation_ids(tokens, plain, document.text, document.chat)
                masked = 1 - np.array(answers, np.uint8)
            if ids and len(ids) < shortest and document.source != SHORT:
                too_short += 1
            elif ids:
                rows.append((document.source, np.array(ids, dtype), masked))
        return _Batch(rows, too_short, sum(len(d.text) for d in batch), list(map(_sha256, batch)))

    with ThreadPoolExecutor(1) as worker:
        pending: Future[_Batch] | None = None
        for batch in _batches(documents):
            following = worker.submit(work, batch)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
