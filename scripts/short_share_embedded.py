"""What the embedded model forgets of short texts while it is extended, with and without a share of them.

    python scripts/short_share_embedded.py --out runs/share --result benchmarks/DATE-short-share-embedded

From 256 to 2,048 tokens by the default method. The short texts are pieces of the training files, about as long as the
context that the model had. Every share is trained with every seed on as many tokens and measured on held-out files:
loss in windows of 256 tokens, loss at the far end, needles. Whatever is in --out is not done again.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

import harpe
from harpe.cli.main import main as command_line
from harpe.evaluation.statistics.intervals import paired_difference
from harpe.files import read_json, read_jsonl, write_json, write_text
from harpe.models.load import load_tokenizer
from harpe.runs.differences import gated_mean
from harpe.runs.texts import EMBEDDED, training_documents

LENGTH, TOKENS, PIECE = 2048, 131_072, 600
"""Of a sequence, of a training, and the characters of a short text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    short = args.out / "short.jsonl"
    documents, _ = training_documents(EMBEDDED, "text", 4 * TOKENS, load_tokenizer(EMBEDDED))
    pieces = [d.text[i : i + PIECE] for d in documents for i in range(0, len(d.text) - PIECE, 5 * PIECE)]
    write_text(short, "".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    scores = {(share, seed): measured(args.out, share, seed, short) for seed in args.seeds for share in args.shares}
    write_result(args, scores)


def measured(out: Path, share: float, seed: int, short: Path) -> Path:
    """The folder of the scores of a share and a seed."""
    data, run = out / f"data-{share:g}-{seed}", out / f"run-{share:g}-{seed}"
    if not (data / "index.json").is_file():
        mixed: dict[str, Any] = {"short_data": str(short), "short_share": share, "max_copies": 4} if share else {}
        harpe.prepare(EMBEDDED, EMBEDDED, LENGTH, data, tokens=TOKENS, seed=seed, **mixed)
    settings: dict[str, Any] = {"learning_rate": 1e-3, "batch_tokens": 8192, "dtype": "bfloat16"}
    if not list(run.glob("*/model")):
        harpe.extend(EMBEDDED, LENGTH, str(data), run, seed=seed, resume=run.exists(), **settings)
    (model,) = run.glob("*/model")
    folder = model.parent / "scores"
    if not (folder / "needles.json").is_file():
        given = ["--data=embedded", "--documents=48", "--samples=24", "--grid-samples=0", "--dtype=bfloat16"]
        if command_line(["evaluate", str(run), *given]):
            raise SystemExit(f"{run} could not be measured.")
    return folder


def write_result(args: argparse.Namespace, scores: dict[tuple[float, int], Path]) -> None:
    rows = []
    for (share, seed), folder in scores.items():
        value = read_json(folder / "perplexity.json")
        losses = {f"loss_{part}": float(np.log(value[part]["perplexity"])) for part in ("short", "long")}
        rows.append({"share": share, "seed": seed, **losses, "needles": 100 * gated_mean(folder, LENGTH)})
    keys = {"loss_short": "loss in windows of 256", "loss_long": "loss at the far end", "needles": "needles, %"}
    lines = [f"# A share of short texts, on the embedded model ({datetime.date.today()})", ""]
    lines += [f"From 256 to {LENGTH:,} tokens, {TOKENS:,} tokens, {len(args.seeds)} seeds: mean (lowest to highest)."]
    lines += ["", f"| share | {' | '.join(keys.values())} |", "|---|---|---|---|"]
    for share in args.shares:
        cells = []
        for key in keys:
            found = [row[key] for row in rows if row["share"] == share]
            digits = 1 if key == "needles" else 3
            cells.append(f"{np.mean(found):.{digits}f} ({min(found):.{digits}f} to {max(found):.{digits}f})")
        lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    first, *others = args.shares
    for share in others:
        parts = [_documents(scores[of, seed]) for seed in args.seeds for of in (share, first)]
        a, b = (np.mean([part[0] for part in parts[i::2]], axis=0).tolist() for i in (0, 1))
        change = paired_difference(a, b, parts[0][1])
        lines += ["", f"{share:.0%} minus {first:.0%}, loss in windows of 256, mean over seeds, 95% interval over"]
        lines += [f"documents: {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}] nats."]
    write_text(args.result.with_suffix(".md"), "\n".join([*lines, "", f"Made by `scripts/{Path(__file__).name}`.", ""]))
    write_json(args.result.with_suffix(".json"), {"rows": rows})


def _documents(folder: Path) -> tuple[list[float], list[float]]:
    rows = sorted(read_jsonl(folder / "perplexity.jsonl"), key=lambda row: row["document"])
    return [row["short_nll"] for row in rows], [row["short_tokens"] for row in rows]


if __name__ == "__main__":
    main()
