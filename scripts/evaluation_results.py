"""Evaluate the embedded model, an extended one and a checkpoint of somebody else, and write the folder of results.

    python scripts/evaluation_results.py --extended runs/quickstart/harpe/model --other CHECKPOINT --other-texts TEXTS \
        --work runs/results --out results/DATE

HARPE_DATA names the benchmark data. What --work holds already is not measured again. Sample counts are chosen for a few
minutes of one core, which is why the intervals are wide.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import torch

from harpe.cli.terminal import Terminal
from harpe.commands.evaluate import evaluate
from harpe.errors import HarpeError
from harpe.evaluation.ruler import search
from harpe.evaluation.ruler.generate import RulerGenerator
from harpe.evaluation.ruler.sources import DataFolder
from harpe.evaluation.ruler.tasks import RULER_TASKS
from harpe.files import read_json, write_json, write_text
from harpe.models.load import load_tokenizer
from harpe.options.measuring import EvaluateOptions, PerplexityOptions, RulerOptions, ShortOptions
from harpe.runs.directory import write_environment
from harpe.suites.perplexity import measure_perplexity
from harpe.suites.ruler import run_ruler
from harpe.suites.short import measure_short

LONG = 2048
"""The extended model's context; the others are measured up to there too, beyond theirs."""
CURVE = (128, 256, 512, 1024, 2048)
RULER_SAMPLES, NEEDLE_SAMPLES, DOCUMENTS = 5, 25, 16
SHORT = {"mmlu": 1, "piqa": 100}
"""Questions of every task; MMLU has 57."""
search.TRIES = 20  # draws before a task is refused: here it is refused everywhere because its contexts are far too long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extended", required=True, help="folder of the embedded model, extended to 2048 tokens")
    parser.add_argument("--other", help="folder of another checkpoint; without it, there are two models")
    parser.add_argument("--other-context", type=int, default=512)
    parser.add_argument("--other-texts", help="texts that it is measured on")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = ["embedded", "extended"]
    measure(args.work / "embedded", "embedded", "embedded", 256, LONG)
    measure(args.work / "extended", args.extended, "embedded", 256, LONG, against=args.work / "embedded")
    if args.other is not None:
        models.append(Path(args.other).name)
        measure(args.work / models[-1], args.other, args.other_texts, args.other_context, args.other_context)
    write_environment(args.work)
    collect(args.work, models, args.out)


def measure(folder: Path, model: str, texts: str, short: int, ruler_length: int, against: Path | None = None) -> None:
    """All measurements of one model; `short` is the context that it was trained with at first."""
    terminal = Terminal()
    if not (folder / "curve.json").is_file():
        lengths = ",".join(map(str, CURVE))
        options: dict[str, Any] = {
            "model": model,
            "data": texts,
            "lengths": lengths,
            "documents": DOCUMENTS,
            "dtype": "float32",
        }
        measure_perplexity(PerplexityOptions(**options, out=str(folder / "curve.json")), terminal)
    evaluate(
        EvaluateOptions(
            model=model,
            data=texts,
            out=str(folder / "scores"),
            length=LONG,
            original_length=short,
            documents=DOCUMENTS,
            samples=NEEDLE_SAMPLES,
            grid_samples=0,
            dtype="float32",
        ),
        terminal,
    )
    made = possible(model, ruler_length, folder / "refused.json")
    run_ruler(
        RulerOptions(
            model=model,
            length=ruler_length,
            samples=RULER_SAMPLES,
            tasks=",".join(made),
            beyond_context=True,
            dtype="float32",
            out=str(folder / "ruler"),
            against=str(against / "ruler") if against else None,
        ),
        terminal,
    )
    for task, limit in SHORT.items():
        measure_short(
            ShortOptions(
                model=model,
                tasks=task,
                limit=limit,
                offline=True,
                dtype="float32",
                out=str(folder / task),
                against=str(against / task) if against else None,
            ),
            terminal,
        )


def possible(model: str, length: int, path: Path) -> list[str]:
    """The tasks of RULER that can be made at a length with a model's tokenizer; of the others, the file says why
    not."""
    if not path.is_file():
        generator, refused = RulerGenerator(load_tokenizer(model), DataFolder()), {}
        for task in RULER_TASKS.values():
            try:
                list(generator.samples(task, length, RULER_SAMPLES))
            except HarpeError as error:
                refused[task.name] = str(error).split(". Give")[0] + "."
        write_json(path, {"refused": refused})
    refused = read_json(path)["refused"]
    return [task for task in RULER_TASKS if task not in refused]


