"""Which documents of a corpus are trained on, how often, and in which order: length upsampling inside every source.

The rule is that of Fu et al. 2024, "Data Engineering for Scaling Language Models to 128K Context" (arXiv 2402.10171,
sections 3 and 5.3): every source keeps its share of the tokens, and inside a source the documents of at least 4,096
tokens get a larger share than they have. Their program keeps one short document in ten and all long ones until a source
has its share of the budget; here that is a long document counting `factor` = 10 times as much as a short one. In the
paper it took the long documents of SlimPajama from about 30% to about 70%.

The documents of a source are one group or, with upsampling, two: the long and the short ones. Group g has a share w_g
of the stream, and its documents stand in random order, j with b_j tokens before it and l_j of its own. Groups are
merged by (b_j + u_g l_j) / w_g, with u_g uniform in 0 to 1, and the stream ends after the tokens that were asked for.
So at every point of the stream each group has its share to within a document, the end of the stream is no different
from its beginning, and no document is left without a chance. With one group this is the random order itself.

Short texts that are mixed in (`SHORT`) are a source with a share of its own, whatever they have; the others divide the
rest. So a model that is trained on long texts goes on reading short ones, which is what it forgets first (Gao et al.
2024, arXiv 2410.02660).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harpe.errors import HarpeError

SHORT = "--short-data"
"""The source of short texts that are mixed in."""

PUBLISHED_LENGTH = 4096
"""Tokens from which on a document is long (section 5.3 of the paper: "sequences longer than 4K")."""


@dataclass(frozen=True)
class Upsampling:
    """What long documents are, and how much more often they are drawn."""

    length: int = PUBLISHED_LENGTH
    """Tokens from which on a document is long."""
    factor: float = 1.0
    """How many times as often a token of a long document is drawn as one of a short document of its source."""
    long_share: float | None = None
    """In place of a factor: the share of every source's tokens that long documents get, where they have less."""
    max_copies: int = 1
    """How often a document may be drawn; 1: none is repeated."""
    short_share: float = 0.0
    """Of the tokens, for the source `SHORT`."""

    @property
    def asked(self) -> bool:
        """Whether long documents are treated differently from short ones."""
        return self.long_share is not None or self.factor != 1

    def check(self) -> None:
        """Raise HarpeError for values out of range."""
        if self.length < 1:
            raise HarpeError(
                f"--upsample-length is {self.length}; a document is long from at least 1 token on (the paper: 4096)."
            )
        if not 1 <= self.factor < float("inf"):
            raise HarpeError(
                f"--upsample-factor is {self.factor:g}; give 1 (no upsampling) or more (the published program: 10)."
            )
        if self.long_share is not None and not 0 < self.long_share < 1:
            raise HarpeError(
                f"--long-share is {self.long_share:g}; give a share above 0 and below 1, or short documents would be "
                "left out."
            )
        if self.long_share is not None and self.factor != 1:
            raise HarpeError("--long-share and --upsample-factor say the same thing in two ways; give one of them.")
        if self.max_copies < 1:
            raise HarpeError(f"--max-copies is {self.max_copies}; it must be at least 1.")
        if not 0 <= self.short_share < 1:
            raise HarpeError(
                f"--short-share is {self.short_share:g}; give --short-data a share of the tokens, above 0 and below 1."
            )


@dataclass(frozen=True)
class Corpus:
    """Documents by their lengths and sources alone."""

    lengths: NDArray[np.int64]
    """Tokens of every document: int64 [documents], all above 0."""
    sources: NDArray[np.integer[Any]]
    """Source of every document as a place in `names`: integer [documents]."""
    names: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def short(self) -> int:
        """The number of the source of short texts; -1 where none are mixed in."""
        return self.names.index(SHORT) if SHORT in self.names else -1

    def tokens_by(self, keys: NDArray[np.integer[Any]], count: int) -> list[int]:
        """Tokens of the documents of every key 0 to count - 1."""
        return [int(n) for n in np.bincount(keys, self.lengths.astype(np.float64), count)]  # exact below 2^53


