"""Options of `harpe plan`. The text under each field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from harpe.options.training import LayoutOptions, LoraOptions


@dataclass(frozen=True, kw_only=True)
class PlanOptions(LayoutOptions, LoraOptions):
    """Whether a training fits on devices, with which options, and how long it takes.

    Read from config.json alone; no weights are loaded.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Checkpoint: a folder with config.json, a GGUF file, a hub name, or embedded."""
    length: int
    """Target context in tokens; 128k is 131072."""
    devices: str = "8xH100-80GB"
    """How many devices of which kind and memory: 8xH100-80GB, 16xA100-40GB, H200, 2xCPU."""
    tokens: int = 0
    """Token budget, for steps and time; 0: that of one step."""
    batch_tokens: int = 0
    """Tokens an optimiser step; 0: one sequence."""
    micro_batch: int = 1
    """Sequences in one forward pass; the rest of a step is accumulated."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic; weights are float32."""
    reserve: float = 0.2
    """Share of a device's memory to keep free for what is not counted: driver, NCCL, pieces between allocations."""
    utilization: float = 0.3
    """Share of the devices' speed that the training has, without recompute; published ones have 0.14 to 0.38."""
    price: float | None = None
    """Price of a device and hour, for the cost."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    json: bool = False
    """Print one JSON object and nothing else."""
