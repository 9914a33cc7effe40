"""The gradient of the loss of far tokens by log frequencies, for every head and document, with frozen weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from harpe.models.float_tables import float_tables, model_tables
from harpe.models.geometry import changed_layers
from harpe.models.head import hidden_states, token_nll
from harpe.reporter import Reporter
from harpe.training.memory import set_recompute


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """While the block runs: evaluation mode, weights without gradients, and, on an accelerator, layers that are
    recomputed in the backward pass."""
    training = {module: module.training for module in model.modules()}
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    recompute = model.device.type != "cpu" and model.supports_gradient_checkpointing
    model.eval().requires_grad_(False)
    try:
        if recompute:
            set_recompute(model, True)
            for module in model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True  # of itself, not of what is in it: it asks before it recomputes
        yield
    finally:
        if recompute:
            set_recompute(model, False)
        for module, before in training.items():
            module.training = before
        for weight in wanted:
            weight.requires_grad_(True)


def logarithms(tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """ln of what `model_tables` gives, [L, H, N] and [L, H]; 0 in layers that no method changes."""
    frequencies, factors = (each.nan_to_num(1.0).log() for each in tables)
    return frequencies, factors


def loss_of(model: PreTrainedModel, ids: Sequence[int], first: int) -> Tensor:
    """Mean -log p, in nats, of the tokens from number `first` on, given all before them."""
    row = torch.tensor([list(ids)], device=model.device)
    states = hidden_states(model, row[:, :-1])
    return token_nll(model, states[:, first - 1 :], row[:, first:]).mean()


def far_gradients(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    length: int,
    first: int,
    dtype: str = "float32",
    reporter: Reporter | None = None,
) -> tuple[NDArray[np.float64], list[float]]:
    """Gradient of the mean loss of far tokens by ln theta, [D, L, H, N] in nats, of the layers that methods change in
    their order; and the losses.

    Parameters
    ----------
    documents
        Token ids; the first `length` of each are read.
    first
        The first token that counts, such as the trained context: those before it are read and not scored.
    dtype
        Of the arithmetic; the table itself is float64.
    """
    logs, log_factors = logarithms(model_tables(model.config))
    layers, found, losses = changed_layers(model.config), list[Any](), list[float]()
    with frozen(model), torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        for number, ids in enumerate(documents, 1):
            table = logs.clone().requires_grad_()
            with float_tables(model, table, log_factors):
                loss = loss_of(model, ids[:length], first)
                (gradient,) = torch.autograd.grad(loss, table)
            found.append(gradient[layers].numpy())
            losses.append(float(loss.detach()))
            (reporter or Reporter()).progress("gradients", number, len(documents))
    return np.stack(found), losses
