"""Upsampling against a merge in fractions and plain lists, against the published program, and against its own
arithmetic."""

from __future__ import annotations

import heapq
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harpe.data.sampling import SHORT, Corpus, Upsampling, describe_draw, draw, make_groups, tokens_to_draw
from harpe.errors import HarpeError


def corpus(*sources: list[int], names: tuple[str, ...] | None = None) -> Corpus:
    """A corpus out of the documents' lengths by source."""
    lengths = [length for source in sources for length in source]
    numbers = [number for number, source in enumerate(sources) for _ in source]
    return Corpus(np.array(lengths, np.int64), np.array(numbers, np.int32), names or tuple("abcdefgh"[: len(sources)]))


def mixed(seed: int = 0) -> Corpus:
    """Web: many short documents and few long ones; books: long ones only; posts: short ones only; papers: half and
    half."""
    random = np.random.default_rng(seed)
    web = [*random.integers(20, 1000, 3000), *random.integers(1000, 6000, 60)]
    return corpus(
        [int(n) for n in web],
        [int(n) for n in random.integers(5000, 20_000, 12)],
        [int(n) for n in random.integers(10, 400, 700)],
        [int(n) for n in [*random.integers(100, 1000, 300), *random.integers(1000, 3000, 80)]],
        names=("web", "books", "posts", "papers"),
    )


def described(c: Corpus, rule: Upsampling, tokens: int, order: np.ndarray) -> list[dict[str, Any]]:
    """Of a draw whose last document is cut."""
    used = c.lengths[order].copy()
    used[-1] -= used.sum() - tokens
    return describe_draw(c, rule, order, used)


LONG = 1000


def shares_of(documents: list[tuple[int, int]]) -> dict[tuple[int, bool], float]:
    """Shares of the tokens by source and by being long, of documents (source, length)."""
    tokens: Counter[tuple[int, bool]] = Counter()
    for source, length in documents:
        tokens[source, length >= LONG] += length
    return {key: count / sum(tokens.values()) for key, count in tokens.items()}


def asked_for(c: Corpus, factor: float | None = None, long_share: float | None = None) -> dict[tuple[int, bool], float]:
    """The shares that the rule promises, from its words: sources keep theirs; a long token counts `factor` times, or
    has a share."""
    total, wanted = sum(c.lengths.tolist()), {}
    for source in range(len(c.names)):
        lengths = [n for n, s in zip(c.lengths.tolist(), c.sources.tolist(), strict=True) if s == source]
        long, all_ = sum(n for n in lengths if n >= LONG), sum(lengths)
        inside = long / all_
        if factor is not None:
            inside = factor * long / (factor * long + all_ - long)
        elif long_share is not None and long:
            inside = max(inside, long_share) if long < all_ else 1.0
        wanted |= {(source, True): all_ / total * inside, (source, False): all_ / total * (1 - inside)}
    return wanted


def naive(c: Corpus, factor: Fraction, copies: int, tokens: int, seed: int) -> list[int]:
    """The documented merge, a document at a time, in fractions; only the random numbers are numpy's."""
    lengths, sources = c.lengths.tolist(), c.sources.tolist()
    random = np.random.default_rng(seed)
    shuffled, offsets = random.permutation(len(lengths)).tolist(), random.random(2 * len(c.names)).tolist()
    group = [2 * s + int(factor != 1 and n >= LONG) for s, n in zip(sources, lengths, strict=True)]
    has = {g: sum(n for n, k in zip(lengths, group, strict=True) if k == g) for g in set(group)}
    share = {}
    for g in has:
        source, short, long = g // 2, has.get(g // 2 * 2, 0), has.get(g // 2 * 2 + 1, 0)
        whole = Fraction(sum(n for n, s in zip(lengths, sources, strict=True) if s == source), sum(lengths))
        share[g] = whole * (factor * long if g % 2 else short) / (factor * long + short)
    queue: list[tuple[Fraction, int, int, int]] = []
    lists: dict[int, list[int]] = {}
    for g in has:
        members = [d for d in shuffled if group[d] == g]
        rounds = [np.random.default_rng([seed, g, copy]).permutation(members).tolist() for copy in range(1, copies)]
        lists[g] = [*members, *(d for more in rounds for d in more)]
        heapq.heappush(queue, (Fraction(offsets[g]) * lengths[lists[g][0]] / share[g], g, 0, 0))
    order: list[int] = []
    drawn = 0
    while drawn < tokens:
        _, g, number, before = heapq.heappop(queue)
        document = lists[g][number]
        order.append(document)
        drawn += lengths[document]
        before += lengths[document]
        if number + 1 < len(lists[g]):
            following = Fraction(offsets[g]) * lengths[lists[g][number + 1]]
            heapq.heappush(queue, ((before + following) / share[g], g, number + 1, before))
    return order


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=12), min_size=1, max_size=4),
    factor=st.sampled_from([1, 2, 10]),
    copies=st.integers(1, 3),
    part=st.floats(0.05, 1),
    seed=st.integers(0, 1000),
)
def test_a_draw_is_the_merge_in_fractions(
    sources: list[list[int]], factor: int, copies: int, part: float, seed: int
) -> None:
    c, rule = corpus(*sources), Upsampling(LONG, factor, None, copies)
    if rule.asked and max(map(max, sources)) < LONG:
        return
    tokens = max(1, int(part * tokens_to_draw(c, rule, None)))
    assert draw(c, rule, tokens, seed).tolist() == naive(c, Fraction(factor), copies, tokens, seed)


