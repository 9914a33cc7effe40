"""Which head gets which base of a set: the same in all layers (HARPE), permuted by layer, or one member for every head
of every layer.

A *row* holds the bases of one layer, head h at index h. All rows have as many bases as there are key/value heads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from harpe.errors import HarpeError

Assignment = Literal["ascending", "descending", "random", "adaptive"]
LayerBases = Literal["same", "permuted", "own"]
Rows = tuple[tuple[float, ...], ...]


def members(heads: int, layers: int, layer_bases: LayerBases) -> int:
    """How many bases the set must have."""
    return layers * heads if layer_bases == "own" else heads


def shuffled(count: int, *names: object) -> list[int]:
    """0 .. count - 1 in the order of SHA-256 of the names: the same on every machine and in every version."""
    digests = [hashlib.sha256(" ".join(map(str, (*names, index))).encode()).digest() for index in range(count)]
    return sorted(range(count), key=digests.__getitem__)


def _by_distance(bases: Sequence[float], head_distances: Sequence[float]) -> list[float]:
    """Ascending bases for heads of ascending distance; heads of equal distance in head order."""
    placed = [0.0] * len(bases)
    for base, head in zip(
        sorted(bases), sorted(range(len(head_distances)), key=lambda head: (head_distances[head], head)), strict=True
    ):
        placed[head] = base
    return placed


def assign(
    bases: Sequence[float],
    assignment: Assignment,
    *,
    heads: int,
    layers: int,
    layer_bases: LayerBases = "same",
    seed: int = 0,
    head_distances: Sequence[Sequence[float]] | None = None,
) -> Rows:
    """One row of bases for every layer.

    Parameters
    ----------
    bases
        The set, in any order: `members(heads, layers, layer_bases)` of them.
    assignment
        `ascending` (HARPE) or `descending` over the heads; `random`, seeded; `adaptive`: the farther a head looks, the
        larger its base.
    layer_bases
        `same`: all layers alike. `permuted`: the same set in every layer, in an order of its own (random or adaptive).
        `own`: layers x heads bases; every layer gets one of each of `heads` neighbourhoods of the set, so that every
        row spans the range. Adaptive, the rank among all heads of all layers decides instead.
    head_distances
        For adaptive: how far each head looks, [layers, heads] (`harpe.models.head_distance`). With `same`, heads are
        ranked by their mean over the layers.

    Raises
    ------
    HarpeError
        For a combination that has no meaning, or a set or measurement of another size.
    """
    ordered, wanted = sorted(bases), members(heads, layers, layer_bases)
    if len(ordered) != wanted:
        raise HarpeError(f"The set has {len(ordered)} bases, and --layer-bases {layer_bases} needs {wanted}.")
    if layer_bases == "permuted" and assignment not in ("random", "adaptive"):
        raise HarpeError(
            f"--layer-bases permuted needs --assignment random or adaptive; {assignment} is the same in every layer."
        )
    if assignment == "adaptive":
        return _adaptive(ordered, heads, layers, layer_bases, head_distances)
    if layer_bases == "own":
        return _own(ordered, assignment, heads, layers, seed)
    if assignment == "random":
        orders = [shuffled(heads, seed, layer if layer_bases == "permuted" else "all") for layer in range(layers)]
        return tuple(tuple(ordered[index] for index in order) for order in orders)
    row = tuple(ordered if assignment == "ascending" else ordered[::-1])
    return (row,) * layers


def _adaptive(
    ordered: list[float],
    heads: int,
    layers: int,
    layer_bases: LayerBases,
    head_distances: Sequence[Sequence[float]] | None,
) -> Rows:
    if head_distances is None:
        raise HarpeError("--assignment adaptive measures a model on texts; give --model and --data.")
    measured = np.asarray(head_distances, dtype=np.float64)
    if measured.shape != (layers, heads) or not np.isfinite(measured).all():
        raise HarpeError(
            f"The measurement of the heads has the shape {measured.shape} or holds no numbers; needed are {layers} x "
            f"{heads}."
        )
    if layer_bases == "own":
        flat = _by_distance(ordered, measured.ravel().tolist())
        return tuple(tuple(flat[layer * heads : (layer + 1) * heads]) for layer in range(layers))
    if layer_bases == "permuted":
        return tuple(tuple(_by_distance(ordered, row)) for row in measured.tolist())
    return (tuple(_by_distance(ordered, measured.mean(axis=0).tolist())),) * layers


def _own(ordered: list[float], assignment: Assignment, heads: int, layers: int, seed: int) -> Rows:
    parts = [ordered[head * layers : (head + 1) * layers] for head in range(heads)]
    if assignment == "random":
        parts = [[part[index] for index in shuffled(layers, seed, "part", number)] for number, part in enumerate(parts)]
    rows = [[part[layer] for part in parts] for layer in range(layers)]
    if assignment == "descending":
        rows = [row[::-1] for row in rows]
    elif assignment == "random":
        rows = [[row[index] for index in shuffled(heads, seed, layer)] for layer, row in enumerate(rows)]
    return tuple(map(tuple, rows))
