"""Samples of a task at a length: as much context as fits, and not a token more."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from harpe.errors import HarpeError
from harpe.evaluation.long.filler import Filler
from harpe.evaluation.long.task import AtLength, Build, Draft, LongTask, Sample

FIRST = 64
"""Units of context that the search tries first."""


def samples(
    of: AtLength[LongTask],
    count: int,
    seed: int,
    tokens: Callable[[str], int],
    filler: Filler,
    begin: int = 0,
    back: Callable[[str], str] = str,
    chat: Callable[[str], str] | None = None,
) -> Iterator[Sample]:
    """The first `count` samples. A sample asks the same at every length where the context is filler.

    Parameters
    ----------
    tokens
        Counts the tokens of a text, special ones left out.
    begin
        How many tokens the tokenizer begins texts with; they count towards the length.
    back
        A text as the tokenizer gives it back from its tokens.
    chat
        Puts a question into a chat format and begins the answer's turn; the answer's beginning follows there, without
        the line break that stands before it in a text.

    Raises
    ------
    HarpeError
        For a length that is too short for a sample of the task, and a tokenizer that cuts the right answer into more
        tokens than an answer may take, or does not give it back (lower case, unknown characters).
    """
    for index in range(count):
        build = of.task.draw(random.Random(f"{seed} {of.task.name} {index}"), filler)
        if chat is not None:
            build = _in_chat(build, chat)
        draft, length = _longest(of, build, tokens, of.length - begin - of.tokens)
        if (needed := tokens(draft.prefix + draft.answer) - tokens(draft.prefix)) > of.tokens:
            raise HarpeError(
                f"{of.task.name} cannot be asked with this tokenizer: the right answer of sample {index} takes "
                f"{needed} tokens, and answers may take {of.tokens}. Leave the task out."
            )
        sample = {
            "index": index,
            "input": draft.input,
            "outputs": draft.outputs,
            "length": length + begin + of.tokens,
            "answer_prefix": draft.prefix,
            "answer": draft.answer,
            "chance": draft.chance,
            **draft.facts,
        }
        if (score := of.task.score(back(draft.answer), sample)) < 1:
            raise HarpeError(
                f"{of.task.name} cannot be asked with this tokenizer: the right answer of sample {index}, "
                f"{draft.answer!r}, comes back from its tokens as {back(draft.answer)!r}, which scores {score:.0%}. "
                "Leave the task out."
            )
        yield sample


def _in_chat(build: Build, chat: Callable[[str], str]) -> Build:
    def made(size: int) -> Draft:
        draft = build(size)
        return draft._replace(input=chat(draft.input), prefix=draft.prefix.lstrip())

    return made


def _longest(of: AtLength[LongTask], build: Build, tokens: Callable[[str], int], room: int) -> tuple[Draft, int]:
    """The sample with the most units of context that fit into `room` tokens, and its tokens."""

    def made(size: int) -> tuple[Draft, int]:
        draft = build(size)
        return draft, tokens(draft.input + draft.prefix)

    low, (best, fits) = 0, made(0)
    if fits > room:
        raise HarpeError(
            f"{of.task.name} cannot be made with {of.length} tokens and this tokenizer: a sample takes at least "
            f"{fits + of.length - room}, {of.tokens} of them the answer's. Give longer --lengths, or leave the task "
            "out."
        )
    high, over = FIRST, 0
    while not over:
        draft, found = made(high)
        if found <= room:
            low, best, fits, high = high, draft, found, 2 * high
        else:
            over = found
    straight = True  # between two sizes tokens grow nearly in proportion; every other step halves, whatever they do
    while high - low > 1:
        guess = low + (room - fits) * (high - low) // (over - fits) if straight else (low + high) // 2
        size = min(max(guess, low + 1), high - 1)
        draft, found = made(size)
        if found <= room:
            low, best, fits = size, draft, found
        else:
            high, over = size, found
        straight = not straight
    return best, fits
