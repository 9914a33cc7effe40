"""Documents in, packed sequences of one length out: a folder that is read through a memory map.

A packed data set is a folder of three files:

* `tokens.bin`: the token ids of all sequences, little-endian uint16 (a vocabulary of at most 65,536 ids) or uint32,
  without a header. Sequence i is the ids from i * length to (i + 1) * length.
* `documents.npy`: int64 [documents], where in that stream each document starts; ascending, the first is 0.
* `index.json`: what the folder holds and what it was made from: hash, tokenizer, and by source the tokens that were
  there and those that were drawn.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from harpe.data.rows import Document
from harpe.data.sampling import Corpus, Upsampling, describe_draw, draw, tokens_to_draw
from harpe.data.token_ids import document_ids
from harpe.errors import HarpeError
from harpe.files import check_new_folder, new_folder, read_json, sha256_json, write_json

BATCH_CHARACTERS = 2_000_000
"""Characters that are tokenised at a time: some hundred megabytes of memory, and work for every core."""

BATCH_DOCUMENTS = 4096
"""Documents that are tokenised at a time, where they are short."""

MAX_SOURCES = 1000
"""More of them are a wrong field: a title or an address."""

DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Sequences of one length that `prepare` wrote; map-style, read-only, memory-mapped, picklable.

    Parameters
    ----------
    path
        The folder.
    length
        Read the same stream in sequences of this many tokens; must divide the length that it was packed with.

    Raises
    ------
    HarpeError
        When the folder holds no packed data set, its files are not those that its index tells of, or `length` does not
        divide.
    """

    def __init__(self, path: str | Path, length: int | None = None) -> None:
        self.path = Path(path).absolute()
        if not (self.path / "index.json").is_file():
            raise HarpeError(f"{path} is no packed data set: it has no index.json.")
        self.index = read_json(self.path / "index.json")
        try:
            self.length, self.tokens = int(self.index["length"]), int(self.index["tokens"])
            self.hash, dtype = str(self.index["hash"]), DTYPES[self.index["dtype"]]
            documents, sequences = int(self.index["documents"]), int(self.index["sequences"])
        except (KeyError, TypeError, ValueError) as error:
            raise HarpeError(f"{self.path / 'index.json'} is not the index of a packed data set ({error}).") from error
        if self.length < 2 or sequences < 1 or self.tokens != self.length * sequences:
            raise HarpeError(
                f"{self.path / 'index.json'} tells of {sequences} sequences of {self.length} in {self.tokens} tokens."
            )
        if length is not None:
            if length < 2 or self.length % length:
                raise HarpeError(
                    f"Sequences of {length} tokens cannot be cut from those of {self.length} in {path}: it must divide "
                    "them."
                )
            self.length = length
        self._dtype = dtype
        self._stream: np.ndarray | None = None
        file = self.path / "tokens.bin"
        size, wanted = file.stat().st_size if file.is_file() else 0, self.tokens * dtype.itemsize
        if size != wanted:
            raise HarpeError(
                f"{file} has {size} bytes and should have {wanted}: it was cut off or changed. Prepare it again."
            )
        self._starts = _load_starts(self.path / "documents.npy", documents, self.tokens)

    def __len__(self) -> int:
        return self.tokens // self.length

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Sequence `i`: `input_ids` int64 [length], and `labels`, a copy of it (models shift labels themselves)."""
        first = range(len(self))[i] * self.length
        input_ids = torch.from_numpy(self._map()[first : first + self.length].astype(np.int64))
        return {"input_ids": input_ids, "labels": input_ids.clone()}

    def cut(self, length: int) -> PackedDataset:
        """The same tokens in the same order, in sequences of `length`."""
        return self if length == self.length else PackedDataset(self.path, length)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}  # a pickled map would be a copy of the corpus

    def document_starts(self, i: int) -> np.ndarray:
        """Where documents start in sequence `i`: int64 [n], ascending; 0 is always there, even inside a document."""
        first = range(len(self))[i] * self.length
        low, high = np.searchsorted(self._starts, (first + 1, first + self.length))
        return np.concatenate(([0], self._starts[low:high] - first))

    def position_ids(self, i: int) -> torch.Tensor:
        """Positions in sequence `i` that restart at every document: int64 [length]."""
        starts = self.document_starts(i)
        origin = np.repeat(starts, np.diff(starts, append=self.length))
        return torch.from_numpy(np.arange(self.length, dtype=np.int64) - origin)

    def blocks(self, size: int = 2**18, before: int = 0) -> Iterator[np.ndarray]:
        """All sequences as one stream in pieces: `size` new tokens after the last `before` of the previous piece."""
        for start in range(0, self.tokens, size):
            yield self._map()[max(0, start - before) : start + size]

    def documents(self) -> Iterator[np.ndarray]:
        """The ids of every document of the stream; the last one may be cut."""
        for start, end in zip(self._starts, [*self._starts[1:], self.tokens], strict=True):
            yield self._map()[start:end]

    def verify(self) -> None:
        """Read everything and compare it with the index's hash; HarpeError when a byte was changed."""
        if _hash(self.path / "tokens.bin", self._starts, self._dtype, int(self.index["length"])) != self.hash:
            raise HarpeError(
                f"{self.path} was changed after it was written: its hash is not that of its index. Prepare it again."
            )

    def _map(self) -> np.ndarray:
        if self._stream is None:  # opened at first use: every worker process has its own
            self._stream = np.memmap(self.path / "tokens.bin", self._dtype, "r", shape=(self.tokens,))
        return self._stream


