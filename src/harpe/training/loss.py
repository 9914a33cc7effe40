"""What a model is trained on: its own next-token loss, formed in pieces, without dropout."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput

from harpe.errors import HarpeError
from harpe.models import head
from harpe.models.geometry import text_config
from harpe.models.head import hidden_states, logits_of, token_nll
from harpe.training.longce import token_weights

NEAR = 1e-3
"""How far the losses of the same tokens in training and evaluation may be apart, relative to them where above 1."""


class _Mean(torch.autograd.Function):
    """The sum of `token_nll` times `mean`, and weights, with its gradients formed in the forward pass, where a chunk's
    logits exist.

    Only a factor is missing to them in the backward pass, since the loss is a scalar. No logits are formed a second
    time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        model: PreTrainedModel,
        states: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
        mean: torch.Tensor,
        weights: torch.Tensor | None,
        *parameters: torch.Tensor,
    ) -> Any:
        rows, wanted = states.reshape(1, -1, states.shape[-1]), targets.reshape(-1)
        total, slope = torch.zeros((), dtype=torch.float32, device=states.device), torch.zeros_like(rows)
        # in float32, as a product over all positions would sum up
        slopes = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in parameters]
        for start in range(0, len(wanted), chunk):
            piece = slice(start, start + chunk)
            part = rows[:, piece].detach().requires_grad_()
            with torch.enable_grad():
                losses = token_nll(model, part, wanted[None, piece], chunk, recompute=False)
                loss = (losses if weights is None else losses * weights.reshape(-1)[piece]).sum() * mean
            if any(all(leaf is not known for known in (part, *parameters)) for leaf in _leaves(loss)):
                raise HarpeError(
                    f"The logits of a {model.config.model_type} depend on other weights from position to position: "
                    "harpe would leave out a part of their gradients, and cannot train it."
                )
            slope[:, piece], *more = torch.autograd.grad(loss, (part, *parameters))
            for sum_, value in zip(slopes, more, strict=True):
                sum_ += value
            total += loss.detach()
        ctx.gradients, ctx.dtypes = (slope.view(states.shape), slopes), [parameter.dtype for parameter in parameters]
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: torch.Tensor) -> Any:
        slope, slopes = ctx.gradients
        del ctx.gradients  # they are multiplied in place
        slopes = [x.mul_(factor).to(dtype) for x, dtype in zip(slopes, ctx.dtypes, strict=True)]
        return None, slope.mul_(factor), None, None, None, None, *slopes


def _leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that want a gradient and that `value` was made from, out of autograd's graph."""
    open_, seen, found = [value.grad_fn], set(), []
    while open_:
        node = open_.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_ += [following for following, _ in node.next_functions]
    return found


def _read_by_head(model: PreTrainedModel, states: torch.Tensor) -> list[torch.Tensor]:
    """The trained parameters that the logits of one position depend on, whatever the family and adapters make of
    them."""
    with torch.enable_grad():
        return _leaves(logits_of(model, states[:1, :1].detach()))


