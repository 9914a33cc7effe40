"""The quickstart with several seeds, summed up with intervals: the figures that README quotes.

    python scripts/quickstart_seeds.py --out runs/seeds --result benchmarks/DATE-quickstart-seeds

Writes RESULT.json and RESULT.md. Each seed draws other training documents in another order; the evaluation's documents
and samples are the same, so that differences between rows are paired.
"""

from __future__ import annotations

import argparse
import datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harpe.cli.terminal import Terminal
from harpe.commands.quickstart import quickstart
from harpe.evaluation.statistics.intervals import Interval
from harpe.files import read_json, write_json, write_text
from harpe.options.runs import QuickstartOptions
from harpe.runs.differences import difference, gated_mean
from harpe.runs.directory import available_cores

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % points of Student's t for n - 1 degrees of freedom."""
MEASURES = (
    ("short", "loss in short windows, nats"),
    ("long", "loss at the end, nats"),
    ("needles", "needles, points"),
)
UNTOUCHED, CONTROL = "base", "one-base"


def over_seeds(values: list[float]) -> Interval:
    """Mean over seeds with Student's 95 % interval."""
    x = np.array(values)
    half = STUDENT[len(x)] * x.std(ddof=1) / len(x) ** 0.5
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def measures(run: Path, row: str, short: int, length: int) -> dict[str, float]:
    """What the table shows of one row of one run."""
    scores = run / row / "scores"
    perplexity = read_json(scores / "perplexity.json")
    tasks = {(t["task"], t["length"]): 100 * t["score"] for t in read_json(scores / "needles.json")["tasks"]}
    found = {f"perplexity in windows of {short}": perplexity["short"]["perplexity"]}
    found[f"perplexity at {perplexity['long']['start']}-{length}"] = perplexity["long"]["perplexity"]
    for task in ("single", "multi_key", "multi_query"):
        found[f"{task} at {length}, %"] = tasks[task, length]
    found[f"mean of the three at {length}, %"] = 100 * gated_mean(scores, length)
    found[f"multi_value at {length}, %"] = tasks["multi_value", length]
    found[f"mean of the three at {short}, %"] = 100 * gated_mean(scores, short)
    found[f"multi_value at {short}, %"] = tasks["multi_value", short]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(available_cores())
    runs = []
    for seed in args.seeds:
        runs.append(args.out / f"seed-{seed}")
        quickstart(QuickstartOptions(out=str(runs[-1]), seed=seed), Terminal())
    plan = read_json(runs[0] / "plan.json")
    short, length = plan["original_length"], plan["target_length"]
    titles = {method["name"]: method["title"] for method in plan["methods"]}
    rows = {
        row: {
            name: [measures(run, row, short, length)[name] for run in runs]
            for name in measures(runs[0], row, short, length)
        }
        for row in titles
    }
    differences: dict[str, Any] = {}
    for first in [row for row in titles if row not in (UNTOUCHED, CONTROL)]:
        for second, (measure, words) in product((UNTOUCHED, CONTROL), MEASURES):
            values = [difference(run, first, second, measure, length).value for run in runs]
            name = f"{titles[first]} minus {titles[second]}: {words}"
            differences[name] = {**vars(over_seeds(values)), "seeds": values}
    today = datetime.date.today().isoformat()
    value = {
        "date": today,
        "environment": read_json(runs[0] / "environment.json"),
        "training": plan["training"],
        "corpora": [read_json(run / "plan.json")["corpus"]["hash"] for run in runs],
        "seeds": args.seeds,
        "titles": titles,
        "rows": {
            row: {name: {**vars(over_seeds(v)), "seeds": v} for name, v in found.items()} for row, found in rows.items()
        },
        "differences": differences,
    }
    write_json(args.result.with_suffix(".json"), value)
    write_text(args.result.with_suffix(".md"), markdown(value))
    print(markdown(value))


def cell(found: dict[str, Any]) -> str:
    """Mean and interval."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    names, trained = list(value["rows"][UNTOUCHED]), [row for row in value["titles"] if row != UNTOUCHED]
    lines = [
        f"# The quickstart with seeds {', '.join(map(str, value['seeds']))} ({value['date']})",
        "",
        f"{value['training']['tokens']} tokens of text a method at {value['training']['sequence_length']} tokens, "
        f"learning rate {value['training']['learning_rate']:g}; means over the seeds with Student's 95% interval.",
        "",
        "| measure | " + " | ".join(value["titles"].values()) + " |",
        "|---" * (1 + len(value["titles"])) + "|",
    ]
    for name in names:
        base = value["rows"][UNTOUCHED][name]["value"]  # the untouched model is the same in every run
        lines.append(f"| {name} | {base:.2f} | " + " | ".join(cell(value["rows"][row][name]) for row in trained) + " |")
    lines += ["", "| difference, same documents and samples | mean over seeds |", "|---|---|"]
    for name, d in value["differences"].items():
        lines.append(f"| {name} | {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] |")
    facts = "; ".join(f"{k} {v}" for k, v in value["environment"].items() if k != "schema_version")
    return "\n".join([*lines, "", f"Made with `python scripts/quickstart_seeds.py`. {facts}.", ""])


if __name__ == "__main__":
    main()
