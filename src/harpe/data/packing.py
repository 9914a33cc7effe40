"""Documents in, packed sequences of one length out (`harpe.data.packed`)."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from harpe.data.chat import conversation_ids
from harpe.data.packed import DTYPES, TARGET, PackedDataset, stream_hash
from harpe.data.rows import Document
from harpe.data.sampling import Corpus, Upsampling, describe_draw, draw, tokens_to_draw
from harpe.data.special_tokens import reading_tokenizer
from harpe.data.token_ids import document_ids
from harpe.errors import HarpeError
from harpe.files import check_new_folder, new_folder, sha256_json, write_json

BATCH_CHARACTERS = 2_000_000
"""Characters that are tokenised at a time: some hundred megabytes of memory, and work for every core."""

BATCH_DOCUMENTS = 4096
"""Documents that are tokenised at a time, where they are short."""

ANSWERS = "unordered-answers.bin"
"""For a while beside the ids: which of them are of answers. All documents are conversations, or none."""

MAX_SOURCES = 1000
"""More of them are a wrong field: a title or an address."""


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
        targets: dict[str, Any] = {}
        if (folder / ANSWERS).stat().st_size:
            _write_ordered(folder / ANSWERS, folder / "targets.bin", lengths, order, total, TARGET)
            targets["targets"] = int(np.memmap(folder / "targets.bin", TARGET, "r").sum(dtype=np.int64))
            if not targets["targets"]:
                raise HarpeError("--chat: the conversations hold no answers, so there is nothing to train on.")
        for name in ("unordered.bin", ANSWERS):
            (folder / name).unlink()
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
                **targets,
                "hash": stream_hash(folder, starts, DTYPES[dtype], length),
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
) -> Iterator[tuple[Document, list[int], list[bool] | None]]:
    """Every document that has any ids of its own, and these (`document_ids`); of a conversation, which of them are of
    answers."""
    # TOKENIZERS_PARALLELISM stays as it is: unset, a list runs on all cores, and a process that is forked off later (a
    # loader's worker) runs on one, where "true" could let it hang
    tokens, plain = (reading_tokenizer(tokenizer, split) for split in (False, True))
    for batch in _batches(documents):
        texts = [each for each in batch if each.chat is None]
        rows = document_ids(tokenizer, [each.text for each in texts])
        for document in batch:
            if document.chat is None:
                ids, answers = next(rows), None
            else:
                ids, answers = conversation_ids(tokens, plain, document.text, document.chat)
            if ids:
                yield document, ids, answers


def measured(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """The documents by their lengths and sources alone, counted as `prepare` counts them; nothing is written."""
    names, lengths, sources = dict[str, int](), array("q"), array("i")
    for document, ids, _ in _tokenize(documents, tokenizer):
        lengths.append(len(ids))
        sources.append(number_of(document.source, names))
    return Corpus(np.array(lengths, np.int64), np.array(sources, np.int32), tuple(names))


def _write_unordered(
    file: Path, documents: _Reading, tokenizer: PreTrainedTokenizerBase, dtype: np.dtype
) -> np.ndarray:
    """Write all ids in the order of the documents, and beside them, of conversations, which are of answers; returns the
    documents' lengths, int64 [documents]."""
    lengths = array("q")
    with file.open("wb") as stream, (file.parent / ANSWERS).open("wb") as marks:
        for document, ids, answers in _tokenize(documents, tokenizer):
            stream.write(np.array(ids, dtype).tobytes())
            if answers is not None:
                marks.write(np.array(answers, TARGET).tobytes())
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
