"""Rotating q and k by one RoPE base per key/value head, without tables of cos and sin.

cos and sin of a long sequence would take gigabytes (128k tokens, 32 heads). Beyond `HELD_ANGLES` angles the layers
get positions and steps instead (`harpe.positions.phases`), and cos and sin exist for one tile of tokens at a time.

RoPE: Su et al. 2021, arXiv 2104.09864. One base per head: Lian et al. 2024 (HARPE), arXiv 2412.07171.

Shapes: B batch, S positions, H key/value heads, D head dimension, N pairs that turn (2 N <= D: partial rotary leaves
the rest). `first` and `second` are the pair of `encode_positions`.

This file needs torch and `phases.py`: an exported checkpoint carries it as it stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harpe.positions.phases import (
    FINE,
    CosSin,
    Phases,
    TwoTensors,
    cos_and_sin,
    decode,
    hold,
    query_scale,
    sum_of_angles,
    trigonometry,
)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, bool, int], TwoTensors]

TILE = 2**20
"""Elements of q and k that every thread of a CPU works on at a time: more would leave its core's cache, fewer be too
little work for an operation (8 to 16 MiB of temporaries a thread)."""
MOST_THREADS = 8
"""Threads that tiles are made larger for, which bounds the temporaries."""
TILE_ON_DEVICES = 2**24
"""Elements of a tile on an accelerator without a kernel, where launches take the time (150 MiB of temporaries)."""
HELD_ANGLES = 2**20
"""Up to this many angles, cos and sin (12 MiB) are formed once for all layers."""

_kernel: Kernel | None = None


def use_kernel(kernel: Kernel | None) -> Kernel | None:
    """From now on rotate CUDA tensors by `kernel` (that of `harpe.positions.rotation_triton`); None: by torch alone.

    Returns the kernel that was in use before.
    """
    global _kernel
    before, _kernel = _kernel, kernel
    return before


class _Scratch(threading.local):
    """Memory that a thread keeps for its tiles: a fresh allocation's page faults cost more than the work done in it."""

    memory: Tensor | None = None

    def take(self, rows: int, size: int) -> Tensor:
        """float32 [rows, size] on the CPU, uninitialised, good until the next call."""
        if self.memory is None or self.memory.numel() < rows * size:
            with torch.inference_mode(False):  # else it could not be written to outside of it
                self.memory = torch.empty(rows * size, dtype=torch.float32, device="cpu")
        return self.memory[: rows * size].view(rows, size)


_scratch = _Scratch()


def free_scratch() -> int:
    """Give back the memory that this thread keeps for its tiles, and return how many bytes it was."""
    kept, _scratch.memory = _scratch.memory, None
    return 0 if kept is None else kept.nbytes


class Layout(NamedTuple):
    """How a model family pairs up the dimensions of a head."""

    interleaved: bool = False
    """True: pair i is dimensions 2i and 2i + 1. False: i and i + N, as in transformers' Llama."""
    direction: int = 1
    """1: pair (a, b) becomes (a cos - b sin, b cos + a sin). -1: it turns the other way round."""


def encode_positions(position_ids: Tensor, table: Tensor) -> TwoTensors:
    """What the layers get in place of cos and sin.

    Parameters
    ----------
    position_ids
        int64 [B, S], any values.
    table
        int64 [H, N], [H, N, 2 or 4] or, with rows for every layer, [L, H, N, 2 or 4], on the same device.

    Returns
    -------
    The pair of `CosSin` where the angles are few and no kernel forms them on the fly; else that of `Phases`.
    """
    if position_ids.dim() != 2 or position_ids.is_floating_point():
        found = f"{position_ids.dtype} {list(position_ids.shape)}"
        raise ValueError(f"position_ids must be integers [batch, positions]; they are {found}.")
    position_ids = position_ids.to(torch.int64)
    few = position_ids.shape[0] * position_ids.shape[1] * table.shape[0] * table.shape[1] <= HELD_ANGLES
    fused = _kernel is not None and position_ids.is_cuda and not torch.compiler.is_compiling()
    if table.dim() == 4 or not few or fused:
        return position_ids, table
    return hold(*cos_and_sin(position_ids, table), query_scale(position_ids, table))


