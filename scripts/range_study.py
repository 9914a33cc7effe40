"""Which range of bases a small model wants: the embedded model at 8, 16 and 32 times its context, two token budgets,
several ranges.

    python scripts/range_study.py --out runs/ranges --result benchmarks/DATE-range-study

Ranges are multiples of the critical base b* (harpe.bases.critical_base), beside [3 B, 15 B] of the NTK-aware base B,
with bases spaced evenly and one base b* for all heads as the reference. Settings are tuned here, so the held-out files
are those that settings are tuned on. It resumes: rows that are measured are not measured again, and the result holds
what is there.
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harpe.bases.critical_base import critical_base
from harpe.bases.ranges import ntk_base
from harpe.cli.terminal import Terminal
from harpe.evaluation.run import EvaluationProtocol
from harpe.evaluation.statistics.intervals import paired_difference
from harpe.files import read_json, read_jsonl, write_json, write_text
from harpe.options.training import TrainingSettings
from harpe.positions.geometry import ModelGeometry
from harpe.runs.directory import write_environment
from harpe.runs.rows import Row, make_row
from harpe.runs.source import Source, open_source
from harpe.runs.texts import EMBEDDED, held_out_texts, packed
from harpe.runs.train import train_row
from harpe.suites.standard import evaluate_checkpoint

SETTINGS = ((2048, 131_072), (4096, 131_072), (8192, 131_072), (4096, 262_144), (2048, 262_144), (8192, 262_144))
"""Target length and training tokens, in the order in which they are run."""
RANGES = {"below": (0.2, 1.0), "paper": (0.726, 3.63)}
"""Multiples of the critical base: the paper's own (1M and 5M for LLaMA-2 at 128k), and a range whose top is b*."""
TASKS = ("single", "multi_key", "multi_query")


@dataclass(frozen=True)
class Setting:
    """One target length with one budget."""

    length: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.length}-{self.tokens}"


def arms_of(geometry: ModelGeometry, length: int) -> list[Row]:
    """The rows of a setting: the ranges, spaced evenly, and one base."""
    critical = critical_base(geometry.base, geometry.original_length, length)
    ntk = ntk_base(geometry.base, length / geometry.original_length, geometry.rotary_dim)
    ranges = {"ntk": (3 * ntk, 15 * ntk)} | {
        name: (low * critical, high * critical) for name, (low, high) in RANGES.items()
    }
    arms = []
    for name, (low, high) in ranges.items():
        title = f"{low / critical:.3g} b* to {high / critical:.3g} b*"
        arms.append(make_row("harpe", geometry, length, {"min": low, "max": high}, name=name, title=title))
    return [*arms, make_row("abf", geometry, length, {"base": critical}, name="one", title="one base b*")]


def run_setting(
    setting: Setting, source: Source, out: Path, learning_rate: float, dtype: str, terminal: Terminal
) -> None:
    """Train and measure what is not there yet."""
    run = out / setting.name
    run.mkdir(parents=True, exist_ok=True)
    options = TrainingSettings(
        tokens=setting.tokens,
        learning_rate=learning_rate,
        batch_tokens=8192,
        gradient_checkpointing=False,
        save_every=1000,
        dtype=dtype,
    )
    data = packed(run / "data" / str(setting.length), EMBEDDED, source.tokenizer, setting.length, tokens=setting.tokens)
    held_out = held_out_texts(EMBEDDED, source.tokenizer, setting.length, 12, tuning=True)
    protocol = EvaluationProtocol(
        source.geometry.original_length, setting.length, documents=12, samples=16, tasks=TASKS, grid_samples=0, seed=2
    )
    for arm in arms_of(source.geometry, setting.length):
        scores = run / arm.name / "scores"
        model = train_row(run / arm.name, arm, source, data, options, setting.length, terminal)
        evaluate_checkpoint(model, source.tokenizer, held_out, protocol, scores, dtype, terminal, title=arm.title)
        terminal.say(f"{setting.name} {arm.title}: {measured(scores, source.geometry.original_length, setting.length)}")


def measured(scores: Path, short: int, length: int) -> dict[str, float]:
    """Perplexities, and the mean of the needle tasks in percent."""
    perplexity = read_json(scores / "perplexity.json")
    tasks = {(t["task"], t["length"]): 100 * t["score"] for t in read_json(scores / "needles.json")["tasks"]}
    return {
        "short": perplexity["short"]["perplexity"],
        "long": perplexity["long"]["perplexity"],
        "needles_short": sum(tasks[name, short] for name in TASKS) / len(TASKS),
        "needles": sum(tasks[name, length] for name in TASKS) / len(TASKS),
    }


