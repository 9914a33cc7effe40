"""Angles of rotary positions: a row of inverse frequencies for every key/value head, exact at any position.

The angle of a position is a *phase*: position times *step*, both integers, where the step says how far a pair of
dimensions turns from one position to the next, in units of 2**-64 of a full turn. The product wraps around at 2**64,
exactly as a turn does, so it is right at every position an int64 can hold: the error of the angle is the rounding of
one float32 in -pi..pi (below 5e-7), not that of a large product.

Where transformers passes cos and sin from the rotary module to the layers, per-head models pass a pair of integer
tensors, `first` and `second`; `decode` reads it as `Phases` or as `CosSin`. Integers survive `model.to(bfloat16)`,
autocast and FSDP's casting of inputs, which would round angles and frequencies to three digits.

Shapes: L layers, B batch, S positions, H key/value heads, N pairs of dimensions that turn.

This file needs torch and nothing else: an exported checkpoint carries it as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TwoTensors = tuple[Tensor, Tensor]

RADIANS = 2 * math.pi / 2**64
"""Radians in one unit of a phase."""
FINE = 128
"""Consecutive tokens whose cos and sin are formed from those of the first. For CPUs, where trigonometry takes longer
than all else."""


ALL = slice(None)


class Phases(NamedTuple):
    """Angles as the two factors that they are formed from."""

    positions: Tensor
    """int64 [B, S]."""
    table: Tensor
    """Steps: int64 [H, N]; [H, N, 2] with an attention factor (`with_factor`); [H, N, 4] with a scale of queries beside
    it (`with_length_scale`); [L, H, N, 2 or 4] with rows by layer."""

    def by_layer(self) -> bool:
        return self.table.dim() == 4

    def heads(self) -> int:
        return self.table.shape[-2] if self.table.dim() == 2 else self.table.shape[-3]

    def query_scale(self, tokens: slice = ALL) -> Tensor | None:
        """What queries are multiplied by, float32 [B, s, H]; None for nothing."""
        return query_scale(self.positions[:, tokens], self.table)

    def of_rows(self, rows: slice) -> Phases:
        return Phases(self.positions[rows], self.table)


class CosSin(NamedTuple):
    """cos and sin themselves, float32. Their bits are kept as integers, which nothing casts to the model's dtype."""

    cos_bits: Tensor
    """int32 [B, S, H, N]."""
    sin_bits: Tensor
    """int32 [B, S, H, 2, N], of -sin and sin; [B, S, H, 3, N] with what queries are multiplied by beside them."""

    def cos(self) -> Tensor:
        return self.cos_bits.view(torch.float32)

    def sin(self) -> Tensor:
        return self.sin_bits[..., 1, :].view(torch.float32)

    def sins(self) -> Tensor:
        """-sin and sin, float32 [B, S, H, 2, N]."""
        return self.sin_bits[..., :2, :].view(torch.float32)

    def query_scale(self, tokens: slice = ALL) -> Tensor | None:
        """As that of `Phases`."""
        return self.sin_bits[:, tokens, :, 2, 0].view(torch.float32) if self.sin_bits.shape[-2] == 3 else None

    def heads(self) -> int:
        return self.cos_bits.shape[2]

    def of_rows(self, rows: slice) -> CosSin:
        return CosSin(self.cos_bits[rows], self.sin_bits[rows])


def decode(first: Tensor, second: Tensor) -> Phases | CosSin:
    """Which of the two a pair of `encode_positions` is: positions are int64, bits of float32 are int32."""
    return Phases(first, second) if first.dtype == torch.int64 else CosSin(first, second)


def base_frequencies(bases: Sequence[float], rotary_dim: int) -> list[list[float]]:
    """Inverse frequencies b_h^(-2i/D) in radians a position, i = 0 .. D/2 - 1: a row for every base, in float64."""
    return [[float(base) ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)] for base in bases]


def phase_steps(frequencies: Sequence[Sequence[float]]) -> list[list[int]]:
    """Steps of inverse frequencies in radians a position: rows of integers, to be made an int64 tensor."""
    rows = [[round(value / (2 * math.pi) % 1.0 * 2**64) for value in row] for row in frequencies]
    return [[step - 2**64 if step >= 2**63 else step for step in row] for row in rows]


def with_factor(steps: Tensor, factor: float | Tensor) -> Tensor:
    """int64 [..., H, N, 2]: steps [..., H, N], and the float64 bits of a factor that multiplies cos and sin."""
    bits = torch.as_tensor(factor, dtype=torch.float64, device=steps.device).view(torch.int64)
    return torch.stack((steps, bits.expand_as(steps)), dim=-1)


def with_length_scale(table: Tensor, coefficient: float | Tensor, length: int) -> Tensor:
    """int64 [..., H, N, 4]: a table [..., H, N, 2], the float64 bits of c / ln L0, and L0; see `query_scale`.

    `coefficient` c is one number, or float64 [H, 1]; `length` L0 is in tokens.
    """
    slope = torch.as_tensor(coefficient, dtype=torch.float64, device=table.device) / math.log(length)
    bits = slope.view(torch.int64).expand(table.shape[:-1])
    return torch.cat((table, torch.stack((bits, torch.full_like(bits, length)), dim=-1)), dim=-1)


