"""Optimiser steps of a Llama on one GPU: harpe's ways beside transformers' with one base; tokens/s and peak memory,
with what `harpe plan` says of both.

    python benchmarks/gpu/steps.py --result DATE-steps-gpu
    python benchmarks/gpu/steps.py --shape 7B --lengths 131072 --ways offloaded+tiles --steps 1 --result DATE-steps-gpu

All train float32 weights under bfloat16 autocast with fused AdamW, recompute the activations of every layer, clip
gradients, and see the same random tokens. harpe's ways have a base for every key/value head and form their loss in
pieces; offloaded is `--offload-activations`, tiles `--mlp-tile 4096`. transformers' has its own `model(ids,
labels=ids).loss`. Each way and length is measured in turn: one step to warm up, then `--steps` whose median counts. A
way that does not fit into the memory of the GPU is reported as such. Planned seconds are those of `harpe plan` at its
own utilisation. A later call with the same --result goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from harpe._version import __version__
from harpe.distributed.layout import Layout
from harpe.files import read_json, write_json, write_text
from harpe.models.install import install
from harpe.planning.check import these_devices
from harpe.planning.devices import PEAKS
from harpe.planning.memory import plan_memory
from harpe.planning.settings import Settings, activations
from harpe.planning.time import plan_time
from harpe.planning.trace import Tracer
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.tiles import mlp_tiles

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    },
    "7B": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
    },
}
"""1B: Llama 3.2 1B. 7B: LLaMA-2-7B. tiny: for trying this script on a CPU."""
STOCK = "transformers"
WAYS = {
    "harpe": Layout(),
    "offloaded": Layout(offload=True),
    "tiles": Layout(mlp_tile=4096),
    "offloaded+tiles": Layout(offload=True, mlp_tile=4096),
}
"""harpe's, beside transformers'."""


def config_of(way: str, shape: str) -> LlamaConfig:
    sizes = {"num_key_value_heads": 8, "tie_word_embeddings": True, **SHAPES[shape]}
    heads = sizes["num_key_value_heads"]
    bases = [1e6 + 4e6 * head / heads for head in range(heads)]
    rope = {"rope_type": "default"} if way == STOCK else {"rope_type": "harpe", "bases": bases}
    return LlamaConfig(**sizes, max_position_embeddings=131_072, rope_parameters={"rope_theta": 1e6, **rope})


def model_of(way: str, shape: str, device: str) -> LlamaForCausalLM:
    """The same random weights for all ways."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config_of(way, shape))
    set_recompute(model, True, way in WAYS and WAYS[way].offload)
    return model.train()


def planned(way: str, shape: str, length: int, device: str) -> dict[str, Any]:
    """Bytes of tensors and seconds a step by `harpe plan`."""
    layout, devices, tracer = WAYS[way], these_devices(1), Tracer(config_of(STOCK, shape))
    settings = Settings(
        sequence_parallel=1, activations=activations(recompute=True, offload=layout.offload), mlp_tile=layout.mlp_tile
    )
    time_ = plan_time(tracer, length, length, replace(devices, peak=PEAKS.get(devices.name)), settings)
    return {
        "planned_bytes": plan_memory(tracer, length, devices, settings).total,
        "planned_seconds": time_.hours and time_.hours * 3600,
        "operations": time_.operations,
    }


def measure(way: str, shape: str, length: int, steps: int, device: str) -> dict[str, Any]:
    """Seconds of every step, the losses and the peak of memory in bytes."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = model_of(way, shape, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    generator = torch.Generator().manual_seed(1)
    seconds, losses = [], []
    with contextlib.ExitStack() as stack:
        if way in WAYS:
            stack.enter_context(chunked_loss(model))
            stack.enter_context(mlp_tiles(model, WAYS[way].mlp_tile))
        for _ in range(steps + 1):
            ids = torch.randint(0, SHAPES[shape]["vocab_size"], (1, length), generator=generator).to(device)
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"seconds": seconds[1:], "losses": losses, "peak_bytes": peak, "parameters": model.num_parameters()}


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"# Training steps on one GPU ({value['date']})\n",
        "| model | tokens | way | s a step | planned | tokens/s | peak, GB | planned | first loss |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for case in value["cases"]:
        name = f"| {case['shape']} | {case['length']:,} | {case['way']} | "
        if "seconds" in case:
            median = statistics.median(case["seconds"])
            peak = case["peak_bytes"] / 1e9
            bytes_, time_ = case.get("planned_bytes"), case.get("planned_seconds")
            plan = f"{time_:.1f}" if time_ else "", f"{bytes_ / 1e9:.1f}" if bytes_ else ""
            speed = f"{case['length'] / median:,.0f}"
            lines.append(
                name + f"{median:.2f} | {plan[0]} | {speed} | {peak:.1f} | {plan[1]} | {case['losses'][0]:.5f} |"
            )
        else:
            lines.append(name + f"{case['failed']} | | | | | |")
    facts = "; ".join(f"{key} {fact}" for key, fact in value["environment"].items())
    about = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    return "\n".join([*lines, "", about, "", f"Made with `python benchmarks/gpu/steps.py`. {facts}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="1B")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32_768, 131_072])
    parser.add_argument("--ways", choices=[STOCK, *WAYS], nargs="+", default=[STOCK, *WAYS])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    args = parser.parse_args()
    install()
    facts = {
        "harpe": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    facts |= {"accelerator": torch.cuda.get_device_name() if args.device == "cuda" else "none"}
    value: dict[str, Any] = {"date": datetime.date.today().isoformat(), "environment": facts, "cases": []}
    if args.result.with_suffix(".json").exists():
        before = read_json(args.result.with_suffix(".json"))
        if before["environment"] != facts:
            raise SystemExit(f"{args.result}.json was measured elsewhere: name another --result.")
        value = before
    for length in args.lengths:
        for way in args.ways:
            case: dict[str, Any] = {"shape": args.shape, "length": length, "way": way}
            if any(case.items() <= other.items() for other in value["cases"]):
                continue
            if way in WAYS:
                case |= planned(way, args.shape, length, args.device)
            try:
                case |= measure(way, args.shape, length, args.steps, args.device)
            except torch.OutOfMemoryError:
                case["failed"] = "does not fit"
            value["cases"].append(case)
            write_json(args.result.with_suffix(".json"), value)
            write_text(args.result.with_suffix(".md"), markdown(value))
            print(markdown(value).splitlines()[3 + len(value["cases"])], flush=True)


if __name__ == "__main__":
    main()
