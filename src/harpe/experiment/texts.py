"""Training and held-out texts, from the embedded corpus or from the user's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.embedded import SourceFile, corpus_hash, reported_files, training_files, tuning_files
from harpe.data.packing import PackedDataset, is_packed, prepare, tokenizer_identity
from harpe.data.sources import Document, read_documents
from harpe.data.token_ids import document_ids, text_ids
from harpe.errors import HarpeError
from harpe.evaluation.run import HeldOut
from harpe.files import new_folder

EMBEDDED = "embedded"
CHARACTERS_PER_TOKEN = 6
"""Embedded files are taken until there are this many characters for every token that is needed: enough for any tokenizer."""


def _some(files: list[SourceFile], tokens: int) -> list[SourceFile]:
    """The first files (the order of their hashes is a fixed shuffle) that give `tokens` tokens; all of them for 0."""
    if not tokens:
        return files
    chosen, characters = [], 0
    for file in files:
        if characters >= tokens * CHARACTERS_PER_TOKEN:
            break
        chosen.append(file)
        characters += len(file.text)
    return chosen


def training_documents(data: str, text_field: str, tokens: int) -> tuple[Iterable[Document], str]:
    """Documents to train on and a line that names them."""
    if data == EMBEDDED:
        files = _some(training_files(), tokens)
        line = f"{len(files)} Python files of this machine's standard library and packages, SHA-256 {corpus_hash(files)}"
        return [Document(file.name, file.text) for file in files], line
    return read_documents(data, text_field=text_field), data


def training_ids(data: str, tokenizer: PreTrainedTokenizerBase, text_field: str, tokens: int) -> tuple[Iterator[list[int]], str]:
    """Token ids of the documents to train on, one at a time, and a line that names them; `data` may be prepared."""
    if is_packed(data):
        return (ids.tolist() for ids in PackedDataset(data).documents()), data
    documents, description = training_documents(data, text_field, tokens)
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
) -> PackedDataset:
    """The packed data set in `folder`; made where it is not there yet, or linked to where `data` was prepared (`harpe prepare`).

    Raises
    ------
    HarpeError
        As `harpe.data.packing.prepare`; where prepared data are of another tokenizer, have shorter sequences, were changed, or are gone.
    """
    if is_packed(data):
        return _linked(folder, Path(data).expanduser(), tokenizer, length)
    if (file := folder / "tokens.bin").is_symlink() and not file.exists():
        raise HarpeError(f"The prepared data that {folder} links to are no longer in {file.readlink().parent}. Put them back.")
    if (folder / "index.json").is_file():
        return PackedDataset(folder)
    documents, description = training_documents(data, text_field, tokens)
    return prepare(documents, tokenizer, length, folder, seed=seed, max_tokens=tokens or None, description=description)


def _linked(folder: Path, prepared: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> PackedDataset:
    """Prepared data as those of a run: the run has a copy of the index, which says what it trains on, and links to the rest."""
    data = PackedDataset(prepared)
    there, wanted = data.index.get("tokenizer"), tokenizer_identity(tokenizer)
    if there != wanted:
        raise HarpeError(
            f"--data {prepared} was prepared with another tokenizer (SHA-256 {_short(there)}, the model's is {_short(wanted)}). Prepare "
            "the texts again with this --model, or name the --tokenizer that they were prepared with."
        )
    if length > data.length:
        raise HarpeError(
            f"--data {prepared} was prepared in sequences of {data.length} tokens, and --length is {length}. Prepare the texts again with "
            f"--length {length}."
        )
    data = data.cut(length)
    if not (folder / "index.json").is_file():
        data.verify()
        with new_folder(folder) as temporary:
            (temporary / "index.json").write_bytes((data.path / "index.json").read_bytes())
            for name in ("tokens.bin", "documents.npy"):
                (temporary / name).symlink_to(data.path / name)
    elif PackedDataset(folder).hash != data.hash:
        raise HarpeError(f"--data {prepared} does not hold what this run began with: its hash is another one. Name another --out.")
    return PackedDataset(folder, length)


def _short(identity: Any) -> str:
    return str(identity.get("sha256", "unknown"))[:12] if isinstance(identity, dict) else "unknown"


def _long_enough(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[list[int]]:
    for document in documents:
        if len(document.text) > length:  # a token is at least one character, near enough
            ids = text_ids(tokenizer, document.text)
            if len(ids) > length:
                yield ids


def held_out_texts(
    data: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int, *, text_field: str = "text", tuning: bool = False
) -> HeldOut:
    """The first `count` documents longer than `length` tokens; the same documents are the haystacks.

    Raises
    ------
    HarpeError
        Where no document is long enough.
    """
    if data == EMBEDDED:
        files = tuning_files() if tuning else reported_files()
        documents: Iterable[Document] = [Document(file.name, file.text) for file in files]
        kind = "tuned on" if tuning else "reported from"
        description = f"Python files that are never trained on and that figures are {kind}"
    elif is_packed(data):
        raise HarpeError(
            f"--data {data} was prepared for training (harpe prepare). Name texts to evaluate on: a file, a folder or a data set."
        )
    else:
        documents, description = read_documents(data, text_field=text_field), data
    found = list(islice(_long_enough(documents, tokenizer, length), count))
    if not found:
        raise HarpeError(f"--data {data} has no document of more than {length} tokens; give longer texts or a shorter --length.")
    special = set(tokenizer.all_special_ids)
    plain = [[i for i in ids if i not in special] for ids in found]
    return HeldOut(found, plain, description)