def is_packed(path: str | Path) -> bool:
    """Whether a folder is a packed data set."""
    folder = Path(path).expanduser()
    return all((folder / name).is_file() for name in ("index.json", "tokens.bin", "documents.npy"))


def check_request(length: int, out: Path, seed: int, max_tokens: int | None) -> None:
    """Refuse options out of range, and a folder that is taken, before anything is read."""
    if length < 2:
        raise HarpeError(f"--length is {length}; a sequence needs at least 2 tokens, one of which is predicted.")
    if max_tokens is not None and max_tokens < length:
        raise HarpeError(
            f"{max_tokens} tokens were asked for, less than one sequence of {length}. Ask for more, or lower --length."
        )
    if seed < 0:
        raise HarpeError(f"--seed is {seed}; it must be 0 or above.")
    if (out / "index.json").exists():
        raise HarpeError(f"{out} already holds a packed data set. Use it as it is, delete it, or name another folder.")
    check_new_folder(out)


def prepare(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    out: Path,
    *,
    seed: int = 0,
    max_tokens: int | None = None,
    upsampling: Upsampling | None = None,
    description: str = "",
    details: Callable[[], dict[str, Any]] | None = None,
) -> PackedDataset:
    """Tokenise documents, shuffle them, and write them end to end in sequences of `length` tokens.

    A document is its ids with what the tokenizer begins texts with, and then the end-of-sequence id, once
    (`document_ids`): where begin and end are the same id, one stands between two documents. No text is repeated unless
    `upsampling` allows it; what is left after the last whole sequence is dropped.

    All documents are read, even with `max_tokens`: which of them come first is drawn among all. Memory holds one batch
    of texts and about 100 bytes a document; the disk holds the ids twice while they are put in order. The folder
    appears when it is complete. A killed run leaves a hidden folder `.NAME.*.partial` beside it, which the next one of
    that name removes.

    Parameters
    ----------
    length
        Tokens a sequence, at least 2.
    out
        The folder that is made. It must not exist, or be empty.
    seed
        Of the order of the documents.
    max_tokens
        Keep max_tokens // length sequences. With `upsampling` there must be as many; without, all are kept where there
        are less.
    upsampling
        Sources keep their shares of the tokens, and inside them long documents may get more (`harpe.data.sampling`);
        None: every document once, in one random order, whatever its source.
    description
        A line on what the corpus is, for the index.
    details
        Called when all documents were read; what it returns is added to the index.

    Raises
    ------
    HarpeError
        When `out` is taken, the documents give less than one sequence or too little for `upsampling`, the disk is full,
        or an option is out of range.
    """
    out, rule = Path(out), upsampling or Upsampling()
    check_request(length, out, seed, max_tokens)
    rule.check()
    with new_folder(out) as folder:
        dtype = id_type(tokenizer)
        reading = _Reading(documents, one_source=upsampling is None)
        lengths = _write_unordered(folder / "unordered.bin", reading, tokenizer, DTYPES[dtype])
        corpus = Corpus(lengths, np.array(reading.sources, np.int32), tuple(reading.names))
        available = corpus.tokens
        if not available:
            raise HarpeError("--data gave no documents with text in them.")
        if available < length:
            raise HarpeError(
                f"--data gave {available} tokens in {len(lengths)} documents, and one sequence needs {length}. Give "
                "more --data, or lower --length."
            )
        wanted = max_tokens if upsampling or not max_tokens else min(available, max_tokens)
        total = tokens_to_draw(corpus, rule, wanted) // length * length
        if not total:
            raise HarpeError(
                f"The upsampling leaves less than one sequence of {length} tokens. Give more --data, or allow more "
                "--max-copies."
            )
        order = draw(corpus, rule, total, seed)
        starts = _write_ordered(folder / "unordered.bin", folder / "tokens.bin", lengths, order, total, DTYPES[dtype])
        (folder / "unordered.bin").unlink()
        with (folder / "documents.npy").open("wb") as stream:
            np.save(stream, starts, allow_pickle=False)
        write_json(
            folder / "index.json",
            {
                "length": length,
                "sequences": total // length,
                "tokens": total,
                "documents": len(starts),
                "dtype": dtype,
                "hash": _hash(folder / "tokens.bin", starts, DTYPES[dtype], length),
                "seed": seed,
                "tokenizer": tokenizer_identity(tokenizer),
                "description": description,
                "corpus": {"sha256": reading.digest.hexdigest(), "documents": len(lengths), "tokens": available},
                "sources": describe_draw(corpus, rule, total, order),
                **(details() if details else {}),
            },
        )
    return PackedDataset(out)


