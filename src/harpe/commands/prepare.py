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

from harpe.data.chat import ChatTemplate
from harpe.data.embedded import held_out_files
from harpe.data.packed import DTYPES, PackedDataset, is_packed
from harpe.data.packing import check_request, id_type, measured, number_of
from harpe.data.packing import prepare as pack
from harpe.data.rows import Document
from harpe.data.sampling import Corpus, Upsampling, make_groups, tokens_to_draw
from harpe.data.sources import is_on_disk, read_documents
from harpe.data.special_tokens import Watched, reading_tokenizer
from harpe.data.token_bounds import TokenBound
from harpe.data.token_ids import document_ids
from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.models.load import load_config, load_tokenizer
from harpe.models.vocabulary import check_vocabulary
from harpe.options.extend import PrepareOptions
from harpe.report.terminal import sources_table
from harpe.reporter import Reporter
from harpe.runs.directory import check_disk
from harpe.runs.texts import EMBEDDED, tell, training_documents

PIECES, PIECE_CHARACTERS = 200, 1000
"""Of every source, at most so many pieces at equal distances are tokenised to foretell the tokens of all its
documents."""
MARGIN = 1.25
"""What is foretold may miss by this."""
REPORT_EVERY = 5_000_000
"""Characters between two reports of progress."""


def prepare(options: PrepareOptions, reporter: Reporter | None = None) -> Path:
    """Tokenise, upsample and pack a corpus; returns the folder, a `harpe.data.packed.PackedDataset`.

    Raises HarpeError for bad options, unreadable input, a missing field, too little text, too few long documents or too
    little disk: before anything is written, and before anything is tokenised where that is certain without; not so for
    data sets of the hub, which are read once only.
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
    tokenizer = load_tokenizer(*options.tokenizer_of(options.model))
    check_vocabulary(config, tokenizer, options.model)
    tokenizer = reading_tokenizer(tokenizer, options.split_special_tokens)
    chat = ChatTemplate(tokenizer, options.split_special_tokens) if options.chat is not None else None
    _check_sources(options, chat)
    held_out = _held_out(options, chat)
    characters = 0

    def documents() -> Watched:
        return Watched(_documents(options, rule, tokenizer, chat), tokenizer)

    if options.data != EMBEDDED and is_on_disk(options.data):
        first = _Kept("reading", documents(), held_out, options.documents, 0, reporter)
        again = _Kept("counting tokens", documents(), held_out, options.documents, 0, reporter)
        _foretell(first, again, tokenizer, options, rule, reporter)
        characters = first.characters
    reading = _Kept("tokenising", documents(), held_out, options.documents, characters, reporter)

    def details() -> dict[str, Any]:
        return {"options": options.recipe(), "read": reading.account(), "held_out_left_out": reading.left_out}

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
    if options.data == EMBEDDED or not is_on_disk(options.data):  # what was read once only
        tell(reporter.say, reading)
    if reading.left_out:
        reporter.say(f"{reading.left_out} documents are left out: --held-out has them.")
    for note in _notes(data, rule):
        reporter.say(note)
    reporter.say(
        f"{data.tokens:,} tokens in {len(data):,} sequences of {data.length} are in {out}, SHA-256 {data.hash}."
    )
    for note in data.notes:
        reporter.say(note)
    reporter.say(f"Train on them with --data {out}.")
    return out


def _check_sources(options: PrepareOptions, chat: ChatTemplate | None) -> None:
    """Refuse texts that cannot be divided as asked; of a data set on the hub, the first row is read."""
    if is_packed(options.data):
        raise HarpeError(f"--data {options.data} is prepared already. Name the texts that it was made from.")
    if options.data == EMBEDDED:
        if chat is not None:
            raise HarpeError("--chat: the embedded texts are no conversations. Name a file or folder of rows.")
        if options.source_field is not None:
            raise HarpeError(
                "--source-field: the embedded texts are files without fields. Use --by-folder: packages are the "
                "sources."
            )
    elif not is_on_disk(options.data):
        next(iter(read_documents(options.data, **_fields(options, chat))), None)


class _Pieces:
    """Pieces of a source at equal distances in its characters; of too many, every second one goes, and the distance
    doubles."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._distance, self._next, self._read = PIECE_CHARACTERS, 0, 0

    def add(self, text: str) -> None:
        while self._next < self._read + len(text):
            start = self._next - self._read
            self._pieces.append(text[start : start + PIECE_CHARACTERS])
            self._next += self._distance
            if len(self._pieces) > PIECES:
                del self._pieces[1::2]
                self._distance *= 2
                self._next = len(self._pieces) * self._distance
        self._read += len(text)

    def tokens_per_character(self, tokenizer: PreTrainedTokenizerBase) -> float:
        return sum(map(len, document_ids(tokenizer, self._pieces))) / sum(map(len, self._pieces))


