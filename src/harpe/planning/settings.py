"""What of a training's options decides its memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harpe.errors import HarpeError

Activations = Literal["recomputed", "kept", "offloaded"]


def activations(recompute: bool, offload: bool) -> Activations:
    """What --gradient-checkpointing and --offload-activations make of them.

    Raises
    ------
    HarpeError
        Where all would have to be offloaded.
    """
    if offload and not recompute:
        raise HarpeError("--offload-activations goes with --gradient-checkpointing true only.")
    return "offloaded" if offload else "recomputed" if recompute else "kept"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that a plan is made for, under the names that training has for them."""

    sequence_parallel: int = 0
    """Processes that share a sequence; 0: from the plan."""
    replicas: int = 1
    """Copies of the weights, each divided among processes / replicas."""
    activations: Activations = "recomputed"
    mlp_tile: int = 0
    micro_batch: int = 1
    batch_tokens: int = 0
    dtype: str = "bfloat16"
    """Arithmetic."""

    def sequences(self, length: int) -> int:
        """Of an optimiser step."""
        return max(self.batch_tokens, length) // length

    def check(self, length: int) -> None:
        """Raise HarpeError for numbers that cannot be."""
        for name in ("replicas", "micro_batch"):
            if getattr(self, name) < 1:
                raise HarpeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1.")
        for name in ("sequence_parallel", "mlp_tile", "batch_tokens"):
            if getattr(self, name) < 0:
                raise HarpeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must not be below 0.")
        if length < 2:
            raise HarpeError(f"--length is {length}; a sequence has two tokens at least.")
