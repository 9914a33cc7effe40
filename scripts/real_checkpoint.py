"""Extend a checkpoint with HARPE and, as a control, with its own base kept, and measure both and the untouched model.

    python scripts/real_checkpoint.py CHECKPOINT --train TEXTS --held-out TEXTS --length 4096 --out runs/real --result
    benchmarks/DATE-NAME

Writes RESULT.json and RESULT.md: loss by position, token-weighted, with 95% intervals over the held-out excerpts. Every
held-out document gives EXCERPTS excerpts, evenly spread over it, so that long documents such as books count for more
than their first pages.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import torch

from harpe.cli.terminal import Terminal
from harpe.commands.evaluate import evaluate
from harpe.commands.extend import extend
from harpe.data.sources import read_documents
from harpe.evaluation.statistics.intervals import paired_difference
from harpe.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from harpe.models.geometry import read_geometry
from harpe.models.load import load_config
from harpe.options.extend import ExtendOptions
from harpe.options.measuring import EvaluateOptions
from harpe.runs.directory import available_cores

CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer for English makes of one token on average."""
TITLES = {"base": "untouched", "harpe": "HARPE", "kept": "base kept, trained"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--train", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--range", default="critical", help="rule for HARPE's range of bases, as harpe extend takes it")
    parser.add_argument("--excerpts", type=int, default=8, help="of every held-out document")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(available_cores())
    geometry = read_geometry(load_config(args.checkpoint), args.checkpoint)
    scores: dict[str, Path] = {}
    held_out = args.out / "held-out.jsonl"
    count = write_excerpts(args.held_out, held_out, args.excerpts, args.length)
    for name, extra in (
        ("harpe", {"method": "harpe", "range": args.range}),
        ("kept", {"method": "abf", "base": geometry.base}),
    ):
        run = args.out / name
        options: dict[str, Any] = {
            "tokens": args.tokens,
            "learning_rate": args.learning_rate,
            "batch_tokens": args.batch_tokens,
            "gradient_checkpointing": False,
            **extra,
        }
        resume = (run / "recipe.yaml").is_file()
        extend(
            ExtendOptions(
                model=args.checkpoint, length=args.length, data=args.train, out=str(run), resume=resume, **options
            ),
            Terminal(),
        )
        evaluate(
            EvaluateOptions(model=str(run), data=str(held_out), documents=count, samples=0, grid_samples=0), Terminal()
        )
        scores[name] = run / ("harpe" if name == "harpe" else "abf") / "scores"
        scores["base"] = run / "base" / "scores"
    found = {name: read_json(scores[name] / "perplexity.json") for name in TITLES}
    plan = read_json(args.out / "harpe" / "plan.json")
    value = {
        "date": datetime.date.today().isoformat(),
        "checkpoint": Path(args.checkpoint).name,
        "environment": read_json(args.out / "harpe" / "environment.json"),
        "training": plan["training"],
        "bases": plan["methods"][1]["bases"],
        "corpus": plan["corpus"],
        "scores": found,
        "harpe_minus_kept_at_the_end": vars(difference(scores["harpe"], scores["kept"])),
    }
    write_json(args.result.with_suffix(".json"), value)
    write_text(args.result.with_suffix(".md"), markdown(value))
    print(markdown(value))


def write_excerpts(source: str, path: Path, count: int, length: int) -> int:
    """Write `count` excerpts of every document, evenly spread, each surely longer than `length` tokens; returns how
    many."""
    rows, characters = [], CHARACTERS_PER_TOKEN * length
    for document in read_documents(source):
        if len(document.text) < count * characters:
            raise SystemExit(
                f"{document.name} is too short for {count} excerpts of {characters} characters; lower --excerpts."
            )
        step = len(document.text) // count
        rows += [{"text": document.text[i * step : i * step + characters]} for i in range(count)]
    write_jsonl(path, rows)
    return len(rows)


def difference(first: Path, second: Path) -> Any:
    """Loss in the last bin, first minus second, on the same documents."""
    a, b = (
        sorted(read_jsonl(folder / "perplexity.jsonl"), key=lambda row: row["document"]) for folder in (first, second)
    )
    return paired_difference([r["nll"][-1] for r in a], [r["nll"][-1] for r in b], [r["tokens"][-1] for r in a])


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    training, scores = value["training"], value["scores"]
    lines = [
        f"# {value['checkpoint']} to {training['sequence_length']} tokens ({value['date']})",
        "",
        f"{training['tokens']} tokens of text, one stage, learning rate {training['learning_rate']:g}, "
        f"{training['dtype']} arithmetic. Loss in nats a token on {scores['base']['documents']} held-out excerpts, "
        "with 95% intervals over excerpts.",
        "",
        "| positions | " + " | ".join(TITLES.values()) + " |",
        "|---|---|---|---|",
    ]
    for i, b in enumerate(scores["base"]["bins"]):
        cells = [f"{(x := scores[name]['bins'][i])['nll']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for name in TITLES]
        lines.append(f"| {b['start']}-{b['end']} | " + " | ".join(cells) + " |")
    short = [f"{scores[name]['short']['perplexity']:.1f}" for name in TITLES]
    lines.append(f"| perplexity in windows of {scores['base']['short']['length']} | " + " | ".join(short) + " |")
    d = value["harpe_minus_kept_at_the_end"]
    facts = "; ".join(f"{k} {v}" for k, v in value["environment"].items() if k != "schema_version")
    lines += [
        "",
        f"HARPE minus base kept in the last bin: {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] nats a token.",
        "",
        f"Bases: {', '.join(f'{b:,.0f}' for b in value['bases'])}. Training data: {value['corpus']['documents']} "
        f"documents, SHA-256 {value['corpus']['hash']}.",
        "",
        f"Made with `python scripts/real_checkpoint.py`. {facts}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
