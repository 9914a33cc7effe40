"""What takes the place of attention where a layer is traced: the same tensors, without the work."""

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
