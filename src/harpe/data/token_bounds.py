"""How many tokens a text can have at most, told without tokenising it."""

from __future__ import annotations

import json

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

BYTE_TOKENS = 8
"""Tokens a byte at most, of a tokenizer that is not byte-level. A character that is in no vocabulary becomes its bytes,
and a tokenizer may put marks of three bytes (▁) in the place of spaces, in front of texts and around added tokens."""

AROUND = 16
"""Tokens for such marks at the ends of a text."""


class TokenBound:
    """The bound of one tokenizer.

    Characters are none: a text in a script that the vocabulary lacks has up to four tokens a character. Bytes are one,
    because every token stands for a byte of the text or more, or for a mark that was put in; of the text as the
    tokenizer's normalizer leaves it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.known = tokenizer.is_fast
        """Slow tokenizers are Python code that may do anything: they have no bound."""
        if not self.known:
            return
        backend = tokenizer.backend_tokenizer
        self._normalizer = backend.normalizer
        model = json.loads(backend.to_str())["model"]
        first = backend.pre_tokenizer
        plain = isinstance(first, pre_tokenizers.ByteLevel) and not first.add_prefix_space
        plain = plain and model.get("type") == "BPE" and not model.get("end_of_word_suffix")
        self._per_byte = 1 if plain else BYTE_TOKENS
        self._around = tokenizer.num_special_tokens_to_add() + (0 if self._per_byte == 1 else AROUND)

    def most(self, text: str) -> float:
        """An upper bound of the text's number of ids, special tokens included; infinite where there is none."""
        if not self.known:
            return float("inf")
        normal = self._normalizer.normalize_str(text) if self._normalizer is not None else text
        return self._per_byte * len(normal.encode()) + self._around
