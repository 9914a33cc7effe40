"""Whether a training fits the devices that it was started on, before anything is loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from transformers import PreTrainedConfig

from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.options.training import TrainingSettings
from harpe.planning.devices import GB, PEAKS, Devices, machine_memory
from harpe.planning.fit import smallest_change
from harpe.planning.memory import PARTS, MemoryPlan, plan_memory
from harpe.planning.settings import Settings, activations
from harpe.planning.trace import Tracer
from harpe.training.lora import lora_note
from harpe.training.sequence_parallel import check_sequence_parallel


def these_devices(processes: int, trainings: int = 1) -> Devices:
    """The devices of one training: as many as processes, each like that of this one. `trainings` share their memory
    equally; on CPUs it is that of the machine, which the processes share, too."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        words = found.name.replace("-", " ").split()
        words += [one + other for one, other in pairwise(words)]  # RTX 4090
        name = next((word for word in words if word in PEAKS), "GPU")
        return Devices(processes, name, found.total_memory // trainings)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return Devices(processes, "CPU", machine_memory() // (neighbours * trainings))


class MemoryCheck:
    """The plans of one training in the layouts that it may have."""

    def __init__(
        self, config: PreTrainedConfig, length: int, training: TrainingSettings, processes: int, trainings: int = 1
    ) -> None:
        self.training, self.devices = training, these_devices(processes, trainings)
        self.length, self.step_tokens = training.sequence(length), training.step_tokens(length)
        self.trouble = ""
        """Why nothing is planned, where nothing is."""
        self._plans: dict[Layout, MemoryPlan] = {}
        try:
            self._tracer = Tracer(config, training.adapters)
        except Exception as error:  # of the model's own code, whatever it is: a training does not depend on its plan
            self.trouble = _line(error)

    @property
    def trained(self) -> int | None:
        """Parameters that are trained; None where it is not known."""
        return None if self.trouble else self._tracer.trained

    @property
    def notes(self) -> list[str]:
        """What is trained of the model, where that is not all."""
        adapters = self.training.adapters
        return [lora_note(self._tracer.model, adapters)] if adapters and not self.trouble else []

    def plan(self, layout: Layout) -> MemoryPlan | None:
        """The memory of the fullest device; None where it could not be planned (`trouble`)."""
        if layout not in self._plans and not self.trouble:
            try:
                self._plans[layout] = plan_memory(self._tracer, self.length, self.devices, self._settings(layout))
            except HarpeError:
                raise  # a layout that the model cannot have
            except Exception as error:  # as above
                if layout.mlp_tile:
                    raise HarpeError(f"--mlp-tile {layout.mlp_tile} cannot be planned ({_line(error)}).") from error
                self.trouble = _line(error)
        return None if self.trouble else self._plans[layout]

    def filled(self, layout: Layout) -> float:
        """The share that a training needs of what it may fill of a device: 1 at most where it fits with some memory to
        spare, infinite where the model cannot be trained so, 0 where it is not known."""
        if self.trouble:
            return 0.0
        try:
            check_sequence_parallel(self._tracer.model, layout.sequence_parallel, self.length)
            plan = self.plan(layout)
        except HarpeError:
            return math.inf
        return plan.total / self.devices.usable if plan is not None else 0.0

    def check(self, layout: Layout, ignored: bool) -> list[str]:
        """Sentences about the memory of a training.

        Raises
        ------
        HarpeError
            Where a device has less than is planned, and `ignored` is not set.
        """
        plan = self.plan(layout)
        if plan is None:
            return [f"The memory of this training could not be planned ({self.trouble})."]
        told = describe(plan)
        if plan.total > self.devices.memory and not ignored:
            change = smallest_change(self._tracer, self.length, self.devices, self._settings(layout))
            options = re.sub(r"--devices (\d+)\S*", r"--nproc-per-node \1 (torchrun)", change[0]) if change else ""
            how = f"It fits with {options}" if change else "Take a shorter --length"
            raise HarpeError(f"The memory does not suffice. {told} {how}, or train all the same with --ignore-memory.")
        if not plan.fits:
            told += " That is little to spare: what is not tensors comes on top."
        return [told]

    def _settings(self, layout: Layout) -> Settings:
        training = self.training
        return Settings(
            sequence_parallel=layout.sequence_parallel,
            replicas=layout.replicas,
            mlp_tile=layout.mlp_tile,
            activations=activations(training.gradient_checkpointing, layout.offload),
            micro_batch=training.micro_batch,
            batch_tokens=self.step_tokens,
            dtype=training.dtype,
        )


def describe(plan: MemoryPlan) -> str:
    """A sentence: how much of what, and of how much memory."""
    parts: Sequence[tuple[str, int]] = sorted(plan.parts.items(), key=lambda part: -part[1])
    most = ", ".join(f"{PARTS[name]} {_size(size)}" for name, size in parts[:3] if size)
    whose = "a process" if plan.devices.cpu else f"one {plan.devices.name}"
    return f"Planned memory of tensors: {_size(plan.total)} of the {_size(plan.devices.memory)} of {whose} ({most} …)."


def _size(count: int) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 10**6:.0f} MB"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
