"""The processes of a row, and which GPUs and how many threads they get."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch

from harpe.distributed.layout import Layout, check_versions, choose_layout
from harpe.errors import HarpeError
from harpe.models.angles import moving_stage
from harpe.options.runs import CompareOptions
from harpe.options.training import LayoutOptions, TrainingSettings
from harpe.runs.rows import Row
from harpe.training.stages import check_stages


@dataclass(frozen=True, kw_only=True)
class RowProcesses(LayoutOptions):
    """Those that train a row with a seed together."""

    count: int = 1
    threads: int = 1
    """Of each, where they are several."""

    @classmethod
    def of(cls, options: CompareOptions, environment: Mapping[str, str], cores: int) -> RowProcesses:
        """Those that options ask for; HarpeError for what no row could have."""
        count = options.processes_per_row
        for name, value in (("--jobs", options.jobs), ("--processes-per-row", count)):
            if value < 1:
                raise HarpeError(f"{name} is {value}; it must be at least 1.")
        if count > 1:
            check_versions()
        threads = threads_of(environment.get("OMP_NUM_THREADS")) or max(1, cores // (options.jobs * count))
        wanted = {field.name: getattr(options, field.name) for field in fields(LayoutOptions)}
        return cls(count=count, threads=threads, **wanted)

    @classmethod
    def read(cls, text: str) -> RowProcesses:
        """What `text` gave."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """For the command line of a worker."""
        return json.dumps(asdict(self))

    def settled(
        self, rows: Sequence[Row], training: TrainingSettings, filled: Callable[[Layout], float] = lambda layout: 0.0
    ) -> RowProcesses:
        """With what options leave open decided, in one way for all stages of the rows that are trained.

        Raises HarpeError where a row cannot be shared so.
        """
        trained = [row.stages for row in rows if row.trained]
        sequences = [
            training.step_tokens(stages[-1].length) // training.sequence(stage.length)
            for stages in trained
            for stage in stages
        ]
        whole = any(moving_stage(stages) is not None for stages in trained)
        layout = choose_layout(self.count, self, sequences, training.micro_batch, filled, whole=whole)
        for stages in trained:
            check_stages(stages, training, layout)
        return replace(self, sequence_parallel=layout.sequence_parallel, mlp_tile=layout.mlp_tile)

    @property
    def layout(self) -> Layout:
        """How they share a row, where that is settled."""
        return choose_layout(self.count, self, sequences=(), micro_batch=1)


ONE_EACH = RowProcesses(sequence_parallel=1)
"""A row is trained by the process that measures it."""


def worker_environment(
    environment: Mapping[str, str], slot: int, at_a_time: int, cores: int, processes: int = 1
) -> dict[str, str]:
    """The environment of the worker in a slot: as many of the GPUs that this process may use as the row has processes,
    in turn, and its share of the cores.

    One GPU also where a worker is alone: the Trainer would spread a batch over all that it sees, and train on more
    tokens a step.
    """
    variable, entries = gpus(environment)
    threads = threads_of(environment.get("OMP_NUM_THREADS")) or max(1, cores // at_a_time)
    own = {variable: ",".join(own_gpus(entries, slot, processes)), "OMP_NUM_THREADS": str(threads)}
    return {**environment, **own, "TOKENIZERS_PARALLELISM": "false"}


def gpus(environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """The variable that names the GPUs of a process, and those that this one may use, as it names them."""
    hip = torch.version.hip is not None and "HIP_VISIBLE_DEVICES" in environment
    variable = "HIP_VISIBLE_DEVICES" if hip else "CUDA_VISIBLE_DEVICES"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return variable, visible_gpus(environment.get(variable), count)


def visible_gpus(visible: str | None, count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name for a worker.

    Parameters
    ----------
    visible
        Of this process: numbers, or names of GPUs (GPU-…) or of parts of them (MIG-…); None where it is not set.
    count
        GPUs that torch finds here. CUDA stops reading at the first entry that it does not know, and of MIG parts one
        process gets the first only: each of them can be had by a process of its own.
    """
    if not count:
        return []
    if visible is None:
        return [str(number) for number in range(count)]
    entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
    return entries if _are_parts(entries) else entries[:count]


def own_gpus(entries: Sequence[str], slot: int, processes: int) -> Sequence[str]:
    """Those of the worker in a slot, each of whose processes has one; none where there are none, so that a worker finds
    none either."""
    first = slot % max(1, len(entries) // processes) * processes
    return entries[first : first + processes]


def sharing(environment: Mapping[str, str], at_a_time: int, processes: int) -> int:
    """How many rows share the memory of a device: as many as are given the same GPUs (`own_gpus`), or all at a time
    where there are none."""
    _, entries = gpus(environment)
    return -(-at_a_time // max(1, len(entries) // processes)) if entries else at_a_time


def slowdown(environment: Mapping[str, str], at_a_time: int, cores: int, processes: int) -> float:
    """How many times as long a row takes beside the others as alone: by as much as they share its GPUs or its cores."""
    _, entries = gpus(environment)
    if entries:
        return max(1.0, at_a_time / max(1, len(entries) // processes))
    threads = threads_of(environment.get("OMP_NUM_THREADS"))
    alone = min(cores, threads * processes) if threads else cores
    return max(1.0, at_a_time * alone / cores)


def check_gpus(environment: Mapping[str, str], processes: int) -> None:
    """Refuse more processes a row than there are GPUs; any number of them train on a CPU."""
    _, entries = gpus(environment)
    if processes == 1 or not entries:
        return
    if _are_parts(entries):
        raise HarpeError(
            f"--processes-per-row {processes} needs whole GPUs, and this process has parts of one (MIG), which do not "
            "exchange tensors. Leave it out."
        )
    if processes > len(entries):
        raise HarpeError(
            f"--processes-per-row {processes} needs as many GPUs, one a process; this process may use {len(entries)}. "
            "Give a smaller number."
        )


def _are_parts(entries: Sequence[str]) -> bool:
    return all(entry.startswith("MIG-") for entry in entries)


def threads_of(value: str | None) -> int | None:
    """Threads of each process that the user's OMP_NUM_THREADS asks for; None where it is not set.

    Raises HarpeError for anything but a number from 1 up (or a list of them, of which the first counts: nested
    threads).
    """
    if value is None or not value.strip():
        return None
    first = value.split(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise HarpeError(
            f"OMP_NUM_THREADS is {value!r}; set it to the number of threads that each process may use, or leave it out."
        )
    return int(first)
