"""One register that is set K times: what it held in the end, or after the j-th time, which order alone can tell.

For the trade of position against content that a RoPE base makes; RULER's variable tracking (Hsieh et al. 2024, arXiv
2404.06654) follows names and no order. The setting that is asked for stands at a depth drawn evenly from the whole
text, and the others anywhere before and behind it in their order, so that its distance covers the length; the sample
tells it. Not after any published benchmark.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from harpe.evaluation.long.filler import Filler, scattered
from harpe.evaluation.long.task import Build, Draft, LongTask, Sample, Suite

COUNTS = (4, 16)
TOKENS = 16


def first_number(answer: str, sample: Sample) -> float:
    """1 where the first number in an answer is the reference, else 0."""
    found = re.search(r"\d+", answer)
    return float(found is not None and found[0] == sample["outputs"][0])


def number_ended(answer: str) -> bool:
    """Whether the first number in an answer has ended: before ASCII, as a part of a character may become a digit."""
    return re.match(r"\D*\d+[\x00-/:-\x7f]", answer) is not None


def values(rng: random.Random, count: int) -> list[str]:
    """Different numbers of four digits."""
    return [str(value) for value in rng.sample(range(1000, 10000), count)]


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th … 16th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _drawn(count: int, last: bool) -> Callable[[random.Random, Filler], Build]:
    def draw(rng: random.Random, filler: Filler) -> Build:
        register = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(3))
        held, asked, depth = values(rng, count), count - 1 if last else rng.randrange(count), rng.random()
        before = sorted(rng.uniform(0, depth) for _ in range(asked))
        behind = sorted(rng.uniform(depth, 1) for _ in range(count - 1 - asked))
        settings = [f"Register {register} is now set to {value}." for value in held]
        start = filler.start(rng)
        when = "the last time" if last else f"the {ordinal(asked + 1)} time"

        def build(words: int) -> Draft:
            parts = scattered(settings, [*before, depth, *behind], filler.sentences(words, start))
            prompt = (
                f"A register is set several times in the following text. Remember the values and their order.\n\n"
                f"{' '.join(parts)}\n\nQuestion: To which value was register {register} set {when}?"
            )
            rest = sum(len(part.split()) for part in parts[parts.index(settings[asked]) + 1 :])
            facts = {"asked": asked + 1, "of": count, "words_behind": rest}
            prefix = f"\nAnswer: For {when}, register {register} was set to"
            return Draft(prompt, prefix, [held[asked]], f" {held[asked]}", 1 / count, facts)

        return build

    return draw


TASKS = [
    LongTask(f"order-{name}-{count}", TOKENS, _drawn(count, name == "last"), first_number, number_ended)
    for name in ("last", "nth")
    for count in COUNTS
]

SUITE = Suite(
    name="order probe",
    verb="harpe long --tasks order",
    asks="the last, or the j-th, of the 4 or 16 values that one register is set to, in filler",
    needs="nothing; the essays for --filler essays",
    lengths="any from 128 to 512 on, by task and tokenizer",
    models="base and chat",
    chance="names one of the register's values: 25% (4 values), 6.25% (16)",
    comparable="none: a probe of our own",
)
