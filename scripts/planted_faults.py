"""Two faults planted into an extended model, and a twin without fault: does the paired interval tell them apart?

    python scripts/planted_faults.py --model runs/tiny-compare/harpe-uniform/seed-0/model \\
        --result benchmarks/DATE-planted-faults

Faults at evaluation: bases of heads exchanged, and angles in bfloat16. The twin is the same model through another
attention kernel, which rounds differently. Losses are those at the last half of the context, document by document, on
held-out files of this machine.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

import torch

import harpe
from harpe.cli.terminal import Terminal
from harpe.evaluation.perplexity.by_position import token_losses
from harpe.evaluation.statistics.resampling import Units, paired
from harpe.files import read_json, write_json, write_text
from harpe.models.load import load_model, load_tokenizer
from harpe.runs.directory import write_environment
from harpe.runs.texts import EMBEDDED, held_out_texts

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "evaluation"))
from planted import angles_in_bfloat16


def losses(model: Any, documents: list[list[int]], start: int, length: int, terminal: Terminal, what: str) -> Any:
    """Sum of the losses at positions from `start` on, of every document."""
    found = []
    for number, ids in enumerate(documents):
        found.append(float(token_losses(model, torch.tensor([ids[: length + 1]]))[0, start:].sum()))
        terminal.progress(what, number + 1, len(documents))
    return found


def exchanged(path: str, first: int, second: int) -> Any:
    """The model with the bases of two heads exchanged."""
    model = load_model(path, torch.float32)
    rope = model.config.rope_parameters
    bases = list(rope["bases"])
    bases[first], bases[second] = bases[second], bases[first]
    config = model.config
    length, original = config.max_position_embeddings, config.harpe_original_length
    fresh = load_model(EMBEDDED, torch.float32)
    harpe.apply(fresh, "harpe", length=length, bases=bases, original_length=original)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="embedded model extended with one base per head")
    parser.add_argument("--result", required=True, help="files to write, without ending")
    parser.add_argument("--documents", type=int, default=24)
    options = parser.parse_args()
    terminal = Terminal()
    tokenizer = load_tokenizer(options.model)
    clean = load_model(options.model, torch.float32).eval()
    length, bases = clean.config.max_position_embeddings, clean.config.rope_parameters["bases"]
    held_out = held_out_texts(EMBEDDED, tokenizer, length, options.documents)
    texts, start, last = held_out.documents, length // 2, len(bases) - 1
    reference = losses(clean, texts, start, length, terminal, "without fault")
    rows: dict[str, Any] = {}
    rows["twin: another attention kernel"] = losses(
        load_model(options.model, torch.float32, attn_implementation="eager").eval(),
        texts,
        start,
        length,
        terminal,
        "twin",
    )
    for first, second in ((0, 1), (0, last)):
        what = f"bases of heads {first} and {second} exchanged"
        rows[f"fault: {what}"] = losses(exchanged(options.model, first, second), texts, start, length, terminal, what)
    with angles_in_bfloat16():
        rows["fault: angles in bfloat16"] = losses(clean, texts, start, length, terminal, "angles in bfloat16")
    units = Units.of([float(length - start)] * len(texts))
    result: list[dict[str, Any]] = []
    for name, values in rows.items():
        draws = paired(values, reference, units)
        interval = draws.interval()
        result.append(
            {"row": name, "value": interval.value, "low": interval.low, "high": interval.high, "p": draws.p_value()}
        )
    base = Path(options.result)
    write_environment(base.parent / f".{base.name}")
    environment = read_json(base.parent / f".{base.name}" / "environment.json")
    (base.parent / f".{base.name}" / "environment.json").unlink()
    (base.parent / f".{base.name}").rmdir()
    value = {
        "date": datetime.date.today().isoformat(),
        "documents": len(texts),
        "length": length,
        "bases": bases,
        "rows": result,
    }
    write_json(base.with_suffix(".json"), value | {"environment": environment})
    lines = [
        "# Planted faults",
        "",
        f"The embedded model extended to {length} tokens with bases {', '.join(f'{b:,.0f}' for b in bases)}; loss at "
        f"positions {start} to {length} minus that of the model without fault, nats a token, {len(texts)} held-out "
        "documents, paired bootstrap.",
        "",
        "| row | difference | 95% interval | p | zero outside |",
        "|---|---:|---|---:|---|",
    ]
    for row in result:
        outside = "yes" if row["low"] > 0 or row["high"] < 0 else "no"
        lines.append(
            f"| {row['row']} | {row['value']:+.2g} | {row['low']:+.2g} to {row['high']:+.2g} | {row['p']:.2g} | "
            f"{outside} |"
        )
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("harpe", "torch", "transformers", "python", "processor")
    )
    write_text(base.with_suffix(".md"), "\n".join([*lines, "", f"{value['date']}; {versions}.", ""]))
    terminal.say("\n".join(lines))


if __name__ == "__main__":
    main()
