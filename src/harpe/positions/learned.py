"""Rotation with gradients by the frequencies: what `rotation.py` does, by tables of float numbers.

Forward is the rotation by integer steps of the frequencies, bit for bit, so that a table turns alike while it is
learned and after, at any position. Backward follows from the outputs. For a pair (a', b') turned by the phase m theta,

    d a' / d ln theta = -m theta b'        d b' / d ln theta = m theta a'

and both are proportional to the factor, so that their derivative by its logarithm is they themselves.

Tables are float64 [H, N, 2] or [L, H, N, 2]: ln theta, and ln of the factor that multiplies cos and sin. float32 would
be wrong by half a turn at a million tokens. Shapes as in `phases.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from harpe.positions.phases import with_factor
from harpe.positions.rotation import Layout, rotate_per_head

TOKENS = 2048
"""Tokens whose derivatives are formed at a time, in float32."""


def float_table(log_frequencies: Tensor, log_factors: Tensor) -> Tensor:
    """float64 [..., H, N, 2] of ln theta [..., H, N] and ln factor [..., H], with their gradients."""
    factors = log_factors[..., None].expand(log_frequencies.shape)
    return torch.stack((log_frequencies.double(), factors.double()), dim=-1)


@torch.no_grad()
def steps_of(table: Tensor) -> Tensor:
    """int64 [H, N, 2], the steps of a float table [H, N, 2] with its factors: those of `phase_steps`."""
    units = (table[..., 0].exp() / (2 * math.pi)).remainder(1.0) * 2.0**64
    units = torch.where(units >= 2.0**63, units - 2.0**64, units).round()
    return with_factor(units.to(torch.int64), table[..., 1].exp())


def _pairs(x: Tensor, heads: int, pairs: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The two dimensions of every pair, float32 [B, S, H, G, N] each, of x [B, S, H * G, D]."""
    turned = x[..., : 2 * pairs].float().unflatten(2, (heads, x.shape[2] // heads))
    a, b = turned.unflatten(-1, (pairs, 2)).unbind(-1) if interleaved else turned.chunk(2, dim=-1)
    return a, b


class _FloatRotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, positions: Tensor, table: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        turned = rotate_per_head(q, k, positions, steps_of(table), layout, 2)
        ctx.save_for_backward(positions, table, *turned)
        ctx.layout = layout
        return turned

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        positions, table, *turned = ctx.saved_tensors
        layout: Layout = ctx.layout
        heads, pairs = table.shape[:2]
        by_table = torch.zeros_like(table)
        for out, grad in zip(turned, grads, strict=True):
            for start in range(0, out.shape[1], TOKENS):
                part = slice(start, start + TOKENS)
                a, b = _pairs(out[:, part], heads, pairs, layout.interleaved)
                by_a, by_b = _pairs(grad[:, part], heads, pairs, layout.interleaved)
                crossed = (by_b * a - by_a * b).sum(dim=3).double()
                at = positions[:, part].expand(len(out), -1)
                by_table[..., 0] += torch.einsum("bs,bshn->hn", at.double(), crossed)
                by_table[..., 1] += (by_a * a + by_b * b).sum(dim=(0, 1, 3)).double()
        by_table[..., 0] *= table[..., 0].exp() * layout.direction
        with torch.no_grad():
            back = Layout(layout.interleaved, -layout.direction)
            by_q, by_k = rotate_per_head(grads[0], grads[1], positions, steps_of(table), back, 2)
        return by_q, by_k, None, by_table, None


def rotate_by_table(
    q: Tensor, k: Tensor, positions: Tensor, table: Tensor, layout: Layout, head_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """`rotate_per_head` by one layer's float table, with gradients by it.

    Parameters
    ----------
    q, k, layout, head_dim
        As there.
    positions
        int64 [B or 1, S].
    table
        float64 [H, N, 2], from `float_table`.
    """
    if head_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    turned = _FloatRotation.apply(q, k, positions, table, layout)
    return (turned[0].transpose(1, 2), turned[1].transpose(1, 2)) if head_dim == 1 else turned
