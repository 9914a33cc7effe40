"""Several processes that share one evaluation, started by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for the others: they may have hours of samples left."""


@dataclass(frozen=True)
class Processes:
    """How many processes there are, and which of them this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def from_first(self, value: T) -> T:
        """The first process's value, on every process."""
        values = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def world_size() -> int:
    """The number of processes that the launcher has started; no process joins the others by asking."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first one, before it has joined the others too."""
    return int(os.environ.get("RANK", "0")) == 0


def join() -> Processes:
    """Join the other processes that the launcher has started, on a GPU of its own where there are any.

    They only exchange decisions, so gloo connects them on GPUs too. One process needs no group.
    """
    if world_size() == 1:
        return Processes()
    from accelerate import PartialState

    gpus = torch.cuda.is_available()
    state = PartialState(cpu=not gpus, timeout=PATIENCE, **({"backend": "gloo"} if gpus else {}))
    return Processes(state.process_index, state.num_processes)
