"""The exact number of tokens of a text, without tokenising most of it.

A context of RULER is made of words that occur again and again. Where it is certain that a tokenizer cuts a text in
front of a space, the tokens of the text are those of its words, and each distinct word is tokenised once. A text is cut
between X and a space that Y follows, where neither X nor Y is white space. That is exact in two cases, which are read
from the tokenizer itself:

* SentencePiece's BPE (Llama 2, Mistral): merges run over the whole text, but none can join X and the marker of a space,
  because no token of the vocabulary has that marker behind another character;
* byte-level BPE (GPT-2, Llama 3, Qwen): a regular expression splits the text before any merge, and no alternative of
  the expressions listed here matches a space behind something that is no space, or looks back.

For any other tokenizer whole texts are tokenised: slower, and the same numbers.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

MARKER = "\u2581"
"""What SentencePiece writes for a space."""

_CUT = re.compile(r"(?<=\S)(?= \S)")
_UNCLEAN = 1 << 48
"""Stands in the table for a word that begins or ends with white space: the text has to be cut with more care."""
_CACHED = 1_000_000
"""Words in the table before it is emptied: numbers and identifiers are new in every sample."""

_NUMBER_LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    _NUMBER_LETTERS % "{1,3}",  # Llama 3
    _NUMBER_LETTERS % "",  # Qwen 2, Qwen 3
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    r" ?\d{1,2}",  # the model inside the package
}


def _steps(value: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences unrolled."""
    if value is None:
        return []
    if value["type"] == "Sequence":
        return [step for part in value[key] for step in _steps(part, key)]
    return [value]


def _marks_spaces(state: dict[str, Any]) -> bool:
    """Whether this is SentencePiece's BPE as described above."""
    model, vocabulary = state["model"], state["model"].get("vocab", {})
    steps = [
        (s["type"], s.get("prepend") or s.get("content"), s.get("pattern"))
        for s in _steps(state["normalizer"], "normalizers")
    ]
    replace, prepend = ("Replace", MARKER, {"String": " "}), ("Prepend", MARKER, None)
    marks = steps in ([prepend, replace], [replace]) and state["pre_tokenizer"] is None
    if not steps and state["pre_tokenizer"]:
        marks = state["pre_tokenizer"]["type"] == "Metaspace" and state["pre_tokenizer"]["replacement"] == MARKER
    plain = not any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    )
    inside = re.compile(f"[^{MARKER}]{MARKER}")
    added = any(MARKER in token["content"] or token["content"][0].isspace() for token in state["added_tokens"])
    return marks and plain and not added and MARKER in vocabulary and not any(map(inside.search, vocabulary))


def _splits_bytes(state: dict[str, Any]) -> bool:
    """Whether this is byte-level BPE as described above."""
    normal = all(step["type"] == "NFC" for step in _steps(state["normalizer"], "normalizers"))
    steps = _steps(state["pre_tokenizer"], "pretokenizers")
    splits = [s for s in steps if s["type"] == "Split"]
    levels = [s for s in steps if s["type"] == "ByteLevel"]
    known = all(
        s["pattern"].get("Regex") in _SPLITS and s["behavior"] == "Isolated" and not s["invert"] for s in splits
    )
    digits = sum(s["type"] == "Digits" for s in steps)
    whole = len(levels) == 1 and len(steps) == len(splits) + digits + 1
    cutting = any(s["pattern"].get("Regex") != r" ?\d{1,2}" for s in splits) or (
        len(levels) == 1 and levels[0].get("use_regex", True)
    )
    return normal and known and whole and cutting


class TokenCounter:
    """Counts tokens as `len(tokenizer.tokenize(text))` does, special tokens of the tokenizer's own left out.

    Parameters
    ----------
    tokenizer
        Any tokenizer of transformers.

    Attributes
    ----------
    by_words
        Whether words are counted; otherwise whole texts are tokenised. Becomes False for good when a text holds
        something that the reasoning does not cover, such as a special token that swallows the spaces around it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._rest: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._piece: Callable[[str], int] | None = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return
        state = json.loads(backend.to_str())
        contents = [token["content"] for token in state["added_tokens"] if not token["content"].isspace()]
        # a special token may begin with a space, where texts are cut, and must hold no other
        if state["model"].get("type") != "BPE" or any(" " in content[1:] for content in contents):
            return
        if _marks_spaces(state):
            model, self._forbidden = backend.model, [*contents, MARKER]
            self._piece = lambda piece: len(model.tokenize(MARKER + piece.replace(" ", MARKER)))
        elif _splits_bytes(state):
            greedy = [t["content"] for t in state["added_tokens"] if t["lstrip"] or t["rstrip"] or t["single_word"]]
            self._forbidden = [content for content in greedy if content.strip()]
            self._piece = lambda piece: self._whole(" " + piece)
        self._backend = backend
        self._special = (
            re.compile("|".join(map(re.escape, self._forbidden))) if self._piece and self._forbidden else None
        )

    @property
    def by_words(self) -> bool:
        return self._piece is not None

    def _whole(self, text: str) -> int:
        return len(self._backend.encode(text, add_special_tokens=False))

    def __call__(self, text: str) -> int:
        if self._piece is not None and text:
            if len(self._rest) > _CACHED:
                self._rest.clear()
            end = len(text.rstrip())
            cut = text.rfind(" ", 0, end)  # what is behind the last cut may end with white space
            total = self._sum(text[:cut].split(" "), text[cut + 1 :]) if cut > 0 else _UNCLEAN
            if total >= _UNCLEAN and self._piece is not None:
                first, *rest = _CUT.split(text)
                total = self._add(first, [piece[1:] for piece in rest])
            if self._piece is not None:
                return total
        return len(self._tokenizer.tokenize(text))

    def _sum(self, words: list[str], last: str) -> int:
        """Tokens of words that stand behind a space each, but the first; `_UNCLEAN` or more where one of them touches
        white space."""
        if not last or last[0].isspace() or not words[0] or words[0][-1].isspace():
            return _UNCLEAN
        table = self._rest
        try:
            total = sum(map(table.__getitem__, words[1:]))
        except KeyError:
            for word in {word for word in words[1:] if word not in table}:
                clean = word and not word[0].isspace() and not word[-1].isspace()
                table[word] = self._tokens(word) if clean else _UNCLEAN
            total = sum(map(table.__getitem__, words[1:]))
        return total if total >= _UNCLEAN else total + self._add(words[0], [last])

    def _add(self, first: str, rest: list[str]) -> int:
        """Tokens of a beginning and of pieces that stand behind a space each."""
        if first not in self._first:
            self._first[first] = 0 if self._unsure(first) else self._whole(first)
        return self._first[first] + sum(map(self._tokens, rest))

    def _unsure(self, piece: str) -> bool:
        """Whether a piece holds what the reasoning does not cover: from now on whole texts are tokenised."""
        if self._special is not None:
            normal = piece if piece.isascii() else unicodedata.normalize("NFC", piece)
            if self._special.search(piece) or self._special.search(normal):
                self._piece = None
        return self._piece is None

    def _tokens(self, piece: str) -> int:
        """Tokens of one piece behind a space; white space inside it is its own affair."""
        if self._piece is None or self._unsure(piece):
            return 0
        if (known := self._rest.get(piece)) is None or known >= _UNCLEAN:
            known = self._piece(piece)
        return known
