"""Next-token loss without the full logits.

The logits of one 128k sequence over a vocabulary of 128k take 64 GiB in float32. Here they are formed for a few hundred positions
at a time, and again in the backward pass (activation checkpointing), so that [S, V] never exists.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

CHUNK = 2048
"""Positions whose logits exist at one time."""


def _chunk_loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), target, reduction="sum")


def chunked_cross_entropy(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Mean cross-entropy of predicting token t+1 from position t, in natural logarithms, float32 scalar.

    Parameters
    ----------
    hidden
        Last hidden states [B, S, W].
    head
        The output layer, W -> vocabulary.
    labels
        int64 [B, S]; -100 is ignored, as in PyTorch.
    """
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    targets = labels[:, 1:].reshape(-1)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, states.shape[0], chunk):
        part = (states[start : start + chunk], head.weight, head.bias, targets[start : start + chunk])
        total = total + (checkpoint(_chunk_loss, *part, use_reentrant=False) if torch.is_grad_enabled() else _chunk_loss(*part))
    return total / (targets != -100).sum().clamp(min=1)


@contextmanager
def chunked_loss(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within the context `model(input_ids, labels)` gives the chunked loss and no logits; afterwards the model is as before.

    Only `forward` of this one object is replaced, so wrappers (autocast, DDP, FSDP) see an ordinary model.
    """

    def forward(
        self: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> CausalLMOutput:
        hidden = self.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return CausalLMOutput(loss=chunked_cross_entropy(hidden, self.get_output_embeddings(), labels))

    model.forward = types.MethodType(forward, model)
    try:
        yield model
    finally:
        # accelerate may have wrapped the forward again meanwhile; dropping the instance's attribute restores the class's own
        vars(model).pop("forward", None)
        vars(model).pop("_original_forward", None)
