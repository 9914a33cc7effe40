"""Documents in, packed sequences of one length out (`harpe.data.packed`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from harpe.data.packed import DTYPES, TARGET, PackedDataset, stream_hash
from harpe.data.rows import Document
from harpe.data.sampling import Corpus, Upsampling, describe_draw, draw, tokens_to_draw
from harpe.data.shards import Say, remove_shards, shard, silent, tokenise_shard
from harpe.data.token_ids import id_type, tokenizer_identity
from harpe.data.tokenised import Tokenised, number_of
from harpe.errors import HarpeError
from harpe.files import check_new_folder, new_folder, write_json

MISSED = 0.2
"""By how much of --short-share the share of short texts may be another one."""


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
    details: Callable[[], dict[str, Any]] = dict,
    request: dict[str, Any] | None = None,
    say: Say = silent,
) -> PackedDataset:
    """Tokenise documents, shuffle them, and write them end to end in sequences of `length` tokens.

    A document is its ids with what the tokenizer begins texts with, and then the end-of-sequence id, once
    (`document_ids`): where begin and end are the same id, one stands between two documents. No text is repeated unless
    `upsampling` allows it; what is left after the last whole sequence is dropped, and so are sequences without a token
    that is trained on.

    All documents are read, even with `max_tokens`: which of them come first is drawn among all. Memory holds two
    batches of texts and about 100 bytes a document; the disk holds the ids twice while they are put in order. The
    folder appears when it is complete. What a killed run has tokenised lies in `unfinished(out)`, where the next one
    goes on.

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
        Called when all documents were read; what it returns, of counts, is added to the index.
    request
        What names the documents: a killed run goes on only with the same ones.
    say
        Is told where a killed run goes on.

    Raises
    ------
    HarpeError
        When `out` is taken, the documents give less than one sequence or too little for `upsampling`, the disk is full,
        an option is out of range, or a killed run had other documents.
    """
    out = Path(out)
    check_request(length, out, seed, max_tokens)
    (upsampling or Upsampling()).check()
    if upsampling is None:  # no source is told from another
        documents = (replace(document, source="") for document in documents)
    with shard(out, 1, 1) as folder:
        part = tokenise_shard(documents, tokenizer, folder, request or {}, details, say)
        data = pack([part], tokenizer, length, out, seed, max_tokens, upsampling, {"description": description})
        remove_shards([folder])
    return data


def pack(
    parts: Sequence[Tokenised],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    out: Path,
    seed: int,
    max_tokens: int | None,
    upsampling: Upsampling | None,
    index: dict[str, Any],
) -> PackedDataset:
    """Put tokenised documents in order, those of all parts as one corpus, and write them to `out`; arguments as those
    of `prepare`. `index` is added to the index, and so are the accounts of the parts, their counts added up."""
    rule, dtype = upsampling or Upsampling(), id_type(tokenizer)
    corpus = _corpus(parts)
    available = corpus.tokens
    if not available:
        short = any(part.account.get("too_short_left_out") for part in parts)
        held_out = any(part.account.get("held_out_left_out") for part in parts)
        which = "that --held-out does not have" if held_out else "with text in them"
        which = "of --min-length tokens" if short else which
        raise HarpeError(f"--data gave no documents {which}.")
    if available < length:
        raise HarpeError(
            f"--data gave {available} tokens in {len(corpus.lengths)} documents, and one sequence needs {length}. Give "
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
    _check_share(corpus, rule, order, total)
    starts = np.concatenate(([0], np.cumsum(corpus.lengths[order])[:-1]))
    starts = starts[starts < total]
    with new_folder(out) as folder:
        _write(parts, "tokens.bin", folder / "tokens.bin", corpus.lengths, order, starts, total, DTYPES[dtype])
        targets: dict[str, Any] = {}
        used = np.diff(starts, append=total)
        if any(part.masked for part in parts):
            _write(parts, "masked.bin", folder / "targets.bin", corpus.lengths, order, starts, total, TARGET)
            starts, used, targets = _targets(folder, starts, used, length, DTYPES[dtype])
        with (folder / "documents.npy").open("wb") as stream:
            np.save(stream, starts, allow_pickle=False)
        sequences = total // length - targets.get("sequences_left_out", 0)
        write_json(
            folder / "index.json",
            {
                "length": length,
                "sequences": sequences,
                "tokens": sequences * length,
                "documents": len(starts),
                "dtype": dtype,
                **targets,
                "hash": stream_hash(folder, starts, DTYPES[dtype], length),
                "seed": seed,
                "tokenizer": tokenizer_identity(tokenizer),
                **index,
                "corpus": {
                    "sha256": f"{sum(part.digest for part in parts) % 2**256:064x}",
                    "documents": len(corpus.lengths),
                    "tokens": available,
                },
                "sources": describe_draw(corpus, rule, order, used),
                **_added([part.account for part in parts]),
            },
        )
    return PackedDataset(out)


def _check_share(corpus: Corpus, rule: Upsampling, order: NDArray[np.int64], total: int) -> None:
    """Refuse a stream so short beside its documents that short texts do not get about their share of it."""
    lengths = corpus.lengths[order].copy()
    lengths[-1] -= lengths.sum() - total
    found = float(lengths[corpus.sources[order] == corpus.short].sum() / total) if rule.short_share else 0.0
    if abs(found - rule.short_share) > MISSED * min(rule.short_share, 1 - rule.short_share):
        raise HarpeError(
            f"--short-data would get {100 * found:.4g}% of the tokens, not {100 * rule.short_share:.4g}%: "
            f"documents of --data are long beside {total:,} tokens. Ask for more --tokens, or divide long documents "
            "into several of --length tokens, as sequences do anyway."
        )


def _corpus(parts: Sequence[Tokenised]) -> Corpus:
    """The documents of all parts, those of the first one first."""
    names = dict[str, int]()
    numbers = [np.array([number_of(name, names) for name in part.names], np.int32) for part in parts]
    sources = np.concatenate([of[part.sources] for of, part in zip(numbers, parts, strict=True)])
    return Corpus(np.concatenate([part.lengths for part in parts]), sources, tuple(names))


def _added(accounts: Sequence[Any]) -> Any:
    """Dictionaries of counts as one, by key; what is no count is the same in all."""
    first = accounts[0]
    if isinstance(first, dict):
        keys = sorted({key for each in accounts for key in each})
        return {key: _added([each[key] for each in accounts if key in each]) for key in keys}
    return sum(accounts) if isinstance(first, int) and not isinstance(first, bool) else first


def _write(
    parts: Sequence[Tokenised],
    name: str,
    target: Path,
    lengths: NDArray[np.int64],
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    total: int,
    dtype: np.dtype[Any],
) -> None:
    """Write the first `total` ids, or marks, of the documents in `order`.

    They are read without a memory map, whose pages would count as this process's memory.
    """
    size = dtype.itemsize
    firsts = np.concatenate(([0], np.cumsum([len(part.lengths) for part in parts])))
    places = np.concatenate([(np.cumsum(part.lengths) - part.lengths) * size for part in parts])
    of = np.searchsorted(firsts, order, "right") - 1
    with ExitStack() as stack, target.open("wb", 2**20) as stream:
        files = [
            stack.enter_context(file.open("rb", 0)) if (file := part.folder / name).is_file() else None
            for part in parts
        ]
        for document, part, start in zip(order, of, starts, strict=False):
            wanted = int(min(lengths[document], total - start)) * size
            file = files[part]
            raw = os.pread(file.fileno(), wanted, int(places[document])) if file is not None else b""
            if len(raw) < wanted and name == "tokens.bin":
                raise HarpeError(
                    f"{parts[part].folder / name} ended while it was read. Delete its folder, start again."
                )
            stream.write(raw + bytes(wanted - len(raw)))  # marks may end early


def _targets(
    folder: Path, starts: NDArray[np.int64], used: NDArray[np.int64], length: int, dtype: np.dtype[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, Any]]:
    """Make targets of the marks in targets.bin, and leave out the sequences that have none: after that, where documents
    start, how many tokens of each are left, and what the index has of it.

    Nothing predicts the first token of a sequence, so that it is no target.
    """
    sizes = {"targets.bin": TARGET.itemsize * length, "tokens.bin": dtype.itemsize * length}
    kept, count = list[bool](), 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("r+b")) for name in sizes}
        at = 0
        while marks := files["targets.bin"].read(length):
            targets = 1 - np.frombuffer(marks, TARGET)
            kept.append(bool(targets[1:].any()))
            tokens = files["tokens.bin"].read(sizes["tokens.bin"])
            if kept[-1]:
                count += int(targets.sum(dtype=np.int64))
                for name, raw in (("targets.bin", targets.tobytes()), ("tokens.bin", tokens)):
                    os.pwrite(files[name].fileno(), raw, at * sizes[name])
                at += 1
        for name, size in sizes.items():
            files[name].truncate(at * size)
    if not count:
        raise HarpeError("--chat: the conversations hold no answers, so there is nothing to train on.")
    keep = np.array(kept)
    numbers, follows = np.cumsum(keep) - keep, np.concatenate(([False], keep[:-1]))
    inside = starts[keep[starts // length]]
    moved = numbers[inside // length] * length + inside % length
    # what went on from a sequence that is gone begins where that ended
    left = {"sequences_left_out": len(keep) - at} if at < len(keep) else {}
    starts_left = np.unique(np.concatenate((moved, numbers[keep & ~follows] * length)))

    def before(places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens that are left of the stream up to a place."""
        there = np.append(keep, False)[places // length]
        return np.append(numbers, at)[places // length] * length + there * (places % length)

    return starts_left, before(starts + used) - before(starts), {"targets": count, **left}
