"""Times the answers of `harpe ruler` beside transformers' `generate` with its dynamic and its static cache, in one
process and in turns, and counts the answers that are the same.

    python scripts/benchmark_answers.py CHECKPOINT --data DATA --length 2048 --tasks niah --samples 8 [--vllm PYTHON]

`generate` reads the samples of a batch padded on the left, under autocast, as `harpe ruler` did before. In the rows of
decoding, a model that is in the dtype altogether stands beside it (faster, with other numbers), with both caches: the
static one does not run under autocast, as keys and values have two dtypes there. Samples are RULER's own, for the
checkpoint's tokenizer. --vllm names the Python of an environment with vLLM, which then answers the same prompts in a
process of its own, the time to load left out. Run again with another --length or other --tasks, what is measured is
added to the file of the day.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from harpe.data.token_ids import text_ids
from harpe.evaluation.answers import answer_samples
from harpe.evaluation.cache import RowCache
from harpe.evaluation.greedy import end_ids
from harpe.evaluation.row_attention import one_query
from harpe.evaluation.ruler.tasks import chosen, score
from harpe.files import read_json, read_jsonl, write_json, write_text
from harpe.models.dtype import hold_weights
from harpe.models.load import load_model, load_tokenizer
from harpe.options.measuring import RulerOptions
from harpe.runs.directory import processor_name
from harpe.suites.ruler import run_ruler

STEPS = 8
"""Decoding steps that are timed at a time."""


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall-clock seconds, seconds of the processor, and what the work gave."""
    wall, processor = time.perf_counter(), time.process_time()
    value = work()
    return time.perf_counter() - wall, time.process_time() - processor, value


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def generated(model: Any, tokenizer: Any, prompts: list[list[int]], budget: int, cache: str) -> list[str]:
    """Answers of `generate` to one batch."""
    ids, mask = padded(prompts)
    ends = end_ids(model, tokenizer)
    config = GenerationConfig(max_new_tokens=budget, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
    config.cache_implementation = cache
    model.generation_config = GenerationConfig()
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in out[:, ids.shape[1] :].tolist()]


