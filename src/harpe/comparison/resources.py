"""Which GPU and how many threads a worker of a comparison gets."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harpe.errors import HarpeError


def worker_environment(environment: Mapping[str, str], slot: int, at_a_time: int, cores: int) -> dict[str, str]:
    """The environment of the worker in a slot: one of the GPUs that this process may use, in turn, and its share of the
    cores.

    One GPU also where a worker is alone: the Trainer would spread a batch over all that it sees, and train on more
    tokens a step.
    """
    hip = torch.version.hip is not None and "HIP_VISIBLE_DEVICES" in environment
    variable = "HIP_VISIBLE_DEVICES" if hip else "CUDA_VISIBLE_DEVICES"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    threads = threads_of(environment.get("OMP_NUM_THREADS")) or max(1, cores // at_a_time)
    own = {variable: own_gpu(environment.get(variable), count, slot), "OMP_NUM_THREADS": str(threads)}
    return {**environment, **own, "TOKENIZERS_PARALLELISM": "false"}


def own_gpu(visible: str | None, count: int, slot: int) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for the worker in a slot; "" where there is no GPU, so that a worker finds
    none either.

    Parameters
    ----------
    visible
        Of this process: numbers, or names of GPUs (GPU-…) or of parts of them (MIG-…); None where it is not set.
    count
        GPUs that torch finds here. CUDA stops reading at the first entry that it does not know, and of MIG parts one
        process gets the first only: each of them can be had by a process of its own.
    """
    if not count:
        return ""
    if visible is None:
        return str(slot % count)
    entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
    if not all(entry.startswith("MIG-") for entry in entries):
        entries = entries[:count]
    return entries[slot % len(entries)]


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
