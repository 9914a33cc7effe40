"""Self-Extend, ReRoPE and dual chunk attention as bands: which positions a query and a key have for each other.

A band is an interval of keys for every query, with a map of query positions and a map of key positions that hold inside
it. Each key that a query may see is in exactly one band of that query; one softmax runs over all of them.

Shapes: B sequences (1 where all are alike), Q queries, K keys. Positions are int64 and count from the first token that
is no padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from harpe.methods.self_extend import groups_of
from harpe.methods.types import DualChunk, DynamicSelfExtend, SelfExtend


class Band(NamedTuple):
    """One band of one attention. Neither `first` nor `end` falls from one query of a sequence to the next: the keys
    that a stretch of queries sees follow from its first and its last."""

    query: torch.Tensor
    """[B, Q] mapped positions of the queries."""
    key: torch.Tensor
    """[B, K] mapped positions of the keys; the very tensor of true positions where they keep them."""
    first: torch.Tensor
    """[B, Q] true position of the first key that each query sees in this band."""
    end: torch.Tensor
    """[B, Q] one past the true position of the last."""


def plain_bands(query: torch.Tensor, key: torch.Tensor, window: int | None) -> list[Band]:
    """Positions as they are; `window` is a layer's sliding window in tokens."""
    first = torch.zeros_like(query) if window is None else (query - window + 1).clamp(min=0)
    return [Band(query, key, first, query + 1)]


def self_extend_bands(query: torch.Tensor, key: torch.Tensor, attention: SelfExtend) -> list[Band]:
    """Distance i - j where it is below w, else (i // G + w - w // G) - j // G (Jin et al. 2024, section 3.3)."""
    window, group = attention.window, attention.group
    edge = (query - window + 1).clamp(min=0)
    return [
        Band(query, key, edge, query + 1),
        Band(query // group + window - window // group, key // group, torch.zeros_like(query), edge),
    ]


def dual_chunk_bands(query: torch.Tensor, key: torch.Tensor, attention: DualChunk) -> list[Band]:
    """Own chunk, chunk before, all earlier ones (An et al. 2024, equations 3 to 9), with c = s + w:

    own         i mod s               - j mod s
    before      min(i mod s + s, c-1) - j mod s
    earlier     c - 1                 - j mod s

    In the first two bands keys keep their true positions, and queries move by the same multiple of s: the distances are
    those above.
    """
    size, last = attention.chunk, attention.chunk + attention.local - 1
    start = query.div(size, rounding_mode="floor") * size
    return [
        Band(query, key, start.clamp(min=0), query + 1),
        Band(start - size + (query - start + size).clamp(max=last), key, (start - size).clamp(min=0), start),
        Band(torch.full_like(query, last), key % size, torch.zeros_like(query), start - size),
    ]


def dynamic_bands(
    query: torch.Tensor, key: torch.Tensor, attention: DynamicSelfExtend, lengths: tuple[int, int]
) -> list[Band]:
    """`self_extend_bands` with a band for every group that texts from one to the other of `lengths` have.

    A query has keys in the exact band and in that of its own group.
    """
    window, context = attention.window, attention.context
    edge = (query - window + 1).clamp(min=0)
    first, own, found = edge.masked_fill(query < context, 0), query, []
    groups = [each for each in groups_of(window, context, *lengths) if each[0] > 1]
    for group, above, _ in groups:
        own = torch.where(query >= above, query // group + window - window // group, own)
    for group, above, upto in groups:
        begun, over = query >= above, query >= upto
        end = torch.where(begun, edge, 0).clamp(max=upto - window)
        found.append(Band(own, key // group, end.where(over, 0), end))
    return [Band(query, key, first, query + 1), *found]


def rerope_bands(query: torch.Tensor, key: torch.Tensor, window: int) -> list[Band]:
    """Distance i - j where it is below w, else w."""
    edge = (query - window + 1).clamp(min=0)
    zeros = torch.zeros_like(query)
    return [Band(query, key, edge, query + 1), Band(zeros + window, torch.zeros_like(key), zeros, edge)]
