"""Texts as token ids, one function for each thing that a text can be: the beginning of something, a piece, or a
document to train on.

A tokenizer may set tokens of its own around a text: BOS in front, and with `add_eos_token` or a post-processor that
says so end-of-text behind it. In front they belong to every text that a model reads from its beginning; behind it they
say that nothing follows, which is false of a prompt and true of a document in a training stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.files import sha256_json

Ids = tuple[int, ...]

_QUIET = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}


def tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """The ids that a tokenizer sets before and behind every text, found by looking at a short one.

    Raises HarpeError where no text comes out whole between them.
    """
    for text in chain(("a", "1", "."), _words(tokenizer)):
        if plain := plain_ids(tokenizer, text):  # a vocabulary of whole words may have none of the three
            whole, size = tokenizer(text, **_QUIET)["input_ids"], len(plain)
            for start in range(len(whole) - size + 1):
                if whole[start : start + size] == plain:
                    return tuple(whole[:start]), tuple(whole[start + size :])
            break
    raise HarpeError(
        f"The tokenizer ({type(tokenizer).__name__}) gives no text as token ids that special tokens stand around."
    )


def _words(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The vocabulary in the order of its ids, without what stands around texts."""
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    yield from (
        str(token)
        for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if token not in special
    )


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Ids that the tokenizer begins a text with: mostly BOS; none in Qwen and GPT-NeoX, two in GLM."""
    return tokens_around(tokenizer)[0]


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text and nothing around it."""
    return list(tokenizer(text, add_special_tokens=False, **_QUIET)["input_ids"])


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text from its beginning that may go on: a prompt, or a document that a loss is measured on.

    In front stands what the tokenizer begins texts with, once: a text that spells it itself (RULER's chat format of
    Llama 3) gets no second one. Behind it nothing, whatever the tokenizer would set there.
    """
    return _begun(begin_ids(tokenizer), plain_ids(tokenizer, text))


def piece_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a piece from the middle of a text: without the space that SentencePiece puts before whole texts."""
    before = plain_ids(tokenizer, "a")
    whole = plain_ids(tokenizer, f"a{text}")
    if before and whole[: len(before)] == before:
        return whole[len(before) :]
    return plain_ids(tokenizer, text)


def document_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """Documents as they stand in a training stream, one for each text; empty for a text without tokens.

    Behind a document stands the end-of-sequence id, once, where the tokenizer has one. Where texts begin with that same
    id (as OPT's do), the next document brings it, and none is put behind.
    """
    begin, behind = tokens_around(tokenizer)
    end = tokenizer.eos_token_id
    if end is not None and end in begin:
        behind = tuple(i for i in behind if i != end)
    elif end is not None and behind[-1:] != (end,):
        behind = (*behind, end)
    rows: Any = tokenizer(list(texts), add_special_tokens=False, **_QUIET)["input_ids"] if texts else []
    for plain in rows:
        closed = bool(behind) and tuple(plain[-len(behind) :]) == behind
        yield [*_begun(begin, plain), *(() if closed else behind)] if plain else []


def unbegun(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A prompt for a program that sets the beginning itself: without the text of it, where the prompt spells it."""
    begin = begin_ids(tokenizer)
    spelled = str(tokenizer.decode(list(begin))) if begin else ""
    return text.removeprefix(spelled) if tuple(plain_ids(tokenizer, spelled)) == begin else text


def _begun(begin: Ids, plain: list[int]) -> list[int]:
    return plain if tuple(plain[: len(begin)]) == begin else [*begin, *plain]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What names a tokenizer in an index: its class, vocabulary size and the SHA-256 of its serialised form.

    Truncation and padding, which a call may leave behind in the tokenizer, do not count.
    """
    content: Any = tokenizer.get_vocab()
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return {"class": type(tokenizer).__name__, "vocabulary": len(tokenizer), "sha256": sha256_json(content)}


def id_type(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name in `DTYPES` of the smallest type that holds the largest id: added tokens may stand behind a gap."""
    return "uint16" if max(tokenizer.get_vocab().values(), default=-1) < 2**16 else "uint32"