def mean_nll(
    model: PreTrainedModel,
    states: torch.Tensor,
    targets: torch.Tensor,
    chunk: int = 0,
    items: torch.Tensor | int | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over targets of -log p, in nats, float32 scalar. Its backward pass runs once.

    Parameters
    ----------
    states, targets
        Last hidden states [B, S, W], and int64 [B, S]: the target of a position is the token after it; -100 is none.
    chunk
        Positions whose logits exist at one time; 0: `harpe.models.head.CHUNK`.
    items
        What the sum is divided by, where other processes and passes have a part of the targets; None: the targets here.
    weights
        Of the targets, float32 [B, S], without gradients; None: 1 each.
    """
    count = (targets != -100).sum() if items is None else torch.as_tensor(items, device=states.device)
    count = count.clamp(min=1)  # a step may have no targets: questions whose answer is in the next sequence
    if torch.is_grad_enabled():
        size, read = chunk or head.CHUNK, _read_by_head(model, states)
        mean: torch.Tensor = _Mean.apply(model, states, targets, size, 1 / count, weights, *read)
        return mean
    losses = token_nll(model, states, targets, chunk)
    return (losses if weights is None else losses * weights).sum() / count


def _without_randomness(model: PreTrainedModel) -> None:
    """Put all modules into evaluation but for those whose `training` says that their activations are recomputed.

    Dropout and noise in routers ask for their own module's `training`, whatever the family calls them. Flags are set
    directly, since `eval()` exchanges kernels where a model uses some.
    """
    for module in model.modules():
        recomputed = isinstance(module, GradientCheckpointingLayer) and getattr(module, "gradient_checkpointing", True)
        module.training = module is model or recomputed


@contextmanager
def chunked_loss(model: PreTrainedModel, longce_context: int = 0) -> Iterator[PreTrainedModel]:
    """Within the context `model(input_ids, labels)` gives the model's own loss in pieces, no logits, and no dropout in
    training either; afterwards the model is as before. `shift_labels` are targets that are shifted already. With
    `longce_context` the targets have LongCE's weights, by a short context of so many tokens.

    Only `forward` of this one object is replaced, so wrappers (autocast, DDP, FSDP) see an ordinary model.
    """

    def forward(
        self: PreTrainedModel,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,  # its being here is what the Trainer counts targets for
    ) -> CausalLMOutput:
        if self.training:
            _without_randomness(self)
        states = hidden_states(self, input_ids, position_ids=position_ids)
        if shift_labels is None:
            assert labels is not None
            states, shift_labels = states[:, :-1], labels[:, 1:]
        weights = None
        if longce_context:
            weights = token_weights(self, input_ids, states, shift_labels, longce_context)
        return CausalLMOutput(loss=mean_nll(self, states, shift_labels, items=num_items_in_batch, weights=weights))

    before = vars(model).get("forward")
    model.forward = types.MethodType(forward, model)
    try:
        yield model
    finally:
        # accelerate may have wrapped the forward again meanwhile; dropping the instance's attribute restores the
        # class's own
        vars(model).pop("forward", None)
        vars(model).pop("_original_forward", None)
        if before is not None:
            model.forward = before
        for module in model.modules():
            module.training = model.training


def check_training_loss(model: PreTrainedModel) -> None:
    """Compare the loss of a few tokens in training and in evaluation, within `chunked_loss`. The model stays as it is.

    Raises
    ------
    HarpeError
        Where they differ: the family does something in training that cannot be switched off, such as dropout in a
        layer.
    """
    ids, training = (
        torch.arange(1, 17, device=model.device)[None] % text_config(model.config).vocab_size,
        model.training,
    )
    with torch.enable_grad():
        trained = model.train()(input_ids=ids, labels=ids).loss.item()
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids, labels=ids).loss.item()
    model.train(training)
    if abs(trained - wanted) > NEAR * max(1.0, abs(wanted)):
        raise HarpeError(
            f"The loss of a {model.config.model_type} is {trained:.5g} in training and {wanted:.5g} in evaluation, for "
            "the same tokens: its code does something in training, such as dropout within a layer, that harpe cannot "
            "switch off. Set it to 0 in config.json."
        )


def loss_notes(config: PreTrainedConfig) -> list[str]:
    """What of a configuration training leaves out, in sentences for the plan."""
    settings = text_config(config).to_dict()
    numbers = {key: value for key, value in settings.items() if isinstance(value, int | float) and value > 0}
    random = [key for key in numbers if ("drop" in key or "jitter" in key) and not key.startswith("classifier")]
    notes = []
    if random:
        named = ", ".join(f"{key} {numbers[key]:g}" for key in sorted(random))
        notes.append(f"The configuration asks for {named} in training: left out, as in continued pretraining of today.")
    if any("aux_loss" in key for key in numbers):
        notes.append(
            "Experts are trained on the next-token loss alone, without the auxiliary loss that balances their load."
        )
    return notes
