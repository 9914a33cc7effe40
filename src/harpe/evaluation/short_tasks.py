"""Short benchmarks through lm-eval: its tasks, its prompts, its numbers, on a model that is already loaded.

The data come from the hub. Without it, MMLU and PIQA can be made from files: the task is lm-eval's own definition with nothing changed but
where its rows come from, so that its prompts are the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.statistics import wilson

SHOTS = {"mmlu": 5, "hellaswag": 10, "arc_challenge": 25, "piqa": 0, "triviaqa": 5}
"""The paper's five benchmarks and how many solved examples stand in front of a question."""
OFFLINE = ("mmlu", "piqa")

Rows = list[dict[str, Any]]


def _library() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise HarpeError("The short benchmarks need the package lm-eval, which is not installed: pip install 'harpe[eval]'.") from error
    return lm_eval


def _definition(path: Path) -> dict[str, Any]:
    """A task of lm-eval's as plain values, with the file that it includes."""
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    included = value.pop("include", None)
    return {**(_definition(path.parent / included) if included else {}), **value}


def _from_rows(definition: dict[str, Any], splits: dict[str, Rows]) -> dict[str, Any]:
    """The definition with rows of ours in place of the hub's."""
    from datasets import Dataset

    kept = {key: value for key, value in definition.items() if key not in ("dataset_path", "dataset_name", "tag", "task_alias")}
    return {**kept, "custom_dataset": lambda **_: {name: Dataset.from_list(rows) for name, rows in splits.items()}}


def _mmlu_rows(path: Path) -> Rows:
    """Rows of a CSV file with a header: question, four choices, the number of the right one."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [{"question": q, "choices": choices, "answer": int(answer)} for q, *choices, answer in list(csv.reader(stream))[1:]]


def _piqa_rows(folder: Path) -> Rows:
    lines = (folder / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    labels = (folder / "valid-labels.lst").read_text(encoding="utf-8").split()
    return [{**json.loads(line), "label": int(label)} for line, label in zip(lines, labels, strict=True)]


def offline_tasks(name: str, folder: Path) -> list[dict[str, Any]]:
    """Definitions of `mmlu` (57 subjects) or `piqa` with the rows in a folder.

    Parameters
    ----------
    folder
        Holds mmlu/dev/SUBJECT_dev.csv and mmlu/test/SUBJECT_test.csv, or piqa/valid.jsonl and piqa/valid-labels.lst.

    Raises
    ------
    HarpeError
        For any other task, and for missing files.
    """
    tasks = Path(_library().__file__).parent / "tasks"
    if name not in OFFLINE:
        raise HarpeError(
            f"--tasks {name} has no offline form; there are {', '.join(OFFLINE)}. Leave --offline out to read it from the hub."
        )
    if not (folder / name).is_dir():
        raise HarpeError(f"{folder / name} is missing: --offline reads {name} from there. Name the folder with --data or HARPE_DATA.")
    try:
        if name == "piqa":
            rows = _piqa_rows(folder / "piqa")
            definition = {**_definition(tasks / "piqa" / "piqa.yaml"), "training_split": None}
            return [_from_rows(definition, {"validation": rows})]
        found = []
        for path in sorted((folder / "mmlu" / "test").glob("*_test.csv")):
            subject = path.name.removesuffix("_test.csv")
            splits = {"test": _mmlu_rows(path), "dev": _mmlu_rows(folder / "mmlu" / "dev" / f"{subject}_dev.csv")}
            found.append(_from_rows(_definition(tasks / "mmlu" / "default" / f"mmlu_{subject}.yaml"), splits))
        return found
    except (OSError, ValueError) as error:
        raise HarpeError(f"The files of {name} in {folder / name} could not be read ({error}).") from error


def run_short_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str | dict[str, Any]],
    shots: int | None,
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """lm-eval's results for tasks on a loaded model: its dict with `results` and, by task, `samples`.

    Parameters
    ----------
    tasks
        Names of lm-eval's tasks, or definitions.
    shots
        Solved examples in front of a question; None: as the task says.
    limit
        Questions of each task; None: all.

    Raises
    ------
    HarpeError
        For unknown tasks and data that cannot be loaded.
    """
    _library()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model.eval()
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
    try:
        return dict(simple_evaluate(wrapped, tasks=list(tasks), num_fewshot=shots, limit=limit, bootstrap_iters=0, log_samples=True) or {})
    except (KeyError, ValueError, OSError) as error:
        names = ", ".join(task if isinstance(task, str) else str(task.get("task")) for task in tasks)
        raise HarpeError(f"lm-eval could not run {names} ({type(error).__name__}: {' '.join(str(error).split())[:300]}).") from error


def accuracy(samples: Sequence[dict[str, Any]], metric: str = "acc") -> dict[str, Any]:
    """Share of right answers in per cent over lm-eval's samples, with Wilson's 95 % interval."""
    hits = [float(sample[metric]) for sample in samples if metric in sample]
    share = wilson(sum(hits), len(hits))
    return {"metric": metric, "score": 100 * share.value, "low": 100 * share.low, "high": 100 * share.high, "samples": len(hits)}
