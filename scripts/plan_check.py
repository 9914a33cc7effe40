"""Train small models by one, two and four processes, and compare the memory that they hold with what was planned.

    python scripts/plan_check.py [NAME ...]        (two minutes)

Every training runs in processes of its own. Counted are the tensors that a process holds at its peak, which is what a
plan speaks of. Tiles of the rotation, which a thread of a CPU keeps from call to call (16 MiB at most), are allocated
anew for every call, as on a GPU. The exit status is 1 where a plan is more than a tenth off. --out FILE writes the
figures as JSON, --report writes benchmarks/DATE-plan.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from harpe.distributed.layout import Layout
from harpe.distributed.processes import join
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model
from harpe.options.training import LoraOptions, TrainingSettings
from harpe.planning.devices import Devices
from harpe.planning.live import LiveBytes
from harpe.planning.memory import plan_memory
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer
from harpe.positions import rotation
from harpe.training.stages import train_stages
from random_tokens import Random

ALLOWED = 0.1


@dataclass(frozen=True)
class Case:
    """A training of a Llama of 4 layers, 128 wide."""

    processes: int = 1
    parts: int = 1
    tile: int = 0
    vocabulary: int = 500
    length: int = 1024
    sequences: int = 1
    """Of a step."""
    micro_batch: int = 1
    recompute: bool = True
    dtype: str = "float32"
    lora_rank: int = 0

    def config(self) -> Any:
        return AutoConfig.for_model(
            "llama",
            vocab_size=self.vocabulary,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            dtype="bfloat16",
        )

    def planned(self) -> int:
        settings = Settings(
            sequence_parallel=self.parts,
            activations="recomputed" if self.recompute else "kept",
            mlp_tile=self.tile,
            micro_batch=self.micro_batch,
            batch_tokens=self.sequences * self.length,
            dtype=self.dtype,
        )
        tracer = Tracer(self.config(), LoraOptions(lora_rank=self.lora_rank).adapters)
        return plan_memory(tracer, self.length, Devices(self.processes, "CPU", 10**10), settings).total


CASES = {
    "vocabulary": Case(vocabulary=4000),
    "accumulated": Case(sequences=2),
    "kept": Case(recompute=False),
    "tiles": Case(vocabulary=4000, length=16384, tile=1024),
    "adapters": Case(lora_rank=8, vocabulary=4000),
    "adapters in bfloat16": Case(lora_rank=8, dtype="bfloat16", vocabulary=4000, length=4096),
    "data-parallel": Case(processes=2, sequences=2),
    "sequence-parallel": Case(processes=2, parts=2, vocabulary=4000, length=4096),
    "both": Case(processes=4, parts=2, length=2048, sequences=4, micro_batch=2),
}


class Held(LiveBytes):
    """Also of sharded tensors, whose storages FSDP makes larger and smaller."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # and be asked again for what it does with its local tensors
        return super().__torch_dispatch__(func, types, args, kwargs)

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        plain = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        super().watch(plain)
        self._storages |= {each._cdata: weakref.ref(each) for each in (tensor.untyped_storage() for tensor in plain)}
        for key, known in list(self._storages.items()):
            storage = known()
            if storage is None:
                del self._storages[key]
            elif key in self._sizes:
                self.now += storage.nbytes() - self._sizes[key]
                self._sizes[key] = storage.nbytes()
        self.peak = max(self.peak, self.now)


class FreshTiles:
    """In the place of memory that a thread keeps."""

    def take(self, rows: int, size: int) -> torch.Tensor:
        return torch.empty(rows, size)


def measure(name: str, checkpoint: Path, folder: Path) -> None:
    """One process of a training: its peak goes to FOLDER/peak-RANK."""
    case, ranks = CASES[name], join(tensors=True)
    layout = Layout(ranks.count, case.parts, mlp_tile=case.tile)
    shards = {"distributed_config": layout.distributed_config(case.dtype == "bfloat16")} if layout.sharded else {}
    model = load_model(checkpoint, torch.float32, **shards)
    geometry = read_geometry(model.config, "the model")
    stage = Stage(per_head_encoding([(1e4, 2e4)] * 4, geometry), case.length, 1.0)
    options = TrainingSettings(
        tokens=2 * case.sequences * case.length,
        batch_tokens=case.sequences * case.length,
        micro_batch=case.micro_batch,
        gradient_checkpointing=case.recompute,
        dtype=case.dtype,
        lora_rank=case.lora_rank,
    )
    data = Random(2 * case.sequences, case.length, case.vocabulary)
    with patch.object(rotation, "_scratch", FreshTiles()), Held() as held:
        held.watch(model.parameters())
        train_stages(model, geometry, [stage], data, options, folder / "training", layout=layout, ranks=ranks)
    (folder / f"peak-{ranks.rank}").write_text(str(held.peak))


def measured(name: str) -> int:
    """Bytes of the process that held most."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # read in another dtype, shards are memory of their own; as they lie, parts of what is mapped from the file
        AutoModelForCausalLM.from_config(case.config(), dtype=torch.bfloat16).save_pretrained(folder / "model")
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
        command = [*(several if case.processes > 1 else []), __file__, "--measure", name, str(folder)]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"The training {name} ended with status {done.returncode}:\n{done.stderr}")
        return max(int(path.read_text()) for path in folder.glob("peak-*"))


def report(rows: list[dict[str, Any]]) -> str:
    """The figures as a page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "deepspeed"))
    lines = [
        "# Memory: planned against held",
        "",
        "Peak bytes of tensors in the fullest process of trainings of a Llama of 4 layers, 128 wide, on CPUs (gloo),",
        "against `harpe plan`'s. Written by `scripts/plan_check.py --report`.",
        "",
        "| training | processes | a sequence | vocabulary | tokens | held, MB | planned, MB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['processes']} | {row['parts']} | {row['vocabulary']} | {row['length']} | "
        f"{row['held'] / 1e6:.1f} | {row['planned'] / 1e6:.1f} | {row['planned'] / row['held']:.3f} |"
        for row in rows
    ]
    return "\n".join([*lines, "", f"{date.today().isoformat()}, {packages}, Python {sys.version.split()[0]}.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, folder = args.measure
        measure(name, Path(folder) / "model", Path(folder))
        return 0
    rows = []
    for name in args.names or CASES:
        held, planned = measured(name), CASES[name].planned()
        rows.append({"name": name, **asdict(CASES[name]), "held": held, "planned": planned})
        print(f"{name}: {held / 1e6:.2f} MB held, {planned / 1e6:.2f} MB planned, {planned / held:.3f}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    if args.report:
        root = Path(__file__).parents[1]
        (root / "benchmarks" / f"{date.today().isoformat()}-plan.md").write_text(report(rows))
    return int(any(abs(row["planned"] / row["held"] - 1) > ALLOWED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
