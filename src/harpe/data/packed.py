"""Packed sequences of one length: a folder that is read through a memory map.

A packed data set is a folder of three files, or four:

* `tokens.bin`: the token ids of all sequences, little-endian uint16 (a vocabulary of at most 65,536 ids) or uint32,
  without a header. Sequence i is the ids from i * length to (i + 1) * length.
* `documents.npy`: int64 [documents], where in that stream each document starts; ascending, the first is 0.
* `targets.bin`: uint8, one a token, 1 where it is trained on; only where that is not every token (conversations).
* `index.json`: what the folder holds and what it was made from: hash, tokenizer, and by source the tokens that were
  there and those that were drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from harpe.errors import HarpeError
from harpe.files import read_json

DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
TARGET = np.dtype("u1")
FILES = ("tokens.bin", "documents.npy", "targets.bin")
"""Beside the index; the last one may be missing."""


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
        self._streams: dict[str, np.ndarray] = {}
        self.targets = int(self.index.get("targets", self.tokens))
        """Tokens that are trained on."""
        sizes = {"tokens.bin": dtype.itemsize} | ({"targets.bin": 1} if "targets" in self.index else {})
        for name, itemsize in sizes.items():
            file = self.path / name
            size, wanted = file.stat().st_size if file.is_file() else 0, self.tokens * itemsize
            if size != wanted:
                raise HarpeError(
                    f"{file} has {size} bytes and should have {wanted}: it was cut off or changed. Prepare it again."
                )
        self._starts = _load_starts(self.path / "documents.npy", documents, self.tokens)

    @property
    def starts(self) -> np.ndarray:
        """Where documents start in the stream: int64 [documents], ascending, the first is 0; read-only."""
        starts = self._starts.view()
        starts.flags.writeable = False
        return starts

    def __len__(self) -> int:
        return self.tokens // self.length

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Sequence `i`: `input_ids` int64 [length], and `labels`, a copy of it (models shift labels themselves) with
        -100 for tokens that are no targets."""
        first = range(len(self))[i] * self.length
        input_ids = torch.from_numpy(self._map()[first : first + self.length].astype(np.int64))
        labels = input_ids.clone()
        if "targets" in self.index:
            trained = self._map("targets.bin", TARGET)[first : first + self.length]
            labels[torch.from_numpy(trained == 0)] = -100
        return {"input_ids": input_ids, "labels": labels}

    def cut(self, length: int) -> PackedDataset:
        """The same tokens in the same order, in sequences of `length`."""
        return self if length == self.length else PackedDataset(self.path, length)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_streams": {}}  # a pickled map would be a copy of the corpus

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
        if stream_hash(self.path, self._starts, self._dtype, int(self.index["length"])) != self.hash:
            raise HarpeError(
                f"{self.path} was changed after it was written: its hash is not that of its index. Prepare it again."
            )

    def _map(self, name: str = "tokens.bin", dtype: np.dtype[Any] | None = None) -> np.ndarray:
        if name not in self._streams:  # opened at first use: every worker process has its own
            self._streams[name] = np.memmap(self.path / name, dtype or self._dtype, "r", shape=(self.tokens,))
        return self._streams[name]

    @property
    def notes(self) -> list[str]:
        """What there is to say of the targets, in sentences for a plan."""
        if "targets" not in self.index:
            return []
        return [f"Of conversations answers alone are trained on: {self.targets:,} of all {self.tokens:,} tokens."]


def is_packed(path: str | Path) -> bool:
    """Whether a folder is a packed data set."""
    folder = Path(path).expanduser()
    return all((folder / name).is_file() for name in ("index.json", "tokens.bin", "documents.npy"))


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


def stream_hash(folder: Path, starts: np.ndarray, dtype: np.dtype, length: int) -> str:
    """SHA-256 of the line "DTYPE LENGTH", the ids, the starts of the documents, and the targets where there are
    some."""
    digest = hashlib.sha256(f"{dtype.name} {length}\n".encode())
    _update(digest, folder / "tokens.bin")
    digest.update(starts.astype("<i8").tobytes())
    if (folder / "targets.bin").is_file():
        _update(digest, folder / "targets.bin")
    return digest.hexdigest()


def _update(digest: Any, file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
