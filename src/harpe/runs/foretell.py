"""Whether texts are enough for what is asked, foretold from their characters: reading takes minutes where tokenising
takes hours."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from harpe.data.packed import DTYPES
from harpe.data.sampling import SHORT, Corpus, Upsampling, make_groups, tokens_to_draw
from harpe.data.shards import unfinished
from harpe.data.token_bounds import TokenBound
from harpe.data.token_ids import document_ids, id_type
from harpe.data.tokenised import number_of
from harpe.errors import HarpeError
from harpe.options.extend import PrepareOptions
from harpe.reporter import Reporter
from harpe.runs.corpus import Reading, TextCorpus
from harpe.runs.directory import check_disk

PIECES, PIECE_CHARACTERS = 200, 1000
"""Of every source, at most so many pieces at equal distances are tokenised to foretell the tokens of all its
documents."""
MARGIN = 1.25
"""What is foretold may miss by this."""


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


def foretell(
    documents: Reading,
    tokenizer: PreTrainedTokenizerBase,
    options: PrepareOptions,
    rule: Upsampling,
    reporter: Reporter,
    chats: bool,
) -> None:
    """Read all documents once, say what they are, and refuse those that cannot be enough, or what the disk cannot hold.

    Where they seem not to be enough, and what they can have at most leaves it open, that is said, and no more.
    """
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
    TextCorpus.tell(documents, reporter)
    if not counts:
        which = "that --held-out does not have" if documents.left_out else "with text in them"
        raise HarpeError(f"--data gave no documents {which}.")
    per_character = np.array([each.tokens_per_character(tokenizer) for each in pieces])
    lengths = np.maximum(1, np.array(counts) * per_character[np.array(sources)]).astype(np.int64)
    # where no document seems long enough, the longest ones stand for those that may be
    mixed, at_most = np.array(sources) == names.get(SHORT, -1), np.array(bounds)
    long, may_be = (each >= options.min_length for each in (lengths, at_most))
    if not (may_be | mixed).any():
        raise HarpeError(f"--data has no document of --min-length {options.min_length:,} tokens.")
    kept = (long if long.any() else lengths == lengths.max()) | mixed
    corpus, at_most = Corpus(lengths[kept], np.array(sources)[kept], tuple(names)), at_most[may_be | mixed]
    estimate = f"{sum(counts):,} characters in {len(counts):,} documents, about {corpus.tokens:,} tokens"
    reporter.say(f"{estimate}, of which about {make_groups(corpus, rule).most(rule.max_copies):,} can be drawn.")
    try:
        _check_enough(corpus, options, rule)
    except HarpeError as error:
        short = options.max_copies * at_most.sum() < max(options.length, options.tokens)
        if short or (rule.asked and at_most.max() < rule.length):
            raise HarpeError(f"{error} (Lengths are foretold from characters; nothing was tokenised yet.)") from error
        reporter.say(f"This seems not to be enough: {error} They are tokenised, to know.")
        return
    drawn = options.tokens or make_groups(corpus, rule).most(rule.max_copies)
    check_room(Path(options.out), tokenizer, int(corpus.tokens / MARGIN), int(drawn / MARGIN), chats)


def check_room(out: Path, tokenizer: PreTrainedTokenizerBase, tokens: int, drawn: int, chats: bool) -> None:
    """Refuse a disk that cannot hold so many tokens in documents, beside those that are there already, and drawn."""
    work = unfinished(out)
    there = sum(path.stat().st_size for path in work.rglob("*.bin")) if work.is_dir() else 0
    size = DTYPES[id_type(tokenizer)].itemsize + chats
    check_disk(out, max(0, tokens * size - there) + drawn * size, "Preparing the texts")


def _check_enough(corpus: Corpus, options: PrepareOptions, rule: Upsampling) -> None:
    if corpus.tokens < options.length:
        raise HarpeError(
            f"--data gives {corpus.tokens} tokens in {len(corpus.lengths)} documents, and one sequence needs "
            f"{options.length}. Give more --data, or lower --length."
        )
    tokens_to_draw(corpus, rule, options.tokens or None)
