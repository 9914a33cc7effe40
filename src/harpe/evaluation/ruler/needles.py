"""The eight needle tasks: keys and values hidden in noise, in essays or among other needles."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from harpe.evaluation.ruler.essays import Essays
from harpe.evaluation.ruler.search import Draft, Shuffler
from harpe.evaluation.ruler.tasks import NeedleSettings
from harpe.evaluation.ruler.templates import NEEDLE, NOISE
from harpe.evaluation.ruler.words import compound_words

DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40, endpoint=True))]
"""Places in the essays, in per cent of the sentences."""

STEP = {"essay": 500, "noise": 25, "needle": 25}
"""Pieces of a haystack (words, lines) that the search starts from and by which samples are shortened."""

Draw = Callable[[], str]


def step_of(haystack: str, length: int) -> int:
    """The step for a haystack; lines go by fives below 4,096 tokens."""
    return 5 if haystack != "essay" and length < 4096 else STEP[haystack]


def uuid4(rng: random.Random) -> str:
    """`str(uuid.UUID(int=rng.getrandbits(128), version=4))`, without the object."""
    bits = rng.getrandbits(128)
    bits = bits & ~(0xF000 << 64) & ~(0xC000 << 48) | 0x4000 << 64 | 0x8000 << 48
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def drawers(rng: random.Random) -> dict[str, Draw]:
    """Functions that draw a key or a value, by kind."""
    words = compound_words()
    return {
        "numbers": lambda: str(rng.randint(10**6, 10**7 - 1)),
        "words": lambda: rng.choice(words),
        "uuids": lambda: uuid4(rng),
    }


class NeedleMaker:
    """Draws contexts of one needle task.

    Parameters
    ----------
    template
        With the places {type_needle_v}, {context} and {query}.
    rng, shuffle
        The task's stream of random numbers and its fixed shuffle.
    essays
        Needed by the tasks whose haystack is essays.
    """

    def __init__(
        self,
        settings: NeedleSettings,
        template: str,
        rng: random.Random,
        shuffle: Shuffler,
        essays: Callable[[], Essays] | None = None,
    ) -> None:
        self._settings, self._rng, self._shuffle = settings, rng, shuffle
        draw = drawers(rng)
        self._key, self._value = draw[settings.keys], draw[settings.values]
        self._essays = essays() if settings.haystack == "essay" and essays else None
        self._kind = settings.values
        if settings.keys_asked * settings.values_per_key == 1:  # the whole template is put into the singular
            for plural, singular in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
                template = template.replace(plural, singular)
            self._kind = settings.values[:-1]
        self._template = template

    def __call__(self, size: int) -> Draft:
        """A context with a haystack of `size` words (essay) or lines."""
        settings, rng = self._settings, self._rng
        keys: list[str] = []
        values: list[list[str]] = []
        needles: list[str] = []
        for _ in range(settings.keys_hidden):
            keys.append(self._key())
            values.append([])
            for _ in range(settings.values_per_key):
                values[-1].append(self._value())
                needles.append(NEEDLE.format(type_needle_v=settings.values, key=keys[-1], value=values[-1][-1]))
        needles = self._shuffle(needles)
        context = self._in_essays(size, needles) if self._essays else self._in_lines(size, needles)
        asked = rng.sample(range(settings.keys_hidden), settings.keys_asked)
        queries = [keys[i] for i in asked]
        query = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
        text = self._template.format(type_needle_v=self._kind, context=context, query=query)
        return Draft(text, [value for i in asked for value in values[i]])

    def _in_essays(self, size: int, needles: list[str]) -> str:
        assert self._essays is not None
        sentences = self._essays.sentences(size)
        places = sorted(int(len(sentences) * (depth / 100)) for depth in self._rng.sample(DEPTHS, len(needles)))
        parts, last = [], 0
        for place, needle in zip(places, needles, strict=True):
            parts += [" ".join(sentences[last:place]), needle]
            last = place
        return " ".join([*parts, " ".join(sentences[last:])])

    def _in_lines(self, size: int, needles: list[str]) -> str:
        if self._settings.haystack == "noise":
            lines = [NOISE] * size
        else:
            head, middle, tail = (
                NEEDLE.replace("{type_needle_v}", self._settings.values).replace("{value}", "{key}").split("{key}")
            )
            key, value = self._key, self._value
            lines = [f"{head}{key()}{middle}{value()}{tail}" for _ in range(size)]
        for place, needle in zip(
            sorted(self._rng.sample(range(size), len(needles)), reverse=True), needles, strict=True
        ):
            lines.insert(place, needle)
        return "\n".join(lines)
