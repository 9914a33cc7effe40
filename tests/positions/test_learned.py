"""Rotation with gradients by frequencies: against plain autograd in float64, in every layout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harpe.positions.learned import float_table, rotate_by_table, steps_of
from harpe.positions.phases import phase_steps, with_factor
from harpe.positions.rotation import Layout, rotate_per_head

LAYOUTS = [Layout(interleaved, direction) for interleaved in (False, True) for direction in (1, -1)]


def naive(x: Tensor, positions: Tensor, logs: Tensor, log_factors: Tensor, layout: Layout) -> Tensor:
    """Rotation of x [B, H * G, S, D] in float64, by cos and sin of m theta."""
    heads, pairs = logs.shape
    phase = positions.double()[:, None, :, None] * logs.exp()[None, :, None, :]
    cos, sin = (each * log_factors.exp()[None, :, None, None] for each in (phase.cos(), phase.sin() * layout.direction))
    cos, sin = (each.repeat_interleave(x.shape[1] // heads, dim=1) for each in (cos, sin))
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if layout.interleaved else turned.chunk(2, dim=-1)
    pair = (a * cos - b * sin, b * cos + a * sin)
    joined = torch.stack(pair, dim=-1).flatten(-2) if layout.interleaved else torch.cat(pair, dim=-1)
    return torch.cat((joined, rest), dim=-1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("start", [0, 1_000_000])
def test_outputs_and_gradients_are_those_of_plain_autograd_in_float64(layout: Layout, start: int) -> None:
    generator = torch.Generator().manual_seed(1)
    heads, pairs, tokens = 2, 6, 37

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = random(2, 3 * heads, tokens, 2 * pairs + 4), random(2, heads, tokens, 2 * pairs + 4)
    logs = (-torch.arange(pairs, dtype=torch.float64) * 1.3 + 0.2 * random(heads, pairs)).requires_grad_()
    log_factors = (0.2 * random(heads)).requires_grad_()
    positions = start + torch.stack((torch.arange(tokens), 3 * torch.arange(tokens)))
    weights = random(*q.shape), random(*k.shape)
    q.requires_grad_(), k.requires_grad_()
    inputs = (q, k, logs, log_factors)

    wanted_out = [naive(x, positions, logs, log_factors, layout) for x in (q, k)]
    wanted = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, wanted_out, strict=True)), inputs)
    found_out = rotate_by_table(q, k, positions, float_table(logs, log_factors), layout)
    found = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, found_out, strict=True)), inputs)
    for one, other in zip((*found_out, *found), (*wanted_out, *wanted), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6 * float(other.abs().max()))


def test_the_forward_is_that_of_the_table_of_integers_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(2)
    logs = torch.randn(3, 8, generator=generator, dtype=torch.float64) - 3
    logs[0, 0], logs[1, 3] = math.log(5.0), -math.inf  # more than half a turn a position, and a pair that stays
    log_factors = torch.tensor([0.0, 0.1, -0.2], dtype=torch.float64)
    table = float_table(logs, log_factors)
    integers = with_factor(torch.tensor(phase_steps(logs.exp().tolist())), log_factors.exp()[:, None])
    assert torch.equal(steps_of(table), integers)
    q, k = (torch.randn(1, n, 50, 16, generator=generator) for n in (6, 3))
    positions = torch.randint(0, 2_000_000, (1, 50), generator=generator)
    found = rotate_by_table(q, k, positions, table, Layout())
    wanted = rotate_per_head(q, k, positions, integers, Layout())
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_a_pair_that_does_not_turn_keeps_a_gradient_of_nothing() -> None:
    logs: Any = torch.tensor([[0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    q, k = (torch.randn(1, 1, 9, 4) for _ in range(2))
    turned = rotate_by_table(q, k, torch.arange(9)[None], float_table(logs, torch.zeros(1)), Layout())
    (turned[0].sum() + turned[1].sum()).backward()
    assert logs.grad[0, 1] == 0 and logs.grad[0, 0] != 0
