"""Feed-forward layers on a tile of tokens at a time, so that their widest tensors are never those of a whole sequence
(tiled MLP, ALST, arXiv 2506.13996, section 3.2).

The backward pass computes a tile's forward pass once more. What comes out is what comes out of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harpe.errors import HarpeError
from harpe.models.geometry import text_config
from harpe.models.layers import feed_forward_layers

TOLERANCE = 0.02
"""How far outputs in tiles and whole may be apart, relative to the largest: bfloat16 rounds otherwise."""
TOKENS = 24
"""In the check, in tiles of 5."""

Forward = Callable[[torch.Tensor], torch.Tensor]


def pieces(length: int, tile: int) -> list[slice]:
    """Tokens 0 to `length`, `tile` at a time."""
    return [slice(start, start + tile) for start in range(0, length, tile)]


class _Tiled(torch.autograd.Function):
    """`forward` of tiles of states [B, S, W], whose weights' gradients are summed in float32 over the tiles."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, tile: int, states: torch.Tensor, *weights: torch.Tensor) -> Any:
        ctx.run, ctx.tile, ctx.weights, kind = forward, tile, weights, states.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.save_for_backward(states)
        out = None
        for piece in pieces(states.shape[1], tile):
            found = forward(states[:, piece].contiguous())
            if not isinstance(found, torch.Tensor):
                raise HarpeError(
                    "Feed-forward layers that give more than states of their tokens cannot work in tiles. Leave "
                    "--mlp-tile out."
                )
            out = found.new_empty(*states.shape[:2], *found.shape[2:]) if out is None else out
            out[:, piece] = found
        return out

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        (states,) = ctx.saved_tensors
        of_states = torch.empty_like(states)
        sums = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in ctx.weights]
        for piece in pieces(states.shape[1], ctx.tile):
            of_states[:, piece] = _of_tile(ctx, states[:, piece], slope[:, piece], sums)
        weights = (sum_.to(weight.dtype) for sum_, weight in zip(sums, ctx.weights, strict=True))
        return None, None, of_states, *weights


def _of_tile(ctx: Any, states: torch.Tensor, slope: torch.Tensor, sums: list[torch.Tensor]) -> torch.Tensor:
    """The gradient of a tile's states; those of the weights are added to `sums`, and gone before the next tile."""
    part = states.detach().contiguous().requires_grad_()
    with torch.enable_grad(), torch.autocast(*ctx.autocast):
        out = ctx.run(part)
    of_part, *found = torch.autograd.grad(out, (part, *ctx.weights), slope, allow_unused=True)
    for sum_, value in zip(sums, found, strict=True):
        if value is not None:  # an expert that no token of the tile went to
            sum_ += value
    return of_part


def _states(*args: Any, **more: Any) -> torch.Tensor:
    """What a feed-forward layer is called with; HarpeError for anything but states [B, S, W]."""
    if len(args) == 1 and not more and isinstance(args[0], torch.Tensor) and args[0].dim() == 3:
        return args[0]
    raise HarpeError(
        "Feed-forward layers that are given more than states of tokens cannot work in tiles. Leave --mlp-tile out."
    )


def _in_tiles(module: nn.Module, whole: Forward, tile: int, *args: Any, **more: Any) -> torch.Tensor:
    states = _states(*args, **more)
    if states.shape[1] <= tile:
        return whole(states)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    found: torch.Tensor = _Tiled.apply(whole, tile, states, *weights)
    return found


@contextmanager
def _forwards(modules: list[nn.Module], made: Callable[[nn.Module], Any]) -> Iterator[None]:
    """Within the context `made(module)` is what a module calls in the place of its `forward`."""
    before = {module: vars(module).get("forward") for module in modules}
    try:
        for module in before:
            module.forward = made(module)
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own


@contextmanager
def mlp_tiles(model: PreTrainedModel, tile: int) -> Iterator[None]:
    """Within the context feed-forward layers take `tile` tokens at a time; 0: all that they are given."""
    modules = feed_forward_layers(model) if tile else []
    with _forwards(modules, lambda module: partial(_in_tiles, module, module.forward, tile)):
        yield


@torch.no_grad()
def check_tiles(model: PreTrainedModel, tile: int) -> None:
    """Compare what feed-forward layers make of some tokens whole and in tiles; the model stays as it is.

    Raises
    ------
    HarpeError
        Where they give something else than states of their tokens, or look at other tokens.
    """
    if not tile:
        return
    apart: list[float] = []

    def compared(whole: Forward, *args: Any, **more: Any) -> torch.Tensor:
        states = _states(*args, **more)
        out, tiled = whole(states), _Tiled.apply(whole, 5, states)
        apart.append(float((out - tiled).abs().max() / out.abs().max().clamp(min=1e-12)))
        return out

    ids = torch.arange(1, TOKENS + 1, device=model.device)[None] % text_config(model.config).vocab_size
    training = model.training
    model.eval()
    with _forwards(feed_forward_layers(model), lambda module: partial(compared, module.forward)):
        model(input_ids=ids, labels=ids)
    model.train(training)
    if not apart or not all(value < TOLERANCE for value in apart):
        raise HarpeError(
            f"The feed-forward layers of a {model.config.model_type} look at other tokens: in tiles they give other "
            "states. Leave --mlp-tile out."
        )