def _foretell(
    documents: _Kept,
    again: _Kept,
    tokenizer: PreTrainedTokenizerBase,
    options: PrepareOptions,
    rule: Upsampling,
    reporter: Reporter,
) -> None:
    """Read all documents once and foretell from their characters whether they are enough: reading takes minutes where
    tokenising takes hours. Where they seem not to be, and what they can have at most leaves it open, `again` is
    tokenised to know."""
    sources, counts, bounds, names = array("i"), array("q"), array("d"), dict[str, int]()
    pieces: list[_Pieces] = []
    bound = TokenBound(tokenizer)
    for document in documents:
        source = number_of(document.source, names)
        if source == len(pieces):
            pieces.append(_Pieces())
        sources.append(source)
        counts.append(len(document.text))
        bounds.append(bound.most(document.text) + 1)  # and end-of-text
        pieces[source].add(document.text)
    tell(reporter.say, documents)
    if not counts:
        raise HarpeError("--data gave no documents with text in them.")
    per_character = np.array([each.tokens_per_character(tokenizer) for each in pieces])
    lengths = np.maximum(1, np.array(counts) * per_character[np.array(sources)]).astype(np.int64)
    corpus, at_most = Corpus(lengths, np.array(sources), tuple(names)), np.array(bounds)
    estimate = f"{sum(counts):,} characters in {len(counts):,} documents, about {corpus.tokens:,} tokens"
    reporter.say(f"{estimate}, of which about {make_groups(corpus, rule).most(rule.max_copies):,} can be drawn.")
    try:
        _check_enough(corpus, options, rule)
    except HarpeError as error:
        short = options.max_copies * at_most.sum() < max(options.length, options.tokens)
        if short or (rule.asked and at_most.max() < rule.length):
            raise HarpeError(f"{error} (Lengths are foretold from characters; nothing was tokenised yet.)") from error
        reporter.say(f"This seems not to be enough: {error} The tokens are counted, to know.")
        corpus = measured(again, tokenizer)
        _check_enough(corpus, options, rule)
    drawn = options.tokens or make_groups(corpus, rule).most(rule.max_copies)
    size = int((corpus.tokens + drawn) / MARGIN) * DTYPES[id_type(tokenizer)].itemsize
    check_disk(Path(options.out), size, "Preparing the texts")


def _check_enough(corpus: Corpus, options: PrepareOptions, rule: Upsampling) -> None:
    if corpus.tokens < options.length:
        raise HarpeError(
            f"--data gives {corpus.tokens} tokens in {len(corpus.lengths)} documents, and one sequence needs "
            f"{options.length}. Give more --data, or lower --length."
        )
    tokens_to_draw(corpus, rule, options.tokens or None)


def _fields(options: PrepareOptions, chat: ChatTemplate | None) -> dict[str, Any]:
    return {
        "text_field": options.chat or options.text_field,
        "source_field": options.source_field,
        "by_folder": options.by_folder,
        "chat": chat,
    }


def _documents(
    options: PrepareOptions, rule: Upsampling, tokenizer: PreTrainedTokenizerBase, chat: ChatTemplate | None
) -> Iterable[Document]:
    if options.data != EMBEDDED:
        return read_documents(options.data, **_fields(options, chat))
    every = rule.asked or options.by_folder or options.max_copies > 1
    documents, _ = training_documents(EMBEDDED, options.text_field, 0 if every else options.tokens, tokenizer)
    return [Document(d.name, d.text, d.name.split("/")[0] if options.by_folder else "") for d in documents]


def _held_out(options: PrepareOptions, chat: ChatTemplate | None) -> set[bytes]:
    """SHA-256 of the texts that must not be trained on."""
    if options.held_out is None:
        return set()
    if options.held_out == EMBEDDED:
        return {_digest(file.text) for file in held_out_files()}
    if is_packed(options.held_out):
        raise HarpeError(
            f"--held-out {options.held_out} was prepared for training. Name the texts that will be evaluated on."
        )
    return {
        _digest(document.text)
        for document in read_documents(options.held_out, text_field=options.chat or options.text_field, chat=chat)
    }


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class _Kept:
    """Documents as they are read: without those that are held out, and with progress."""

    def __init__(
        self, what: str, documents: Watched, held_out: set[bytes], most: int, expected: int, reporter: Reporter
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

    def account(self) -> dict[str, Any]:
        return self._documents.account()

    def _tell(self, expected: int, documents: int) -> None:
        self._reporter.progress(self._what, self.characters, expected, f"characters, {documents:,} documents")


def _description(options: PrepareOptions, rule: Upsampling) -> str:
    """The line that plans and model cards have on the training texts."""
    if options.chat is not None:
        return f"{options.data}, conversations of {options.chat}, answers alone trained on"
    long = f"documents of at least {rule.length:,} tokens"
    if rule.long_share is not None:
        return f"{options.data}, {long} upsampled to {rule.long_share:.0%} of every source"
    drawn = f", {long} drawn {rule.factor:g} times as often inside every source"
    return f"{options.data}{drawn if rule.asked else ''}"


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


def run(options: PrepareOptions, terminal: Any) -> None:
    """Pack a corpus, and show what was drawn from its sources."""
    terminal.table(sources_table(prepare(options, terminal)))
