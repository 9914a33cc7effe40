"""The same training with sequences of its own for every process, and with every sequence shared by all: losses,
tokens/s and memory, on the GPUs of one machine.

    python benchmarks/gpu/layouts.py MODEL TEXTS --length 32768 --out FOLDER      (8 GPUs, 50 steps each, below an hour)

MODEL and TEXTS are those of `harpe extend`. Each of the two trainings wants 40 bytes of free disk a parameter (320 GB
for 8B) and leaves 14. One that was cut off goes on when the command is given again. What the script writes is
FOLDER/layouts.json; benchmarks/README.md says what stands there.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import threading
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from harpe.files import read_jsonl, write_json
from harpe.models.load import load_config
from harpe.planning.check import these_devices
from harpe.planning.memory import plan_memory
from harpe.planning.settings import Settings

EVERY = 0.5
"""Seconds between two looks at the GPUs."""


class Watched:
    """The most memory that one GPU has in use within the context, by nvidia-smi; None without that program."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watched:
        if shutil.which("nvidia-smi"):
            self._thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._stop.wait(EVERY):
            used = subprocess.run(command, capture_output=True, text=True).stdout.split()
            if used:
                self.peak = max(self.peak or 0, max(map(int, used)) * 2**20)


def command_of(args: argparse.Namespace, parts: int) -> list[str]:
    """The training with `parts` processes a sequence."""
    run = args.out / f"sp{parts}"
    step = args.processes * args.length
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}"]
    harpe = ["-m", "harpe", "extend", args.model, f"--length={args.length}", f"--data={args.texts}", f"--out={run}"]
    harpe += [f"--batch-tokens={step}", f"--tokens={args.steps * step}", f"--sequence-parallel={parts}"]
    return [*launcher, *harpe, f"--dtype={args.dtype}", *(["--resume"] if (run / "recipe.yaml").exists() else [])]


def measure(args: argparse.Namespace, parts: int) -> dict[str, Any]:
    """One training, from its log; the first step does not count for the speed."""
    with Watched() as watched:
        subprocess.run(command_of(args, parts), check=True)
    rows = read_jsonl(next((args.out / f"sp{parts}").glob("*/stage-1/log.jsonl")))
    step = args.processes * args.length
    settings = Settings(sequence_parallel=parts, batch_tokens=step, dtype=args.dtype)
    devices = these_devices(args.processes)
    return {
        "sequence_parallel": parts,
        "losses": [row["loss"] for row in rows],
        "gradient_norms": [row["grad_norm"] for row in rows],
        "tokens_per_second": step * (len(rows) - 1) / (rows[-1]["seconds"] - rows[0]["seconds"]),
        "peak_bytes": watched.peak,
        "planned_bytes": plan_memory(load_config(args.model), args.length, devices, settings).total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [measure(args, parts) for parts in (1, args.processes)]
    apart = max(abs(one - other) for one, other in zip(*(row["losses"] for row in rows), strict=True))
    packages = ("torch", "transformers", "accelerate", "deepspeed")
    environment = {name: version(name) for name in packages} | {"python": platform.python_version()}
    environment["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    about = {"date": str(date.today()), "environment": environment, "processes": args.processes, "dtype": args.dtype}
    about |= {"model": args.model, "length": args.length, "steps": args.steps, "cores": os.cpu_count()}
    write_json(args.out / "layouts.json", {**about, "largest_difference_of_losses": apart, "rows": rows})
    print(f"Losses are at most {apart:.2g} apart; {args.out / 'layouts.json'} has the rest.")


if __name__ == "__main__":
    main()
