"""Per-head RoPE against the shared RoPE of others: one rotation of q and k, a training step, a decoding step.

    python benchmarks/rope.py --result benchmarks/DATE-rope-cpu
    python benchmarks/rope.py --device cuda --result benchmarks/DATE-rope-gpu

Contenders: transformers' apply_rotary_pos_emb (eager, and compiled where a C++ compiler is present), Liger's kernel (on
CUDA, where liger-kernel is installed), ours, and a copy of q and k, which is the least that any of them could do. The
others are handed cos and sin that have been formed before; ours forms its own in the measured time beyond `HELD_ANGLES`
angles. Every contender allocates its results, but for Liger, which overwrites q and k. Contenders take turns within a
round, and the best of the rounds counts, so that what else the machine does hits all alike.

Writes RESULT.json and RESULT.md, after every case again. A later call with the same RESULT goes on: cases that are
there are kept.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import itertools
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from harpe._version import __version__
from harpe.files import read_json, write_json, write_text
from harpe.models.install import install
from harpe.positions import rotation
from harpe.positions.phases import base_frequencies, phase_steps
from harpe.positions.rotation import Layout, encode_positions, rotate_per_head

STOCK = apply_rotary_pos_emb  # before our hooks are put into the module
LENGTHS = (4096, 16_384, 65_536, 131_072, 524_288)
MEMORY = {"forward": 5, "forward + backward": 8}
"""Bytes that the hungriest contender needs, in multiples of q and k together."""


class Shape(NamedTuple):
    """Query heads, key/value heads, dimensions of a head."""

    heads: int
    key_value_heads: int
    dim: int


SHAPES = (Shape(8, 8, 64), Shape(8, 2, 64), Shape(16, 8, 128), Shape(16, 16, 64), Shape(32, 8, 128), Shape(32, 32, 128))


class Model(NamedTuple):
    """A Llama for whole steps: its size, tokens of a training step and of the cache of a decoding step."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    tokens: int
    cached: int
    vocabulary: int = 4096