def against_one(scores: Path, reference: Path) -> dict[str, float]:
    """Loss in the last bin minus that of the one-base row, on the same documents: nats a token, paired bootstrap."""
    first, second = (
        sorted(read_jsonl(folder / "perplexity.jsonl"), key=lambda row: row["document"])
        for folder in (scores, reference)
    )
    tokens = [row["tokens"][-1] for row in first]
    found = paired_difference([row["nll"][-1] for row in first], [row["nll"][-1] for row in second], tokens)
    return dict(vars(found))


def collect(settings: list[Setting], geometry: ModelGeometry, out: Path) -> list[dict[str, Any]]:
    """Every row that is measured."""
    rows = []
    for setting in settings:
        arms = arms_of(geometry, setting.length)
        reference = out / setting.name / "one" / "scores"
        for arm in arms:
            scores = out / setting.name / arm.name / "scores"
            if not (scores / "needles.json").exists():
                continue
            paired = (
                against_one(scores, reference)
                if arm.name != "one" and (reference / "perplexity.json").exists()
                else None
            )
            values = measured(scores, geometry.original_length, setting.length)
            low, high = min(arm.bases), max(arm.bases)
            row = {
                "length": setting.length,
                "tokens": setting.tokens,
                "row": arm.name,
                "title": arm.title,
                "low": low,
                "high": high,
            }
            rows.append({**row, **values, "minus_one_base": paired})
    return rows


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"# Ranges of bases for the embedded model ({value['date']})",
        "",
        "3.6M parameters, 8 heads of 32 dimensions, trained on 256 tokens with base 10,000. b* is the critical base of "
        "Liu et al. 2023;",
        "bases are spaced evenly in each range. One seed, batches of 8192 tokens, learning rate "
        f"{value['learning_rate']:g}, text only. Perplexity: 12 documents, in windows of 256 tokens and in the last "
        "half of the",
        "target length; needles: mean of single, multi-key and multi-query, 16 samples each. The last column is the "
        "loss there minus that",
        "of the row with one base b*, paired over the documents, with a 95% bootstrap interval. The first row of each "
        "block is the range",
        "[3 B, 15 B] of the NTK-aware base B.",
        "",
        "| length | tokens | bases | range | ppl short | ppl at the end | needles short, % | needles at the end, % | "
        "loss minus one base |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in value["rows"]:
        paired = row["minus_one_base"]
        difference = "" if paired is None else f"{paired['value']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"
        span = f"{row['low']:.3g}" if row["low"] == row["high"] else f"{row['low']:.3g} to {row['high']:.3g}"
        scale = f"{row['length']} ({row['length'] // 256}x)"
        lines.append(
            f"| {scale} | {row['tokens']} | {row['title']} | {span} | {row['short']:.2f} | {row['long']:.2f} "
            f"| {row['needles_short']:.0f} | {row['needles']:.0f} | {difference} |"
        )
    if value["missing"]:
        lines += ["", f"Not run: {', '.join(value['missing'])} (length-tokens/row)."]
    facts = "; ".join(f"{k} {v}" for k, v in value["environment"].items() if k != "schema_version")
    return "\n".join(
        [*lines, "", f"Made with `python scripts/range_study.py`. Arithmetic in {value['dtype']}. {facts}.", ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument(
        "--only", type=int, nargs="*", default=list(range(len(SETTINGS))), help="numbers of the settings to run"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = [Setting(*both) for both in SETTINGS]
    source = open_source(EMBEDDED, max(s.length for s in settings), None, None, None, "keep")
    write_environment(args.out)
    terminal = Terminal()
    for number in args.only:
        run_setting(settings[number], source, args.out, args.learning_rate, args.dtype, terminal)
    rows = collect(settings, source.geometry, args.out)
    there = {(row["length"], row["tokens"], row["row"]) for row in rows}
    wanted = [(s.length, s.tokens, arm.name) for s in settings for arm in arms_of(source.geometry, s.length)]
    value = {
        "date": datetime.date.today().isoformat(),
        "environment": read_json(args.out / "environment.json"),
        "learning_rate": args.learning_rate,
        "dtype": args.dtype,
        "rows": rows,
        "missing": [
            f"{length}-{tokens}/{name}" for length, tokens, name in wanted if (length, tokens, name) not in there
        ],
    }
    write_json(args.result.with_suffix(".json"), value)
    write_text(args.result.with_suffix(".md"), markdown(value))
    terminal.say(markdown(value))


if __name__ == "__main__":
    main()
