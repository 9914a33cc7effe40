"""Train one model on the same tokens by harpe and by transformers' Trainer with one base for all heads, in one process
and in two: tokens/s and peak memory.

    python scripts/benchmark_trainer.py                       (an hour and a quarter on two cores that do nothing else)
    python scripts/benchmark_trainer.py --cases tiny --repeats 1 --result /tmp/tried

Every training is in processes of its own, and the two ways take turns. A later call with the same --result goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from harpe.distributed.layout import Layout
from harpe.distributed.processes import join
from harpe.files import read_json, write_json, write_text
from harpe.methods.types import Stage, per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model
from harpe.options.training import TrainingSettings
from harpe.planning.devices import GB, Devices
from harpe.planning.live import LiveBytes
from harpe.planning.memory import plan_memory
from harpe.planning.settings import Settings
from harpe.runs.directory import processor_name
from harpe.training.stages import train_stages
from random_tokens import Random

ROOT = Path(__file__).parent.parent
STOCK, HARPE = WAYS = ("transformers", "harpe")
PROCESSES = (1, 2)


@dataclass(frozen=True)
class Case:
    """A model at a length; bfloat16 arithmetic, activations recomputed, a sequence for every process a step."""

    title: str
    length: int
    shape: dict[str, Any] = field(default_factory=dict)

    def config(self) -> PreTrainedConfig:
        found: PreTrainedConfig = AutoConfig.for_model(**self.shape)
        return found


def _small(width: int, vocabulary: int) -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 4}
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 3 * width,
    } | heads


CASES = {
    "smollm2-4k": Case(
        "SmolLM2-135M, 4,096 tokens", 4096, json.loads((ROOT / "scripts" / "shapes.json").read_text())["SmolLM2-135M"]
    ),
    "vocabulary-16k": Case("4 layers of width 256, vocabulary of 32,000, 16,384 tokens", 16_384, _small(256, 32_000)),
    "tiny": Case("for trying this script", 256, _small(64, 500)),
}


class Clock(TrainerCallback):
    """When every step ended, and its loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def tick(self, loss: float) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.tick(logs["loss"])


def by_transformers(model_folder: Path, data: Random, steps: int, folder: Path, clock: Clock) -> None:
    """As its user would: the model's own loss, DDP where a launcher has started several processes."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=1e-4,
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        bf16=True,
        gradient_checkpointing=True,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_steps=steps,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[clock]).train()


def by_harpe(model_folder: Path, data: Random, steps: int, folder: Path, clock: Clock) -> None:
    """`harpe.training.stages`, a base for every key/value head, FSDP2 in several processes."""
    ranks = join(tensors=True)
    layout = Layout(ranks.count)
    shards = {"distributed_config": layout.distributed_config(mixed=True)} if layout.sharded else {}
    model = load_model(model_folder, torch.float32, **shards)
    geometry = read_geometry(model.config, "the model")
    bases = [geometry.base * (2 + head) for head in range(geometry.key_value_heads)]
    options = TrainingSettings(
        tokens=steps * ranks.count * data.length,
        batch_tokens=ranks.count * data.length,
        learning_rate=1e-4,
        save_every=steps,
        dtype="bfloat16",
    )
    train_stages(
        model,
        geometry,
        [Stage(per_head_encoding(bases, geometry), data.length, 1.0)],
        data,
        options,
        folder,
        layout=layout,
        ranks=ranks,
        report=lambda step, steps, row: clock.tick(row["loss"]),
    )


def work(way: str, name: str, steps: int, tensors: bool, place: Path) -> None:
    """One process of a training; what it took goes to PLACE/took-RANK.json."""
    rank, count, case = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), CASES[name]
    data, clock = Random(steps * count, case.length, case.shape["vocab_size"]), Clock()
    train = by_harpe if way == HARPE else by_transformers
    live = LiveBytes()
    if tensors:
        with live:
            train(place / "model", data, steps, place / "training", clock)
    else:
        train(place / "model", data, steps, place / "training", clock)
    status = Path("/proc/self/status").read_text().split()
    resident = int(status[status.index("VmHWM:") + 1]) * 1024
    write_json(
        place / f"took-{rank}.json",
        {
            "step_seconds": [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)],
            "losses": clock.losses,
            "resident": resident,
            "tensors": live.peak if tensors else None,
        },
    )


def run(way: str, name: str, processes: int, steps: int, tensors: bool) -> dict[str, Any]:
    """A training in processes of its own."""
    case, cores = CASES[name], os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(case.config(), dtype=torch.bfloat16).save_pretrained(place / "model")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*(launcher if processes > 1 else []), __file__, "--work", way, name, str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // processes)), "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, *command, str(int(tensors)), scratch]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{way} with {name} ended with status {done.returncode}:\n{done.stderr}")
        ranks = [read_json(place / f"took-{rank}.json") for rank in range(processes)]
        shutil.rmtree(place / "training")
    seconds = ranks[0]["step_seconds"]
    return {
        "tokens_per_second": processes * case.length * len(seconds) / sum(seconds),
        "step_seconds": seconds,
        "losses": ranks[0]["losses"],
        "resident": max(rank["resident"] for rank in ranks),
        "tensors": ranks[0]["tensors"],
    }


def trainings(cases: list[str], repeats: int) -> list[dict[str, Any]]:
    """All that are asked for: the two ways next to each other, each first in every second repeat."""
    found = []
    for repeat in range(repeats):
        for case in cases:
            for processes in PROCESSES:
                for way in WAYS if repeat % 2 else reversed(WAYS):
                    found.append({"case": case, "processes": processes, "way": way, "repeat": repeat, "counted": False})
    return found + [
        {"case": case, "processes": 1, "way": way, "repeat": 0, "counted": True} for case in cases for way in WAYS
    ]


def planned(case: Case) -> int:
    """Bytes of tensors of harpe's training by one process, by `harpe plan`."""
    settings = Settings(sequence_parallel=1)
    return plan_memory(case.config(), case.length, Devices(1, "CPU", 10**12), settings).total


