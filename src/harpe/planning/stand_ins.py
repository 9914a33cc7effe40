"""What takes the place of attention and of tiled layers where a layer is traced: the same tensors, without the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FLASH = "harpe_plan"
"""Name of an attention that keeps what flash attention keeps: queries, keys, values, its output and a float32 a query
and head. sdpa's kernels do the same where they need no mask."""


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Exchange(torch.autograd.Function):
    """An all-to-all: every process gives tokens of all heads and gets all tokens of some heads. As many values, unless
    there are fewer key/value heads than processes: then each is sent to several."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, copies: int) -> Any:
        ctx.copies = copies
        return _exchanged(x.repeat_interleave(copies, 1) if copies > 1 else x)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        back = _exchanged(slope)
        return back[:, :: ctx.copies].contiguous() if ctx.copies > 1 else back, None


def _exchanged(x: torch.Tensor) -> torch.Tensor:
    sent = x.transpose(1, 2).contiguous()  # DeepSpeed's: heads behind tokens, then in the order of the processes
    received = torch.empty_like(sent)
    del sent
    return received.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def flash(parts: int) -> Callable[..., Any]:
    """An attention function of transformers for sequences that `parts` processes share."""

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        if parts > 1:
            copies = max(1, parts // key.shape[1])
            query, key, value = _Exchange.apply(query, 1), _Exchange.apply(key, copies), _Exchange.apply(value, copies)
        out = _Flash.apply(query, key, value)
        if parts > 1:
            out = _Exchange.apply(out, 1)
        return out.transpose(1, 2).contiguous(), None

    return attention


def install_flash(parts: int) -> None:
    """Let models whose attention is FLASH use it."""
    ALL_ATTENTION_FUNCTIONS.register(FLASH, flash(parts))


class Tiled(torch.autograd.Function):
    """A layer that is computed for a tile of the tokens at a time, again in the backward pass (ALST, arXiv
    2506.13996). Tiles follow one another and are alike, so that one is run."""

    @staticmethod
    def forward(ctx: Any, work: Callable[..., torch.Tensor], x: torch.Tensor, *parameters: torch.Tensor) -> Any:
        ctx.work, ctx.parameters = work, len(parameters)
        ctx.save_for_backward(x)
        with torch.no_grad():
            work(_tile(x))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        slopes, part = torch.empty_like(x), _tile(x).detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.work(part), _tile(slope))
        return None, slopes, *[None] * ctx.parameters


def _tile(x: torch.Tensor) -> torch.Tensor:
    """As many are made as a sequence is times as long as it is wide: a tile is as long as wide, as ALST has it."""
    return x.chunk(max(1, x.shape[-2] // x.shape[-1]), dim=-2)[0]


def tile(module: torch.nn.Module) -> None:
    """Compute a module's forward in tiles."""
    work, parameters = module.forward, tuple(module.parameters())
    module.forward = lambda x: Tiled.apply(work, x, *parameters)
