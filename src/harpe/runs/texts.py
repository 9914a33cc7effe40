"""Training and held-out texts, from the embedded corpus or from the user's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from harpe.data.embedded import SourceFile, corpus_hash, reported_files, training_files, tuning_files
from harpe.data.packed import FILES, PackedDataset, is_packed
from harpe.data.packing import prepare
from harpe.data.rows import Document
from harpe.data.shards import tidy
from harpe.data.sources import named, read_documents
from harpe.data.special_tokens import Watched, reading_text, reading_tokenizer
from harpe.data.token_bounds import TokenBound
from harpe.data.token_ids import document_ids, text_ids, tokenizer_identity
from harpe.errors import HarpeError
from harpe.evaluation.run import HeldOut
from harpe.files import new_folder
from harpe.options.shared import TextOptions

EMBEDDED = "embedded"
CHARACTERS_PER_TOKEN = 6
"""Embedded files are taken until there are this many characters for every token that is needed, and then until there
are the tokens: the first is more with all tokenizers that are known, and does not depend on the tokenizer."""

Say = Callable[[str], None]


def silent(_: str) -> None:
    pass


def _some(files: list[SourceFile], tokens: int, tokenizer: PreTrainedTokenizerBase) -> list[SourceFile]:
    """The first files (the order of their hashes is a fixed shuffle) that give `tokens` tokens; all of them for 0."""
    if not tokens:
        return files
    chosen, characters, there = [], 0, 0
    for file in files:
        if characters >= tokens * CHARACTERS_PER_TOKEN and there >= tokens:
            break
        chosen.append(file)
        characters += len(file.text)
        there += len(text_ids(tokenizer, file.text))
    return chosen


def training_documents(
    data: str, text_field: str, tokens: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[Iterable[Document], str]:
    """Documents to train on and a line that names them."""
    if data == EMBEDDED:
        files = _some(training_files(), tokens, tokenizer)
        line = (
            f"{len(files)} Python files of this machine's standard library and packages, SHA-256 {corpus_hash(files)}"
        )
        return [Document(file.name, file.text) for file in files], line
    return read_documents(data, text_field=text_field), named(data)


def training_ids(
    data: str, tokenizer: PreTrainedTokenizerBase, text_field: str, tokens: int
) -> tuple[Iterator[list[int]], str]:
    """Token ids of the documents to train on, one at a time, and a line that names them; `data` may be prepared.

    Raises HarpeError for prepared data of another tokenizer: to the model their ids would be other words.
    """
    if is_packed(data):
        prepared = PackedDataset(Path(data).expanduser())
        _check_tokenizer(prepared, tokenizer)
        return (ids.tolist() for ids in prepared.documents()), data
    documents, description = training_documents(data, text_field, tokens, tokenizer)
    return (ids for document in documents for ids in document_ids(tokenizer, [document.text])), description


def packed(
    folder: Path,
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    text_field: str = "text",
    tokens: int = 0,
    seed: int = 0,
    split_special_tokens: bool = True,
    say: Say = silent,
) -> PackedDataset:
    """The packed data set in `folder`; made where it is not there yet, or linked to where `data` was prepared (`harpe
    prepare`).

    `say` is told what was read and what was passed over; the index keeps it under `read`.

    Raises HarpeError as `harpe.data.packing.prepare` does; where prepared data are of another tokenizer, have shorter
    sequences, were changed, or are gone.
    """
    if is_packed(data):
        return _linked(folder, Path(data).expanduser(), tokenizer, length, split_special_tokens)
    if (file := folder / "tokens.bin").is_symlink() and not file.exists():
        raise HarpeError(
            f"The prepared data that {folder} links to are no longer in {file.readlink().parent}. Put them back."
        )
    if (folder / "index.json").is_file():
        tidy(folder)
        return PackedDataset(folder, length)  # of links, whose index has the length that was prepared
    tokenizer = reading_tokenizer(tokenizer, split_special_tokens)
    documents, description = training_documents(data, text_field, tokens, tokenizer)
    reading = Watched(documents, tokenizer)
    made = prepare(
        reading,
        tokenizer,
        length,
        folder,
        seed=seed,
        max_tokens=tokens or None,
        description=description,
        details=lambda: {"read": reading.account()},
        request={"data": data, "text_field": text_field},
        say=say,
    )
    tell(say, reading)
    return made


class Accounted(Protocol):
    """Documents that say what they come from."""

    def account(self) -> dict[str, Any]: ...


def tell(say: Say, reading: Accounted) -> None:
    """Say what was read, where there is something to say."""
    if text := reading_text(reading.account()):
        say(text)


def _linked(
    folder: Path, prepared: Path, tokenizer: PreTrainedTokenizerBase, length: int, split_special_tokens: bool
) -> PackedDataset:
    """Prepared data as those of a run: the run has a copy of the index, which says what it trains on, and links to the
    rest."""
    data = PackedDataset(prepared)
    _check_tokenizer(data, tokenizer)
    # without a word on it: as transformers does by default
    split = data.index.get("read", {}).get("split_special_tokens", False)
    if split != split_special_tokens:
        raise HarpeError(
            f"--data {prepared} was prepared with --split-special-tokens {str(split).lower()}. Give the same here, or "
            "prepare the texts again."
        )
    if length > data.length:
        raise HarpeError(
            f"--data {prepared} was prepared in sequences of {data.length} tokens, and --length is {length}. Prepare "
            f"the texts again with --length {length}."
        )
    data = data.cut(length)
    if not (folder / "index.json").is_file():
        data.verify()
        with new_folder(folder) as temporary:
            (temporary / "index.json").write_bytes((data.path / "index.json").read_bytes())
            for name in FILES:
                if (data.path / name).is_file():
                    (temporary / name).symlink_to(data.path / name)
    elif PackedDataset(folder).hash != data.hash:
        raise HarpeError(
            f"--data {prepared} does not hold what this run began with: its hash is another one. Name another --out."
        )
    return PackedDataset(folder, length)


def _check_tokenizer(prepared: PackedDataset, tokenizer: PreTrainedTokenizerBase) -> None:
    there, wanted = prepared.index.get("tokenizer"), tokenizer_identity(tokenizer)
    if there != wanted:
        raise HarpeError(
            f"--data {prepared.path} was prepared with another tokenizer (SHA-256 {_short(there)}, the model's is "
            f"{_short(wanted)}). Prepare the texts again with this --model, or give the tokenizer that they were "
            "prepared with."
        )


def _short(identity: Any) -> str:
    return str(identity.get("sha256", "unknown"))[:12] if isinstance(identity, dict) else "unknown"


class _LongEnough:
    """Ids of the documents that have more than `length` tokens, and how many of them all had fewer."""

    def __init__(self, documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self._documents, self._tokenizer, self._length = documents, tokenizer, length
        self.passed_over = 0

    def __iter__(self) -> Iterator[list[int]]:
        bound = TokenBound(self._tokenizer)
        for document in self._documents:
            if bound.most(document.text) > self._length:
                ids = text_ids(self._tokenizer, document.text)
                if len(ids) > self._length:
                    yield ids
                    continue
            self.passed_over += 1


def held_out_texts(
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    reading: TextOptions = TextOptions(),  # noqa: B008  (a frozen dataclass)
    *,
    tuning: bool = False,
    say: Say = silent,
) -> HeldOut:
    """The first `count` documents longer than `length` tokens; the same documents are the haystacks.

    Raises HarpeError where no document is long enough, and where none is asked for.
    """
    if count < 1:
        raise HarpeError(f"--documents {count}: at least one document has to be read.")
    if data == EMBEDDED:
        files = tuning_files() if tuning else reported_files()
        documents: Iterable[Document] = [Document(file.name, file.text) for file in files]
        kind = "tuned on" if tuning else "reported from"
        description = f"Python files that are never trained on and that figures are {kind}"
    elif is_packed(data):
        raise HarpeError(
            f"--data {data} was prepared for training (harpe prepare). Name texts to evaluate on: a file, a folder or "
            "a data set."
        )
    else:
        documents, description = read_documents(data, text_field=reading.text_field, to_train=False), data
    tokenizer = reading_tokenizer(tokenizer, reading.split_special_tokens)
    watched = Watched(documents, tokenizer)
    long = _LongEnough(watched, tokenizer, length)
    found = list(islice(long, count))
    account = {**watched.account(), "too_short": long.passed_over}
    if not found:
        raise HarpeError(
            f"--data {data} has no document of more than {length} tokens; give longer texts or a shorter --length. "
            f"{reading_text(account)}".rstrip()
        )
    if data != EMBEDDED:
        short = f" {long.passed_over:,} have no more than {length} tokens and are passed over."
        say(reading_text(account) + short * bool(long.passed_over))
    special = set(tokenizer.all_special_ids)
    plain = [[i for i in ids if i not in special] for ids in found]
    return HeldOut(found, plain, description, account)
