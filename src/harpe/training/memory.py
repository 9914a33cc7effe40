"""Recomputing activations in the backward pass, under the name that the installed transformers has for it."""

from __future__ import annotations

from transformers import PreTrainedModel


def set_recompute(model: PreTrainedModel, on: bool) -> None:
    """Switch activation (gradient) checkpointing of all layers on or off.

    transformers 5.23 renames gradient_checkpointing to activation_checkpointing; both are served.
    """
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    elif getattr(model, f"is_{name}_checkpointing"):
        getattr(model, f"{name}_checkpointing_disable")()
