"""Times the loss through the family's own forward beside the plain output layer in chunks; time and memory.

    python scripts/benchmark_loss.py --tokens 16384 --vocabulary 32000

The rivals apply `lm_head` themselves, 2,048 positions at a time, by torch's own `linear_cross_entropy` (2.13) or by
Liger's (on CUDA, where liger-kernel is installed), and know nothing of scales and caps. Weights are float32; bfloat16
is that of autocast, for torch's function that of its arguments. All run in turn in one process; the memory is the
growth of its peak in one pass (on a GPU that of the allocator).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig

from harpe.files import write_json, write_text
from harpe.runs.directory import processor_name
from harpe.training.loss import mean_nll

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _plain(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), target, reduction="sum")


def rival(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The output layer's weights on chunks of 2,048 positions."""
    states, targets = hidden[:, :-1].reshape(-1, hidden.shape[-1]), labels[:, 1:].reshape(-1)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, states.shape[0], 2048):
        part = (states[start : start + 2048], model.lm_head.weight, targets[start : start + 2048])
        total = total + (checkpoint(_plain, *part, use_reentrant=False) if torch.is_grad_enabled() else _plain(*part))
    return total / (targets != -100).sum()


def fused(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torch's function, in the chunks that it takes by itself; gradients are formed in the forward pass."""
    states, targets = hidden[:, :-1].reshape(-1, hidden.shape[-1]), labels[:, 1:].reshape(-1)
    dtype = torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else states.dtype
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(states.to(dtype), model.lm_head.weight.to(dtype), targets, options=options)


def liger(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Liger's kernel; gradients are formed in the forward pass."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    states, targets = hidden[:, :-1].reshape(-1, hidden.shape[-1]), labels[:, 1:].reshape(-1)
    found = liger_fused_linear_cross_entropy(states, model.lm_head.weight, targets)
    return found[0] if isinstance(found, tuple) else found


WAYS: dict[str, Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "plain output layer": rival,
    "own forward": lambda model, hidden, labels: mean_nll(model, hidden[:, :-1], labels[:, 1:]),
}
if hasattr(F, "linear_cross_entropy"):
    WAYS["torch's linear_cross_entropy"] = fused
if DEVICE == "cuda" and importlib.util.find_spec("liger_kernel"):
    WAYS["Liger"] = liger


def made(tokens: int, vocabulary: int, width: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=4, tie_word_embeddings=False, **shape)
    model = AutoModelForCausalLM.from_config(config).to(DEVICE)
    hidden = torch.randn(1, tokens, width, device=DEVICE, requires_grad=True)
    return model, hidden, torch.randint(0, vocabulary, (1, tokens), device=DEVICE)


def one(
    way: str, backward: bool, mixed: bool, model: Any, hidden: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float]:
    """Seconds and loss of one pass; gradients are dropped."""
    start = time.perf_counter()
    with torch.set_grad_enabled(backward), torch.autocast(DEVICE, torch.bfloat16, enabled=mixed):
        loss = WAYS[way](model, hidden, labels)
    if backward:
        loss.backward()
    value = loss.item()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    hidden.grad = None
    return seconds, value


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) / 1024


def peak(way: str, backward: bool, *given: Any) -> float:
    """MiB by which the peak of one pass is over what is held before it."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        one(way, backward, *given)
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = _status("VmRSS")
    one(way, backward, *given)
    return _status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", default="benchmarks")
    options = parser.parse_args()
    given = (options.dtype == "bfloat16", *made(options.tokens, options.vocabulary, options.width))
    rows: list[dict[str, Any]] = []
    for backward in (False, True):
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        values = {}
        for number in range(options.repeats + 1):
            for way in WAYS if number % 2 else reversed(WAYS):
                took, values[way] = one(way, backward, *given)
                if number:  # the first pass allocates
                    seconds[way].append(took)
        for way in WAYS:
            memory = peak(way, backward, *given)
            row = {"way": way, "pass": "forward and backward" if backward else "forward", "seconds": seconds[way]}
            rows.append({**row, "median": statistics.median(seconds[way]), "mib": memory, "loss": values[way]})
            print(
                f"{row['pass']}, {way}: {rows[-1]['median']:.3f} s, {memory:.0f} MiB, loss {values[way]:.6f}",
                flush=True,
            )
    facts = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    facts |= {"processor": torch.cuda.get_device_name() if DEVICE == "cuda" else processor_name()}
    facts |= {"threads": str(torch.get_num_threads()), "cores": str(os.cpu_count())}
    sizes = {
        "tokens": options.tokens,
        "vocabulary": options.vocabulary,
        "width": options.width,
        "repeats": options.repeats,
        "dtype": options.dtype,
    }
    stem = Path(options.out) / f"{date.today()}-loss{'-gpu' if DEVICE == 'cuda' else ''}-{options.dtype}"
    write_json(stem.with_suffix(".json"), {"environment": facts, **sizes, "rows": rows})
    table = [
        f"| {r['pass']} | {r['way']} | {r['median']:.3f} | {min(r['seconds']):.3f} to {max(r['seconds']):.3f} | "
        f"{r['mib']:.0f} |"
        for r in rows
    ]
    lines = [
        f"# The loss through the family's own forward, beside the plain output layer ({date.today()})\n",
        f"{options.tokens:,} tokens, a vocabulary of {options.vocabulary:,}, hidden states of {options.width}, "
        f"{options.dtype};",
        f"median of {options.repeats} passes each, in turn in one process. The plain output layer in chunks of 2,048 "
        "positions",
        "is how the loss was formed before; it gives another loss than the model's own wherever a family scales or "
        "caps its",
        "logits. Memory is what the peak of one pass is over what was held before.\n",
        "| pass | way | median, s | from, to | MiB |\n|---|---|---|---|---|",
        *table,
        "",
        ", ".join(f"{k} {v}" for k, v in facts.items()) + ".\n",
        "Made by `scripts/benchmark_loss.py`.",
    ]
    write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