def span(values: list[float], form: str) -> str:
    """The median, with the smallest and the largest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Ratios are of harpe's to those of the run beside it."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        for processes in PROCESSES:
            both = [
                [row for row in rows if (row["case"], row["processes"], row["way"]) == (case, processes, way)]
                for way in WAYS
            ]
            stock, ours = ([row for row in found if not row["counted"]] for found in both)
            pairs = list(zip(stock, ours, strict=False))
            if not pairs:
                continue
            cells = [CASES[case].title, str(processes), str(len(pairs))]
            for key, unit, form in (("tokens_per_second", 1, ".0f"), ("resident", GB, ".2f")):
                cells += [span([row[key] / unit for row in found], form) for found in (stock, ours)]
                cells.append(span([b[key] / a[key] for a, b in pairs], ".2f"))
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def tensor_table(rows: list[dict[str, Any]]) -> list[str]:
    """Peaks of tensors, with harpe's plan."""
    counted = {(row["case"], row["way"]): row["tensors"] / GB for row in rows if row["counted"]}
    return [
        f"| {CASES[case].title} | {counted[case, STOCK]:.2f} | {counted[case, HARPE]:.2f} | "
        f"{counted[case, HARPE] / counted[case, STOCK]:.2f} | {planned(CASES[case]) / GB:.2f} |"
        for case in dict.fromkeys(case for case, _ in counted)
        if {(case, way) for way in WAYS} <= set(counted)
    ]


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    facts = ", ".join(f"{name} {fact}" for name, fact in value["environment"].items())
    return f"""# Training beside transformers' Trainer ({value["date"]})

Float32 weights, bfloat16 arithmetic, fused AdamW, activations recomputed, a sequence of random tokens for every process
a step, on CPUs. transformers: its Trainer, one base for all heads, the model's own loss; two processes are DDP, as
`torchrun` gives it on a CPU, each with all weights, gradients and moments. harpe: a base for every key/value head, the
loss in chunks; two processes share the weights (FSDP2). Each training has processes of its own, the two ways in turn:
medians (from, to) of so many trainings of {value["steps"]} steps, of which the first does not count. Memory
is the peak resident set of the fullest process, from its start to its end, with the checkpoint that it saves.

| model | processes | trainings | transformers, tokens/s | harpe | ratio | transformers, GB | harpe | ratio |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(table(value["rows"]))}

Peak of tensors, in trainings of one process that were not timed, and what `harpe plan` says of harpe's:

| model | transformers, GB | harpe | ratio | planned |
|---|---|---|---|---|
{chr(10).join(tensor_table(value["rows"]))}

{facts}. Made by `scripts/benchmark_trainer.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=[name for name in CASES if name != "tiny"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / f"{date.today()}-trainer")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        way, name, steps, tensors, place = args.work
        work(way, name, int(steps), tensors == "1", Path(place))
        return
    packages = ("torch", "transformers", "accelerate")
    facts = {name: version(name) for name in packages} | {"python": platform.python_version()}
    facts |= {"processor": processor_name(), "cores": str(os.cpu_count())}
    about = {"date": str(date.today()), "environment": facts, "repeats": args.repeats, "steps": args.steps}
    file = args.result.with_suffix(".json")
    value: dict[str, Any] = read_json(file) if file.exists() else {**about, "rows": []}
    if {key: value[key] for key in ("environment", "steps")} != {key: about[key] for key in ("environment", "steps")}:
        raise SystemExit(f"{file} was measured otherwise: name another --result.")
    value["repeats"] = args.repeats
    for training in trainings(args.cases, args.repeats):
        if any(training.items() <= row.items() for row in value["rows"]):
            continue
        kind = (training["way"], training["case"], training["processes"])
        row = training | run(*kind, args.steps if not training["counted"] else 2, training["counted"])
        value["rows"].append(row)
        write_json(file, value)
        write_text(args.result.with_suffix(".md"), markdown(value))
        held = row["tensors"] or row["resident"]
        print(*training.values(), f"{row['tokens_per_second']:.1f} tokens/s, {held / GB:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
