"""Times the needle grid with shared prefixes beside one prefill a cell, in one run, and compares with the bound from
the operations.

    python scripts/benchmark_grid.py --setting embedded-2048 --setting llama-4096 --repeats 3

Each setting is a model without training for its length (answers are compared between the two ways, not scored), a grid
and a number of samples. The two ways alternate; ratios are those of the medians, of the time that passed and of the
processor time of this process alone, which other processes on the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from harpe.evaluation.cache import Reuse, cache_reuse
from harpe.evaluation.flops import reading_cost
from harpe.evaluation.needles.grid import CLOSE, answer_grid, grid_samples, reading_report
from harpe.evaluation.needles.samples import NeedleWriter
from harpe.evaluation.run import EvaluationProtocol
from harpe.files import write_json, write_text
from harpe.methods.types import shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model, load_tokenizer, to_accelerator
from harpe.runs.directory import processor_name
from harpe.runs.texts import held_out_texts


def embedded(length: int) -> PreTrainedModel:
    """The embedded model with one larger base."""
    model = load_model("embedded", torch.float32)
    geometry = read_geometry(model.config, "embedded")
    return apply_encoding(model, shared_encoding(1e6, geometry), geometry, length)


def llama(length: int) -> PreTrainedModel:
    """Eight layers of width 512 with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=length,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return LlamaForCausalLM(config)


SETTINGS = {
    "embedded-2048": (embedded, 256, 2048, 4),
    "llama-4096": (llama, 1024, 4096, 1),
    "llama-8192": (llama, 1024, 8192, 1),
}
"""Model, shortest and longest length of the grid, samples."""


def busy() -> float:
    """Seconds that all processors of the machine together have worked since it started; 0 where that cannot be read."""
    try:
        user, nice, system = (int(part) for part in Path("/proc/stat").read_text().split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Both ways `repeats` times, alternating, after a short run of each."""
    make, shortest, longest, count = SETTINGS[name]
    model, tokenizer = to_accelerator(make(longest)).eval(), load_tokenizer("embedded")
    held_out = held_out_texts("embedded", tokenizer, longest, 8)
    protocol = EvaluationProtocol(shortest, longest)
    samples = grid_samples(NeedleWriter(tokenizer, held_out.haystacks, 1), longest, shortest, count)
    cells = [(n, d) for n in protocol.grid_lengths for d in protocol.depths]
    way = cache_reuse(model)
    ways: tuple[Reuse, Reuse] = ("none", way[0])
    records: dict[Reuse, list[dict[str, Any]]] = {}
    seconds: dict[Reuse, list[float]] = {w: [] for w in ways}
    processor: dict[Reuse, list[float]] = {w: [] for w in ways}
    others: list[float] = []
    for w in ways:
        list(answer_grid(model, tokenizer, samples[:1], cells[:2], w))
    for number in range(repeats):
        for w in ways:
            wall, all_work, own = time.perf_counter(), busy(), time.process_time()
            records[w] = [record for batch in answer_grid(model, tokenizer, samples, cells, w) for record in batch]
            seconds[w].append(time.perf_counter() - wall)
            processor[w].append(time.process_time() - own)
            others.append(max(0.0, busy() - all_work - processor[w][-1]) / seconds[w][-1])
            print(
                f"{name} {number + 1}/{repeats} {w}: {seconds[w][-1]:.1f} s, other processes {others[-1]:.2f} cores",
                flush=True,
            )
    report = reading_report(samples, cells, reading_cost(model), way, records[ways[1]])
    ratio, own_ratio = (median(times["none"]) / median(times[ways[1]]) for times in (seconds, processor))
    different, unexplained = compare(records["none"], records[ways[1]])
    return {
        "setting": name,
        "parameters": model.num_parameters(),
        "lengths": list(protocol.grid_lengths),
        "depths": list(protocol.depths),
        "samples": count,
        **{
            key: report[key]
            for key in ("reuse", "flops_one_prefill_a_cell", "flops_shared_prefix", "bound", "answers", "close")
        },
        "seconds_one_prefill_a_cell": seconds["none"],
        "seconds_shared_prefix": seconds[ways[1]],
        "processor_seconds_one_prefill_a_cell": processor["none"],
        "processor_seconds_shared_prefix": processor[ways[1]],
        "ratio": ratio,
        "reached": ratio / report["bound"],
        "processor_ratio": own_ratio,
        "processor_reached": own_ratio / report["bound"],
        "other_processes_cores": others,
        "different_answers": different,
        "different_answers_not_close": unexplained,
    }


def compare(alone: Sequence[dict[str, Any]], shared: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Answers that differ, and those among them whose two first logits are not close."""
    there = {(r["length"], r["index"], r["depth"]): r for r in alone}
    different = [r for r in shared if there[r["length"], r["index"], r["depth"]]["answers"] != r["answers"]]
    return len(different), sum(r["margin"] >= CLOSE for r in different)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", action="append", choices=tuple(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="benchmarks")
    options = parser.parse_args()
    rows = [measure(name, options.repeats) for name in options.setting or ("embedded-2048", "llama-4096")]
    facts = {name: version(name) for name in ("torch", "transformers")} | {
        "python": platform.python_version(),
        "processor": processor_name(),
    }
    facts |= {"threads": str(torch.get_num_threads()), "cores": str(os.cpu_count())}
    stem = Path(options.out) / f"{date.today()}-grid-prefix"
    write_json(stem.with_suffix(".json"), {"environment": facts, "repeats": options.repeats, "settings": rows})
    lines = [
        f"# The needle grid with shared prefixes beside one prefill a cell ({date.today()})\n",
        f"One run, float32; the two ways alternate, {options.repeats} times each, medians. Apart: one prefill a cell, "
        "in one",
        "piece; shared: at most 4,096 tokens at a time. The bound is the ratio of the floating-point operations, "
        "counted from the model's",
        f"shapes, attention included. {len(rows[0]['depths'])} depths a length.\n",
        "| model | parameters | lengths | samples | apart, s | shared, s | ratio | bound | reached | by CPU time | "
        "answers that differ |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lengths = f"{row['lengths'][0]:,} to {row['lengths'][-1]:,}"
        times = [f"{median(row[key]):.1f}" for key in ("seconds_one_prefill_a_cell", "seconds_shared_prefix")]
        lines.append(
            f"| {row['setting']} | {row['parameters'] / 1e6:.1f}M | {lengths} | {row['samples']} | {times[0]} | "
            f"{times[1]} | **{row['ratio']:.2f}** | {row['bound']:.2f} | {row['reached']:.0%} | "
            f"{row['processor_reached']:.0%} | {row['different_answers']} of {row['answers']} ({row['close']} close) |"
        )
    load = [value for row in rows for value in row["other_processes_cores"]]
    lines += [
        "\nClose: the two first logits at some token of the answer are within 1e-3.",
        f"Other processes on the machine used {min(load):.2f} to {max(load):.2f} cores during the repetitions, "
        f"{median(load):.2f} in the",
        "median; " + ("they disturb the timings.\n" if median(load) > 0.1 else "that is nearly nothing.\n"),
        ", ".join(f"{k} {v}" for k, v in facts.items()) + ".\n",
        "Made by `scripts/benchmark_grid.py`.",
    ]
    write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
