"""Settings of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harpe.errors import HarpeError


@dataclass(frozen=True)
class TrainingOptions:
    """Settings that every stage shares. Those the paper gives are its own; the others are marked as our choice."""

    tokens: int
    """Token budget of all stages together."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW (paper: 2e-5)."""
    batch_tokens: int = 0
    """Tokens an optimiser step; 0 means one sequence. Our choice: the paper does not give it."""
    micro_batch: int = 1
    """Sequences in one forward pass; the rest of a step is accumulated."""
    warmup_share: float = 0.05
    """Share of the steps with rising learning rate; it then falls linearly. Our choice."""
    schedule: Literal["restarted", "carried"] = "restarted"
    """Of a method with several stages: every stage has its own rise and fall, or one goes over all stages. AdamW's moments start anew in
    every stage. Our choice."""
    weight_decay: float = 0.0
    """Our choice."""
    max_grad_norm: float = 1.0
    """Gradient clipping. Our choice."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: slower, far less memory."""
    save_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    dtype: str = "bfloat16"
    """bfloat16 (float32 weights, bfloat16 arithmetic by autocast) or float32."""

    def steps(self, length: int) -> int:
        """Optimiser steps that the budget gives at a target length."""
        return self.tokens // self.step_tokens(length)

    def stage_steps(self, length: int, shares: Sequence[float]) -> list[int]:
        """Optimiser steps of every stage: together as many as one stage has, so that all methods train on the same tokens."""
        total, ends = self.steps(length), [round(sum(shares[: i + 1]) * self.steps(length)) for i in range(len(shares))]
        ends[-1] = total
        return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def step_tokens(self, length: int) -> int:
        """Tokens of an optimiser step: whole sequences of the target length, in every stage."""
        return max(self.batch_tokens, length) // length * length

    def check(self, length: int) -> None:
        """Raise HarpeError for settings that cannot work at a sequence length."""
        if self.learning_rate <= 0:
            raise HarpeError(f"--learning-rate is {self.learning_rate}; it must be above 0.")
        if self.steps(length) < 1:
            raise HarpeError(
                f"--tokens {self.tokens} is less than one step of {self.step_tokens(length)} tokens; give more tokens, or a smaller "
                "--batch-tokens."
            )
        if self.dtype not in ("bfloat16", "float32"):
            raise HarpeError(f"--dtype is {self.dtype}; choose auto, bfloat16 or float32.")
        if self.step_tokens(length) // length % self.micro_batch:
            raise HarpeError(
                f"A step has {self.step_tokens(length) // length} sequences, which --micro-batch {self.micro_batch} does not divide."
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