@dataclass(frozen=True)
class Groups:
    """Documents that are drawn alike: number 2 s are the short ones of source s, or all of them without upsampling, 2 s
    + 1 the long."""

    of: NDArray[np.int64]
    """Group of every document: int64 [documents]."""
    available: list[int]
    """Tokens of every group."""
    shares: list[Fraction]
    """Of the stream; above 0 for every group that has documents; they add up to 1."""

    def most(self, max_copies: int) -> int:
        """The tokens that can be drawn with no document more than `max_copies` times."""
        return min(
            int(max_copies * has / share) for has, share in zip(self.available, self.shares, strict=True) if share
        )


def make_groups(corpus: Corpus, upsampling: Upsampling) -> Groups:
    """Divide the documents into groups with shares: a source keeps its own; inside of it the rule decides. Texts that
    are mixed in are one group; HarpeError where there are none, or no others."""
    if upsampling.short_share and (corpus.short < 0 or len(corpus.names) == 1):
        which = "--data" if corpus.short >= 0 else SHORT
        raise HarpeError(f"{which} gave no documents with text in them, and --short-share mixes two kinds.")
    of = 2 * corpus.sources.astype(np.int64)
    if upsampling.asked:
        of += (corpus.lengths >= upsampling.length) & (corpus.sources != corpus.short)
    available = corpus.tokens_by(of, 2 * len(corpus.names))
    mixed = Fraction(upsampling.short_share) if corpus.short >= 0 else Fraction(0)
    others = corpus.tokens - sum(available[2 * corpus.short :][:2]) if corpus.short >= 0 else corpus.tokens
    shares = []
    for number, (short, long) in enumerate(zip(available[::2], available[1::2], strict=True)):
        inside = Fraction(0) if not long else _long_share(short, long, upsampling)
        source = mixed if number == corpus.short else Fraction(short + long, others) * (1 - mixed)
        shares += [source * (1 - inside), source * inside]
    return Groups(of, available, shares)


def _long_share(short: int, long: int, upsampling: Upsampling) -> Fraction:
    """The share that long documents get inside a source that has some."""
    if upsampling.long_share is None or not short:
        return Fraction(upsampling.factor) * long / (Fraction(upsampling.factor) * long + short)
    return max(Fraction(upsampling.long_share), Fraction(long, short + long))


def tokens_to_draw(corpus: Corpus, upsampling: Upsampling, tokens: int | None) -> int:
    """`tokens`, or, where None, as many as the limit of copies allows.

    Raises HarpeError where more is asked for than that, with the group that has too little, and where there is nothing
    to upsample, or nothing to mix in or into.
    """
    groups = make_groups(corpus, upsampling)
    longest = int(corpus.lengths[corpus.sources != corpus.short].max())
    if upsampling.asked and longest < upsampling.length:
        raise HarpeError(
            f"No document has {upsampling.length} tokens (the longest has {longest}), so there is nothing "
            "to upsample. Lower --upsample-length, or leave the upsampling out."
        )
    most = groups.most(upsampling.max_copies)
    if tokens is None or tokens <= most:
        return most if tokens is None else tokens
    rounds = {g: share * tokens / groups.available[g] for g, share in enumerate(groups.shares) if share}
    worst = max(rounds, key=lambda g: rounds[g])
    name, side = corpus.names[worst // 2], ("shorter than", "of at least")[worst % 2]
    which = f"documents {side} {upsampling.length:,} tokens" if upsampling.asked else "documents"
    if name:
        which += f" of the source {name}"
    limit = "once" if upsampling.max_copies == 1 else f"{upsampling.max_copies} times"
    raise HarpeError(
        f"--tokens {tokens:,} would take {int(groups.shares[worst] * tokens):,} tokens from {which}, which have "
        f"{groups.available[worst]:,}. With every document at most {limit}, {most:,} tokens can be drawn: lower "
        f"--tokens, give more --data, or allow --max-copies {math.ceil(rounds[worst])}."
    )


def draw(corpus: Corpus, upsampling: Upsampling, tokens: int, seed: int) -> NDArray[np.int64]:
    """The documents of a stream of `tokens` tokens in their order: int64 [n], numbers of documents; the last one may be
    cut.

    `tokens` is at most what `tokens_to_draw` allows. A draw of fewer tokens is the beginning of this one.
    """
    groups = make_groups(corpus, upsampling)
    if not 0 < tokens <= groups.most(upsampling.max_copies):
        raise ValueError(f"{tokens} tokens cannot be drawn")
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(corpus.lengths))
    offsets = random.random(len(groups.shares))
    until = float(tokens + corpus.lengths.max() * len(groups.shares))
    while True:
        parts = [
            _group_until(corpus, groups, g, shuffled, offsets[g], upsampling.max_copies, seed, until)
            for g, share in enumerate(groups.shares)
            if share
        ]
        order = np.concatenate([documents for documents, _ in parts])
        order = order[np.argsort(np.concatenate([times for _, times in parts]), kind="stable")]
        ends = np.cumsum(corpus.lengths[order])
        if ends[-1] >= tokens:
            return order[: int(np.searchsorted(ends, tokens)) + 1]
        until *= 2  # one group is used up to its last document, and others stand a little behind