def _turn(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    axis: int,
    direction: int,
    out: Tensor,
    space: Tensor | None,
    scale: Tensor | None,
) -> None:
    """Rotate x [B, S, H * G, D] into `out` of the same shape; G heads of a group share cos and sin [B or 1, S, H, N].

    The two dimensions of a pair lie along `axis` once D is taken apart: -2 if it becomes (2, N), half-split; -1 if
    (N, 2), interleaved. `space`, float32 [2, at least as many elements as x], is where x of another dtype is
    worked on; None where x is float32. `scale`, float32 [B or 1, S, H], is in cos and sin already; the dimensions that
    do not turn are multiplied by it.
    """
    heads, pairs = sin.shape[2:]
    if x.shape[3] > 2 * pairs:
        rest = x[..., 2 * pairs :]
        if scale is not None:
            rest = (rest.unflatten(2, (heads, -1)) * scale[..., None, None]).flatten(2, 3)
        out[..., 2 * pairs :] = rest
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


def _turn_one(x: Tensor, cos: Tensor, sins: Tensor, axis: int, scale: Tensor | None = None) -> Tensor:
    """What `_turn` does, for one token and in few operations: while decoding, their number is what takes time.

    x [B, H * G, 1, D] or [B, 1, H * G, D]; cos [B or 1, H, 1, 1, N] and (-sin, sin) [B or 1, H, 1, 2, N], or with the
    last two axes swapped where `axis` is -1; scale [B or 1, H, 1, 1] as in `_turn`.
    """
    batch, one, other, dim = x.shape
    heads, rotary = cos.shape[1], sins.shape[3] * sins.shape[4]
    if dim > rotary:
        rest = x[..., rotary:]
        if scale is not None:
            rest = (rest.reshape(batch, heads, -1, dim - rotary) * scale).to(x.dtype).view(batch, one, other, -1)
        return torch.cat((_turn_one(x[..., :rotary], cos, sins, axis), rest), -1)
    exact = x.dtype == torch.float32
    source = (x if exact else x.float()).view(batch, heads, one * other // heads, sins.shape[3], sins.shape[4])
    turned = torch.addcmul(source * cos, source.flip(axis), sins).view(batch, one, other, dim)
    return turned if exact else turned.type(x.dtype)


def _rotate_one(q: Tensor, k: Tensor, held: CosSin, layout: Layout) -> TwoTensors:
    """Rotated copies of one token's q and k."""
    batch, _, heads, pairs = held.cos_bits.shape
    cos = held.cos().view(batch, heads, 1, 1, pairs)
    sins, scale = held.sins().view(batch, heads, 1, 2, pairs), held.query_scale()
    if layout.direction < 0:
        sins = -sins
    axis = -1 if layout.interleaved else -2
    if layout.interleaved:
        cos, sins = cos.transpose(3, 4), sins.transpose(3, 4)
    turned = _turn_one(k, cos, sins, axis)
    if scale is not None:
        scale = scale.view(batch, heads, 1, 1)
        cos, sins = cos * scale[..., None], sins * scale[..., None]
    return _turn_one(q, cos, sins, axis, scale), turned


class TilePlan(NamedTuple):
    """How q and k are cut into tiles."""

    rows: list[slice]
    """Parts of the batch, one after the other: all of it at once, or row by row where positions differ between rows."""
    tokens: int
    """Tokens of a tile."""
    find_runs: bool
    """Whether to look for runs of consecutive positions."""
    space: Tensor
    """float32 [4, elements of q or k in a tile]: two rows for q or k, two for angles, which are half as many."""


def _plan_tiles(q: Tensor, k: Tensor, angles: Phases | CosSin) -> TilePlan:
    batch, length, dim = q.shape[0], q.shape[1], q.shape[3]
    real = q.device.type == "cpu" and type(angles[0]) is Tensor  # not a stand-in without data, nor one that traces
    rows, find_runs = [slice(0, batch)], False
    if real and isinstance(angles, Phases) and length >= 2 * FINE:
        positions, find_runs = angles.positions, True
        if positions.shape[0] > 1 and bool((positions != positions[:1]).any()):
            rows = [slice(row, row + 1) for row in range(batch)]
    elements = TILE * min(torch.get_num_threads(), MOST_THREADS) if real else TILE_ON_DEVICES
    head = rows[0].stop * dim  # elements of one head at one position
    tokens = max(1, min(length, elements // max(1, head * (q.shape[2] + k.shape[2]))))
    size = tokens * head * max(q.shape[2], k.shape[2])
    space = _scratch.take(4, size) if real else torch.empty((4, size), dtype=torch.float32, device=q.device)
    return TilePlan(rows, tokens, find_runs, space)


def _runs(positions: Tensor, tokens: int) -> list[tuple[int, int]]:
    """Cuts a row of positions, int64 [S], into pieces (start, end) that count up by one.

    A piece has at most `tokens` tokens, and either lies between two multiples of `FINE` or is whole such stretches.
    Empty where the positions jump too often for that to pay.
    """
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


def _tiles(angles: Phases | CosSin, plan: TilePlan) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The tokens of every tile, and their cos and sin [B or 1, s, H, N], which are good until the next tile."""
    parts = [slice(start, start + plan.tokens) for start in range(0, angles[0].shape[1], plan.tokens)]
    if isinstance(angles, CosSin):
        cos, sin = angles.cos(), angles.sin()
        yield from ((part, cos[:, part], sin[:, part]) for part in parts)
        return
    positions, table = angles
    runs = _runs(positions[0], plan.tokens) if plan.find_runs else []
    if not runs:
        yield from ((part, *cos_and_sin(positions[:, part], table)) for part in parts)
        return
    steps = table if table.dim() == 2 else table[..., 0]
    fine_cos, fine_sin = trigonometry(torch.arange(FINE, device=positions.device)[None], steps)
    for start, end in runs:
        anchors = positions[:1, start:end:FINE]
        past = int(anchors[0, 0]) % FINE
        within = slice(past, past + min(FINE, end - start))
        coarse_cos, coarse_sin = (x.transpose(0, 1) for x in trigonometry(anchors - past, table))
        fine = fine_cos[:, within], fine_sin[:, within]
        cos, sin = sum_of_angles((coarse_cos, coarse_sin), fine, plan.space[2:])
        yield slice(start, end), cos.flatten(0, 1)[None], sin.flatten(0, 1)[None]


def _rotate_tiles(q: Tensor, k: Tensor, angles: Phases | CosSin, layout: Layout) -> TwoTensors:
    """Rotated copies of q [B, S, H_q, D] and k [B, S, H_k, D], tile by tile of tokens."""
    plan, axis = _plan_tiles(q, k, angles), -1 if layout.interleaved else -2
    out_q, out_k = torch.empty_like(q), torch.empty_like(k)
    for row in plan.rows:
        own = angles.of_rows(row)
        for part, cos, sin in _tiles(own, plan):
            for x, out, by in ((k, out_k, None), (q, out_q, own.query_scale(part))):
                if by is not None:
                    cos, sin = cos * by[..., None], sin * by[..., None]
                space = None if x.dtype == torch.float32 else plan.space[:2]
                _turn(x[row, part], cos, sin, axis, layout.direction, out[row, part], space, by)
    return out_q, out_k


def _rotate(q: Tensor, k: Tensor, first: Tensor, second: Tensor, interleaved: bool, direction: int) -> TwoTensors:
    """As `_rotate_tiles`, or by the kernel in use; in the plain types that torch's graphs and operators take."""
    angles = decode(first, second)
    if _kernel is not None and q.is_cuda and isinstance(angles, Phases):
        return _kernel(q, k, *angles, interleaved, direction)
    return _rotate_tiles(q, k, angles, Layout(interleaved, direction))


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: nothing but positions and table is kept for it."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, first: Tensor, second: Tensor, interleaved: bool, direction: int) -> TwoTensors:
        return _rotate(q, k, first, second, interleaved, direction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, first, second, ctx.interleaved, ctx.direction = inputs
        ctx.save_for_backward(first, second)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k = _Rotation.apply(*grads, *ctx.saved_tensors, ctx.interleaved, -ctx.direction)
        return q, k, None, None, None, None


# Compiled graphs call the tiles as one operator: traced through, cos and sin of all positions would be kept for the
# next layer.
@torch.library.custom_op("harpe::rotate", mutates_args=())
def _operator(q: Tensor, k: Tensor, first: Tensor, second: Tensor, interleaved: bool, direction: int) -> TwoTensors:
    return _rotate(q, k, first, second, interleaved, direction)


@_operator.register_fake
def _(q: Tensor, k: Tensor, first: Tensor, second: Tensor, interleaved: bool, direction: int) -> TwoTensors:
    return torch.empty_like(q), torch.empty_like(k)


def _operator_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    q, k = _operator(*grads, *ctx.saved_tensors, ctx.interleaved, -ctx.direction)
    return q, k, None, None, None, None


_operator.register_autograd(_operator_backward, setup_context=_Rotation.setup_context)


def _rotate_traced(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, scale: Tensor | None = None) -> Tensor:
    """The same rotation of x [B, S, H * G, D] in operations that a compiler fuses, times scale [B, S, H]."""
    heads, pairs = cos.shape[2:]
    grouped = x.unflatten(2, (heads, x.shape[2] // heads)).float()
    grouped = grouped if scale is None else grouped * scale[..., None, None]
    cos, sin = cos.unsqueeze(3), sin.unsqueeze(3) * layout.direction
    turned, rest = grouped[..., : 2 * pairs], grouped[..., 2 * pairs :]
    a, b = turned.unflatten(-1, (pairs, 2)).unbind(-1) if layout.interleaved else turned.chunk(2, dim=-1)
    pair = (a * cos - b * sin, b * cos + a * sin)
    joined = torch.stack(pair, dim=-1).flatten(-2) if layout.interleaved else torch.cat(pair, dim=-1)
    return torch.cat((joined, rest), dim=-1).flatten(2, 3).to(x.dtype)


def rotate_per_head(
    q: Tensor, k: Tensor, first: Tensor, second: Tensor, layout: Layout, head_dim: int = 1
) -> TwoTensors:
    """Rotate q and k by the bases of their key/value heads; the first 2 N dimensions turn, the others stay.

    Parameters
    ----------
    q, k
        [B, H_q, S, D] and [B, H_k, S, D], or with heads and positions swapped (`head_dim` 2). Any floating dtype: the
        arithmetic is float32, and each is returned in its own. H_q and H_k are multiples of H; the heads of a group
        share a base.
    first, second
        From `encode_positions`, for the H heads that are present.
    """
    angles = decode(first, second)
    if isinstance(angles, Phases) and angles.by_layer():
        raise ValueError(
            "Bases differ by layer, and this attention was not given the row of its layer: its forward is not harpe's."
        )
    heads = angles.heads()
    if k.shape[head_dim] % heads or q.shape[head_dim] % heads:
        raise ValueError(
            f"There are RoPE bases for {heads} key/value heads, but this layer has {k.shape[head_dim]} (and "
            f"{q.shape[head_dim]} query heads): the configuration does not belong to these weights, or the heads were "
            "split in an unknown way."
        )
    compiling, grad = torch.compiler.is_compiling(), torch.is_grad_enabled()
    if q.shape[3 - head_dim] == 1 and not compiling and not grad and (_kernel is None or not q.is_cuda):
        held = angles if isinstance(angles, CosSin) else CosSin(*hold(*cos_and_sin(*angles), query_scale(*angles)))
        return _rotate_one(q, k, held, layout)
    if head_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    if not compiling:
        turn = _Rotation.apply if grad else _rotate
        q, k = turn(q, k, first, second, *layout)
    elif isinstance(angles, Phases):
        q, k = _operator(q, k, first, second, *layout)
    else:
        scale = angles.query_scale()
        q, k = (_rotate_traced(x, angles.cos(), angles.sin(), layout, by) for x, by in ((q, scale), (k, None)))
    return (q.transpose(1, 2), k.transpose(1, 2)) if head_dim == 1 else (q, k)
