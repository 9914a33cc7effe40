"""The settings of training, defined once: `harpe extend`, the quickstart and the recipe of a comparison share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from harpe.errors import HarpeError

DocumentMask = Literal["none", "restart", "run-on"]


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters in the place of whole weights."""

    rank: int
    alpha: int
    """The rank times what they are multiplied by."""
    embeddings: bool
    """Whether norms and embeddings are trained whole beside them."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What is trained of the weights."""

    lora_rank: int = 0
    """Train adapters of this rank (LoRA) on all linear layers, merged into the weights at the end; 0: train all
    weights."""
    lora_alpha: int = 0
    """Adapters are scaled by this / rank; 0: twice the rank, LongLoRA's."""
    lora_embeddings: bool = True
    """With --lora-rank, train norms and embeddings whole, as LongLoRA does for long contexts."""

    @property
    def adapters(self) -> Adapters | None:
        if not self.lora_rank:
            return None
        return Adapters(self.lora_rank, self.lora_alpha or 2 * self.lora_rank, self.lora_embeddings)

    def check_adapters(self) -> None:
        """Raise HarpeError for numbers that cannot be."""
        if self.lora_rank < 0 or self.lora_alpha < 0:
            raise HarpeError(
                f"--lora-rank is {self.lora_rank} and --lora-alpha {self.lora_alpha}; neither may be below 0."
            )
        if not self.lora_rank and self.lora_alpha:
            raise HarpeError(f"--lora-alpha {self.lora_alpha} scales adapters, and there are none: give --lora-rank.")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(LoraOptions):
    """What a user may set. A field that is added here is a flag of `harpe extend` and a key of recipes. The learning
    rate and AdamW's 0.9 and 0.95 are the paper's; what else there is, it does not give, and is our choice."""

    learning_rate: float = 2e-5
    """Peak learning rate. The paper's 2e-5 is for 7B models; small models take more (1e-3 below 10M parameters)."""
    schedule: Literal["restarted", "carried"] = "restarted"
    """Of a method in stages: the learning rate rises and falls in every stage, or once over all."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises; it then falls linearly."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Norm that gradients are clipped to."""
    batch_tokens: int = 0
    """Tokens an optimiser step; 0: as many as --length."""
    micro_batch: int = 1
    """Sequences in one forward pass; the rest of a step is accumulated."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    document_mask: DocumentMask = "none"
    """Whether a token sees its own document only. none: all of its sequence, as the paper has it. restart: its own, and
    every document begins at position 0. run-on: its own, at the positions of the sequence."""
    pose_length: int = 0
    """Train in sequences of so many tokens, whose positions are skipped so that they reach up to --length (after PoSE,
    arXiv 2309.10400); it must divide --length. 0: sequences of --length."""
    longce_context: int = 0
    """Weight the loss of a token by how much more likely it is behind the whole text than behind so many tokens
    (LongCE, arXiv 2410.23771, there 4096), up to 5 times; every text is read five times more. 0: all tokens alike."""
    save_every: int = 100
    """Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How several processes (those of torchrun, accelerate launch or srun, or of a row of a comparison) share a
    training, and its memory. The result does not depend on it, so that a run may go on with other ones."""

    sequence_parallel: int = 0
    """Processes that share a sequence; 0: as few as leave every process something to do and, by the plan, fit the
    memory."""
    replicas: int = 1
    """Copies of the weights, each divided among processes / replicas; on a cluster the number of its nodes."""
    mlp_tile: int = 0
    """Tokens that feed-forward layers take at a time: less memory, and their forward pass once more. 0: all, or 4096
    where that is what fits."""
    offload_activations: bool = False
    """Keep what recomputed layers start from in the host's memory: less on the GPU, and copies both ways."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(TrainingOptions):
    """What is trained with: the options, and what a run decides of them."""

    tokens: int
    """Token budget of all stages together."""
    seed: int = 0
    dtype: str = "bfloat16"
    """bfloat16 (float32 weights, bfloat16 arithmetic by autocast) or float32."""

    @classmethod
    def of(cls, options: object, **settings: Any) -> TrainingSettings:
        """The settings for options that have all or some of the fields of `TrainingOptions`; `settings` replace
        them."""
        shared = {f.name: getattr(options, f.name) for f in fields(TrainingOptions) if hasattr(options, f.name)}
        return cls(**{**shared, **settings})

    def steps(self, length: int) -> int:
        """Optimiser steps that the budget gives at a target length."""
        return self.tokens // length * length // self.step_tokens(length)

    def stage_steps(self, length: int, shares: Sequence[float]) -> list[int]:
        """Optimiser steps of every stage: together as many as one stage has, so that all methods train on the same
        tokens."""
        total, ends = self.steps(length), [round(sum(shares[: i + 1]) * self.steps(length)) for i in range(len(shares))]
        ends[-1] = total
        return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def sequence(self, length: int) -> int:
        """Tokens of a sequence that trains `length` positions."""
        return min(self.pose_length or length, length)

    def step_tokens(self, length: int) -> int:
        """Tokens of an optimiser step, in every stage: whole sequences of the last one."""
        size = self.sequence(length) if self.batch_tokens else length
        return max(self.batch_tokens, size) // size * size

    def check(self, length: int) -> None:
        """Raise HarpeError for settings that cannot work at a sequence length."""
        self.check_adapters()
        for name, value, least in (
            ("--micro-batch", self.micro_batch, 1),
            ("--save-every", self.save_every, 1),
            ("--batch-tokens", self.batch_tokens, 0),
        ):
            if value < least:
                raise HarpeError(f"{name} is {value}; it must be at least {least}.")
        if not 0 <= self.seed < 2**32:  # what the generators of torch and numpy take
            raise HarpeError(f"--seed is {self.seed}; it must be a number from 0 to {2**32 - 1}.")
        if not 0 < self.learning_rate < math.inf:
            raise HarpeError(f"--learning-rate is {self.learning_rate}; it must be above 0, and finite.")
        if not 0 <= self.warmup_share <= 1:
            raise HarpeError(f"--warmup-share is {self.warmup_share}; it is a share of the steps, from 0 to 1.")
        if not (0 <= self.weight_decay < math.inf and self.max_grad_norm > 0):
            raise HarpeError(
                f"--weight-decay is {self.weight_decay} and --max-grad-norm {self.max_grad_norm}; the one must be "
                "finite and not below 0, the other must be above it."
            )
        if self.tokens < length:
            raise HarpeError(
                f"--tokens {self.tokens} is less than one text of --length {length}; give more tokens (texts are "
                "packed whole, also where --pose-length trains shorter sequences)."
            )
        if self.steps(length) < 1:
            raise HarpeError(
                f"--tokens {self.tokens} is less than one step of {self.step_tokens(length)} tokens; give more tokens, "
                "or a smaller --batch-tokens."
            )
        if self.document_mask not in get_args(DocumentMask):
            raise HarpeError(f"--document-mask is {self.document_mask}; choose {', '.join(get_args(DocumentMask))}.")
        if self.pose_length and not (1 < self.pose_length < length and length % self.pose_length == 0):
            raise HarpeError(
                f"--pose-length is {self.pose_length}; it must divide --length {length} and be shorter, or be 0."
            )
        if self.longce_context and not 1 < self.longce_context < length:
            raise HarpeError(
                f"--longce-context is {self.longce_context}; it must be 2 tokens at least and fewer than --length "
                f"{length}, or 0."
            )
        if self.dtype not in ("bfloat16", "float32"):
            raise HarpeError(f"--dtype is {self.dtype}; choose auto, bfloat16 or float32.")
        sequences = self.step_tokens(length) // self.sequence(length)
        if sequences % self.micro_batch:
            raise HarpeError(
                f"A step has {sequences} sequences, which --micro-batch {self.micro_batch} does not divide."
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
