"""What adapters and document masks cost and save: tokens/s and memory of a training by one process on a CPU.

    python scripts/benchmark_tuning.py --result benchmarks/DATE-tuning    (some minutes on cores that do nothing else)

Every training is in a process of its own; the ways take turns. Memory is the peak of tensors, in trainings that are not
timed, beside what `harpe plan` says where it knows the way.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harpe.files import read_json, write_json, write_text
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model
from harpe.options.training import TrainingSettings
from harpe.planning.devices import GB, Devices
from harpe.planning.live import LiveBytes
from harpe.planning.memory import plan_memory
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer
from harpe.runs.directory import processor_name
from harpe.training.stages import train_stages
from random_tokens import Random

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
}
LENGTH, STEPS = 8192, 3
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "all weights": ({}, 1),
    "adapters of rank 16, norms and embeddings": ({"lora_rank": 16}, 1),
    "adapters of rank 16 alone": ({"lora_rank": 16, "lora_embeddings": False}, 1),
    "masks, 2 documents a sequence": ({"document_mask": "restart"}, 2),
    "masks, 16 documents a sequence": ({"document_mask": "restart"}, 16),
}
"""Options, and how many documents a sequence has."""


class Divided(Random):
    """Sequences of several documents of one length."""

    documents = 1

    def document_starts(self, index: int) -> np.ndarray:
        return np.arange(0, self.length, self.length // self.documents)

    def cut(self, length: int) -> Divided:
        return self


def work(way: str, tensors: bool, place: Path) -> None:
    """A training; what it took goes to PLACE/took.json."""
    options, documents = WAYS[way]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPE), dtype=torch.bfloat16).save_pretrained(
        place / "model"
    )
    model = load_model(place / "model", torch.float32)
    geometry = read_geometry(model.config, "the model")
    bases = [geometry.base * (2 + head) for head in range(geometry.key_value_heads)]
    settings = TrainingSettings(
        tokens=STEPS * LENGTH, learning_rate=1e-4, save_every=STEPS, dtype="bfloat16", **options
    )
    data, times = Divided(STEPS, LENGTH, SHAPE["vocab_size"]), list[float]()
    data.documents = documents
    stages = [Stage(per_head_encoding(bases, geometry), LENGTH, 1.0)]

    def told(step: int, steps: int, row: dict[str, Any]) -> None:
        times.append(time.perf_counter())

    live = LiveBytes()
    if tensors:
        with live:
            live.watch(model.parameters())
            train_stages(model, geometry, stages, data, settings, place / "training", report=told)
    else:
        train_stages(model, geometry, stages, data, settings, place / "training", report=told)
    rate = LENGTH * (len(times) - 1) / (times[-1] - times[0])
    write_json(place / "took.json", {"tokens_per_second": rate, "tensors": live.peak if tensors else None})


def run(way: str, tensors: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, __file__, "--work", way, str(int(tensors)), place]
        done = subprocess.run(words, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{way} ended with status {done.returncode}:\n{done.stderr}")
        return read_json(Path(place) / "took.json")


def planned(way: str) -> str:
    """Of documents apart the plan says what it says of whole sequences."""
    options = {key: value for key, value in WAYS[way][0].items() if key != "document_mask"}
    tracer = Tracer(AutoConfig.for_model(**SHAPE), TrainingSettings(tokens=LENGTH, **options).adapters)
    return f"{plan_memory(tracer, LENGTH, Devices(1, 'CPU', 10**12), Settings(sequence_parallel=1)).total / GB:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], args.work[1] == "1", Path(args.work[2]))
        return
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(args.repeats):
        for way in WAYS if repeat % 2 else reversed(WAYS):
            rates[way].append(run(way, tensors=False)["tokens_per_second"])
            print(way, rates[way][-1], flush=True)
    held = {way: run(way, tensors=True)["tensors"] for way in WAYS}
    packages = ("torch", "transformers", "accelerate", "peft")
    facts = {name: version(name) for name in packages} | {"python": platform.python_version()}
    facts |= {"processor": processor_name(), "cores": str(os.cpu_count())}
    first = next(iter(WAYS))
    lines = []
    for way, values in rates.items():
        ratios = [ours / whole for ours, whole in zip(values, rates[first], strict=True)]
        cells = [f"{statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}"]
        cells += [f"{held[way] / GB:.2f}", f"{held[way] / held[first]:.2f}", planned(way)]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    text = f"""# Adapters and document masks ({date.today()})

A Llama of 6 layers of width 512 (vocabulary {SHAPE["vocab_size"]:,}), one sequence of {LENGTH:,} random tokens a step,
a base for every key/value head, bfloat16 arithmetic, activations recomputed, one process on a CPU. Medians of
{args.repeats} trainings of {STEPS} steps, of which the first does not count; ratios are to the training of all weights
beside it. Memory: peak of tensors.

| way | tokens/s | ratio | GB | ratio | planned, GB |
|---|---|---|---|---|---|
{chr(10).join(lines)}

{", ".join(f"{name} {fact}" for name, fact in facts.items())}. Made by `scripts/benchmark_tuning.py`.
"""
    write_text(args.result.with_suffix(".md"), text)
    write_json(args.result.with_suffix(".json"), {"rates": rates, "tensors": held, "environment": facts})


if __name__ == "__main__":
    main()
