"""Do heads want different frequencies? A ratio of gradients, and how sure it is.

With g the gradient of a loss by log frequencies, [L, H, N], a small step of a given length lowers the loss in
proportion to |g| where every head has a table of its own, and to |sum over heads of g| / sqrt(H L) where all share one.
The square of the ratio of the two is

    R2 = H L <g, g> / <sum g, sum g>

summed over the pairs of a band: 1 where all heads want the same, H L or more where what they want cancels. A gradient
of few texts has noise, which <g, g> would count as difference. So the two factors come from two halves of the texts,
g_A and g_B: noise that is independent has no part in the expectation of their product.

R2 is the product of that between layers, L <s_A, s_B> / <sum s_A, sum s_B> with s the sums over the heads of a layer,
and that between the heads of a layer, H <g_A, g_B> / <s_A, s_B>.

Shapes: D documents, L layers, H key/value heads, N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harpe.errors import HarpeError

FEWEST = 4
"""Documents: two a half, so that there is something to draw from."""
RESAMPLES = 1000
NAMES = ("all", "layers", "heads")

Gradients = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """An R2 with the ends of its 95 % interval; inf where the shared direction cannot be told from nothing."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """As JSON can hold it: None for what has no bound."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: each if math.isfinite(each) else None for name, each in values.items()}


def halves(gradients: Gradients) -> tuple[Gradients, Gradients]:
    """Documents in turn to one half and to the other, each [D/2, L, H, N].

    Raises HarpeError for fewer than `FEWEST` documents.
    """
    if len(gradients) < FEWEST:
        raise HarpeError(
            f"What heads want is compared between two halves of the texts, which needs {FEWEST} documents; there are "
            f"{len(gradients)}. Give more or longer texts, or a shorter --length."
        )
    return gradients[::2], gradients[1::2]


def _ratios(a: Gradients, b: Gradients) -> NDArray[np.float64]:
    """R2 of all heads, between layers, and between heads of a layer, [3, R], of gradients [R, L, H, N]."""
    layers, heads = a.shape[1:3]
    own = (a * b).sum(axis=(1, 2, 3))
    of_layers = (a.sum(axis=2) * b.sum(axis=2)).sum(axis=(1, 2))
    shared = (a.sum(axis=(1, 2)) * b.sum(axis=(1, 2))).sum(axis=1)
    parts = ((layers * heads * own, shared), (layers * of_layers, shared), (heads * own, of_layers))
    return np.stack([np.divide(top, under, out=np.full_like(top, np.inf), where=under > 0) for top, under in parts])


def heterogeneity(gradients: Gradients, pairs: Sequence[int], seed: int = 0) -> dict[str, Ratio]:
    """R2 over some of the pairs: under `all`, `layers` and `heads`.

    The interval draws documents with replacement inside each half. A denominator that is not above 0 says that no
    common direction was found: the ratio is then inf.

    Parameters
    ----------
    gradients
        [D, L, H, N], a gradient for every document.
    pairs
        Indices of the band's pairs.
    """
    parts = [half[..., list(pairs)] for half in halves(gradients)]
    value = _ratios(*(half.mean(axis=0)[None] for half in parts))[:, 0]
    rng, drawn = np.random.default_rng(seed), []
    size = max(1, 20_000_000 // parts[0][0].size)
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        means = []
        for half in parts:
            share = rng.multinomial(len(half), [1 / len(half)] * len(half), size=rows) / len(half)
            means.append((share @ half.reshape(len(half), -1)).reshape(rows, *half.shape[1:]))
        drawn.append(_ratios(*means))
    low, high = np.percentile(np.concatenate(drawn, axis=1), [2.5, 97.5], axis=1, method="inverted_cdf")
    return {name: Ratio(float(value[i]), float(low[i]), float(high[i])) for i, name in enumerate(NAMES)}


def agreement(gradients: Gradients, axes: tuple[int, ...] = (-1,)) -> Any:
    """Cosine between the two halves' gradients over `axes` of [L, H, N]: 1 where the texts agree, about 0 for noise;
    nan where there is no gradient."""
    a, b = (half.mean(axis=0) for half in halves(gradients))
    norms = np.sqrt((a**2).sum(axis=axes) * (b**2).sum(axis=axes))
    return np.divide((a * b).sum(axis=axes), norms, out=np.full_like(norms, np.nan), where=norms > 0)
