"""Bytes of one device in a training step, by part, at the moment when most are used.

What layers and the loss hold is traced (`harpe.planning.trace`). What is there besides follows from how the training
works: FSDP2 divides float32 weights, gradients and moments by rows among the processes of a replica; it gathers a layer
in the dtype of the arithmetic before it is computed, has the next one under way meanwhile, and sums gradients in
float32 after the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from harpe.planning.devices import Devices
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer, Way

SUMS = 4
"""Bytes of a gradient while it is summed over processes: float32."""
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "moments of the optimiser",
    "kept": "activations kept for the backward pass",
    "layer": "one layer's backward pass",
    "loss": "loss: logits of a chunk, slopes",
    "gathered": "gathered weights and gradients",
    "exchange": "gathered queries, keys and values",
}
"""What a plan names, in this order."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes that a device keeps for every parameter that it has a share of."""

    weights: float
    gradients: float
    moments: float


FLOAT32 = StateBytes(4, 4, 8)
"""What training keeps: float32 weights, gradients and the two moments of AdamW."""


@dataclass(frozen=True)
class MemoryPlan:
    """Of the device that has most to hold."""

    parts: dict[str, int]
    """Bytes by the names of PARTS, at the moment of the peak."""
    moment: str
    """When that is."""
    devices: Devices
    moments: dict[str, int] = field(default_factory=dict)
    """Bytes at every moment that was looked at."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.devices.usable


def plan_memory(
    model: Tracer | PreTrainedConfig,
    length: int,
    devices: Devices,
    settings: Settings,
    *,
    states: StateBytes = FLOAT32,
) -> MemoryPlan:
    """The memory of a training at a length; `sequence_parallel` of the settings must be decided.

    Parameters
    ----------
    model
        A configuration, or the Tracer of one, which answers repeated questions at once.
    states
        Other than ours, for trainings that keep some of them elsewhere.
    """
    tracer = model if isinstance(model, Tracer) else Tracer(model)
    return _Plan(tracer, length, devices, settings, states).made()


def sharded(parameters: Iterable[torch.Tensor], shards: int) -> int:
    """Elements that the first of `shards` processes holds: whole rows of every parameter."""
    return sum(-(-p.shape[0] // shards) * math.prod(p.shape[1:]) if p.dim() else 1 for p in parameters)


def _trained(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter for parameter in parameters if parameter.requires_grad]


class _Plan:
    """The moments of a step, one after the other."""

    def __init__(self, tracer: Tracer, length: int, devices: Devices, settings: Settings, states: StateBytes) -> None:
        self.tracer, self.devices, self.settings, self.states = tracer, devices, settings, states
        world, parts = devices.count, max(1, settings.sequence_parallel)
        self.alone, self.shards, self.parts = world == 1, world // settings.replicas, parts
        together = world // parts * settings.micro_batch
        self.arithmetic = 2 if settings.dtype == "bfloat16" else 4
        self.way = Way(
            tokens=settings.micro_batch * -(-length // parts),
            sequences=settings.micro_batch,
            parameters=torch.bfloat16 if not self.alone and self.arithmetic == 2 else torch.float32,
            autocast=self.alone and settings.dtype == "bfloat16",
            recompute=settings.activations != "kept",
            parts=parts,
            mlp_tile=settings.mlp_tile,
            accumulated=self.alone and settings.sequences(length) > together,
        )
        self.accumulates = settings.sequences(length) > together
        self.layers = [list(layer.parameters()) for layer in tracer.layers]
        inside = {id(p) for layer in self.layers for p in layer}
        self.outside = [p for p in tracer.model.parameters() if id(p) not in inside]

    def made(self) -> MemoryPlan:
        moments = dict(self._moments())
        name = max(moments, key=lambda moment: sum(moments[moment].values()))
        return MemoryPlan(
            {part: int(moments[name].get(part, 0)) for part in PARTS},
            name,
            self.devices,
            {moment: int(sum(found.values())) for moment, found in moments.items()},
        )

    def _moments(self) -> Iterable[tuple[str, dict[str, float]]]:
        every = [p for layer in self.layers for p in layer] + self.outside
        share, states = sharded(_trained(every), self.shards), self.states
        fixed = {"weights": self._weights(every), "moments": states.moments * share}
        all_gradients = states.gradients * share
        head, count = self.tracer.head(self.way), len(self.layers)
        offloaded = self.settings.activations == "offloaded"
        kept = 0 if offloaded else self._kept(count)
        yield (
            "the loss",
            {
                **fixed,
                "gradients": all_gradients if self.accumulates else 0,
                "kept": kept,
                "loss": head.forward,
                "gathered": self._gathered_in_loss(),
            },
        )
        outer = sum(p.numel() for p in self.outside)
        waiting = self._head_gradients()
        later: float = 0  # gradients of the layers behind
        for number in reversed(range(count)):
            found, own = self.tracer.layer(number, self.way), self.layers[number]
            size = sum(p.numel() for p in own)
            made = 0 if self.way.accumulated else sharded(_trained(own), 1) * self.way.parameters.itemsize
            plain = self._without_exchange(number).peak
            gathered = 0.0
            if not self.alone:
                # its own weights, those of the next, sums of the one before, weights outside of layers
                following = sum(p.numel() for p in self.layers[number - 1]) if number else 0
                before = sum(p.numel() for p in self.layers[number + 1]) if number + 1 < count else 0
                gathered = self.arithmetic * (size + following + outer) + SUMS * before + made
            yield (
                f"the backward pass of layer {number}",
                {
                    **fixed,
                    "gradients": (all_gradients if self.accumulates else later + waiting) + (made if self.alone else 0),
                    "kept": (found.kept if offloaded else self._kept(number)) + found.kept,
                    "layer": plain - found.kept - made,
                    "gathered": gathered,
                    "exchange": found.peak - plain,
                },
            )
            later += states.gradients * sharded(_trained(own), self.shards)
        gathered = 0.0 if self.alone else (self.arithmetic + SUMS) * outer
        yield (
            "the end of the backward pass",
            {
                **fixed,
                "gradients": all_gradients if self.accumulates else later,
                "loss": head.backward,
                "gathered": gathered,
            },
        )
        yield "the optimiser's step", {**fixed, "gradients": all_gradients}

    def _weights(self, every: list[torch.Tensor]) -> float:
        halved = self.tracer.halved if self.way.autocast else set()
        half = sharded([p for p in every if id(p) in halved], self.shards)
        return self.states.weights * (sharded(every, self.shards) - half) + 2 * half

    def _kept(self, layers: int) -> int:
        return sum(self.tracer.layer(number, self.way).kept for number in range(layers))

    def _without_exchange(self, number: int) -> Any:
        return self.tracer.layer(number, replace(self.way, parts=1))

    def _gathered_in_loss(self) -> float:
        """Sharded: the weights outside of layers. Under autocast: copies of all matrices, which it keeps to the end of
        the forward pass."""
        if not self.alone:
            return self.arithmetic * sum(p.numel() for p in self.outside)
        if not self.way.autocast:
            return 0
        return self.arithmetic * sum(p.numel() for layer in self.layers for p in _trained(layer) if p.dim() > 1)

    def _head_gradients(self) -> float:
        """The gradient of the output layer, formed with the loss, and whole until the end."""
        weight = self.tracer.model.get_output_embeddings().weight
        return weight.numel() * self.way.parameters.itemsize if weight.requires_grad else 0
