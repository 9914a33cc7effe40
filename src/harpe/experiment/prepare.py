"""Prepare a corpus: check, tokenise, upsample, pack."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.embedded import held_out_files
from harpe.data.packing import DTYPES, PackedDataset, check_request, id_type, is_packed
from harpe.data.packing import prepare as pack
from harpe.data.sampling import Upsampling
from harpe.data.sources import Document, check_files, read_documents
from harpe.errors import HarpeError
from harpe.experiment.directory import check_disk
from harpe.experiment.options import PrepareOptions
from harpe.experiment.reporter import Reporter
from harpe.experiment.texts import EMBEDDED, training_documents
from harpe.models.load import check_vocabulary, load_config, load_tokenizer

SAMPLE_CHARACTERS = 1_000_000
"""Of the first documents, that are tokenised to foretell how many tokens there will be."""
REPORT_EVERY = 5_000_000
"""Characters between two reports of progress."""


def prepare(options: PrepareOptions, reporter: Reporter | None = None) -> Path:
    """Tokenise, upsample and pack a corpus; returns the folder, a `harpe.data.packing.PackedDataset`.

    Raises
    ------
    HarpeError
        For bad options, unreadable input, a missing field in the first document of any file, too little text or disk: before the work. For
        what only reading all of it can show: after the tokens are counted, and before they are written.
    """
    reporter, out = reporter or Reporter(), Path(options.out)
    rule = Upsampling(options.upsample_length, options.upsample_factor, options.long_share, options.max_copies)
    rule.check()
    check_request(options.length, out, options.seed, options.tokens or None)
    if options.documents < 0:
        raise HarpeError(f"--documents is {options.documents}; give how many are read, or 0 for all.")
    if options.source_field is not None and options.by_folder:
        raise HarpeError("--source-field and --by-folder both name the sources; give one of them.")
    config = load_config(options.model, options.revision)
    tokenizer = load_tokenizer(options.tokenizer or options.model, options.revision if options.tokenizer is None else None)
    check_vocabulary(config, tokenizer, options.model)
    size = _check_texts(options, tokenizer, reporter)
    held_out = _held_out(options)
    reading = _Watched(_documents(options, rule), held_out, options.documents, size, reporter)

    def details() -> dict[str, Any]:
        return {"options": options.recipe(), "held_out_left_out": reading.left_out}

    # with neither sources nor upsampling it is the stream that `harpe extend` makes of the same texts
    data = pack(
        reading,
        tokenizer,
        options.length,
        out,
        seed=options.seed,
        max_tokens=options.tokens or None,
        upsampling=rule,
        description=_description(options, rule),
        details=details,
    )
    for note in notes_of(data, rule):
        reporter.say(note)
    reporter.say(f"{data.tokens:,} tokens in {len(data):,} sequences of {data.length} are in {out}, SHA-256 {data.hash}.")
    reporter.say(f"Train on them with --data {out}.")
    return out


def _check_texts(options: PrepareOptions, tokenizer: PreTrainedTokenizerBase, reporter: Reporter) -> int | None:
    """See that the texts can be read and that they and the disk may suffice; returns the bytes of text, None where that is unknown."""
    if is_packed(options.data):
        raise HarpeError(f"--data {options.data} is prepared already. Name the texts that it was made from.")
    if options.data == EMBEDDED:
        if options.source_field is not None:
            raise HarpeError(
                "--source-field: the embedded texts are files without fields. Use --by-folder: their packages are the sources."
            )
        return None
    fields: dict[str, Any] = {"text_field": options.text_field, "source_field": options.source_field, "by_folder": options.by_folder}
    size = check_files(options.data, **fields)
    if size is None or options.documents:
        next(iter(read_documents(options.data, **fields)), None)  # of a data set on the hub: its first row
        return size
    if options.tokens > size * options.max_copies:
        raise HarpeError(
            f"--tokens {options.tokens:,} asks for more than can be there: --data has {size:,} bytes of text, and a token is at least one "
            f"byte (--max-copies {options.max_copies}). Give more --data, or lower --tokens."
        )
    texts, characters = [], 0
    for document in read_documents(options.data, **fields):
        texts.append(document.text[: SAMPLE_CHARACTERS - characters])
        characters += len(texts[-1])
        if characters >= SAMPLE_CHARACTERS:
            break
    if characters:
        tokens = sum(map(len, tokenizer(texts, verbose=False)["input_ids"]))
        foretold = int(tokens / sum(len(text.encode()) for text in texts) * size)
        width = DTYPES[id_type(tokenizer)].itemsize
        reporter.say(f"{size:,} bytes of text, about {foretold:,} tokens.")
        check_disk(Path(options.out), (foretold + (options.tokens or foretold * options.max_copies)) * width, "Preparing the texts")
    return size


def _documents(options: PrepareOptions, rule: Upsampling) -> Iterable[Document]:
    fields = {"text_field": options.text_field, "source_field": options.source_field, "by_folder": options.by_folder}
    if options.data != EMBEDDED:
        return read_documents(options.data, **fields)  # type: ignore[arg-type]
    every = rule.asked or options.by_folder or options.max_copies > 1
    documents, _ = training_documents(EMBEDDED, options.text_field, 0 if every else options.tokens)
    return [Document(d.name, d.text, d.name.split("/")[0] if options.by_folder else "") for d in documents]


def _held_out(options: PrepareOptions) -> set[bytes]:
    """SHA-256 of the texts that must not be trained on."""
    if options.held_out is None:
        return set()
    if options.held_out == EMBEDDED:
        return {_digest(file.text) for file in held_out_files()}
    if is_packed(options.held_out):
        raise HarpeError(f"--held-out {options.held_out} was prepared for training. Name the texts that will be evaluated on.")
    return {_digest(document.text) for document in read_documents(options.held_out, text_field=options.text_field)}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class _Watched:
    """Documents as they are read: without those that are held out, and with progress."""

    def __init__(self, documents: Iterable[Document], held_out: set[bytes], most: int, size: int | None, reporter: Reporter) -> None:
        self._documents, self._held_out, self._most = documents, held_out, most or None
        self._size, self._reporter = size, reporter
        self.left_out = 0

    def __iter__(self) -> Iterator[Document]:
        read = number = told = 0
        for number, document in enumerate(islice(self._documents, self._most), 1):
            read += len(document.text)
            if read - told >= REPORT_EVERY:
                told = read
                self._tell(read, max(read + 1, self._size or 0), number)
            if self._held_out and _digest(document.text) in self._held_out:
                self.left_out += 1
                continue
            yield document
        self._tell(read, read, number)
        if self.left_out:
            self._reporter.say(f"{self.left_out} documents are left out: --held-out has them.")

    def _tell(self, read: int, of: int, documents: int) -> None:
        self._reporter.progress("reading and tokenising", read, of, f"characters, {documents:,} documents")


def _description(options: PrepareOptions, rule: Upsampling) -> str:
    """The line that plans and model cards have on the training texts."""
    long = f"documents of at least {rule.length:,} tokens"
    if rule.long_share is not None:
        return f"{options.data}, {long} upsampled to {rule.long_share:.0%} of every source"
    return f"{options.data}, {long} drawn {rule.factor:g} times as often inside every source" if rule.asked else options.data


def notes_of(data: PackedDataset, rule: Upsampling) -> list[str]:
    """What a reader of the table might miss."""
    notes = []
    without = [row["source"] for row in data.index["sources"] if not row["long_documents"]]
    if rule.asked and without:
        notes.append(f"No document of {rule.length:,} tokens in: {', '.join(without)}. Nothing is upsampled there.")
    never = [row["source"] or "the texts" for row in data.index["sources"] if not row["documents_drawn"]]
    if never:
        notes.append(f"Too small for a single document among so few tokens: {', '.join(never)}.")
    return notes
