"""Times the one-pass curve beside YaRN's script on the same documents and model at 64 lengths, and compares the
figures.

    python scripts/benchmark_perplexity.py --yarn YARN --model embedded --length 8192 --documents 2

YARN is a checkout of jquesnelle/yarn at 995db5b. Its `compute_perplexity` is run as it is, once a length, with its
--truncate.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import time
import types
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from harpe.evaluation.perplexity.curves import prefix_curve, prefix_losses, prefix_record
from harpe.files import write_json, write_text
from harpe.models.load import load_model, load_tokenizer, to_accelerator
from harpe.runs.directory import processor_name
from harpe.runs.texts import held_out_texts


def yarns_function(checkout: Path) -> Any:
    """`compute_perplexity` of the script; the module of its model patches, which it does not use here, is left
    empty."""
    sys.modules["model_loader"] = types.ModuleType("model_loader")
    spec = importlib.util.spec_from_file_location("yarn_perplexity", checkout / "eval" / "perplexity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--yarn", required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--out", default="benchmarks")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    model = to_accelerator(load_model(options.model)).eval()
    documents = held_out_texts(options.data, tokenizer, options.length, options.documents).haystacks
    lengths = [options.length * i // options.points for i in range(1, options.points + 1)]
    start = time.perf_counter()
    records = [
        prefix_record(prefix_losses(model, [tokenizer.bos_token_id, *ids], lengths), lengths) for ids in documents
    ]
    curve = prefix_curve(records, lengths, "yarn")["points"]
    ours = time.perf_counter() - start
    print(f"one pass: {ours:.1f} s", flush=True)
    encodings = {"input_ids": documents, "attention_mask": [[1] * len(ids) for ids in documents]}
    compute, theirs = yarns_function(Path(options.yarn)), []
    start = time.perf_counter()
    for length in lengths:
        arguments = {"max_length": length, "truncate": True, "hide_progress": True, "device": model.device.type}
        theirs.append(compute(encodings, model, tokenizer, **arguments)["mean_perplexity"])
    script = time.perf_counter() - start
    difference = max(abs(p["perplexity"] / t - 1) for p, t in zip(curve, theirs, strict=True))
    print(
        f"the script: {script:.1f} s, {script / ours:.1f} times; figures differ by at most {difference:.1e}", flush=True
    )
    facts = {name: version(name) for name in ("torch", "transformers")} | {
        "python": platform.python_version(),
        "processor": processor_name(),
    }
    facts |= {"threads": str(torch.get_num_threads()), "cores": str(os.cpu_count())}
    value = {"length": options.length, "points": options.points, "documents": len(documents), "model": options.model}
    value |= {"one_pass": ours, "script": script, "ratio": script / ours, "largest_relative_difference": difference}
    stem = Path(options.out) / f"{date.today()}-perplexity-one-pass"
    write_json(stem.with_suffix(".json"), {"environment": facts, **value, "perplexity": theirs})
    lines = [
        f"# Perplexity at {options.points} lengths: one pass beside YaRN's script ({date.today()})\n",
        f"{len(documents)} documents, model `{options.model}`, {options.points} lengths up to {options.length:,} "
        "tokens, float32, one run",
        "each, one after the other in one process.\n",
        "| jquesnelle/yarn 995db5b, a forward a length, s | one pass, s | ratio | largest relative difference "
        "|\n|---|---|---|---|",
        f"| {script:.1f} | {ours:.1f} | **{script / ours:.1f}** | {difference:.1e} |\n",
        ", ".join(f"{k} {v}" for k, v in facts.items()) + ".\n",
        "Made by `scripts/benchmark_perplexity.py`.",
    ]
    write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
