"""The basic needle tasks: the number of one key, or all numbers of it, among lines with other keys."""

from __future__ import annotations

import random
from collections.abc import Sequence

from harpe.evaluation.long.ruler2.draft import Draft, number
from harpe.evaluation.long.ruler2.wording import ALL_NUMBERS, NEEDLE, ONE_NUMBER
from harpe.evaluation.ruler.words import compound_words

STEP = 5
"""Lines that the search starts from and by which samples are shortened."""
_DIGITS = 10


class NeedleMaker:
    """Draws contexts of numbers, `values` for each key.

    Raises HarpeError where the word lists are missing.
    """

    def __init__(self, rng: random.Random, seed: int, values: int) -> None:
        self._rng, self._seed, self._values, self._words = rng, seed, values, compound_words()
        self.index = 0

    def indices(self, count: int) -> Sequence[int]:
        return range(count)

    def _key(self) -> str:
        return self._rng.choice(self._words)

    def _number(self) -> str:
        return number(self._rng, _DIGITS)

    def __call__(self, size: int) -> Draft:
        """One key's lines among `size` others."""
        rng, times = self._rng, self._values
        asked, wanted = self._key(), [self._number() for _ in range(times)]
        needles = [NEEDLE.format(key=asked, value=value) for value in wanted]
        random.Random(self._seed).shuffle(needles)
        if times == 1:
            lines = [NEEDLE.format(key=self._key(), value=self._number()) for _ in range(size)]
        else:
            values = [self._number() for _ in range(size)]
            keys = [self._key() for _ in range(-(-size // times))] * times
            lines = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=False)]
            rng.shuffle(lines)
        for place, line in zip(sorted(rng.sample(range(size), times), reverse=True), needles, strict=True):
            lines.insert(place, line)
        rng.sample(range(1), 1)  # which of the keys is asked for: there is one, and the draw moves the stream on
        text = (ONE_NUMBER if times == 1 else ALL_NUMBERS).format(context="\n".join(lines), query=asked)
        return Draft(text, wanted, f" {', '.join(wanted)}", lambda: times / (size + times))
