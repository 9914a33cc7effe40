"""Recomputing activations in the backward pass, under the name that the installed transformers has for it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from harpe.errors import HarpeError


def check_accelerator() -> None:
    """Refuse activations in the host's memory where they are there already.

    Raises
    ------
    HarpeError
        Naming the option.
    """
    if not torch.accelerator.is_available():
        raise HarpeError(
            "--offload-activations needs a GPU: without one, activations are in the host's memory already. Leave it "
            "out."
        )


def set_recompute(model: PreTrainedModel, on: bool, offload: bool = False) -> None:
    """Switch activation (gradient) checkpointing of all layers on or off.

    transformers 5.23 renames gradient_checkpointing to activation_checkpointing; both are served.

    Parameters
    ----------
    offload
        Keep what layers start from in the host's memory (transformers 5.23).

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
    if on and offload and name == "gradient":
        raise HarpeError("--offload-activations needs transformers 5.23 or newer. Update it, or leave the option out.")
    if on:
        more = {"offload": True} if offload else {}
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False}, **more)
    elif getattr(model, f"is_{name}_checkpointing"):
        getattr(model, f"{name}_checkpointing_disable")()
