"""Prepare a corpus: check, tokenise, upsample, pack."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from harpe.data.embedded import held_out_files
from harpe.data.packing import DTYPES, PackedDataset, check_request, id_type, is_packed, number_of
from harpe.data.packing import prepare as pack
from harpe.data.sampling import Corpus, Upsampling, make_groups, tokens_to_draw
from harpe.data.sources import Document, find_files, read_documents
from harpe.data.token_ids import document_ids
from harpe.errors import HarpeError
from harpe.evaluation.processes import refuse_several
from harpe.experiment.directory import check_disk
from harpe.experiment.options import PrepareOptions
from harpe.experiment.reporter import Reporter
from harpe.experiment.texts import EMBEDDED, training_documents
from harpe.models.load import load_config, load_tokenizer
from harpe.models.vocabulary import check_vocabulary

SAMPLE_CHARACTERS = 200_000
"""Of every source, that are tokenised to foretell the tokens of all its documents from their characters."""
MARGIN = 1.25
"""What is foretold is refused where it misses by more than this; what comes closer is left to the exact count."""
REPORT_EVERY = 5_000_000
"""Characters between two reports of progress."""


def prepare(options: PrepareOptions, reporter: Reporter | None = None) -> Path:
    """Tokenise, upsample and pack a corpus; returns the folder, a `harpe.data.packing.PackedDataset`.

    Raises
    ------
    HarpeError
        For bad options, unreadable input, a missing field, far too little text, too few long documents or too little disk: before anything
        is tokenised, but for data sets of the hub, which are read once only. By the exact count: before the packed tokens are written.
    """
    refuse_several("harpe prepare", "the tokenizer uses all cores by itself.")
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
    _check_sources(options)
    held_out = _held_out(options)
    characters = 0
    if options.data != EMBEDDED and find_files(options.data) is not None:
        first = _Watched("reading", _documents(options, rule), held_out, options.documents, 0, reporter)
        _foretell(first, tokenizer, options, rule, reporter)
        characters = first.characters
    reading = _Watched("tokenising", _documents(options, rule), held_out, options.documents, characters, reporter)

    def details() -> dict[str, Any]:
        return {"options": options.recipe(), "held_out_left_out": reading.left_out}

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
    if reading.left_out:
        reporter.say(f"{reading.left_out} documents are left out: --held-out has them.")
    for note in _notes(data, rule):
        reporter.say(note)
    reporter.say(f"{data.tokens:,} tokens in {len(data):,} sequences of {data.length} are in {out}, SHA-256 {data.hash}.")
    reporter.say(f"Train on them with --data {out}.")
    return out


def _check_sources(options: PrepareOptions) -> None:
    """Refuse texts that cannot be divided as asked; of a data set on the hub, the first row is read."""
    if is_packed(options.data):
        raise HarpeError(f"--data {options.data} is prepared already. Name the texts that it was made from.")
    if options.data == EMBEDDED:
        if options.source_field is not None:
            raise HarpeError("--source-field: the embedded texts are files without fields. Use --by-folder: packages are the sources.")
    elif find_files(options.data) is None:
        next(iter(read_documents(options.data, **_fields(options))), None)


def _foretell(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, rule: Upsampling, reporter: Reporter
) -> None:
    """Read all documents once and refuse what cannot work by their characters: reading takes minutes where tokenising takes hours."""
    sources, counts, names = array("i"), array("q"), dict[str, int]()
    samples: list[list[str]] = []
    room: list[int] = []
    for document in documents:
        source = number_of(document.source, names)
        if source == len(room):
            room.append(SAMPLE_CHARACTERS)
            samples.append([])
        sources.append(source)
        counts.append(len(document.text))
        if room[source] > 0:
            samples[source].append(document.text[: room[source]])
            room[source] -= len(document.text)
    if not counts:
        raise HarpeError("--data gave no documents with text in them.")
    per_character = np.array([sum(map(len, document_ids(tokenizer, texts))) / sum(map(len, texts)) for texts in samples])
    lengths = np.maximum(1, np.array(counts) * per_character[np.array(sources)]).astype(np.int64)
    corpus = Corpus(lengths, np.array(sources), tuple(names))
    estimate = f"{sum(counts):,} characters in {len(counts):,} documents, about {corpus.tokens:,} tokens"
    if MARGIN * corpus.tokens < options.length:
        raise HarpeError(f"--data has {estimate}, and one sequence needs {options.length}. Give more --data, or lower --length.")
    try:
        if rule.asked and MARGIN * lengths.max() < rule.length:
            tokens_to_draw(corpus, rule, None)
        most = make_groups(corpus, rule).most(rule.max_copies)
        if options.tokens > MARGIN * most:
            tokens_to_draw(corpus, rule, options.tokens)
    except HarpeError as error:
        raise HarpeError(f"{error} (Lengths were foretold from characters; nothing was tokenised yet.)") from error
    reporter.say(f"{estimate}, of which about {most:,} can be drawn.")
    check_disk(Path(options.out), (corpus.tokens + (options.tokens or most)) * DTYPES[id_type(tokenizer)].itemsize, "Preparing the texts")


def _fields(options: PrepareOptions) -> dict[str, Any]:
    return {"text_field": options.text_field, "source_field": options.source_field, "by_folder": options.by_folder}


def _documents(options: PrepareOptions, rule: Upsampling) -> Iterable[Document]:
    if options.data != EMBEDDED:
        return read_documents(options.data, **_fields(options))
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

    def __init__(
        self, what: str, documents: Iterable[Document], held_out: set[bytes], most: int, expected: int, reporter: Reporter
    ) -> None:
        self._what, self._documents, self._held_out, self._most = what, documents, held_out, most or None
        self._expected, self._reporter = expected, reporter
        self.left_out = self.characters = 0

    def __iter__(self) -> Iterator[Document]:
        number = told = 0
        for number, document in enumerate(islice(self._documents, self._most), 1):
            self.characters += len(document.text)
            if self.characters - told >= REPORT_EVERY:
                told = self.characters
                self._tell(max(told + 1, self._expected), number)
            if self._held_out and _digest(document.text) in self._held_out:
                self.left_out += 1
                continue
            yield document
        self._tell(self.characters, number)

    def _tell(self, expected: int, documents: int) -> None:
        self._reporter.progress(self._what, self.characters, expected, f"characters, {documents:,} documents")


def _description(options: PrepareOptions, rule: Upsampling) -> str:
    """The line that plans and model cards have on the training texts."""
    long = f"documents of at least {rule.length:,} tokens"
    if rule.long_share is not None:
        return f"{options.data}, {long} upsampled to {rule.long_share:.0%} of every source"
    return f"{options.data}, {long} drawn {rule.factor:g} times as often inside every source" if rule.asked else options.data


def _notes(data: PackedDataset, rule: Upsampling) -> list[str]:
    """What a reader of the table might miss."""
    notes = []
    without = [row["source"] for row in data.index["sources"] if not row["long_documents"]]
    if rule.asked and without:
        notes.append(f"No document of {rule.length:,} tokens in: {', '.join(without)}. Nothing is upsampled there.")
    never = [row["source"] or "the texts" for row in data.index["sources"] if not row["documents_drawn"]]
    if never:
        notes.append(f"Too small for a single document among so few tokens: {', '.join(never)}.")
    return notes
