"""Several processes that share one evaluation, started by `torchrun` or `accelerate launch`.

What decides an evaluation (options, texts, what is there already) is settled by the first process and told to the
others. What is computed is cut into units whose results do not depend on each other (a document, a batch of samples),
and each process takes its share.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from harpe.errors import BrokenOff, HarpeError, OtherFailed

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

    @property
    def note(self) -> str:
        """Which process this is, for its progress; nothing where it is the only one."""
        return f"process {self.rank + 1} of {self.count}" if self.count > 1 else ""

    def wait(self) -> None:
        """Until all processes have come here.

        Raises
        ------
        HarpeError
            Where one of the others has ended.
        """
        if self.count > 1:
            _together(torch.distributed.barrier)

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first process, which alone does it, on every process.

        Raises
        ------
        HarpeError
            On the first process that of `work`, on the others `OtherFailed`; on all where another process has ended.
        """
        if self.count == 1:
            return work()
        told: list[Any] = [None, None]
        failure: HarpeError | None = None
        if self.first:
            try:
                told[0] = work()
            except HarpeError as error:
                failure, told[1] = error, str(error)
        _together(lambda: torch.distributed.broadcast_object_list(told, src=0))
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise OtherFailed(told[1])
        value: T = told[0]
        return value

    def on_every_rank(self, work: Callable[[], T]) -> T:
        """What `work` gives, which every process does for itself.

        Raises
        ------
        HarpeError
            Where `work` failed on any process: on the first such one that of `work`, on the others `OtherFailed`.
        """
        if self.count == 1:
            return work()
        failure: HarpeError | None = None
        try:
            value = work()
        except HarpeError as error:
            failure = error
        told = self.gather(str(failure) if failure is not None else None)
        failed = [rank for rank, sentence in enumerate(told) if sentence is not None]
        if failed:
            raise failure if failure is not None and failed[0] == self.rank else OtherFailed(str(told[failed[0]]))
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, on every one.

        Raises
        ------
        HarpeError
            Where one of the others has ended.
        """
        if self.count == 1:
            return [value]
        told: list[Any] = [None] * self.count
        _together(lambda: torch.distributed.all_gather_object(told, value))
        return told

    def share(self, units: Sequence[T]) -> list[T]:
        """This process's part of `units`: every `count`-th one, so that neighbours, which are alike, go to different
        processes."""
        return list(units[self.rank :: self.count])


ALONE = Processes()
"""One process, which does everything."""


def _together(exchange: Callable[[], object]) -> None:
    try:
        exchange()
    except RuntimeError as error:  # what gloo raises where a connection is closed
        raise BrokenOff(
            "Another process has ended before its share was done; where it could, it has said why. What was measured "
            "is kept: the same command goes on."
        ) from error


def world_size() -> int:
    """The number of processes that the launcher has started; no process joins the others by asking."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first one, before it has joined the others too."""
    return int(os.environ.get("RANK", "0")) == 0


LAUNCHERS: tuple[tuple[str, str], ...] = (
    ("WORLD_SIZE", "RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
)
"""Where torchrun, accelerate and others, Open MPI, and MPICH tell the number of processes and which one this is."""


def _launched() -> tuple[int, int]:
    """The number of processes of whatever started this one, and which of them this is.

    `srun` tells the tasks of its step. A script of `sbatch` that starts harpe without `srun` has the number of the
    whole job and no step; it cannot be told from a task, and is taken for one.
    """
    launchers = LAUNCHERS
    if "SLURM_PROCID" in os.environ:
        launchers += (
            ("SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS", "SLURM_PROCID"),
        )
    for size, rank in launchers:
        if os.environ.get(size, "1").isdigit() and (count := int(os.environ.get(size, "1"))) > 1:
            return count, int(os.environ.get(rank, "0"))
    return 1, 0


def refuse_several(verb: str, instead: str) -> None:
    """Refuse a launcher of several processes, each of which would do all of the work and write over the others' files.

    Raises
    ------
    HarpeError
        On the first process; on the others `OtherFailed`.
    """
    count, rank = _launched()
    if count > 1:
        sentence = (
            f"{verb} was started as {count} processes, and each would do all of it. Start it without a launcher "
            f"(SLURM: srun --ntasks=1): {instead}"
        )
        raise OtherFailed(sentence) if rank else HarpeError(sentence)


def join(tensors: bool = False) -> Processes:
    """Join the other processes that the launcher has started, on a GPU of its own (by LOCAL_RANK) where there are any.

    Processes that exchange decisions alone are connected by gloo, on GPUs too; with `tensors` NCCL carries those of
    GPUs. One process needs no group. The group is left at
    exit: a process that ends with gloo's threads running is now and then aborted (SIGABRT) after all its work, and the
    launcher then ends the others.
    """
    _adopt_slurm()
    count, rank = _launched()
    if world_size() == 1 and count > 1:
        sentence = (
            f"{count} processes were started in a way that does not tell torch how they find each other. Start them by "
            "torchrun, accelerate launch or srun."
        )
        raise OtherFailed(sentence) if rank else HarpeError(sentence)
    if world_size() == 1:
        return ALONE
    from accelerate import PartialState

    gpus = torch.cuda.is_available()
    if tensors and gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    state = PartialState(cpu=not gpus, timeout=PATIENCE, **({"backend": "gloo"} if gpus and not tensors else {}))
    atexit.unregister(_leave)
    atexit.register(_leave)
    return Processes(state.process_index, state.num_processes)


def _adopt_slurm() -> None:
    """Give the tasks of `srun` the names that torch reads. The first node of the step is where they meet."""
    given, tasks = os.environ, os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" in given or int(tasks) == 1:
        return
    job, nodes = int(given.get("SLURM_JOB_ID", "0")), given.get("SLURM_STEP_NODELIST", "127.0.0.1")
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    assert first is not None
    given.setdefault("MASTER_ADDR", first[1] + (first[2] or ""))
    given.setdefault("MASTER_PORT", str(20_000 + job % 40_000))
    if found := re.match(r"\d+", given.get("SLURM_STEP_TASKS_PER_NODE", "")):  # 2(x4): two on each of four nodes
        given.setdefault("LOCAL_WORLD_SIZE", found[0])
    given |= {"WORLD_SIZE": tasks, "RANK": given["SLURM_PROCID"], "LOCAL_RANK": given.get("SLURM_LOCALID", "0")}


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