def has_length_scale(table: Tensor) -> bool:
    """Whether queries are to be multiplied by `query_scale`."""
    return table.dim() > 2 and table.shape[-1] == 4


def query_scale(position_ids: Tensor, table: Tensor) -> Tensor | None:
    """What the queries of every head are multiplied by, float32 [B, S, H]; None where a table has no such scale.

    1 + c (ln n / ln L0 - 1) at position n - 1, and exactly 1 up to L0. For c = 1 this is the max(1, ln n / ln L0) of
    Entropy-ABF (Zhang et al. 2024, arXiv 2401.07004). In float64, so that its bits do not depend on how many positions
    there are.
    """
    if not has_length_scale(table):
        return None
    slope, length = table[:, 0, 2].contiguous().view(torch.float64), table[:, 0, 3]
    seen = torch.maximum(position_ids[:, :, None] + 1, length)
    return (1 + slope * (seen.double() / length).log()).to(torch.float32)


def trigonometry(position_ids: Tensor, table: Tensor) -> TwoTensors:
    """cos and sin, float32 [B, S, H, N], each from its angle."""
    steps = table if table.dim() == 2 else table[..., 0]
    angle = (position_ids[:, :, None, None] * steps).to(torch.float32) * RADIANS
    cos, sin = angle.cos(), angle.sin()
    if table.dim() == 3:
        factor = table[..., 1].contiguous().view(torch.float64).to(torch.float32)
        cos, sin = cos * factor, sin * factor
    return cos, sin


def sum_of_angles(coarse: TwoTensors, fine: TwoTensors, space: Tensor | None = None) -> TwoTensors:
    """cos and sin of the sums of two sets of angles, from cos and sin of both.

    Written into `space`, float32 [2, at least so many], where it is given.
    """
    (cos, sin), (fine_cos, fine_sin) = coarse, fine
    if space is None:
        return (cos * fine_cos).addcmul_(sin, fine_sin, value=-1), (sin * fine_cos).addcmul_(cos, fine_sin)
    shape = torch.broadcast_shapes(cos.shape, fine_cos.shape)
    of_cos, of_sin = space[:, : math.prod(shape)].view(2, *shape)
    torch.mul(cos, fine_cos, out=of_cos).addcmul_(sin, fine_sin, value=-1)
    torch.mul(sin, fine_cos, out=of_sin).addcmul_(cos, fine_sin)
    return of_cos, of_sin


def cos_and_sin(position_ids: Tensor, table: Tensor) -> TwoTensors:
    """cos and sin, float32 [B, S, H, N], for positions int64 [B, S] and steps int64 [H, N] or [H, N, 2].

    On a CPU they are sums of two angles, the last multiple of `FINE` and the rest, as in `_tiles`, so that a token has
    the same bits in a long text and alone. Largest error there 6e-7, elsewhere 3e-7.
    """
    if position_ids.device.type != "cpu":
        return trigonometry(position_ids, table)
    rest = position_ids & (FINE - 1)
    if table.dim() == 3:
        return sum_of_angles(trigonometry(position_ids - rest, table), trigonometry(rest, table[..., 0]))
    both = torch.stack((position_ids - rest, rest)).flatten(0, 1)  # at once: few operations while decoding
    (cos, fine_cos), (sin, fine_sin) = (x.chunk(2) for x in trigonometry(both, table))
    return sum_of_angles((cos, sin), (fine_cos, fine_sin))


def hold(cos: Tensor, sin: Tensor, scale: Tensor | None = None) -> TwoTensors:
    """The pair of `CosSin` for cos and sin, float32 [B, S, H, N], and a scale of queries [B, S, H]."""
    rows = (-sin, sin) if scale is None else (-sin, sin, scale[..., None].expand_as(sin))
    return cos.view(torch.int32), torch.stack(rows, dim=-2).view(torch.int32)


def is_per_head(cos: Any) -> bool:
    """Whether `cos` is the first half of a pair that `encode_positions` made."""
    return isinstance(cos, Tensor) and not cos.is_floating_point() and not cos.is_complex()


def of_layer(first: Tensor, second: Tensor, layer: int) -> TwoTensors:
    """The pair with the table of one layer, where there is one for every layer."""
    angles = decode(first, second)
    return (first, second[layer]) if isinstance(angles, Phases) and angles.by_layer() else (first, second)


def of_heads(first: Tensor, second: Tensor, rank: int, size: int) -> TwoTensors:
    """The pair for the key/value heads that tensor-parallel rank `rank` of `size` holds."""
    angles = decode(first, second)
    count = angles.heads() // size
    share = slice(rank * count, (rank + 1) * count)
    return (first, second[share]) if isinstance(angles, Phases) else (first[:, :, share], second[:, :, share])