MODELS = {
    "cpu": (Model(512, 4, 8, 4, 512, 2048), Model(576, 30, 9, 3, 512, 2048, 49_152)),  # the second: SmolLM2-135M
    "cuda": (Model(2048, 16, 32, 8, 4096, 4096),),
}


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def take_turns(contenders: dict[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, list[float]]:
    """Seconds a call in every round; a round of a contender takes about 20 ms or one call, and there are 3 to 50
    rounds."""
    calls = {}
    for name, run in contenders.items():
        for _ in range(2):  # the first call may compile
            start = time.perf_counter()
            run()
            wait(device)
        calls[name] = max(1, round(0.02 / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    while len(found["ours"]) < 3 or (len(found["ours"]) < 50 and time.perf_counter() - begin < seconds):
        for name, run in contenders.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            wait(device)
            found[name].append((time.perf_counter() - start) / calls[name])
    return found


def available_memory(device: str) -> int:
    """Bytes that may be used."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    text = Path("/proc/meminfo").read_text()
    return int(text.split("MemAvailable:")[1].split()[0]) * 1024 * 7 // 10  # others live on this machine, too


def rotations(
    shape: Shape, length: int, dtype: torch.dtype, mode: str, device: str, compiled: Any
) -> dict[str, Callable[[], Any]]:
    """The contenders for q and k as projections leave them: [1, heads, length, dim], heads and positions transposed."""
    heads, key_value_heads, dim = shape
    grad = mode != "forward"
    q, k = (
        torch.randn(1, length, n, dim, device=device, dtype=dtype).transpose(1, 2) for n in (heads, key_value_heads)
    )
    q.requires_grad_(grad)
    k.requires_grad_(grad)
    grads = (q.detach(), k.detach())
    positions = torch.arange(length, device=device)[None]
    angle = positions[..., None].double() * torch.tensor(base_frequencies([1e6], dim), device=device).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    bases = [1e6 + 4e6 * h / key_value_heads for h in range(key_value_heads)]
    pair = encode_positions(positions, torch.tensor(phase_steps(base_frequencies(bases, dim)), device=device))
    contenders: dict[str, Callable[[], Any]] = {
        "copy": lambda: (q.clone(), k.clone()),
        "transformers": lambda: STOCK(q, k, cos, sin),
        "ours": lambda: rotate_per_head(q, k, *pair, Layout()),
    }
    if compiled is not None:
        contenders["transformers, compiled"] = lambda: compiled(q, k, cos, sin)
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        liger = importlib.import_module("liger_kernel.ops.rope").LigerRopeFunction.apply
        contenders["Liger"] = lambda: liger(q, k, cos, sin)  # in place
    if not grad:
        return {name: torch.no_grad()(run) for name, run in contenders.items()}
    return {name: lambda run=run: torch.autograd.grad(run(), (q, k), grads) for name, run in contenders.items()}  # type: ignore[misc]


def measure_rotations(
    args: argparse.Namespace, done: list[dict[str, Any]], save: Callable[[dict[str, Any]], None]
) -> None:
    """Every shape, length, dtype and mode that memory allows."""
    compiler = shutil.which("g++") or shutil.which("clang++") or args.device == "cuda"
    compiled = torch.compile(STOCK, dynamic=True) if compiler and not args.no_compile else None
    for dtype in (getattr(torch, name) for name in args.dtypes):
        for mode in MEMORY:
            for shape in SHAPES:
                for length in args.lengths:
                    size = length * (shape.heads + shape.key_value_heads) * shape.dim * dtype.itemsize
                    case = {"dtype": str(dtype)[6:], "mode": mode, **shape._asdict(), "length": length, "bytes": size}
                    if any(case.items() <= other.items() and "seconds" in other for other in done):
                        continue
                    if size > args.largest * 2**30 or size * MEMORY[mode] > available_memory(args.device):
                        save({**case, "skipped": f"not run: q and k have {size / 2**30:.1f} GiB"})
                        continue
                    found = take_turns(
                        rotations(shape, length, dtype, mode, args.device, compiled), args.device, args.seconds
                    )
                    save({**case, "seconds": found})


def train_step(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    """One whole step."""
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def measure_steps(args: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """A training step (AdamW) and a decoding step, with one shared base and with a base per head."""
    install()
    for size, dtype in itertools.product(MODELS[args.device], (torch.float32, torch.bfloat16)):
        training: dict[str, Callable[[], Any]] = {}
        decoding: dict[str, Callable[[], Any]] = {}
        weights: dict[str, torch.Tensor] = {}
        for name in ("transformers", "ours"):
            bases = [1e6 + 4e6 * h / size.key_value_heads for h in range(size.key_value_heads)]
            rope = {"rope_type": "default"} if name == "transformers" else {"rope_type": "harpe", "bases": bases}
            config = LlamaConfig(
                vocab_size=size.vocabulary,
                hidden_size=size.hidden,
                intermediate_size=size.hidden * 11 // 4,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                num_key_value_heads=size.key_value_heads,
                max_position_embeddings=131_072,
                rope_parameters={"rope_theta": 1e6, **rope},
            )
            torch.manual_seed(0)
            model = LlamaForCausalLM(config).to(args.device, dtype)
            if weights:  # the same memory: where weights lie is worth more than what is compared here
                model.load_state_dict(weights, assign=True)
            weights = model.state_dict()
            ids = torch.randint(0, 4096, (1, size.tokens), device=args.device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
            training[name] = functools.partial(train_step, model, optimizer, ids)
            decoding[name] = decoder(model, ids, size.cached)
        facts = {"dtype": str(dtype)[6:], **size._asdict()}
        save({**facts, "step": "training", "seconds": take_turns(training, args.device, 4 * args.seconds)})
        save({**facts, "step": "decoding", "seconds": take_turns(decoding, args.device, 2 * args.seconds)})


def decoder(model: LlamaForCausalLM, ids: torch.Tensor, cached: int) -> Callable[[], Any]:
    """One token after `cached` others; the cache is cut back after every step."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=ids.repeat(1, -(-cached // ids.shape[1]))[:, :cached], past_key_values=cache, logits_to_keep=1)

    def step() -> None:
        with torch.inference_mode():
            model(input_ids=ids[:, :1], past_key_values=cache)
            cache.crop(-1)

    return step


def ratio(found: dict[str, list[float]], name: str, over: str) -> float:
    """Speed of `name` in multiples of `over`."""
    return min(found[over]) / min(found[name])


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"# Rotating q and k by a base per head ({value['date']}, {value['device']})",
        "",
        "Milliseconds (best round), GB/s of reading and writing q and k once (forward) or twice (forward + backward), "
        "share of the",
        "speed of a copy, and speed in multiples of transformers' eager rotation with one base for all heads. cos and "
        "sin of the shared",
        "contenders had been formed before; ours forms its own in the measured time wherever there are more than "
        f"{rotation.HELD_ANGLES} angles.",
    ]
    for mode in MEMORY:
        for dtype in ("bfloat16", "float32"):
            cases = [case for case in value["rotations"] if case["mode"] == mode and case["dtype"] == dtype]
            names = [
                n for n in ("transformers, compiled", "Liger") if any(n in case.get("seconds", {}) for case in cases)
            ]
            head = [
                "heads",
                "length",
                "transformers ms",
                *(f"{n} ms" for n in names),
                "ours ms",
                "ours GB/s",
                "of a copy",
                "speed",
            ]
            lines += ["", f"## {mode}, {dtype}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            for case in cases:
                shape = f"{case['heads']}/{case['key_value_heads']} x {case['dim']}"
                if "skipped" in case:
                    lines.append(f"| {shape} | {case['length']:,} | {case['skipped']} |" + " |" * (len(head) - 3))
                    continue
                best = {name: min(rounds) for name, rounds in case["seconds"].items()}
                moved = case["bytes"] * (2 if mode == "forward" else 4)
                others = [f"{1000 * best[n]:.2f}" for n in ("transformers", *names)]
                lines.append(
                    f"| {shape} | {case['length']:,} | {' | '.join(others)} | {1000 * best['ours']:.2f} | "
                    f"{moved / best['ours'] / 1e9:.1f} | {100 * best['copy'] / best['ours']:.0f}% | "
                    f"{best['transformers'] / best['ours']:.2f}x |"
                )
    lines += [
        "",
        "## Whole steps of a Llama",
        "",
        "| step | dtype | model | shared ms | per head ms | overhead, best | median of rounds |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for step in value["steps"]:
        found = step["seconds"]
        pairs = [a / b for a, b in zip(found["ours"], found["transformers"], strict=True)]
        what = f"{step['tokens']} tokens" if step["step"] == "training" else f"1 token after {step['cached']}"
        lines.append(
            f"| {step['step']}, {what} | {step['dtype']} | {step['layers']} layers x {step['hidden']}, heads "
            f"{step['heads']}/{step['key_value_heads']} | {1000 * min(found['transformers']):.2f} | "
            f"{1000 * min(found['ours']):.2f} | {100 / ratio(found, 'ours', 'transformers') - 100:+.1f}% | "
            f"{100 * statistics.median(pairs) - 100:+.1f}% |"
        )
    facts = "; ".join(f"{name} {fact}" for name, fact in value["environment"].items())
    return "\n".join([*lines, "", *value["notes"], "", f"Made with `python benchmarks/rope.py`. {facts}.", ""])


def environment(device: str) -> dict[str, str]:
    """Versions and hardware."""
    cpu = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    facts = {
        "harpe": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    facts |= {"processor": f"{cpu[0]}, {len(cpu)} cores", "threads": str(torch.get_num_threads())}
    return facts | ({"accelerator": torch.cuda.get_device_name()} if device == "cuda" else {"accelerator": "none"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--seconds", type=float, default=3.0, help="for the rounds of one case")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--largest", type=float, default=1e9, help="GiB of q and k of the largest case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the result file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.device == "cuda":
        install()  # with the kernel
    value: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": args.device,
        "environment": environment(args.device),
    }
    value |= {"notes": args.note, "rotations": [], "steps": []}
    if args.result.with_suffix(".json").exists():
        before = read_json(args.result.with_suffix(".json"))
        if before["environment"] != value["environment"]:
            raise SystemExit(f"{args.result}.json was measured elsewhere: name another --result.")
        value |= {"rotations": [case for case in before["rotations"] if "seconds" in case], "steps": before["steps"]}

    def saver(part: str) -> Callable[[dict[str, Any]], None]:
        def save(case: dict[str, Any]) -> None:
            value[part].append(case)
            value["rotations"].sort(
                key=lambda case: [case[name] for name in ("heads", "key_value_heads", "dim", "length")]
            )
            write_json(args.result.with_suffix(".json"), value)
            write_text(args.result.with_suffix(".md"), markdown(value))
            best = {name: round(1000 * min(rounds), 3) for name, rounds in case.get("seconds", {}).items()}
            print({name: case[name] for name in case if name not in ("seconds", "bytes")}, best, flush=True)

        return save

    if not value["steps"]:
        measure_steps(args, saver("steps"))
    measure_rotations(args, value["rotations"], saver("rotations"))
    print(args.result.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
