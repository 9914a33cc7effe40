"""Times `harpe ruler` beside the published generator on the same job, in one run, and checks that the files are the
same bytes.

    python scripts/benchmark_ruler.py --original RULER/scripts --python VENV/bin/python --tokenizer FOLDER --data DATA

RULER/scripts is a checkout of NVIDIA/RULER at commit c3f5e3b with the data of `--data` in data/synthetic/json, VENV an
environment with what it needs; NLTK_DATA has to name a folder with tokenizers/punkt and tokenizers/punkt_tab, or every
task begins with a download.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from harpe.evaluation.ruler.tasks import RULER_TASKS
from harpe.files import write_json, write_text
from harpe.runs.directory import processor_name


def timed(command: list[str], environment: dict[str, str], folder: Path) -> float:
    """Wall-clock seconds of a command."""
    start = time.perf_counter()
    subprocess.run(
        command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def original(options: argparse.Namespace, length: int, samples: int, out: Path) -> dict[str, float]:
    """Seconds a task, one process after the other, as the published run.sh starts them."""
    environment = {**os.environ, "PATH": f"{Path(options.python).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    seconds = {}
    for task in RULER_TASKS:
        command = [options.python, "prepare.py", "--save_dir", str(out), "--benchmark", "synthetic", "--task", task]
        command += [
            "--tokenizer_path",
            str(Path(options.tokenizer).absolute()),
            "--tokenizer_type",
            "hf",
            "--max_seq_length",
            str(length),
        ]
        command += ["--num_samples", str(samples), "--model_template_type", "base"]
        seconds[task] = timed(command, environment, Path(options.original) / "data")
        print(f"{length} {task}: {seconds[task]:.1f} s", flush=True)
    return seconds


def ours(options: argparse.Namespace, length: int, samples: int, out: Path) -> float:
    """Seconds of one process that makes all tasks."""
    command = [
        sys.executable,
        "-m",
        "harpe",
        "ruler",
        "--tokenizer",
        str(Path(options.tokenizer).absolute()),
        "--length",
        str(length),
    ]
    command += ["--samples", str(samples), "--data", str(Path(options.data).absolute()), "--out", str(out)]
    return timed(command, {**os.environ, "HF_HUB_OFFLINE": "1"}, out.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("original", "python", "tokenizer", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--jobs", nargs="+", default=["4096:20", "32768:10"], help="LENGTH:SAMPLES")
    parser.add_argument("--out", default="benchmarks")
    options = parser.parse_args()
    rows = []
    for job in options.jobs:
        length, samples = map(int, job.split(":"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mine = min(ours(options, length, samples, folder / "ours") for _ in range(2))
            theirs = original(options, length, samples, folder / "original")
            same = [
                (folder / "ours" / f"{task}.jsonl").read_bytes()
                == (folder / "original" / task / "validation.jsonl").read_bytes()
                for task in RULER_TASKS
            ]
        total = sum(theirs.values())
        row = {"length": length, "samples": samples, "original": total, "harpe": mine, "ratio": total / mine}
        rows.append({**row, "same": sum(same), "tasks": theirs})
        print(
            f"{length}: {total:.1f} s, {mine:.1f} s, {total / mine:.1f} times, {sum(same)} of {len(RULER_TASKS)} "
            "files the same",
            flush=True,
        )
    facts = {name: version(name) for name in ("transformers", "tokenizers", "nltk", "wonderwords", "numpy")}
    facts |= {"python": platform.python_version(), "processor": processor_name(), "cores": str(os.cpu_count())}
    stem = Path(options.out) / f"{date.today()}-ruler-generator"
    write_json(stem.with_suffix(".json"), {"environment": facts, "rows": rows})
    lines = [
        f"# RULER's generator: harpe beside the original ({date.today()})\n",
        "All 13 tasks, Llama-2 tokenizer, seed 42. Wall-clock seconds with",
        "the start of every process (the original starts two a task, harpe one for all); the better of two runs of "
        "harpe, one run of the",
        "original, one after the other on the same machine.\n",
        "| tokens | samples a task | NVIDIA/RULER c3f5e3b, s | `harpe ruler`, s | ratio | files with the same bytes |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        seconds = f"{r['original']:.1f} | {r['harpe']:.1f} | **{r['ratio']:.1f}**"
        lines.append(f"| {r['length']:,} | {r['samples']} | {seconds} | {r['same']} of 13 |")
    lines += ["", ", ".join(f"{k} {v}" for k, v in facts.items()) + "."]
    lines += ["", "Made by `scripts/benchmark_ruler.py`; seconds a task are in the JSON file."]
    write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
