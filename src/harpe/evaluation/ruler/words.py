"""The word lists that needles and the common-words task draw from."""

from __future__ import annotations

import hashlib
import importlib.util
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from harpe.errors import HarpeError

_SHA256 = {
    "nounlist.txt": "8d88b3ebc2e2969ed92ebe49cdb0c8a87c2ad3b27493d7afdff608f2e51c5bc9",
    "adjectivelist.txt": "66814d46b7e292c83e839d12fe2fa083c8f66779b14b294e1be4e1342c5d4131",
    "verblist.txt": "9fbf5e4e69b8869aebd88e6d545312ff9f878a747327ede5f6dbbba5c27b08ad",
}
"""The lists of wonderwords 3.0.1: with any other list every sample would be another one."""


@lru_cache(maxsize=1)
def word_lists() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Nouns, adjectives and verbs of the package wonderwords, in the order of its files.

    Raises HarpeError where the package is missing or has other lists.
    """
    spec = importlib.util.find_spec("wonderwords")
    if spec is None or spec.origin is None:
        raise HarpeError(
            "RULER draws its words from the package wonderwords, which is not installed: pip install 'harpe[eval]'."
        )
    lists = []
    for name, sha256 in _SHA256.items():
        raw = (Path(spec.origin).parent / "assets" / name).read_bytes()
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise HarpeError(
                f"The {name} of the installed wonderwords is not that of version 3.0.1: pip install wonderwords==3.0.1."
            )
        lists.append(tuple(line.rstrip() for line in raw.decode().splitlines()))
    nouns, adjectives, verbs = lists
    return nouns, adjectives, verbs


class CompoundWords(Sequence[str]):
    """The sorted set of all `adjective-noun`, without making it: an item is built when it is asked for.

    Compounds of one adjective stand together in the sorted set, in the order of the nouns, unless an adjective and its
    hyphen begin another adjective (`wide-`, `wide-eyed-`). Such families are few, and only they are made and sorted.
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]) -> None:
        self._nouns = sorted(set(nouns))
        self._blocks: list[tuple[str, list[str]]] = []
        """Prefix and what follows it, block after block of the sorted set."""
        heads = sorted(f"{adjective}-" for adjective in set(adjectives))
        start = 0
        while start < len(heads):
            end = start + 1
            while end < len(heads) and heads[end].startswith(heads[start]):
                end += 1
            family = heads[start:end]
            if len(family) == 1:
                self._blocks.append((family[0], self._nouns))
            else:
                self._blocks.append(("", sorted({head + noun for head in family for noun in self._nouns})))
            start = end
        self._ends = list(accumulate(len(rest) for _, rest in self._blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = bisect_right(self._ends, index)
        prefix, rest = self._blocks[block]
        return prefix + rest[index - (self._ends[block - 1] if block else 0)]


@lru_cache(maxsize=1)
def compound_words() -> CompoundWords:
    """The keys of the needle tasks: every adjective with every noun."""
    nouns, adjectives, _ = word_lists()
    return CompoundWords(adjectives, nouns)


@lru_cache(maxsize=1)
def single_words() -> tuple[str, ...]:
    """The 8,166 words of the common-words task: nouns, adjectives and verbs, sorted."""
    return tuple(sorted({word for words in word_lists() for word in words}))
