"""K keys that differ in one letter from the one that is asked for: which value belongs to it.

For the trade of position against content that a RoPE base makes: order says nothing here, the letters say all. RULER's
multi-key needles (Hsieh et al. 2024, arXiv 2404.06654) have keys without likeness. Not after any published benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from string import ascii_uppercase

from harpe.evaluation.long.filler import Filler, scattered
from harpe.evaluation.long.order_probe import COUNTS, TOKENS, first_number, number_ended, values
from harpe.evaluation.long.task import Build, Draft, LongTask, Suite

LETTERS = 6


def _keys(rng: random.Random, count: int) -> list[str]:
    """A key, and others that differ from it in one letter."""
    key = "".join(rng.choice(ascii_uppercase) for _ in range(LETTERS))
    near = [key[:i] + letter + key[i + 1 :] for i in range(LETTERS) for letter in ascii_uppercase if letter != key[i]]
    return [key, *rng.sample(near, count - 1)]


def _drawn(count: int) -> Callable[[random.Random, Filler], Build]:
    def draw(rng: random.Random, filler: Filler) -> Build:
        keys, held = _keys(rng, count), values(rng, count)
        places = [rng.random() for _ in keys]
        start = filler.start(rng)
        lines = [f"The code of box {key} is {value}." for key, value in zip(keys, held, strict=True)]
        placed = sorted(zip(places, lines, strict=True))

        def build(words: int) -> Draft:
            parts = scattered([line for _, line in placed], [at for at, _ in placed], filler.sentences(words, start))
            prompt = (
                f"Codes of boxes are hidden in the following text. The names of the boxes are nearly alike.\n\n"
                f"{' '.join(parts)}\n\nQuestion: What is the code of box {keys[0]}?"
            )
            rest = sum(len(part.split()) for part in parts[parts.index(lines[0]) + 1 :])
            prefix = f"\nAnswer: The code of box {keys[0]} is"
            return Draft(prompt, prefix, held[:1], f" {held[0]}", 1 / count, {"of": count, "words_behind": rest})

        return build

    return draw


TASKS = [LongTask(f"content-{count}", TOKENS, _drawn(count), first_number, number_ended) for count in COUNTS]

SUITE = Suite(
    name="content probe",
    verb="harpe long --tasks content",
    asks="the value of one of 4 or 16 keys that differ from it in one letter, in filler",
    needs="nothing; the essays for --filler essays",
    lengths="any from 128 to 512 on, by task and tokenizer",
    models="base and chat",
    chance="names one of the values: 25% (4 keys), 6.25% (16)",
    comparable="none: a probe of our own",
)
