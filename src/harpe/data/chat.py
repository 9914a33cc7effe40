"""Conversations through a tokenizer's chat template, and which of their tokens are answers.

Answers are found by rendering a conversation again and again, up to and with every answer: what comes to the text is
the answer with the marks that end it, whatever the template. Templates whose later turns change earlier ones are
refused, since what the model would be asked to continue is then another text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.errors import HarpeError

Span = tuple[int, int]
"""Characters from, to."""
ANSWERING = "assistant"
MARK = "\ue000"
"""Of private use: stands around the number of a special token that a message spells, while the template is at work."""


TODAY = date(2024, 7, 26)
"""In every text: templates that write the day (Llama 3, gpt-oss) would write something else tomorrow, so in the rest of
a corpus that takes a night. The day that Llama 3.1's own names where it is told none."""
_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('%{part}', {TODAY.strftime(f'%{part}')!r})" for part in "aAbBcdDeFGHIjmMpSTuUVwWxXyYZ")
    + " }}{% endmacro %}\n"
)
"""In front of a template: what transformers gives templates for the day, which no argument replaces. A line of its own,
as a template that begins with a block loses the spaces before it."""


@dataclass(frozen=True)
class Conversation:
    """Where the answers are in a rendered text, and what in it is no token although it reads like one."""

    answers: tuple[Span, ...]
    spelled: tuple[Span, ...]
    """Special tokens that messages spell: read as text."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Parameters
    ----------
    split
        Special tokens that messages spell are text; otherwise they are the tokens themselves.

    Raises
    ------
    HarpeError
        For a tokenizer without one, or one that cannot tell where in a text its tokens are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, split: bool) -> None:
        self._tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise HarpeError(
                "--chat needs a tokenizer with a chat template, and this one has none. Name that of an instruct model "
                "by --tokenizer, or put a chat_template.jinja beside it."
            )
        if not tokenizer.is_fast:
            raise HarpeError(f"--chat needs a fast tokenizer, and {type(tokenizer).__name__} is none.")
        template = tokenizer.get_chat_template()
        self._template = _DAY + template if "strftime_now" in template else template
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} if split else set()
        self._special = sorted(special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._special))) if self._special else None

    def render(self, messages: Any, where: str) -> tuple[str, Conversation]:
        """The text of a conversation; empty for one without messages.

        Raises
        ------
        HarpeError
            For what is no list of messages, and for templates that refuse it or change what was said before.
        """
        turns = [self._checked(message, where) for message in _list(messages, where)]
        if not turns:
            return "", Conversation((), ())
        whole, answers = self._text(turns, where), list[Span]()
        for number, turn in enumerate(turns):
            if turn["role"] != ANSWERING:
                continue
            if not number:
                raise HarpeError(f"--chat: {where} begins with an answer, and there is nothing that it answers.")
            before = self._text(turns[:number], where, prompt=True)
            after = self._text(turns[: number + 1], where) if number + 1 < len(turns) else whole
            if not (whole.startswith(after) and after.startswith(before)):
                raise HarpeError(
                    f"--chat: in {where} the chat template renders message {number + 1} otherwise when others follow "
                    "it, or begins an answer otherwise than a prompt ends. What the model is asked to continue would "
                    "be another text: use a template that leaves earlier messages alone."
                )
            answers.append((len(before), len(after)))
        return self._put_back(whole, answers)

    def question(self, text: str) -> str:
        """One message of a user, and the beginning of the answer's turn.

        Raises HarpeError for templates that refuse it.
        """
        return self._text([{"role": "user", "content": text}], "a question", prompt=True)

    def _checked(self, message: Any, where: str) -> dict[str, Any]:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise HarpeError(f"--chat: {where} has a message that is no object with role and content.")
        if not isinstance(message.get("content"), str):
            raise HarpeError(f"--chat: {where} has a message whose content is no text ({message.get('role')}).")
        return {key: self._numbered(value, where) for key, value in message.items()}

    def _numbered(self, value: Any, where: str) -> Any:
        """With numbers for special tokens, in all texts of a message: templates also write thoughts and calls."""
        if isinstance(value, dict):
            return {key: self._numbered(each, where) for key, each in value.items()}
        if isinstance(value, list):
            return [self._numbered(each, where) for each in value]
        if not isinstance(value, str):
            return value
        if MARK in value:
            raise HarpeError(f"--chat: {where} has the character U+E000, which harpe needs for itself. Remove it.")
        if self._pattern is None:
            return value
        return self._pattern.sub(lambda m: f"{MARK}{self._special.index(m[0])}{MARK}", value)

    def _text(self, turns: list[dict[str, Any]], where: str, prompt: bool = False) -> str:
        """As the template has it, on the day `TODAY`."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=prompt, chat_template=self._template
                )
            )
        except Exception as error:  # of the template, which is a program: whatever it raises is about these messages
            line = " ".join(str(error).split()) or type(error).__name__
            raise HarpeError(f"--chat: the chat template refuses {where} ({line}).") from error

    def _put_back(self, text: str, answers: list[Span]) -> tuple[str, Conversation]:
        """The special tokens where their numbers are, and all spans in the text that results."""
        pieces, spelled, moves, at, length = list[str](), list[Span](), [(0, 0)], 0, 0
        for found in re.finditer(f"{MARK}(\\d+){MARK}", text):
            token = self._special[int(found[1])]
            pieces += [text[at : found.start()], token]
            start = length + found.start() - at
            spelled.append((start, start + len(token)))
            at, length = found.end(), start + len(token)
            moves.append((at, length - at))

        def moved(place: int) -> int:
            return place + next(by for since, by in reversed(moves) if since <= place)

        spans = tuple((moved(start), moved(end)) for start, end in answers)
        return "".join([*pieces, text[at:]]), Conversation(spans, tuple(spelled))


