"""How the processes of a training divide tokens and weights among them, and what a layout asks of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from harpe.errors import HarpeError
from harpe.options.training import LayoutOptions

OLDEST = {"transformers": (5, 23), "torch": (2, 8)}
"""For several processes: the first whose Trainer knows a model that was sharded as it was loaded, and the first that
writes checkpoints of shards in safetensors."""


@dataclass(frozen=True)
class Layout:
    """`world` processes in groups of `sequence_parallel` neighbours, each of which has a piece of the same sequences.

    Weights, gradients and moments are divided among world / replicas processes (FSDP2; hybrid where there are several
    replicas). A process alone is a layout too.
    """

    world: int = 1
    sequence_parallel: int = 1
    replicas: int = 1
    mlp_tile: int = 0
    """Tokens that feed-forward layers take at a time; 0: all that a process has."""
    offload: bool = False
    """Whether layers' inputs wait for the backward pass in the host's memory."""

    @property
    def data_parallel(self) -> int:
        """How many groups there are: sequences that are read at one time, with a micro-batch of 1."""
        return self.world // self.sequence_parallel

    @property
    def shards(self) -> int:
        """Processes that a copy of the weights is divided among."""
        return self.world // self.replicas

    @property
    def sharded(self) -> bool:
        return self.world > 1

    def accumulation(self, sequences: int, micro_batch: int) -> int:
        """Forward passes of a process in an optimiser step of so many sequences."""
        return sequences // (self.data_parallel * micro_batch)

    def distributed_config(self, mixed: bool) -> Any:
        """What transformers shards a model by while it loads it; None for a process alone.

        Parameters
        ----------
        mixed
            Gather weights and compute in bfloat16; masters and the sums of gradients are float32.
        """
        if not self.sharded:
            return None
        from transformers.distributed import DistributedConfig  # only here: 5.17 lacks some of its fields

        return DistributedConfig(
            fsdp_size=self.shards, dp_replicate_size=self.replicas, fsdp_mixed_precision=mixed, tp_size=1
        )

    def describe(self) -> str:
        """A sentence for the plan."""
        if not self.sharded:
            return ", ".join(["Trained by one process", *self._memory()]) + "."
        parts = [f"{self.world} processes: weights, gradients and moments are divided among {self.shards}"]
        parts += [f"{self.replicas} replicas"] if self.replicas > 1 else []
        parts += [
            f"{self.sequence_parallel} share a sequence"
            if self.sequence_parallel > 1
            else "each reads sequences of its own"
        ]
        return ", ".join([*parts, *self._memory()]) + "."

    def _memory(self) -> list[str]:
        tiles = [f"feed-forward layers take {self.mlp_tile} tokens at a time"] if self.mlp_tile else []
        return [*tiles, *(["activations wait in the host's memory"] if self.offload else [])]


MLP_TILE = 4096
"""Where tiles are what makes a training fit: large enough for full speed, small beside what attention keeps."""
ONE_PROCESS = Layout()
"""It has all weights and reads all sequences."""


def refuse_shared(option: str, parts: int, otherwise: str = "leave it out") -> None:
    """Refuse an option that needs whole sequences where `parts` processes would share one; `option` with its value.

    Raises HarpeError, which ends in `otherwise`.
    """
    if parts > 1:
        raise HarpeError(
            f"{option} needs whole sequences on every process, and {parts} would share one. Give --sequence-parallel 1 "
            f"(with a sequence for every process: --batch-tokens), or {otherwise}."
        )


def check_layout(layout: Layout, sequences: Sequence[int], micro_batch: int) -> None:
    """Refuse numbers that do not go into each other.

    Parameters
    ----------
    sequences
        Of an optimiser step, for every stage.

    Raises
    ------
    HarpeError
        Naming the options.
    """
    world, parts, replicas = layout.world, layout.sequence_parallel, layout.replicas
    if parts < 1 or world % parts:
        raise HarpeError(
            f"--sequence-parallel {parts} does not divide the {world} {_processes(world)} of the training: every "
            "sequence is shared by as many processes as it says."
        )
    if replicas < 1 or world % replicas:
        raise HarpeError(
            f"--replicas {replicas} does not divide the {world} {_processes(world)} of the training: every replica "
            "of the weights is divided among as many processes as the others."
        )
    if layout.mlp_tile < 0:
        raise HarpeError(f"--mlp-tile is {layout.mlp_tile}; it is a number of tokens, or 0.")
    together = layout.data_parallel * micro_batch
    if wrong := [count for count in sequences if count % together]:
        raise HarpeError(
            f"A step has {wrong[0]} sequences, and {together} are read at one time ({layout.data_parallel} groups of "
            f"processes, --micro-batch {micro_batch}), which does not divide them. Give another --batch-tokens, or "
            "more --sequence-parallel."
        )


def choose_layout(
    world: int,
    options: LayoutOptions,
    sequences: Sequence[int],
    micro_batch: int,
    filled: Callable[[Layout], float] = lambda layout: 0.0,
    *,
    whole: bool = False,
) -> Layout:
    """The layout that options ask for, not yet checked.

    What they leave to us, by 0, is the fewest processes a sequence that leave none without work, and whole sequences in
    feed-forward layers; where that does not fit, the first that does, by more processes, then by tiles; where none
    does, that which needs least.

    Parameters
    ----------
    sequences
        Of a step, for every stage.
    filled
        The share that a layout needs of what it may fill of a device; infinite where the model cannot have it.
    whole
        No sequence may be shared: none is where every process has one of its own, whatever the memory.
    """
    if options.sequence_parallel:
        parts = [options.sequence_parallel]
    else:
        every = [number for number in range(1, world + 1) if world % number == 0]
        parts = [n for n in every if not any(count % (world // n * micro_batch) for count in sequences)] or [1]
        parts = [1] if whole and 1 in parts else parts  # else `check_stages` says why they cannot share one
    tiles = [options.mlp_tile] if options.mlp_tile else [0, MLP_TILE]
    offload = options.offload_activations
    layouts = [Layout(world, number, options.replicas, tile, offload) for tile in tiles for number in parts]
    needs: list[float] = []
    for layout in layouts:
        needs.append(filled(layout))
        if needs[-1] <= 1:
            return layout
    return layouts[needs.index(min(needs))]


def _processes(count: int) -> str:
    return "process" if count == 1 else "processes"


def check_versions() -> None:
    """Refuse what is too old for several processes.

    Raises
    ------
    HarpeError
        Naming the package.
    """
    for package, oldest in OLDEST.items():
        found = version(package)
        if tuple(int(part) for part in found.split(".")[:2]) < oldest:
            raise HarpeError(
                f"Training by several processes needs {package} {'.'.join(map(str, oldest))} or newer; {found} is "
                "installed. Update it, or train with one process."
            )
