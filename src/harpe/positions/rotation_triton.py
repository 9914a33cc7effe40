"""The rotation of `harpe.positions.rotation` as one CUDA kernel: q and k of a layer read once, written once, no cos and
sin in memory.

A program takes a block of tokens and one key/value head: it forms cos and sin once and turns with them the query heads
of the group and the key. The formula is the one of `cos_and_sin`, integer phases that wrap around, so positions of any
size are right. The gradient is the same kernel with the direction reversed.

Offsets are int64: q of 131,072 tokens x 32 heads x 512 dimensions has 2**31 elements.

Importing this module imports Triton; `harpe.models.install.install` does so where there is a CUDA device.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton's functions have no Python types: their arguments are pointers, scalars and blocks.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from harpe.positions.phases import RADIANS, has_length_scale

ANGLES = 2048
"""Angles of a program: 16 a thread, few enough that cos, sin and a pair of operands stay in registers."""
PROGRAMS = 256
"""With fewer blocks than this (decoding), the heads of a group go to programs of their own, as the device would
idle."""

_RADIANS = tl.constexpr(RADIANS)


@triton.jit
def _cos_and_sin(phase):
    """cos and sin of an angle int64 in 2**-64 of a turn, float32, within 1.5e-7.

    The nearest quarter turn is taken off as an integer, exactly; what is left, -pi/4 to pi/4, needs short polynomials
    only (those of Moshier's Cephes). The CUDA library's functions are ready for arguments of any size, at the price of
    branches and local memory.
    """
    quarter = (phase + (1 << 61)) >> 62  # -2, -1, 0 or 1
    x = (phase - (quarter << 62)).to(tl.float32) * _RADIANS
    z = x * x
    c = 1.0 - 0.5 * z + z * z * ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2)
    s = x + x * z * ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1)
    odd = (quarter & 1) != 0
    cos, sin = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((quarter + 1) & 2) != 0, -cos, cos), tl.where(quarter < 0, -sin, sin)


# fmt: off
@triton.jit
def _turn_heads(
    x, out, x_rows, out_rows, token, total, cos, sin, scale, head, part, x_head, x_dim, out_head, out_dim,
    group: tl.constexpr, parts: tl.constexpr, dim: tl.constexpr, pairs: tl.constexpr, tokens: tl.constexpr,
    block: tl.constexpr, rest: tl.constexpr, interleaved: tl.constexpr, scaled: tl.constexpr,
):
    # fmt: on
    """Turn the heads of a group: x and out at rows int64 [tokens, 1], by cos and sin float32 [tokens, block]; where
    `scaled`, the dimensions that do not turn are multiplied by scale float32 [tokens, 1], which is in cos and sin."""
    for first in range(0, group, parts):
        member = first + part
        kept = token < tl.where(member < group, total, 0)
        source = x + (x_rows + (head * group + member) * x_head)
        target = out + (out_rows + (head * group + member) * out_head)
        if interleaved:
            dims = tl.arange(0, 2 * block).to(tl.int64)[None, :]
            mask = kept & (dims < 2 * pairs)
            both = tl.load(source + dims * x_dim, mask=mask).to(tl.float32)
            a, b = tl.split(tl.reshape(both, (tokens, block, 2)))
            turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (tokens, 2 * block))
            tl.store(target + dims * out_dim, turned.to(out.dtype.element_ty), mask=mask)
        else:
            dims = tl.arange(0, block).to(tl.int64)[None, :]
            mask = kept & (dims < pairs)
            a = tl.load(source + dims * x_dim, mask=mask).to(tl.float32)
            b = tl.load(source + (dims + pairs) * x_dim, mask=mask).to(tl.float32)
            tl.store(target + dims * out_dim, (a * cos - b * sin).to(out.dtype.element_ty), mask=mask)
            tl.store(target + (dims + pairs) * out_dim, (b * cos + a * sin).to(out.dtype.element_ty), mask=mask)
        if rest:
            dims = 2 * pairs + tl.arange(0, rest).to(tl.int64)[None, :]
            mask = kept & (dims < dim)
            kept_dims = tl.load(source + dims * x_dim, mask=mask)
            if scaled:
                kept_dims = (kept_dims.to(tl.float32) * scale).to(out.dtype.element_ty)
            tl.store(target + dims * out_dim, kept_dims, mask=mask)


# fmt: off
@triton.jit
def _kernel(
    q, k, out_q, out_k, positions, table, length, total,
    q_batch, q_token, q_head, q_dim,
    k_batch, k_token, k_head, k_dim,
    out_q_batch, out_q_token, out_q_head, out_q_dim,
    out_k_batch, out_k_token, out_k_head, out_k_dim,
    position_batch, position_token, table_head, table_pair,
    heads: tl.constexpr, q_group: tl.constexpr, k_group: tl.constexpr, parts: tl.constexpr, dim: tl.constexpr,
    pairs: tl.constexpr, tokens: tl.constexpr, block: tl.constexpr, rest: tl.constexpr, has_factor: tl.constexpr,
    has_scale: tl.constexpr, interleaved: tl.constexpr, direction: tl.constexpr,
):
    # fmt: on
    """Program (i, p): tokens `i // heads * tokens` and on, key/value head `i % heads`, of each group the heads p, p +
    parts, ..."""
    # int64 from here on: strides may arrive as int32, and a product with one would wrap
    program = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    head = program % heads
    token = program // heads * tokens + tl.arange(0, tokens).to(tl.int64)[:, None]
    batch, step_in_batch = token // length, token % length

    pair = tl.arange(0, block).to(tl.int64)[None, :]
    entries = table + head * table_head + pair * table_pair
    steps = tl.load(entries, mask=pair < pairs, other=0)
    position = tl.load(positions + batch * position_batch + step_in_batch * position_token, mask=token < total, other=0)
    cos, sin = _cos_and_sin(position * steps)
    if has_factor:
        factor = tl.load(entries + 1, mask=pair < pairs, other=0).to(tl.float64, bitcast=True).to(tl.float32)
        cos, sin = cos * factor, sin * factor
    sin = sin * direction

    q_rows, out_q_rows = batch * q_batch + step_in_batch * q_token, batch * out_q_batch + step_in_batch * out_q_token
    k_rows, out_k_rows = batch * k_batch + step_in_batch * k_token, batch * out_k_batch + step_in_batch * out_k_token
    # fmt: off
    _turn_heads(k, out_k, k_rows, out_k_rows, token, total, cos, sin, 1.0, head, part, k_head, k_dim, out_k_head,
                out_k_dim, k_group, parts, dim, pairs, tokens, block, rest, interleaved, False)
    scale = 1.0
    if has_scale:  # `harpe.positions.phases.query_scale`
        slope = tl.load(table + head * table_head + 2).to(tl.float64, bitcast=True)
        trained = tl.load(table + head * table_head + 3)
        seen = tl.maximum(position + 1, trained).to(tl.float64)
        scale = (1.0 + slope * tl.log(seen / trained.to(tl.float64))).to(tl.float32)
        cos, sin = cos * scale, sin * scale
    _turn_heads(q, out_q, q_rows, out_q_rows, token, total, cos, sin, scale, head, part, q_head, q_dim, out_q_head,
                out_q_dim, q_group, parts, dim, pairs, tokens, block, rest, interleaved, has_scale)
    # fmt: on


def launch_options(
    total: int, heads: int, group: int, dim: int, pairs: int, inplace: bool
) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and block sizes for `total` tokens (B * S) and groups of `group` query heads; N = `pairs` of `dim` / 2 pairs
    turn."""
    block = triton.next_power_of_2(pairs)
    rest = 0 if inplace or dim == 2 * pairs else triton.next_power_of_2(dim - 2 * pairs)
    tokens = min(max(1, ANGLES // max(block, rest // 2)), triton.next_power_of_2(total))
    programs = triton.cdiv(total, tokens) * heads
    parts = group if programs < PROGRAMS else 1
    sizes = {"parts": parts, "dim": dim, "pairs": pairs, "tokens": tokens, "block": block, "rest": rest}
    return (programs, parts), {**sizes, "num_warps": max(1, min(4, tokens * block // 32))}


def rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    position_ids: torch.Tensor,
    table: torch.Tensor,
    interleaved: bool,
    direction: int,
    inplace: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q and k, without a graph for gradients: for `harpe.positions.rotation.use_kernel`.

    Parameters
    ----------
    q, k
        [B, S, H_q, D] and [B, S, H_k, D], any floating dtype and strides. H_q and H_k are multiples of H.
    position_ids
        int64 [B, S], or [1, S] for all of the batch; any values and strides.
    table
        int64 [H, N], with an attention factor [H, N, 2], or with a scale of queries [H, N, 4].
    inplace
        Overwrite q and k, whose elements must not overlap, and return them. For callers that own both.

    Raises
    ------
    ValueError
        If the tensors lie on different devices, or q or k overlaps itself and is to be overwritten.
    """
    if not q.device == k.device == position_ids.device == table.device:
        devices = ", ".join(str(x.device) for x in (q, k, position_ids, table))
        raise ValueError(f"q, k, positions and steps must lie on one device; they are on {devices}.")
    if inplace and any(
        size > 1 and stride == 0 for x in (q, k) for size, stride in zip(x.shape, x.stride(), strict=True)
    ):
        raise ValueError("q or k is expanded: elements that share memory cannot be rotated in place.")
    out_q, out_k = (q, k) if inplace else (torch.empty_like(q), torch.empty_like(k))
    batch, length, q_heads, dim = q.shape
    if q.numel() == 0:
        return out_q, out_k
    heads, pairs = table.shape[:2]
    # in place, what does not turn is left alone, unless it is scaled
    alone = inplace and not has_length_scale(table)
    grid, options = launch_options(batch * length, heads, q_heads // heads, dim, pairs, alone)
    # Triton launches on the current device, which in a model spread over several is not always q's
    position_batch = position_ids.stride(0) if position_ids.shape[0] > 1 else 0
    # fmt: off
    with torch.cuda.device_of(q):
        _kernel[grid](
            q, k, out_q, out_k, position_ids, table, length, batch * length,
            *q.stride(), *k.stride(), *out_q.stride(), *out_k.stride(),
            position_batch, position_ids.stride(1), *table.stride()[:2],
            heads=heads, q_group=q_heads // heads, k_group=k.shape[2] // heads, has_factor=table.dim() == 3,
            has_scale=has_length_scale(table), interleaved=interleaved, direction=direction, enable_fp_fusion=True,
            **options,
        )
    # fmt: on
    return out_q, out_k
