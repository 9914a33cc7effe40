"""Special tokens that a text spells: read as the text that they are, or as the tokens."""

from __future__ import annotations

import copy
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.rows import Document
from harpe.data.sources import Documents, account_text
from harpe.errors import HarpeError


def reading_tokenizer(tokenizer: PreTrainedTokenizerBase, split: bool) -> PreTrainedTokenizerBase:
    """A tokenizer for documents; the one that is given, which may be in use for prompts, stays as it is.

    Parameters
    ----------
    split
        A special token that a text spells (`<|endoftext|>`) is split like any other text. Otherwise it becomes that
        token, as transformers reads it by default. What the tokenizer itself sets around a text is the same in both.
    """
    other = copy.copy(tokenizer)
    # methods that were replaced (`check_vocabulary`) read the copy's settings
    for name, value in vars(tokenizer).items():
        if isinstance(value, types.MethodType) and value.__self__ is tokenizer:
            setattr(other, name, types.MethodType(value.__func__, other))
    other.split_special_tokens = split
    return other


class Watched:
    """Documents on their way to a tokenizer (`reading_tokenizer`), with a count of those that spell its special tokens.

    Raises HarpeError while iterating: where such tokens are to be split and the tokenizer cannot do that.
    """

    def __init__(self, documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> None:
        self._documents, self._tokenizer = documents, tokenizer
        self._special = {
            str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        # the longest first: one may begin another
        names = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None
        self._spelling = 0
        self._spelled: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            if document.chat is not None:  # the template's own are meant
                found = [document.text[start:end] for start, end in document.chat.spelled]
            else:
                found = self._pattern.findall(document.text) if self._pattern is not None else []
            if found:
                self._spelling += 1
                for token in set(found) - self._spelled.keys():
                    self._check(token)
                self._spelled.update(found)
            yield document

    def _check(self, token: str) -> None:
        # a copy: the tokenizer itself may be at work on other texts, in another thread
        ids = copy.deepcopy(self._tokenizer)(token, add_special_tokens=False, verbose=False)["input_ids"]
        number = self._special[token]
        if self._tokenizer.split_special_tokens and number in ids and number != self._tokenizer.unk_token_id:
            raise HarpeError(
                f"--data spells the special token {token}, and this tokenizer ({type(self._tokenizer).__name__}) "
                "cannot read it as text. Remove it from the texts, or give --split-special-tokens false, if the token "
                "is meant."
            )

    def account(self) -> dict[str, Any]:
        """That of the documents, and what they spell; for an index or a plan."""
        of = self._documents.account() if isinstance(self._documents, Documents) else {}
        split = bool(self._tokenizer.split_special_tokens)
        return {
            **of,
            "split_special_tokens": split,
            "spelled": {"documents": self._spelling, "tokens": dict(sorted(self._spelled.items()))},
        }


def reading_text(account: dict[str, Any]) -> str:
    """`Watched.account` in words; empty where there is nothing to say."""
    sentences = [account_text(account)] if "files" in account else []
    spelled = account["spelled"]
    if spelled["documents"]:
        most = ", ".join(sorted(spelled["tokens"], key=lambda token: -spelled["tokens"][token])[:3])
        way = "read as text" if account["split_special_tokens"] else "read as the tokens themselves"
        sentences.append(
            f"{spelled['documents']:,} documents spell special tokens ({most}): {way} (--split-special-tokens)."
        )
    return " ".join(sentences)