@torch.inference_mode()
def steps(model: Any, cache: Any, lengths: list[int], mask: torch.Tensor | None) -> None:
    """Steps of decoding behind a cache; mask: of a cache that is padded on the left."""
    lengths = list(lengths)
    for _ in range(STEPS):
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(lengths), 1)], dim=1)
        seen = cache.mask() if mask is None else mask
        positions = torch.tensor(lengths)[:, None]
        ids = torch.full((len(lengths), 1), 17)
        with one_query(model) if mask is None else nullcontext():
            out = model(
                input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
        out.logits.argmax(-1)
        lengths = [length + 1 for length in lengths]
        if mask is None:
            cache.lengths = lengths


def decoding(stock: Any, low: Any, held: Any, length: int, rows: int) -> dict[str, Any]:
    """The least seconds of a step in `rows` rows of about `length` tokens, by kind of cache.

    The caches hold random numbers: the time does not depend on them.
    """
    lengths = [length - 3 * row for row in range(rows)]
    config, room = stock.config, length + STEPS + 1
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    mask = torch.tensor([[0] * (length - n) + [1] * n for n in lengths])
    keys = torch.randn(rows, heads, length, size)

    def filled(cache: Any, keys: torch.Tensor) -> Any:
        for layer in range(config.num_hidden_layers):
            cache.update(keys, keys, layer)
        return cache

    def ours() -> Any:
        cache = RowCache(held, rows, room)
        for layer in range(config.num_hidden_layers):
            for row, n in enumerate(lengths):
                with cache.read_row(row):
                    cache.update(keys[row : row + 1, :, :n], keys[row : row + 1, :, :n], layer)
        cache.lengths = list(lengths)
        return cache

    lowered = keys.to(low.dtype)
    ways: dict[str, tuple[Any, Callable[[], Any]]] = {
        # under autocast this cache is in float32 too: so the rotation makes the keys
        "generate": (stock, lambda: filled(DynamicCache(config=config), keys)),
        "low": (low, lambda: filled(DynamicCache(config=config), lowered)),
        "static": (low, lambda: filled(StaticCache(config=config, max_cache_len=room), lowered)),
        "harpe": (held, ours),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(3):
        for name, (model, make) in ways.items():
            cache = make()
            with torch.autocast("cpu", torch.bfloat16, enabled=model is not low and low.dtype == torch.bfloat16):
                wall, processor, _ = timed(partial(steps, model, cache, lengths, None if name == "harpe" else mask))
            found[name].append((wall / STEPS, processor / STEPS))
            del cache
    return {name: {"wall": min(w for w, _ in t), "processor": min(p for _, p in t)} for name, t in found.items()}


def answering(
    stock: Any, held: Any, tokenizer: Any, folder: Path, task: Any
) -> tuple[dict[str, Any], list[list[int]], list[Any]]:
    """Seconds of all samples of a task in one batch, full answers and those that end early, and what agrees; its
    prompts and samples."""
    samples = read_jsonl(folder / f"{task.name}.jsonl")
    prompts = [text_ids(tokenizer, sample["input"] + sample["answer_prefix"]) for sample in samples]

    def ours(full: bool) -> list[str]:
        rows = [row for rows in answer_samples(held, tokenizer, task, samples, full=full) for row in rows]
        return [row["prediction"] for row in sorted(rows, key=lambda row: row["sample"])]

    ways = {
        "generate": lambda: generated(stock, tokenizer, prompts, task.tokens, "dynamic"),
        "full": lambda: ours(True),
        "harpe": lambda: ours(False),
    }
    row: dict[str, Any] = {"task": task.name, "samples": len(samples)}
    texts = {}
    for name, work in ways.items():
        wall, processor, texts[name] = timed(work)
        row[name] = {"wall": wall, "processor": processor}
        row[name]["scores"] = [score(task, t, s["outputs"]) for t, s in zip(texts[name], samples, strict=True)]
    row["same"] = sum(a == b for a, b in zip(texts["generate"], texts["full"], strict=True))
    row["beginnings"] = sum(a.startswith(b) for a, b in zip(texts["full"], texts["harpe"], strict=True))
    print(row, flush=True)
    return row, prompts, samples


def by_vllm(options: Any, tokenizer: Any, ends: list[int], tasks: dict[str, tuple[list[list[int]], int]]) -> Any:
    """What `answers_by_vllm.py` says of the tasks, and of decoding in as many rows as was measured here."""
    lengths = [options.length - 3 * row for row in range(options.rows)]
    rows = [[[100 + (31 * row + n) % 9973 for n in range(length)] for row, length in enumerate(lengths)]]
    longest = max(len(prompt) for prompts, _ in tasks.values() for prompt in prompts) if tasks else 0
    room = max(longest, options.length) + 192
    questions = {
        "tasks": tasks,
        "decoding": rows if lengths else [],
        "dtype": options.dtype,
        "room": room,
        "ends": ends,
    }
    with tempfile.TemporaryDirectory() as name:
        asked, answered = Path(name) / "asked.json", Path(name) / "answered.json"
        asked.write_text(json.dumps(questions))
        script = Path(__file__).with_name("answers_by_vllm.py")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([options.vllm, script, options.checkpoint, asked, answered], check=True, env=environment)
        told = read_json(answered)
    for row in told["tasks"].values():
        row["texts"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in row.pop("ids")]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--vllm", default="", help="Python of an environment with vLLM")
    parser.add_argument("--note", default="")
    parser.add_argument("--out", default="benchmarks")
    options = parser.parse_args()
    stem = Path(options.out) / f"{date.today()}-answers"
    file = stem.with_suffix(".json")
    value = read_json(file) if file.is_file() else {"decoding": [], "tasks": []}
    tokenizer = load_tokenizer(options.checkpoint)
    stock, held = (load_model(options.checkpoint, torch.float32).eval() for _ in range(2))
    low = load_model(options.checkpoint, getattr(torch, options.dtype)).eval()
    if options.dtype == "bfloat16":
        hold_weights(held, torch.bfloat16)
    here = {"length": options.length, "dtype": options.dtype}
    with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
        if options.rows:
            row = {**here, "rows": options.rows, **decoding(stock, low, held, options.length, options.rows)}
            print(row, flush=True)
            value["decoding"].append(row)
        with tempfile.TemporaryDirectory() as name:
            tasks = chosen(options.tasks.split(",")) if options.tasks else []
            if tasks:
                asked = {"length": options.length, "samples": options.samples, "tasks": options.tasks}
                run_ruler(RulerOptions(tokenizer=options.checkpoint, data=options.data, out=name, **asked))
            asked_of_vllm: dict[str, tuple[list[list[int]], int]] = {}
            found: dict[str, tuple[dict[str, Any], Any, list[Any]]] = {}
            for task in tasks:
                row, prompts, samples = answering(stock, held, tokenizer, Path(name), task)
                value["tasks"].append({**here, **row})
                asked_of_vllm[task.name] = (prompts, task.tokens)
                found[task.name] = (value["tasks"][-1], task, samples)
    if options.vllm:
        ends = end_ids(stock, tokenizer)
        del stock, held, low
        told = by_vllm(options, tokenizer, ends, asked_of_vllm)
        value["vllm"] = told["version"]
        for seconds in told["decoding"]:
            value["decoding"][-1]["vllm"] = {"wall": seconds}
        for name, (row, task, samples) in found.items():
            answers = told["tasks"][name]
            scores = [score(task, text, s["outputs"]) for text, s in zip(answers["texts"], samples, strict=True)]
            row["vllm"] = {"wall": answers["wall"], "scores": scores}
    facts = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    facts |= {"processor": processor_name(), "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    value |= {"environment": facts, "checkpoint": Path(options.checkpoint).name, "note": options.note}
    write_json(file, value)
    write_text(stem.with_suffix(".md"), page(value))


def page(value: dict[str, Any]) -> str:
    lines = [
        f"# Answers to RULER: harpe beside `generate` ({date.today()})\n",
        "SmolLM2-135M-Instruct. One process, in turns. `generate` of transformers reads a batch padded on the left, "
        "under autocast in bfloat16, as `harpe ruler` did before.",
        f"{value['note']}\n",
        "A decoding step of a batch (least of three times eight steps), in seconds of wall clock / of the processor:\n",
        "| rows | tokens | arithmetic | `generate` | all in the dtype | the same, static cache | harpe | ratios | "
        "vLLM (wall clock) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in value["decoding"]:
        ways = [row[name] for name in ("generate", "low", "static", "harpe")]
        told = " | ".join(f"{way['wall']:.3f} / {way['processor']:.3f}" for way in ways)
        ratios = ", ".join(
            f"{a['wall'] / ways[3]['wall']:.1f} / {a['processor'] / ways[3]['processor']:.1f}" for a in ways[:3]
        )
        vllm = f"{row['vllm']['wall']:.3f}" if "vllm" in row else "–"
        lines.append(f"| {row['rows']} | {row['length']:,} | {row['dtype']} | {told} | {ratios} | {vllm} |")
    lines += [
        "\nAll samples of a task, read and answered in one batch:\n",
        "| task | tokens | samples | `generate`, s | harpe with `--full-answers`, s | harpe, s | ratio | answers as "
        "`generate`'s | score | vLLM, s | its score |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in value["tasks"]:
        told = " | ".join(f"{row[n]['wall']:.0f} / {row[n]['processor']:.0f}" for n in ("generate", "full", "harpe"))
        ratio = " / ".join(f"{row['generate'][kind] / row['harpe'][kind]:.1f}" for kind in ("wall", "processor"))
        means = [100 * sum(row[n]["scores"]) / row["samples"] for n in ("generate", "full", "harpe")]
        same = f"{row['same']} of {row['samples']}"
        scores = ", ".join(f"{mean:.0f}" for mean in means)
        vllm = "– | –"
        if "vllm" in row:
            vllm = f"{row['vllm']['wall']:.0f} | {100 * sum(row['vllm']['scores']) / row['samples']:.0f}"
        about = f"{row['task']} | {row['length']:,} | {row['samples']}"
        lines.append(f"| {about} | {told} | {ratio} | {same} | {scores} | {vllm} |")
    for length in sorted({row["length"] for row in value["tasks"]}):
        rows = [row for row in value["tasks"] if row["length"] == length]
        sums = [[sum(row[n][kind] for row in rows) for n in ("generate", "harpe")] for kind in ("wall", "processor")]
        ratios = " / ".join(f"{a / b:.2f}" for a, b in sums)
        of_vllm = ""
        if all("vllm" in row for row in rows):
            of_vllm = (
                f" vLLM takes {sum(row['vllm']['wall'] for row in rows) / sums[0][1]:.2f} times harpe's wall clock."
            )
        lines.append(
            f"\nThese tasks together at {length:,} tokens: **{ratios}** times as fast (wall clock / processor)."
            f"{of_vllm}"
        )
    if "vllm" in value:
        lines += ["", f"vLLM {value['vllm']}: its CPU build, in a process of its own that had loaded and compiled."]
    lines += ["", ", ".join(f"{k} {v}" for k, v in value["environment"].items()) + "."]
    lines += ["", "Made by `scripts/benchmark_answers.py`."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