def test_the_shares_are_those_of_the_published_program() -> None:
    """Which passes through a shuffled corpus and keeps a short document with probability 1 in 10, until a source has
    its budget."""
    c = mixed()
    total, tokens = c.tokens, 200_000
    kept: list[tuple[int, int]] = []
    random = np.random.default_rng(1)
    for _ in range(10):
        budget = [tokens * int(c.lengths[c.sources == s].sum()) / total for s in range(4)]
        for d in random.permutation(len(c.lengths)):
            source, length = int(c.sources[d]), int(c.lengths[d])
            if budget[source] > 0 and (length >= LONG or random.random() < 0.1):
                budget[source] -= length
                kept.append((source, length))
    published = shares_of(kept)
    ours = shares_of(
        [(int(c.sources[d]), int(c.lengths[d])) for s in range(10) for d in draw(c, Upsampling(LONG, 10), tokens, s)]
    )
    assert published.keys() == ours.keys()
    for key, share in published.items():
        # the program overshoots a source's budget by part of a document: of books, a third of a budget here
        assert ours[key] == pytest.approx(share, abs=0.05), key
    assert ours == pytest.approx({key: share for key, share in asked_for(c, factor=10).items() if share}, abs=0.02)


@pytest.mark.parametrize("rule", [{"factor": 10.0}, {"factor": 1.5}, {"long_share": 0.7}, {"long_share": 0.05}])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_beginning_of_the_stream_has_the_shares_to_within_a_document(rule: dict[str, float], seed: int) -> None:
    c = mixed()
    wanted = asked_for(c, **rule)
    upsampling = Upsampling(LONG, **rule)  # type: ignore[arg-type]
    order = draw(c, upsampling, tokens_to_draw(c, upsampling, None), seed)
    longest = dict.fromkeys(wanted, 0)
    for length, source in zip(c.lengths.tolist(), c.sources.tolist(), strict=True):
        longest[source, length >= LONG] = max(longest[source, length >= LONG], length)
    drawn: Counter[tuple[int, bool]] = Counter()
    for document in order.tolist():
        drawn[int(c.sources[document]), bool(c.lengths[document] >= LONG)] += int(c.lengths[document])
        for key, share in wanted.items():
            assert abs(drawn[key] - share * drawn.total()) <= longest[key] + share * sum(longest.values())
    assert len(order) > 100


def test_a_share_of_long_documents_is_reached_in_every_source_that_has_both_kinds() -> None:
    c = mixed()
    rule = Upsampling(LONG, long_share=0.6)
    tokens = tokens_to_draw(c, rule, None)
    rows = described(c, rule, tokens, draw(c, rule, tokens, 0))
    found = {row["source"]: (row["long_share"], row["long_share_drawn"]) for row in rows}
    assert found["web"][0] < 0.2 and found["web"][1] == pytest.approx(0.6, abs=0.03)
    assert found["books"] == (1, 1) and found["posts"] == (0, 0)


def test_long_documents_are_never_drawn_less_than_they_are_there() -> None:
    c = corpus([5000] * 30 + [100] * 100)
    groups = make_groups(c, Upsampling(LONG, long_share=0.2))
    assert [float(share) for share in groups.shares] == pytest.approx([10 / 160, 150 / 160])


