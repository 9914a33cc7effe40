"""The rotation from its definition, in float64: what ours and the kernel are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def rotate_in_float64(
    x: torch.Tensor,
    position_ids: torch.Tensor,
    bases: list[float],
    pairs: int,
    *,
    interleaved: bool = False,
    direction: int = 1,
    factor: float = 1.0,
) -> torch.Tensor:
    """x [B, S, heads, D], by angles position * base^(-i / pairs) that are formed as they are written;
    differentiable."""
    x = x.double()
    frequencies = torch.tensor([[base ** (-i / pairs) for i in range(pairs)] for base in bases], dtype=torch.float64)
    frequencies = frequencies.repeat_interleave(x.shape[2] // len(bases), 0)
    angle = position_ids.cpu()[:, :, None, None].double() * frequencies * direction
    cos, sin = (factor * angle.cos()).to(x.device), (factor * angle.sin()).to(x.device)
    if interleaved:
        a, b = x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, x[..., 2 * pairs :]], -1)


@pytest.fixture(scope="session")
def reference() -> Callable[..., Any]:
    return rotate_in_float64
