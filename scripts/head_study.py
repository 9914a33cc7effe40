"""Do different heads win? Rows with an encoding for every head beside the row with the same freedom for all heads.

    harpe compare recipes/head-study-16x.yaml --jobs 2 --out runs/16x    (and the other recipes of that name)
    python scripts/head_study.py runs/16x … --result results/DATE-head-study

Reads comparisons, also unfinished ones, and says for every pair the difference in loss and needles with 95% intervals
over seeds and documents, p-values corrected over the pairs of a measure (Holm), and whether a row may be worse than
YaRN by more than a margin. `content` are needles among others of the same form. `order` is asked of answers that list
all values of a key: the share of places with the right value, where `multi_value` takes them in any order. Where `harpe
long` asked for the last or the j-th of four values of one register, or for one of four keys that are nearly alike,
those are measures of their own.
"""

from __future__ import annotations

import argparse
import datetime
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harpe.comparison.suites.base import Measure
from harpe.comparison.summary import LEVEL, collect
from harpe.evaluation.statistics.resampling import holm, paired, resample
from harpe.files import read_json, read_jsonl, write_json, write_text

PAIRS = {
    "harpe": "one-base",
    "harpe-factor": "one-base-factor",
    "harpe-parts": "by-parts",
    "harpe-parts-measured": "by-parts",
    "harpe-adaptive": "base-2m",
    "mixed-wide": "base-600k",
    "mixed-wide-down": "base-600k",
    "learned-head": "learned-shared",
    "learned-layer": "learned-shared",
    "searched-head": "searched-exponent",
    "searched-layer": "searched-exponent",
}
"""Rows whose heads differ, and those with as much freedom for all heads together."""
BEST = "yarn"
MARGINS = {"nats": 0.01, "%": 2.0}
"""How much worse than `BEST` still counts as as good: nats a token, points."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    studies = [study(run) for run in args.runs]
    args.result.mkdir(parents=True, exist_ok=True)
    for run, value in zip(args.runs, studies, strict=True):
        write_json(args.result / f"{run.name}.json", value)
        shutil.copyfile(run / "recipe.yaml", args.result / f"{run.name}.yaml")
        shutil.copyfile(run / "environment.json", args.result / f"{run.name}-environment.json")
    write_text(args.result / "README.md", "\n".join(text(studies)) + "\n")


def study(run: Path) -> dict[str, Any]:
    """All measures, pairs and bounds of one comparison."""
    plan = read_json(run / "plan.json")
    names = [method["name"] for method in plan["methods"]]
    found = {measure.id: measure for measure in collect(run, names, plan["seeds"])}
    length = plan["target_length"]
    wanted = {
        "loss within the trained context": found.get("loss-short"),
        "loss at the far end": found.get("loss-long"),
        "needles": found.get(f"needles-mean-{length}"),
        "content": found.get(f"needles-multi_key-{length}"),
        "multi-value": found.get(f"needles-multi_value-{length}"),
        "order": order(run, names, plan["seeds"], length),
    }
    probes = {"set last": "order-last-4", "set the j-th time": "order-nth-4", "keys alike": "content-4"}
    for said, task in probes.items():
        for measure in found.values():
            if measure.task == task and measure.length:
                wanted[f"{said}, {measure.length:,} tokens"] = measure
    measures = {name: measured(each, names) for name, each in wanted.items() if each is not None and each.found}
    titles = {method["name"]: method["title"] for method in plan["methods"]}
    return {"title": plan["title"], "length": length, "tokens": plan["training"]["tokens"], "titles": titles} | {
        "measures": measures
    }


def order(run: Path, names: Sequence[str], seeds: Sequence[int], length: int) -> Measure:
    """The share of places of a list at which the right value stands."""
    measure = Measure(f"order-{length}", "order", "%", "higher", "needles")
    for name in names:
        for seed in {0, *seeds}:
            file = run / name / f"seed-{seed}" / "scores" / "needles.jsonl"
            rows = read_jsonl(file) if file.is_file() else []
            of = [row for row in rows if (row["task"], row["length"]) == ("multi_value", length)]
            if of:
                records = [((row["index"],), 0, in_order(row["expected"][0], row["answers"][0]), 1.0) for row in of]
                measure.found[name, seed] = sorted(records)
    return measure


def in_order(expected: Sequence[str], answer: str) -> float:
    numbers = re.findall(r"\d+", answer)
    return sum(a == b for a, b in zip(expected, numbers, strict=False)) / len(expected)


def measured(measure: Measure, names: Sequence[str]) -> dict[str, Any]:
    units, scale = measure.units(), 100.0 if measure.unit == "%" else 1.0
    values = {}
    for name in names:
        if seeds := measure.seeds(name):
            draws = resample(measure.totals(name, seeds), units)
            interval = draws.interval().within(0, 1 if measure.unit == "%" else math.inf)
            values[name] = {**interval.as_dict(scale=scale), "by_seed": [scale * x for x in draws.by_seed]}
    pairs = {row: control for row, control in PAIRS.items() if row in values and control in values}
    found = {row: difference(measure, row, control) for row, control in pairs.items()}
    adjusted = holm([each.p_value() for each in found.values()])
    differences = {
        row: {**draw.interval().as_dict(scale=scale), "minus": pairs[row], "p": draw.p_value(), "holm": p}
        for (row, draw), p in zip(found.items(), adjusted, strict=True)
    }
    bounds = {}
    for name in values:
        if name != BEST and BEST in values:
            interval = difference(measure, name, BEST).interval().as_dict(scale=scale)
            worst = interval["high"] if measure.better == "lower" else -interval["low"]
            bounds[name] = {**interval, "as_good": bool(worst <= MARGINS[measure.unit])}
    return {"unit": measure.unit, "better": measure.better, "values": values, "pairs": differences, "bounds": bounds}


def difference(measure: Measure, row: str, other: str) -> Any:
    """Over the seeds that both have; a row without training has one for all."""
    mine, theirs = measure.seeds(row), measure.seeds(other)
    both = sorted({*mine} & {*theirs}) if len(mine) > 1 and len(theirs) > 1 else None
    return paired(measure.totals(row, both or mine), measure.totals(other, both or theirs), measure.units())


def text(studies: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"# Do different heads win? ({datetime.date.today()})", ""]
    for value in studies:
        seeds = max(len(row["by_seed"]) for row in value["measures"]["loss at the far end"]["values"].values())
        lines += [f"## {value['title']}: {value['tokens']:,} tokens, up to {seeds} seeds", ""]
        lines += table("values", value, lambda row, unit: f"{row['value']:.{_digits(unit)}f}")
        lines += ["", "Rows whose heads differ, minus the row with the same freedom for all heads together:", ""]
        lines += table("pairs", value, lambda row, unit: _signed(row, unit, row["holm"] < LEVEL))
        if BEST in value["titles"]:
            lines += ["", f"Minus {value['titles'][BEST]}; ✓ where the interval excludes being worse by more than "]
            lines[-1] += "0.01 nats or 2 points:"
            lines += ["", *table("bounds", value, lambda row, unit: _signed(row, unit) + " ✓" * row["as_good"])]
        lines.append("")
    return [*lines, "Made by `scripts/head_study.py`; bold: after Holm's correction over the pairs of a measure."]


def table(part: str, value: dict[str, Any], cell: Any) -> list[str]:
    measures = value["measures"]
    rows = list(dict.fromkeys(name for measure in measures.values() for name in measure[part]))
    heads = [f"{name}, {each['unit']}" for name, each in measures.items()]
    lines = [f"| row | {' | '.join(heads)} |"]
    lines.append("|---" * (len(measures) + 1) + "|")
    for name in rows:
        cells = [cell(each[part][name], each["unit"]) if name in each[part] else "" for each in measures.values()]
        lines.append(f"| {value['titles'][name]} | {' | '.join(cells)} |")
    return lines


def _digits(unit: str) -> int:
    return 1 if unit == "%" else 3


def _signed(row: dict[str, Any], unit: str, real: bool = False) -> str:
    digits = _digits(unit)
    words = f"{row['value']:+.{digits}f} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"
    return f"**{words}**" if real else words


if __name__ == "__main__":
    main()