def test_without_upsampling_one_source_is_a_plain_shuffle_that_ends_after_the_tokens() -> None:
    c = corpus(np.random.default_rng(0).integers(1, 5000, 300).tolist())
    order = np.random.default_rng(7).permutation(300).tolist()
    assert draw(c, Upsampling(), c.tokens, 7).tolist() == order
    some = draw(c, Upsampling(), c.tokens // 3, 7).tolist()
    assert some == order[: len(some)]
    ends = np.cumsum(c.lengths[some])
    assert ends[-2] < c.tokens // 3 <= ends[-1]


def test_fewer_tokens_are_the_beginning_of_more() -> None:
    c, rule = mixed(), Upsampling(LONG, 4, None, 2)
    whole = draw(c, rule, tokens_to_draw(c, rule, None), 3).tolist()
    for tokens in (1, 1000, 50_000, 400_000):
        some = draw(c, rule, tokens, 3).tolist()
        assert some == whole[: len(some)]


def test_all_tokens_are_every_document_once() -> None:
    c = mixed()
    assert tokens_to_draw(c, Upsampling(), None) == c.tokens
    assert sorted(draw(c, Upsampling(), c.tokens, 0).tolist()) == list(range(len(c.lengths)))


def test_copies_are_even_inside_a_group_and_never_more_than_allowed() -> None:
    c, rule = mixed(), Upsampling(LONG, 10, None, 3)
    tokens = tokens_to_draw(c, rule, None)
    times = np.bincount(draw(c, rule, tokens, 0), minlength=len(c.lengths))
    groups = make_groups(c, rule)
    spreads = {}
    for group in range(8):
        inside = times[groups.of == group]
        if len(inside):
            spreads[group] = (inside.min(), inside.max())
            assert inside.max() - inside.min() <= 1
    assert max(high for _, high in spreads.values()) == 3
    assert spreads[1] == (3, 3) or spreads[7] == (3, 3)  # the group that sets the limit is used up


def test_every_document_has_its_chance_even_one_longer_than_its_sources_share() -> None:
    """A source of 1% whose one document is ten times its share of the stream: drawn in a tenth of the seeds."""
    c = corpus([1000], [100] * 990)
    drawn = [0 in draw(c, Upsampling(), 10_000, seed) for seed in range(600)]
    assert np.mean(drawn) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 600) ** 0.5)


def test_the_mean_over_seeds_is_the_share_that_is_asked_for() -> None:
    """Also where a document is a large part of its group's share: the rounding has no direction but at the cut."""
    c = corpus([30, 60, 90, 2000, 3000], [40, 80, 1500])
    wanted = asked_for(c, factor=3)
    tokens = 25_000
    drawn: list[dict[tuple[int, bool], int]] = []
    for seed in range(1000):
        order = draw(c, Upsampling(LONG, 3, None, 20), tokens, seed)
        by: Counter[tuple[int, bool]] = Counter()
        left = tokens
        for d in order.tolist():
            by[int(c.sources[d]), bool(c.lengths[d] >= LONG)] += min(left, int(c.lengths[d]))
            left -= int(c.lengths[d])
        drawn.append(by)
    for key, share in wanted.items():
        values = [by[key] / tokens for by in drawn]
        assert np.mean(values) == pytest.approx(share, rel=0.03), key


