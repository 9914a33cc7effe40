"""Recomputing activations in the backward pass, under the name that the installed transformers has for it."""

from __future__ import annotations

from transformers import PreTrainedModel

from harpe.errors import HarpeError


def set_recompute(model: PreTrainedModel, on: bool) -> None:
    """Switch activation (gradient) checkpointing of all layers on or off.

    transformers 5.23 renames gradient_checkpointing to activation_checkpointing; both are served.

    Raises
    ------
    HarpeError
        For a family that has no layers of which activations can be recomputed.
    """
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on and not model.supports_gradient_checkpointing:
        raise HarpeError(
            f"{type(model).__name__} of transformers cannot recompute activations in the backward pass: give "
            "--gradient-checkpointing false."
        )
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    elif getattr(model, f"is_{name}_checkpointing"):
        getattr(model, f"{name}_checkpointing_disable")()
