"""From hidden states to logits and losses in the family's own way, for a few positions at a time.

Families do more to their logits than to apply the output layer: they scale them (Cohere, Granite), cap them (Gemma 2,
nanochat), add a bias. So the family's own `forward` runs here, and what stands in the decoder's place inside of it
returns the hidden states that are given. The logits of one 128k sequence over a vocabulary of 128k take 64 GiB in
float32; [S, V] never exists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from harpe.errors import HarpeError
from harpe.models.geometry import text_config

T = TypeVar("T")
CHUNK = 1024
"""Positions whose logits exist at one time."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far our loss may be from the family's own, relative to it where it is above 1."""
COARSE = 0.02
"""The same in bfloat16 and float16."""


class _Output(BaseModelOutputWithPast):
    """What a decoder returns, hidden states and nothing else: whatever more a family's forward asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given:
    """Stands in a decoder's place and returns given hidden states, whatever it is called with."""

    def __init__(self, decoder: torch.nn.Module, states: torch.Tensor) -> None:
        self._decoder, self._states = decoder, states

    def __call__(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(last_hidden_state=self._states)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


def _place(model: PreTrainedModel) -> str:
    """The decoder's name in the model: that of the base model, or of the only other model inside."""
    if model.base_model_prefix in model._modules:
        return str(model.base_model_prefix)
    inside = [name for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
    if len(inside) != 1:
        raise HarpeError(
            f"A {type(model).__name__} has no decoder beside its output layer: its loss cannot be formed in pieces."
        )
    return inside[0]


def hidden_states(model: PreTrainedModel, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """The decoder's last hidden states [B, S, W] for ids int64 [B, S]; `inputs` go to the decoder."""
    decoder: Any = model._modules[_place(model)]
    states: torch.Tensor = decoder(input_ids=ids, return_dict=True, **{"use_cache": False, **inputs}).last_hidden_state
    return states


def within(model: PreTrainedModel, work: Callable[[], T], **inputs: Any) -> T:
    """What `work` gives, run as the model's forward: where weights are sharded (FSDP), those outside of the layers are
    whole there and nowhere else. `inputs` are for the model's hooks."""
    found: list[T] = []
    before = vars(model).get("forward")
    model.forward = lambda **_: found.append(work())
    try:
        model(**inputs)
    finally:
        vars(model).pop("forward", None)
        if before is not None:
            model.forward = before
    return found[0]


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The model's logits [B, n, V] for last hidden states [B, n, W], by the forward of its class.

    The forward of the object may be another one (accelerate's, that of `chunked_loss`); hooks of the decoder do not
    run.
    """
    place, modules = _place(model), model._modules
    decoder: Any = modules[place]
    modules[place] = _Given(decoder, states)  # type: ignore[assignment]
    try:
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        logits: torch.Tensor = type(model).forward(model, input_ids=ids, use_cache=False, return_dict=True).logits
    finally:
        modules[place] = decoder
    return logits


def _losses(model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_of(model, states)[0].float(), targets, reduction="none")


def token_nll(
    model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor, chunk: int = 0, recompute: bool = True
) -> torch.Tensor:
    """-log p of `targets` given last hidden states: float32 [B, S] in nats, 0 where a target is -100.

    Parameters
    ----------
    states, targets
        [B, S, W] and int64 [B, S]: the target of a position is the token after it.
    chunk
        Positions whose logits exist at one time; 0: CHUNK.
    recompute
        With gradients, form the logits of every chunk again in the backward pass (activation checkpointing).
    """
    size, rows, wanted = chunk or CHUNK, states.reshape(1, -1, states.shape[-1]), targets.reshape(-1)
    parts = []
    for start in range(0, len(wanted), size):
        part = (model, rows[:, start : start + size], wanted[start : start + size])
        parts.append(
            checkpoint(_losses, *part, use_reentrant=False) if recompute and torch.is_grad_enabled() else _losses(*part)
        )
    return torch.cat(parts).view(targets.shape) if parts else states.new_zeros(targets.shape, dtype=torch.float32)


def _in_pieces(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.dtype, torch.Tensor]:
    """The dtype of the hidden states, and the loss of a few tokens."""
    states = hidden_states(model, ids)
    return states.dtype, token_nll(model, states[:, :-1], ids[:, 1:], chunk=3).mean()


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str = "the model") -> PreTrainedModel:
    """Compare the loss of a few tokens with the model's own, `model(ids, labels=ids).loss`; returns the same object.

    Raises
    ------
    HarpeError
        Where they differ or are not finite, or where the family's forward cannot be run on given hidden states: it
        would be trained on, and measured by, something else than its own loss.
    """
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        return model
    kind, ids = (
        model.config.model_type,
        torch.arange(1, 6, device=model.device)[None] % text_config(model.config).vocab_size,
    )
    # their auxiliary loss is left out
    routers = "output_router_logits" in inspect.signature(type(model).forward).parameters
    try:
        own = model(
            input_ids=ids, labels=ids, use_cache=False, **({"output_router_logits": False} if routers else {})
        ).loss
    except (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise HarpeError(
            f"{name} (model type {kind}) cannot read five tokens: {type(error).__name__}: {error}"
        ) from error
    if not own.isfinite():
        raise HarpeError(
            f"The loss of five tokens of {name} is {own:.5g}: its configuration or its weights are damaged."
        )
    try:
        dtype, found = within(model, lambda: _in_pieces(model, ids))
    except (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise HarpeError(
            f"{name} has the model type {kind}, whose loss cannot be formed in pieces ({error}): harpe would have no "
            "loss to train it on or to measure it by."
        ) from error
    near = TOLERANCE.get(dtype, COARSE)
    if not torch.allclose(found.float(), own.float(), atol=near, rtol=near):
        raise HarpeError(
            f"{name} has the model type {kind}, whose own loss of five tokens is {own:.5g}, while it is {found:.5g} "
            "formed in pieces: harpe would train it on, and measure it by, something else than its own loss."
        )
    return model
