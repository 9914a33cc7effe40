"""Rotating q and k by one RoPE base per key/value head, without tables of cos and sin.

Positions reach the layers as two integer tensors, the positions themselves and the *steps*: how far each pair of dimensions turns
from one position to the next, in units of 2**-64 of a full turn. Their product wraps around at 2**64, which is exactly what a turn
does, so the angle is right at every position an int64 can hold: its error is the rounding of one float32 angle in -pi..pi (below
5e-7), not that of a large product. Integers are also what survives `model.to(bfloat16)`, autocast and FSDP's casting of inputs.
cos and sin of a long sequence (gigabytes at 128k tokens and 32 heads) exist for one tile of tokens at a time.

RoPE: Su et al. 2021, arXiv 2104.09864. One base per head: Lian et al. 2024 (HARPE), arXiv 2412.07171.

Shapes: B batch, S positions, H key/value heads, D head dimension, N pairs that turn (2 N <= D: partial rotary leaves the rest).

This file needs torch and nothing else: an exported checkpoint carries it as it stands.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

RADIANS = 2 * math.pi / 2**64
"""Radians in one unit of a phase."""
TILE = 2**20
"""Elements of q and k that every thread of a CPU works on at a time: more would leave its core's cache, fewer be too little work for an
operation (8 to 16 MiB of temporaries a thread)."""
MOST_THREADS = 8
"""Threads that tiles are made larger for, which bounds the temporaries."""
TILE_ON_DEVICES = 2**24
"""The same where no kernel is at hand for an accelerator: its launches are what takes time there (150 MiB of temporaries)."""
FINE = 128
"""Consecutive tokens whose cos and sin are formed from those of the first on a CPU, where trigonometry takes longer than all else."""
HELD_ANGLES = 2**20
"""Up to this many angles, cos and sin (12 MiB) are formed once for all layers."""

KERNEL: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None
"""A fused kernel for CUDA tensors, where one is installed (`harpe.positions.rotation_triton`)."""


class _Scratch(threading.local):
    """Memory that a thread keeps for its tiles: page faults of a fresh allocation cost more than the work that is done in it."""

    memory: torch.Tensor | None = None

    def take(self, rows: int, size: int) -> torch.Tensor:
        """float32 [rows, size] on the CPU, uninitialised, good until the next call."""
        if self.memory is None or self.memory.numel() < rows * size:
            with torch.inference_mode(False):  # else it could not be written to outside of it
                self.memory = torch.empty(rows * size, dtype=torch.float32, device="cpu")
        return self.memory[: rows * size].view(rows, size)


_SCRATCH = _Scratch()


class Layout(NamedTuple):
    """How a model family pairs up the dimensions of a head."""

    interleaved: bool = False
    """True: pair i is dimensions 2i and 2i + 1. False: i and i + N, as in transformers' Llama."""
    direction: int = 1
    """1: pair (a, b) becomes (a cos - b sin, b cos + a sin). -1: it turns the other way round."""


def base_frequencies(bases: Sequence[float], rotary_dim: int) -> list[list[float]]:
    """Inverse frequencies b_h^(-2i/D) in radians a position, i = 0 .. D/2 - 1: a row for every base, in float64."""
    return [[float(base) ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)] for base in bases]


def phase_steps(frequencies: Sequence[Sequence[float]]) -> list[list[int]]:
    """Steps of inverse frequencies in radians a position: rows of integers, to be made an int64 tensor."""
    rows = [[round(value / (2 * math.pi) % 1.0 * 2**64) for value in row] for row in frequencies]
    return [[step - 2**64 if step >= 2**63 else step for step in row] for row in rows]


