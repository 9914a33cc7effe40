"""The documents that `harpe prepare` is asked for: of which texts, without which, and what there is to say of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.chat import ChatTemplate
from harpe.data.embedded import held_out_files
from harpe.data.packed import is_packed
from harpe.data.rows import Document
from harpe.data.sampling import SHORT, Upsampling
from harpe.data.sources import Documents, Shard, is_on_disk, named, read_documents
from harpe.data.special_tokens import Watched, reading_tokenizer
from harpe.errors import HarpeError
from harpe.options.extend import PrepareOptions
from harpe.reporter import Reporter
from harpe.runs.texts import EMBEDDED, tell, training_documents

REPORT_EVERY = 5_000_000
"""Characters between two reports of progress."""

MIXED = ", and {:.4g}% of the tokens of {}"
"""What short texts add to the line that describes texts."""

READ = "text_field source_field by_folder chat short_chat documents min_length split_special_tokens".split()
"""Options that decide which documents there are, and what their ids are."""


class TextCorpus:
    """The documents of some options, which can be read several times. HarpeError for options that go against each
    other."""

    def __init__(self, options: PrepareOptions, tokenizer: PreTrainedTokenizerBase, rule: Upsampling) -> None:
        self._options, self._rule = options, rule
        self.tokenizer = reading_tokenizer(tokenizer, options.split_special_tokens)
        self.shard = _shard(options)
        if options.documents < 0:
            raise HarpeError(f"--documents is {options.documents}; give how many are read, or 0 for all.")
        if options.min_length < 0:
            raise HarpeError(f"--min-length is {options.min_length}; give the fewest tokens of a document, or 0.")
        for option in ("data", "short_data", "held_out", "out"):
            try:
                str(getattr(options, option) or "").encode()
            except UnicodeEncodeError as error:
                raise HarpeError(f"--{option.replace('_', '-')} has a name that is not UTF-8. Rename it.") from error
        if options.source_field is not None and options.by_folder:
            raise HarpeError("--source-field and --by-folder both name the sources; give one of them.")
        if bool(options.short_share) != (options.short_data is not None):
            raise HarpeError("--short-data and --short-share belong together: which short texts, and how many of them.")
        if options.short_chat is not None and options.short_data is None:
            raise HarpeError("--short-chat is about the rows of --short-data, and there is none.")
        self._chat, self._short_chat = (
            ChatTemplate(self.tokenizer, options.split_special_tokens) if field is not None else None
            for field in (options.chat, options.short_chat)
        )

    @property
    def chats(self) -> bool:
        """Whether some documents are conversations."""
        return self._chat is not None or self._short_chat is not None

    @property
    def read_twice(self) -> bool:
        """Whether the texts are files, which are read to look at them before they are tokenised."""
        short = self._options.short_data
        return self._options.data != EMBEDDED and is_on_disk(self._options.data) and (not short or is_on_disk(short))

    def check(self) -> None:
        """Refuse texts that cannot be divided as asked; of a data set on the hub, the first row is read."""
        options = self._options
        for option, data in (("--data", options.data), (SHORT, options.short_data)):
            if data is not None and is_packed(data):
                raise HarpeError(f"{option} {data} is prepared already. Name the texts that it was made from.")
        if options.short_data == EMBEDDED:
            raise HarpeError("--short-data: the embedded texts are long ones. Name a file or folder of short texts.")
        if options.data == EMBEDDED:
            if options.chat is not None:
                raise HarpeError("--chat: the embedded texts are no conversations. Name a file or folder of rows.")
            if options.source_field is not None:
                raise HarpeError(
                    "--source-field: the embedded texts are files without fields. Use --by-folder: packages are the "
                    "sources."
                )
            if options.shard is not None:
                raise HarpeError("--shard divides large corpora, and the embedded texts are small. Leave it out.")
        for documents in self._kinds():
            if not self.read_twice and not isinstance(documents, list):
                next(iter(documents), None)
        _ = self._left_out

    def reading(self, what: str, expected: int, reporter: Reporter) -> Reading:
        """All documents, from the first one; `what` and the characters to expect are for the progress."""
        watched = [Watched(documents, self.tokenizer) for documents in self._kinds()]
        return Reading(what, watched, self._left_out, self._options.documents, expected, reporter)

    def request(self) -> dict[str, Any]:
        """What names the documents, for those who go on with them (`harpe.data.tokenised`): options, and of a shard the
        names and sizes of all files, wherever they lie, since no shard reads all of them."""
        number, count = self.shard
        found = self.shards_request() | {"shard": f"{number}/{count}"}
        if count == 1:
            return found
        for name, source, documents in zip(
            ("files", "short_files"), (self._options.data, self._options.short_data), self._kinds(), strict=False
        ):
            found[name] = (documents.listing if isinstance(documents, Documents) else None) or source
        return found

    def shards_request(self) -> dict[str, Any]:
        """That part of it which all shards have, and which needs no texts."""
        left_out = hashlib.sha256(b"".join(sorted(self._left_out))).hexdigest()
        found = {key: getattr(self._options, key) for key in READ}
        return {**found, "held_out_sha256": left_out, "embedded_tokens": self._embedded_tokens}

    def index(self) -> dict[str, Any]:
        """What the index has of the request."""
        return {"description": self._description(), "options": self._options.recipe()}

    @staticmethod
    def tell(reading: Reading, reporter: Reporter) -> None:
        """Say what was read."""
        for each in reading.kinds:
            tell(reporter.say, each)

    @property
    def _embedded_tokens(self) -> int:
        """Of the embedded texts no more than are needed are read, where that says how many."""
        options, rule = self._options, self._rule
        every = rule.asked or options.by_folder or options.max_copies > 1 or options.short_data is not None
        return options.tokens if options.data == EMBEDDED and not every else 0

    def _kinds(self) -> list[Iterable[Document]]:
        """The documents of --data, and in the last shard those of --short-data."""
        options, (number, count) = self._options, self.shard
        if options.data == EMBEDDED:
            files, _ = training_documents(EMBEDDED, options.text_field, self._embedded_tokens, self.tokenizer)
            kinds: list[Iterable[Document]] = [
                [Document(d.name, d.text, d.name.split("/")[0] if options.by_folder else "") for d in files]
            ]
        else:
            fields: dict[str, Any] = {"source_field": options.source_field, "by_folder": options.by_folder}
            field, shard = options.chat or options.text_field, self.shard
            kinds = [read_documents(options.data, text_field=field, chat=self._chat, shard=shard, **fields)]
        if options.short_data is not None and number == count:
            field = options.short_chat or options.text_field
            kinds.append(read_documents(options.short_data, text_field=field, chat=self._short_chat))
        return kinds

    @cached_property
    def _left_out(self) -> frozenset[bytes]:
        """SHA-256 of the texts that must not be trained on."""
        options = self._options
        if options.held_out is None:
            return frozenset()
        if options.held_out == EMBEDDED:
            return frozenset(_digest(file.text) for file in held_out_files())
        if is_packed(options.held_out):
            raise HarpeError(
                f"--held-out {options.held_out} was prepared for training. Name the texts that will be evaluated on."
            )
        field = options.chat or options.text_field
        documents = read_documents(options.held_out, text_field=field, chat=self._chat, to_train=False)
        return frozenset(_digest(document.text) for document in documents)

    def _description(self) -> str:
        """The line that plans and model cards have on the training texts."""
        options, rule = self._options, self._rule
        data = named(options.data)
        short = MIXED.format(100 * rule.short_share, named(options.short_data)) if options.short_data else ""
        if options.chat is not None:
            return f"{data}, conversations of {options.chat}, answers alone trained on{short}"
        long = f"documents of at least {rule.length:,} tokens"
        if rule.long_share is not None:
            return f"{data}, {long} upsampled to {rule.long_share:.0%} of every source{short}"
        drawn = f", {long} drawn {rule.factor:g} times as often inside every source"
        return f"{data}{drawn if rule.asked else ''}{short}"


def _shard(options: PrepareOptions) -> Shard:
    if options.shard is None:
        return 1, 1
    found = re.fullmatch("([1-9][0-9]*)/([1-9][0-9]*)", options.shard)
    if found is None or not int(found[1]) <= int(found[2]) or found[2] == "1":
        raise HarpeError(f"--shard is {options.shard}; give which part of how many, as 1/8 to 8/8.")
    return int(found[1]), int(found[2])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class Reading:
    """Documents as they are read: without those that are held out, and with progress."""

    def __init__(
        self, what: str, kinds: list[Watched], held_out: frozenset[bytes], most: int, expected: int, reporter: Reporter
    ) -> None:
        self.kinds = kinds
        self._what, self._held_out, self._most = what, held_out, most or None
        self._expected, self._reporter = expected, reporter
        self.left_out = self.characters = 0

    def __iter__(self) -> Iterator[Document]:
        number = told = 0
        for number, document in enumerate(self._all(), 1):
            self.characters += len(document.text)
            if self.characters - told >= REPORT_EVERY:
                told = self.characters
                self._tell(max(told + 1, self._expected) if self._expected else None, number)
            if self._held_out and _digest(document.text) in self._held_out:
                self.left_out += 1
                continue
            yield document
        self._tell(self.characters, number)

    def _all(self) -> Iterator[Document]:
        for document in islice(self.kinds[0], self._most):
            if document.source == SHORT:  # it would get the share of texts that are mixed in, which may be none
                raise HarpeError(f"--data has a source that is called {SHORT}, as short texts are. Rename it.")
            yield document
        for documents in self.kinds[1:]:
            yield from (replace(document, source=SHORT) for document in documents)

    def account(self) -> dict[str, Any]:
        """What was read, for the index."""
        read = {name: each.account() for name, each in zip(("read", "read_short"), self.kinds, strict=False)}
        return {**read, "held_out_left_out": self.left_out}

    def _tell(self, expected: int | None, documents: int) -> None:
        self._reporter.progress(self._what, self.characters, expected, f"characters, {documents:,} documents")