def number_of(source: str, names: dict[str, int]) -> int:
    """The number of a source; a new one gets the next. HarpeError for more sources than a corpus has."""
    if len(names) == MAX_SOURCES and source not in names:
        raise HarpeError(
            f"--data has more than {MAX_SOURCES} sources, the last one {source!r}. Name a field that has few values."
        )
    return names.setdefault(source, len(names))


class _Reading:
    """Passes documents on, and keeps their sources, in the order of the first document, and a hash of everything."""

    def __init__(self, documents: Iterable[Document], one_source: bool) -> None:
        self._documents, self._one_source = documents, one_source
        self.names: dict[str, int] = {}
        self.sources = array("i")
        """Of every document that was kept."""
        self.digest = hashlib.sha256()
        """Of sources, lengths and texts of all documents, in order."""

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            raw = document.text.encode()
            self.digest.update(f"{document.source}\n{len(raw)}\n".encode())
            self.digest.update(raw)
            yield document

    def keep(self, document: Document) -> None:
        """Note the source of a document that has tokens."""
        self.sources.append(number_of("" if self._one_source else document.source, self.names))


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What names a tokenizer in an index: its class, vocabulary size and the SHA-256 of its serialised form.

    Truncation and padding, which a call may leave behind in the tokenizer, do not count.
    """
    content: Any = tokenizer.get_vocab()
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return {"class": type(tokenizer).__name__, "vocabulary": len(tokenizer), "sha256": sha256_json(content)}


def id_type(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name in `DTYPES` of the smallest type that holds the largest id: added tokens may stand behind a gap."""
    return "uint16" if max(tokenizer.get_vocab().values(), default=-1) < 2**16 else "uint32"


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


def _tokenize(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, list[int]]]:
    """Every document that has any ids of its own, and these (`document_ids`)."""
    # TOKENIZERS_PARALLELISM stays as it is: unset, a list runs on all cores, and a process that is forked off later (a
    # loader's worker) runs on one, where "true" could let it hang
    for batch in _batches(documents):
        for document, ids in zip(batch, document_ids(tokenizer, [each.text for each in batch]), strict=True):
            if ids:
                yield document, ids


def measured(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """The documents by their lengths and sources alone, counted as `prepare` counts them; nothing is written."""
    names, lengths, sources = dict[str, int](), array("q"), array("i")
    for document, ids in _tokenize(documents, tokenizer):
        lengths.append(len(ids))
        sources.append(number_of(document.source, names))
    return Corpus(np.array(lengths, np.int64), np.array(sources, np.int32), tuple(names))


def _write_unordered(
    file: Path, documents: _Reading, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype
) -> np.ndarray:
    """Write all ids in the order of the documents; returns the documents' lengths, int64 [documents]."""
    lengths = array("q")
    with file.open("wb") as stream:
        for document, ids in _tokenize(documents, tokenizer):
            stream.write(np.array(ids, dtype).tobytes())
            lengths.append(len(ids))
            documents.keep(document)
    return np.array(lengths, np.int64)


def _write_ordered(
    source: Path, target: Path, lengths: np.ndarray, order: np.ndarray, total: int, dtype: np.dtype
) -> np.ndarray:
    """Write the first `total` ids of the documents in `order`; returns where documents start among them, int64 [n]."""
    ids = np.memmap(source, dtype, "r")
    ends = np.cumsum(lengths)
    starts = np.concatenate(([0], np.cumsum(lengths[order])[:-1]))
    starts = starts[starts < total]
    with target.open("wb") as stream:
        for document, start in zip(order, starts, strict=False):
            first = ends[document] - lengths[document]
            stream.write(ids[first : min(ends[document], first + total - start)].tobytes())
    return starts


def _load_starts(file: Path, documents: int, tokens: int) -> np.ndarray:
    try:
        starts = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise HarpeError(f"{file} cannot be read ({error}). Prepare the data set again.") from error
    right = isinstance(starts, np.ndarray) and starts.dtype == np.int64 and starts.shape == (documents,)
    if not right or not documents or starts[0] != 0 or starts[-1] >= tokens or (np.diff(starts) <= 0).any():
        raise HarpeError(
            f"{file} does not hold the {documents} starts that the index tells of. Prepare the data set again."
        )
    return starts


def _hash(tokens: Path, starts: np.ndarray, dtype: np.dtype, length: int) -> str:
    """SHA-256 of the line "DTYPE LENGTH", the ids and the starts of the documents."""
    digest = hashlib.sha256(f"{dtype.name} {length}\n".encode())
    with tokens.open("rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    digest.update(starts.astype("<i8").tobytes())
    return digest.hexdigest()