def with_factor(steps: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """int64 [..., H, N, 2]: steps [..., H, N] beside an attention factor that cos and sin are multiplied by (its float64 bits)."""
    bits = torch.as_tensor(factor, dtype=torch.float64, device=steps.device).view(torch.int64)
    return torch.stack((steps, bits.expand_as(steps)), dim=-1)


def _trigonometry(position_ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [B, S, H, N], each from its angle."""
    steps = table if table.dim() == 2 else table[..., 0]
    angle = (position_ids[:, :, None, None] * steps).to(torch.float32) * RADIANS
    cos, sin = angle.cos(), angle.sin()
    if table.dim() == 3:
        factor = table[..., 1].contiguous().view(torch.float64).to(torch.float32)
        cos, sin = cos * factor, sin * factor
    return cos, sin


def _sum_of_angles(
    coarse: tuple[torch.Tensor, torch.Tensor], fine: tuple[torch.Tensor, torch.Tensor], space: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the sums of two sets of angles, from those of both; in `space`, float32 [2, at least so many], where it is given."""
    (cos, sin), (fine_cos, fine_sin) = coarse, fine
    if space is None:
        return (cos * fine_cos).addcmul_(sin, fine_sin, value=-1), (sin * fine_cos).addcmul_(cos, fine_sin)
    shape = torch.broadcast_shapes(cos.shape, fine_cos.shape)
    of_cos, of_sin = space[:, : math.prod(shape)].view(2, *shape)
    torch.mul(cos, fine_cos, out=of_cos).addcmul_(sin, fine_sin, value=-1)
    torch.mul(sin, fine_cos, out=of_sin).addcmul_(cos, fine_sin)
    return of_cos, of_sin


def cos_and_sin(position_ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [B, S, H, N], for positions int64 [B, S] and steps int64 [H, N] or [H, N, 2] (with an attention factor).

    On a CPU they are formed from those of the last multiple of `FINE` and those of the rest, as in `_tiles`, so that a token
    has the same bits in a long text and alone. Largest error there 6e-7, elsewhere 3e-7.
    """
    if position_ids.device.type != "cpu":
        return _trigonometry(position_ids, table)
    rest = position_ids & (FINE - 1)
    if table.dim() == 3:
        return _sum_of_angles(_trigonometry(position_ids - rest, table), _trigonometry(rest, table[..., 0]))
    cos, sin = _trigonometry(torch.stack((position_ids - rest, rest)).flatten(0, 1), table)  # at once: few operations while decoding
    (cos, fine_cos), (sin, fine_sin) = cos.chunk(2), sin.chunk(2)
    return _sum_of_angles((cos, sin), (fine_cos, fine_sin))


def encode_positions(position_ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layers get in place of cos and sin.

    Parameters
    ----------
    position_ids
        int64 [B, S], any values.
    table
        int64 [H, N], [H, N, 2] or, with rows for every layer, [L, H, N, 2], on the same device.

    Returns
    -------
    The bits of cos and sin as `hold` gives them, where they are few and no kernel forms them on the fly; else positions and table.
    """
    if position_ids.dim() != 2 or position_ids.is_floating_point():
        raise ValueError(f"position_ids must be integers [batch, positions]; they are {position_ids.dtype} {list(position_ids.shape)}.")
    position_ids = position_ids.to(torch.int64)
    few = position_ids.shape[0] * position_ids.shape[1] * table.shape[0] * table.shape[1] <= HELD_ANGLES
    if table.dim() == 4 or not few or (KERNEL is not None and position_ids.is_cuda and not torch.compiler.is_compiling()):
        return position_ids, table
    return hold(*cos_and_sin(position_ids, table))


def hold(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair that stands for cos and sin [B, S, H, N]: their bits, int32 [B, S, H, N] and [B, S, H, 2, N], of -sin and sin."""
    return cos.view(torch.int32), torch.stack((-sin, sin), dim=-2).view(torch.int32)


def is_per_head(cos: Any) -> bool:
    """Whether `cos` is the first half of a pair that `encode_positions` made."""
    return isinstance(cos, torch.Tensor) and not cos.is_floating_point() and not cos.is_complex()


def of_layer(first: torch.Tensor, second: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair with the table of one layer, where there is one for every layer (int64 [L, H, N, 2])."""
    return (first, second[layer]) if first.dtype == torch.int64 and second.dim() == 4 else (first, second)


def of_heads(first: torch.Tensor, second: torch.Tensor, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair for the key/value heads that tensor-parallel rank `rank` of `size` holds."""
    if first.dtype == torch.int64:
        count = second.shape[0] // size
        return first, second[rank * count : (rank + 1) * count]
    count = first.shape[2] // size
    return first[:, :, rank * count : (rank + 1) * count], second[:, :, rank * count : (rank + 1) * count]


def _turn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axis: int, direction: int, out: torch.Tensor, space: torch.Tensor | None
) -> None:
    """Rotate x [B, S, H * G, D] into `out` of the same shape; the G heads of a group share cos and sin [B or 1, S, H, 1, N].

    The two dimensions of a pair lie along `axis` once D is taken apart: -2, (2, N), half-split; -1, (N, 2), interleaved. `space`,
    float32 [2, at least as many elements as x], holds what is not float32 while it is worked on.
    """
    heads, pairs = sin.shape[2:]
    if x.shape[3] > 2 * pairs:
        out[..., 2 * pairs :] = x[..., 2 * pairs :]
        x, out = x[..., : 2 * pairs], out[..., : 2 * pairs]
    apart = (*x.shape[:2], heads, x.shape[2] // heads, *((2, pairs) if axis == -2 else (pairs, 2)))
    source, target = x.view(apart), out.view(apart)
    turned = target
    if space is not None:
        source, turned = space[0, : x.numel()].view(apart).copy_(source), space[1, : x.numel()].view(apart)
    for one, turned_one in zip(source.unbind(3), turned.unbind(3), strict=True):
        (a, b), (turned_a, turned_b) = one.unbind(axis), turned_one.unbind(axis)
        torch.mul(a, cos, out=turned_a).addcmul_(b, sin, value=-direction)
        torch.mul(b, cos, out=turned_b).addcmul_(a, sin, value=direction)
    if space is not None:
        target.copy_(turned)


def _turn_one(x: torch.Tensor, cos: torch.Tensor, sins: torch.Tensor, axis: int) -> torch.Tensor:
    """What `_turn` does, for one token and in as few operations as possible; their number is what takes time while decoding.

    x [B, H * G, 1, D] or [B, 1, H * G, D]; cos [B or 1, H, 1, 1, N] and (-sin, sin) [B or 1, H, 1, 2, N], or with the last two axes
    swapped where `axis` is -1.
    """
    batch, one, other, dim = x.shape
    heads, rotary = cos.shape[1], sins.shape[3] * sins.shape[4]
    if dim > rotary:
        return torch.cat((_turn_one(x[..., :rotary], cos, sins, axis), x[..., rotary:]), -1)
    exact = x.dtype == torch.float32
    source = (x if exact else x.float()).view(batch, heads, one * other // heads, sins.shape[3], sins.shape[4])
    turned = torch.addcmul(source * cos, source.flip(axis), sins).view(batch, one, other, dim)
    return turned if exact else turned.type(x.dtype)


def _rotate_one(
    q: torch.Tensor, k: torch.Tensor, first: torch.Tensor, second: torch.Tensor, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated copies of one token's q and k, for a pair that `hold` made."""
    batch, _, heads, pairs = first.shape
    cos, sins = first.view(torch.float32).view(batch, heads, 1, 1, pairs), second.view(torch.float32).view(batch, heads, 1, 2, pairs)
    if layout.direction < 0:
        sins = -sins
    if not layout.interleaved:
        return _turn_one(q, cos, sins, -2), _turn_one(k, cos, sins, -2)
    cos, sins = cos.transpose(3, 4), sins.transpose(3, 4)
    return _turn_one(q, cos, sins, -1), _turn_one(k, cos, sins, -1)


def _runs(positions: torch.Tensor, tokens: int) -> list[tuple[int, int]]:
    """Cuts a row of positions, int64 [S], into pieces that count up by one: at most `tokens` long, and either within `FINE` positions
    from a multiple of it or whole such stretches. Empty where the positions jump too often for that to pay."""
    length = positions.shape[0]
    jumps = (positions.diff() != 1).nonzero()[:, 0].add(1).tolist()
    if len(jumps) > length // 32:
        return []
    runs = []
    for start, end in zip([0, *jumps], [*jumps, length], strict=True):
        past = int(positions[start]) % FINE
        while start < end:
            whole = 0 if past else min(tokens, end - start) // FINE * FINE
            count = whole or min(tokens, FINE - past, end - start)
            runs.append((start, start + count))
            start, past = start + count, (past + count) % FINE
    return runs


def _tiles(
    first: torch.Tensor, second: torch.Tensor, tokens: int, space: torch.Tensor, runs: list[tuple[int, int]]
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """The tokens of every tile, and their cos and sin [B or 1, s, H, N], for a pair of which `tokens` tokens are one tile.

    `runs` cuts a single row of positions as `_runs` does; where it is empty, every token's angles are formed for themselves. `space`,
    float32 [2, at least the angles of a tile], holds what is yielded of runs.
    """
    length = first.shape[1]
    plain = [slice(start, start + tokens) for start in range(0, length, tokens)]
    if first.dtype == torch.int32:
        for part in plain:
            yield part, first[:, part].view(torch.float32), second[:, part, :, 1].view(torch.float32)
        return
    if not runs:
        for part in plain:
            yield part, *cos_and_sin(first[:, part], second)
        return
    steps = second if second.dim() == 2 else second[..., 0]
    fine = _trigonometry(torch.arange(FINE, device=first.device)[None], steps)
    for start, end in runs:
        anchors = first[:1, start:end:FINE]
        past, count = int(anchors[0, 0]) % FINE, min(FINE, end - start)
        coarse = _trigonometry(anchors - past, second)
        stretch = slice(past, past + count)
        cos, sin = _sum_of_angles((coarse[0].transpose(0, 1), coarse[1].transpose(0, 1)), (fine[0][:, stretch], fine[1][:, stretch]), space)
        yield slice(start, end), cos.flatten(0, 1)[None], sin.flatten(0, 1)[None]


def _rotate_tiles(
    q: torch.Tensor, k: torch.Tensor, first: torch.Tensor, second: torch.Tensor, interleaved: bool, direction: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated copies of q [B, S, H_q, D] and k [B, S, H_k, D], tile by tile of tokens."""
    axis = -1 if interleaved else -2
    held, batch = first.dtype == torch.int32, q.shape[0]
    real = q.device.type == "cpu" and type(first) is torch.Tensor  # not a stand-in without data, nor one that traces
    long = real and not held and q.shape[1] >= 2 * FINE
    rows = [slice(0, batch)]
    if long and first.shape[0] > 1 and bool((first != first[:1]).any()):
        rows = [slice(row, row + 1) for row in range(batch)]
    token = rows[0].stop * q.shape[3]  # elements of one head's token
    tile = TILE * min(torch.get_num_threads(), MOST_THREADS) if real else TILE_ON_DEVICES
    tokens = max(1, min(q.shape[1], tile // max(1, token * (q.shape[2] + k.shape[2]))))
    shape = (4, tokens * token * max(q.shape[2], k.shape[2]))  # two rows for q or k, two for angles, of which there are half as many
    space = _SCRATCH.take(*shape) if real else torch.empty(shape, dtype=torch.float32, device=q.device)
    out_q, out_k = torch.empty_like(q), torch.empty_like(k)
    for row in rows:
        runs = _runs(first[row][0], tokens) if long else []
        for part, cos, sin in _tiles(first[row], second[row] if held else second, tokens, space[2:], runs):
            for x, out in ((q, out_q), (k, out_k)):
                _turn(x[row, part], cos, sin, axis, direction, out[row, part], None if x.dtype == torch.float32 else space[:2])
    return out_q, out_k


def _rotate(
    q: torch.Tensor, k: torch.Tensor, first: torch.Tensor, second: torch.Tensor, interleaved: bool, direction: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if KERNEL is not None and q.is_cuda and first.dtype == torch.int64:
        return KERNEL(q, k, first, second, interleaved, direction)
    return _rotate_tiles(q, k, first, second, interleaved, direction)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: nothing but positions and table is kept for it."""

    @staticmethod
    def forward(
        q: torch.Tensor, k: torch.Tensor, first: torch.Tensor, second: torch.Tensor, interleaved: bool, direction: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _rotate(q, k, first, second, interleaved, direction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, first, second, ctx.interleaved, ctx.direction = inputs
        ctx.save_for_backward(first, second)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k = _Rotation.apply(*grads, *ctx.saved_tensors, ctx.interleaved, -ctx.direction)
        return q, k, None, None, None, None


# Compiled graphs call the tiles as one operator: traced through, cos and sin of all positions would be kept for the next layer.
@torch.library.custom_op("harpe::rotate", mutates_args=())
def _operator(
    q: torch.Tensor, k: torch.Tensor, first: torch.Tensor, second: torch.Tensor, interleaved: bool, direction: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return _rotate(q, k, first, second, interleaved, direction)


@_operator.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, first: torch.Tensor, second: torch.Tensor, interleaved: bool, direction: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


def _operator_backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q, k = _operator(*grads, *ctx.saved_tensors, ctx.interleaved, -ctx.direction)
    return q, k, None, None, None, None


_operator.register_autograd(_operator_backward, setup_context=_Rotation.setup_context)


def _rotate_traced(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, direction: int) -> torch.Tensor:
    """The same rotation of x [B, S, H * G, D] in operations that a compiler fuses."""
    heads, pairs = cos.shape[2:]
    grouped = x.unflatten(2, (heads, x.shape[2] // heads)).float()
    cos, sin = cos.unsqueeze(3), sin.unsqueeze(3) * direction
    turned, rest = grouped[..., : 2 * pairs], grouped[..., 2 * pairs :]
    a, b = turned.unflatten(-1, (pairs, 2)).unbind(-1) if interleaved else turned.chunk(2, dim=-1)
    pair = (a * cos - b * sin, b * cos + a * sin)
    joined = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat((joined, rest), dim=-1).flatten(2, 3).to(x.dtype)


def rotate_per_head(
    q: torch.Tensor, k: torch.Tensor, first: torch.Tensor, second: torch.Tensor, layout: Layout, head_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q and k by the bases of their key/value heads; the first 2 N dimensions turn, the others stay.

    Parameters
    ----------
    q, k
        [B, H_q, S, D] and [B, H_k, S, D], or with heads and positions swapped (`head_dim` 2). Any floating dtype: the arithmetic is
        float32, and each is returned in its own. H_q and H_k are multiples of H; the heads of a group share a base.
    first, second
        From `encode_positions`, for the H heads that are present.
    """
    if first.dtype == torch.int64 and second.dim() == 4:
        raise ValueError("Bases differ by layer, and this attention was not given the row of its layer: its forward is not harpe's.")
    heads = first.shape[2] if first.dtype == torch.int32 else second.shape[0]
    if k.shape[head_dim] % heads or q.shape[head_dim] % heads:
        raise ValueError(
            f"There are RoPE bases for {heads} key/value heads, but this layer has {k.shape[head_dim]} (and {q.shape[head_dim]} query "
            "heads): the configuration does not belong to these weights, or the heads were split in an unknown way."
        )
    compiling = torch.compiler.is_compiling()
    if q.shape[3 - head_dim] == 1 and not compiling and not torch.is_grad_enabled() and (KERNEL is None or not q.is_cuda):
        pair = (first, second) if first.dtype == torch.int32 else hold(*cos_and_sin(first, second))
        return _rotate_one(q, k, *pair, layout)
    if head_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    interleaved, direction = layout
    if not compiling:
        turn = _Rotation.apply if torch.is_grad_enabled() else _rotate
        q, k = turn(q, k, first, second, interleaved, direction)
    elif first.dtype == torch.int64:
        q, k = _operator(q, k, first, second, interleaved, direction)
    else:
        cos, sin = first.view(torch.float32), second[..., 1, :].view(torch.float32)
        q, k = (_rotate_traced(x, cos, sin, interleaved, direction) for x in (q, k))
    return (q.transpose(1, 2), k.transpose(1, 2)) if head_dim == 1 else (q, k)