def test_the_table_counts_what_a_naive_count_counts() -> None:
    c, rule = mixed(), Upsampling(LONG, 10, None, 2)
    tokens = tokens_to_draw(c, rule, None) // 2
    order = draw(c, rule, tokens, 5)
    stream = [d for d in order.tolist() for _ in range(int(c.lengths[d]))][:tokens]
    per_token = Counter(stream)
    for s, row in enumerate(described(c, rule, tokens, order)):
        own = [d for d in range(len(c.lengths)) if c.sources[d] == s]
        long = [d for d in own if c.lengths[d] >= LONG]
        there, there_long = sum(int(c.lengths[d]) for d in own), sum(int(c.lengths[d]) for d in long)
        used, used_long = sum(per_token[d] for d in own), sum(per_token[d] for d in long)
        assert (row["source"], row["documents"], row["tokens"], row["long_documents"]) == (
            c.names[s],
            len(own),
            there,
            len(long),
        )
        assert row["tokens_drawn"] == used and row["documents_drawn"] == sum(d in per_token for d in own)
        assert row["long_documents_drawn"] == sum(d in per_token for d in long)
        assert row["share"] == pytest.approx(there / c.tokens) and row["share_drawn"] == pytest.approx(used / tokens)
        assert row["long_share"] == pytest.approx(there_long / there) and row["long_share_drawn"] == pytest.approx(
            used_long / used
        )
        assert row["copies"]["most"] == max(order.tolist().count(d) for d in own)
        assert row["copies"]["long"] == (pytest.approx(used_long / there_long) if long else None)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_short_texts_have_their_share_at_every_point_and_the_others_keep_theirs_of_the_rest(share: float) -> None:
    """Counted document by document; the share does not depend on how much of them there is."""
    random = np.random.default_rng(3)
    c = corpus(
        [int(n) for n in random.integers(100, 6000, 400)],
        [int(n) for n in random.integers(2000, 9000, 60)],
        [int(n) for n in random.integers(20, 200, 3000)],
        names=("web", "books", SHORT),
    )
    rule = Upsampling(LONG, 4.0, None, 3, share)
    total = tokens_to_draw(c, rule, 300_000)
    order = draw(c, rule, total, seed=1)
    web, books = (int(c.lengths[c.sources == number].sum()) for number in (0, 1))
    wanted = np.array([(1 - share) * web / (web + books), (1 - share) * books / (web + books), share])
    counts = np.zeros(3)
    for document in order:
        counts[c.sources[document]] += c.lengths[document]
        assert (np.abs(counts - wanted * counts.sum()) <= 3 * 9000).all()
    assert np.abs(counts / counts.sum() - wanted).max() < 0.03
    assert described(c, rule, total, order)[2]["share_drawn"] == pytest.approx(share, abs=0.03)


def test_texts_of_one_kind_alone_are_no_mixture() -> None:
    rule = Upsampling(short_share=0.5)
    with pytest.raises(HarpeError, match="--short-data gave no documents"):
        tokens_to_draw(corpus([10, 20]), rule, None)
    with pytest.raises(HarpeError, match="--data gave no documents"):
        tokens_to_draw(corpus([10, 20], names=(SHORT,)), rule, None)


def test_what_cannot_be_drawn_is_told_with_the_source_and_the_numbers() -> None:
    c = corpus([100] * 90 + [1000], [50] * 100, names=("web", "posts"))
    rule = Upsampling(LONG, 10)
    # web has 10,000 of 15,000 tokens, long documents get 10/19 of them
    most = int(15_000 / 10_000 * 19 / 10 * 1000)
    assert tokens_to_draw(c, rule, None) == most == 2850
    with pytest.raises(HarpeError) as caught:
        tokens_to_draw(c, rule, 5700)
    message = str(caught.value)
    assert (
        "--tokens 5,700 would take 2,000 tokens from documents of at least 1,000 tokens of the source web, which have "
        "1,000" in message
    )
    assert "every document at most once, 2,850 tokens" in message and "--max-copies 2." in message
    assert tokens_to_draw(c, Upsampling(LONG, 10, None, 2), 5700) == 5700
    with pytest.raises(HarpeError, match=r"documents, which have 14,000\..*--max-copies 2\."):
        tokens_to_draw(corpus([100] * 140, names=("",)), Upsampling(), 14_001)
    with pytest.raises(HarpeError, match=r"No document has 2000 tokens \(the longest has 1000\)"):
        tokens_to_draw(c, Upsampling(2000, 10), None)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"length": 0}, "--upsample-length is 0"),
        ({"factor": 0.5}, "--upsample-factor is 0.5"),
        ({"factor": float("nan")}, "--upsample-factor is nan"),
        ({"factor": float("inf")}, "--upsample-factor is inf"),
        ({"long_share": 1.0}, "short documents would be left out"),
        ({"long_share": 0.0}, "--long-share is 0"),
        ({"long_share": 0.5, "factor": 2.0}, "give one of them"),
        ({"max_copies": 0}, "--max-copies is 0"),
    ],
)
def test_rules_out_of_range_are_told(rule: dict[str, float], words: str) -> None:
    with pytest.raises(HarpeError, match=words):
        Upsampling(**rule).check()  # type: ignore[arg-type]