def collect(work: Path, models: list[str], out: Path) -> None:
    """Copy the summaries and write README.md with the tables."""
    value: dict[str, Any] = {"environment": read_json(work / "environment.json"), "models": {}}
    for name in models:
        folder = work / name
        curve = read_json(folder / "curve.json")
        curve["data"] = Path(curve["data"]).name
        for point in curve["points"]:  # sums by document stay in the folder of the work
            point.pop("nll"), point.pop("tokens")
        short = {task: read_json(folder / task / "short.json")["tasks"][task] for task in SHORT}
        for scores in short.values():
            scores.pop("lm_eval")
        found = {"curve": curve, "perplexity": read_json(folder / "scores" / "perplexity.json")}
        found |= {
            "needles": read_json(folder / "scores" / "needles.json"),
            "ruler": read_json(folder / "ruler" / "ruler.json"),
        }
        found |= {"refused": read_json(folder / "refused.json")["refused"], "short": short}
        against = {part: folder / part / "against.json" for part in ("ruler", *SHORT)}
        found |= {"against": {part: read_json(path) for part, path in against.items() if path.is_file()}}
        for comparison in found["against"].values():
            comparison.pop("before"), comparison.pop("after")  # folders of this machine
        write_json(out / f"{name}.json", found)
        value["models"][name] = found
    write_json(out / "environment.json", value["environment"])
    write_text(out / "README.md", page(value, datetime.date.today().isoformat()))


def interval(row: dict[str, Any], digits: int = 1, factor: float = 1.0, key: str = "score") -> str:
    value, low, high = (factor * row[k] for k in (key, "low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)] + [""]


def page(value: dict[str, Any], date: str) -> str:
    """README.md."""
    models: dict[str, Any] = value["models"]
    names = list(models)
    others = names[2:]
    facts = "; ".join(f"{k} {v}" for k, v in value["environment"].items() if k != "schema_version")
    lines = [
        f"# Evaluation of small models ({date})",
        "",
        f"`embedded`: the model inside the package, trained at 256 tokens. `extended`: the same, extended to {LONG} "
        "tokens by `harpe quickstart`. "
        + "".join(
            f"`{name}`: a checkpoint that nobody here made, trained at {models[name]['ruler']['length']} tokens. "
            for name in others
        )
        + "All values with 95% intervals. Models of this size know little of what the short benchmarks ask: chance is "
        "25% in MMLU and 50% "
        "in PIQA.",
        "",
        "## Perplexity of documents cut to a length",
        "",
        "Prefixes: all tokens up to the length, averaged over tokens; intervals over documents. `embedded` and "
        "`extended`: Python files "
        "that neither was trained on"
        + "".join(f"; `{name}`: held-out books, not comparable with the first two" for name in others)
        + ".",
        "",
    ]
    rows = [
        [str(n), *(interval(models[name]["curve"]["points"][i], 1, 1, "perplexity") for name in names)]
        for i, n in enumerate(CURVE)
    ]
    lines += table(["tokens", *names], rows)
    lines += ["## Needle tasks, share found in %", "", f"{NEEDLE_SAMPLES} samples a task and length.", ""]
    rows = [
        [name, str(row["length"]), row["task"], interval(row, 0, 100), row["interval"]]
        for name in names
        for row in models[name]["needles"]["tasks"]
    ]
    lines += table(["model", "tokens", "task", "found", "interval"], rows)
    lines += ["## RULER, scores in %", ""]
    for name in names:
        ruler = models[name]["ruler"]
        lines += [f"`{name}` at {ruler['length']} tokens, {RULER_SAMPLES} samples a task:", ""]
        lines += table(
            ["task", "score", "empty answers"],
            [[t, interval(row), str(row["empty"])] for t, row in ruler["tasks"].items()],
        )
        if models[name]["refused"]:
            lines += ["Not made:", "", *(f"* {reason}" for reason in models[name]["refused"].values()), ""]
    lines += ["## Short benchmarks, right answers in %", ""]
    lines += [
        "lm-eval's prompts and numbers, on the first questions: "
        + ", ".join(f"{n} of each task of {t}" for t, n in SHORT.items())
        + ". "
        "lm-eval cuts prompts that are longer than the context from the left, which leaves models with a short context "
        "without most of the five examples of MMLU.",
        "",
    ]
    rows = [
        [name, t, str(r["shots"]), interval(r), str(r["samples"])]
        for name in names
        for t, r in models[name]["short"].items()
    ]
    lines += table(["model", "task", "shots", "score", "questions"], rows)
    lines += [
        "## Extended minus embedded, points",
        "",
        "Paired by question or sample; the mean counts every task the same. Where no score changed, an interval has no "
        "width and tells nothing about other samples.",
        "",
    ]
    rows = []
    for part, comparison in models["extended"]["against"].items():
        for task, row in [
            *comparison["tasks"].items(),
            *([("mean of the tasks", comparison["mean"])] if "mean" in comparison else []),
        ]:
            before_after = [f"{row['before']:.1f}", f"{row['after']:.1f}"]
            rows.append([part if part == "ruler" else "short", task, *before_after, interval(row, 1, 1, "difference")])
    lines += table(["benchmark", "task", "before", "after", "difference"], rows)
    lines += [f"Made with `python scripts/evaluation_results.py`. {facts}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