def _group_until(
    corpus: Corpus,
    groups: Groups,
    group: int,
    shuffled: NDArray[np.int64],
    offset: float,
    max_copies: int,
    seed: int,
    until: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A group's documents in order, each with its time in the merge (in tokens of the stream), up to `until`."""
    members, weight = shuffled[groups.of[shuffled] == group], float(groups.shares[group])
    documents, times = [], []
    for copy in range(max_copies):
        before = copy * groups.available[group]
        if before > until * weight:
            break
        drawn = members if copy == 0 else np.random.default_rng([seed, group, copy]).permutation(members)
        lengths = corpus.lengths[drawn]
        at = (before + np.cumsum(lengths) - lengths + offset * lengths) / weight
        count = int(np.searchsorted(at, until, "right"))
        documents.append(drawn[:count])
        times.append(at[:count])
    return np.concatenate(documents), np.concatenate(times)


def describe_draw(
    corpus: Corpus, upsampling: Upsampling, order: NDArray[np.int64], used: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """What was there and what was drawn, by source: documents, tokens, shares, and how often documents are repeated.
    `used` are the tokens of every drawn document, in their order.

    Shares of long documents are of the source's tokens. `copies` are drawn tokens over tokens that are there, of long
    and of short documents, and the most copies of one document.
    """
    count, order, tokens = len(corpus.lengths), order[: len(used)], max(1, int(used.sum()))
    times = np.bincount(order[used > 0], minlength=count)
    drawn = Corpus(np.bincount(order, used, count).astype(np.int64), corpus.sources, corpus.names)
    keys = 2 * corpus.sources.astype(np.int64) + (corpus.lengths >= upsampling.length)
    count = len(corpus.names)
    before, after = corpus.tokens_by(keys, 2 * count), drawn.tokens_by(keys, 2 * count)
    documents, distinct = np.bincount(keys, minlength=2 * count), np.bincount(keys, times > 0, 2 * count)
    rows = []
    for s, name in enumerate(corpus.names):
        (short, long), (short_after, long_after) = before[2 * s : 2 * s + 2], after[2 * s : 2 * s + 2]
        rows.append(
            {
                "source": name,
                "documents": int(documents[2 * s : 2 * s + 2].sum()),
                "tokens": short + long,
                "share": (short + long) / corpus.tokens,
                "long_documents": int(documents[2 * s + 1]),
                "long_share": long / (short + long),
                "documents_drawn": int(distinct[2 * s : 2 * s + 2].sum()),
                "tokens_drawn": short_after + long_after,
                "share_drawn": (short_after + long_after) / tokens,
                "long_documents_drawn": int(distinct[2 * s + 1]),
                "long_share_drawn": long_after / max(1, short_after + long_after),
                "copies": {
                    "long": long_after / long if long else None,
                    "short": short_after / short if short else None,
                    "most": int(times[corpus.sources == s].max()),
                },
            }
        )
    return rows
