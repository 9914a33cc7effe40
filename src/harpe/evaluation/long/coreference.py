"""A long conversation in which the same thing is asked for several times: give the i-th answer again, word for word.

After OpenAI's MRCR (data set openai/mrcr, 2025), which is after Vodrahalli et al. 2024 (arXiv 2409.12640). As there: 2,
4 or 8 alike requests ("a poem about rain") stand among others that have the kind or the topic in common with them, the
answer has to begin with ten given letters and digits, without which it scores 0, and the score is the ratio of Python's
difflib.SequenceMatcher of the rest to the text asked for. Different: the texts are four short lines from a grammar
here, where MRCR has pages by a language model; the conversation is one text with the speakers' names before the turns,
which base models can go on with, where MRCR sends messages; white space around an answer does not count, and it ends
where a further turn begins. So numbers are not comparable with published ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from difflib import SequenceMatcher
from string import ascii_letters, digits

from harpe.evaluation.long.filler import Filler, scattered
from harpe.evaluation.long.order_probe import ordinal
from harpe.evaluation.long.task import Build, Draft, LongTask, Sample, Suite

NEEDLES = (2, 4, 8)
TOKENS = 192
"""Of an answer: ten letters and digits, and about 30 words."""
_KINDS = ("poem", "story", "letter", "speech", "riddle", "song", "prayer", "review")
_TOPICS = (
    "rain bread winter trains a lighthouse bees a violin the sea salt an attic rivers glass snow horses a harbour tea "
    "mirrors an orchard thunder shoes"
)
TOPICS = re.findall(r"(?:an? |the )?[a-z]+", _TOPICS)
_WHO = "baker pilot widow sailor child teacher gardener clerk painter doctor farmer stranger judge dancer miner".split()
_HOW = "quiet golden bitter hollow early broken patient crooked silver hungry distant gentle heavy foolish pale".split()
_DID = "carried forgot followed mended counted buried praised borrowed measured painted refused guarded sold".split()
_THING = "ladder candle map kettle bell coat garden clock boat letter window key basket bridge stove ribbon".split()
_WHEN = "before dawn,at noon,in March,after the war,every Sunday,by night,long ago,at last,twice a year".split(",")
_LINES = (
    "The {how} {who} {did} the {how2} {thing}",
    "{When} a {who} {did} one more {thing}",
    "No {who} {did} the {thing} {when}",
    "{When} the {thing} was {how} and {how2}",
    "My {how} {thing} {did} nothing {when}",
)
_SPEAKER = "\nUser:"
_HEAD = "A conversation follows. Some requests in it are alike. Give the assistant's answer to the last one.\n"


def _line(rng: random.Random) -> str:
    when = rng.choice(_WHEN)
    return rng.choice(_LINES).format(
        who=rng.choice(_WHO),
        how=rng.choice(_HOW),
        how2=rng.choice(_HOW),
        did=rng.choice(_DID),
        thing=rng.choice(_THING),
        when=when,
        When=when[0].upper() + when[1:],
    )


def _text(rng: random.Random) -> str:
    return ", ".join(_line(rng) for _ in range(4)) + "."


def _turn(kind: str, topic: str, text: str) -> str:
    return f"{_SPEAKER} Write a {kind} about {topic}.\nAssistant: {text}"


def _others(rng: random.Random, kind: str, topic: str) -> Callable[[int], list[str]]:
    """The first so many turns that are not about this kind and topic together; every other one is about one of them."""
    turns: list[str] = []

    def first(count: int) -> list[str]:
        while len(turns) < count:
            other = rng.choice(_KINDS), rng.choice(TOPICS)
            if rng.random() < 0.5:
                other = (kind, other[1]) if rng.random() < 0.5 else (other[0], topic)
            if other != (kind, topic):
                turns.append(_turn(*other, _text(rng)))
        return turns[:count]

    return first


def _drawn(needles: int) -> Callable[[random.Random, Filler], Build]:
    def draw(rng: random.Random, filler: Filler) -> Build:
        kind, topic = rng.choice(_KINDS), rng.choice(TOPICS)
        texts, asked = [_text(rng) for _ in range(needles)], rng.randrange(needles)
        mark = "".join(rng.choice(ascii_letters + digits) for _ in range(10))
        places = sorted(rng.random() for _ in texts)
        others = _others(random.Random(rng.getrandbits(64)), kind, topic)
        right = mark + texts[asked]
        facts = {"mark": mark, "asked": asked + 1, "of": needles}
        chance = sum(SequenceMatcher(None, text, texts[asked]).ratio() for text in texts) / needles
        again = (
            f"{_SPEAKER} Write {mark} and directly behind it, word for word, the {ordinal(asked + 1)} {kind} about "
            f"{topic} that you wrote. Write nothing else."
        )

        def build(turns: int) -> Draft:
            parts = scattered([_turn(kind, topic, text) for text in texts], places, others(turns))
            return Draft(_HEAD + "\n".join([*parts, again]), "\nAssistant:", [right], f" {right}", chance, facts)

        return build

    return draw


def ratio(answer: str, sample: Sample) -> float:
    """How alike the answer is to the text asked for, 0..1; 0 where it does not begin with its mark."""
    said, mark = answer.partition(_SPEAKER)[0].strip(), sample["mark"]
    if not said.startswith(mark):
        return 0.0
    return SequenceMatcher(None, said.removeprefix(mark), sample["outputs"][0].removeprefix(mark)).ratio()


TASKS = [
    LongTask(f"coreference-{needles}", TOKENS, _drawn(needles), ratio, lambda answer: _SPEAKER in answer)
    for needles in NEEDLES
]

SUITE = Suite(
    name="multi-round co-reference (MRCR-like)",
    verb="harpe long --tasks coreference",
    asks="the i-th of 2, 4 or 8 texts that alike requests in a long conversation got, word for word; difflib's ratio",
    needs="nothing",
    lengths="any from about 512 to 1,024 on",
    models="chat; base models of some size",
    chance="gives one of the 2, 4 or 8 texts: about 67%, 50% and 42%, for texts of one grammar are alike",
    comparable="none: OpenAI's MRCR has pages by a language model, in messages",
)