def _list(messages: Any, where: str) -> Sequence[Any]:
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise HarpeError(f"--chat: {where} holds no list of messages there. Name the field that holds them.")
    return messages


def conversation_ids(
    tokens: PreTrainedTokenizerBase, plain: PreTrainedTokenizerBase, text: str, chat: Conversation
) -> tuple[list[int], list[bool]]:
    """The ids of a rendered conversation, and for each whether it is of an answer.

    Parameters
    ----------
    tokens, plain
        One tokenizer, reading special tokens as such, and as text.
    """
    ids, answered = list[int](), list[bool]()
    for start, end, tokenizer in _pieces(text, chat.spelled, tokens, plain):
        found, places = _read(tokenizer, text[start:end], inside=start > 0)
        ids += found
        # one that the prompt's last space and the first word of the answer share is of the answer, as in transformers
        answered += [
            any(first < until and (since <= first or since < last) for since, until in chat.answers)
            for first, last in ((start + first, start + last) for first, last in places)
        ]
    return ids, answered


def _read(tokenizer: PreTrainedTokenizerBase, text: str, inside: bool) -> tuple[list[int], list[Span]]:
    """Ids of a piece of a text, and the characters that each is of; `inside` of a text no space is put before it, as
    SentencePiece does before whole ones."""
    given: dict[str, Any] = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    for lead in ("\n", "a", "1") if inside else ():
        before: Any = tokenizer(lead, **given)["input_ids"]
        read: Any = tokenizer(lead + text, **given)
        if before and read["input_ids"][: len(before)] == before:  # else it grew together with what follows
            places = read["offset_mapping"][len(before) :]
            return read["input_ids"][len(before) :], [(max(0, a - len(lead)), max(0, b - len(lead))) for a, b in places]
    read = tokenizer(text, **given)
    return read["input_ids"], list(read["offset_mapping"])


def _pieces(
    text: str, spelled: Sequence[Span], tokens: PreTrainedTokenizerBase, plain: PreTrainedTokenizerBase
) -> Iterator[tuple[int, int, PreTrainedTokenizerBase]]:
    at = 0
    for start, end in spelled:
        if at < start:
            yield at, start, tokens
        yield start, end, plain
        at = end
    if at < len(text):
        yield at, len(text), tokens
