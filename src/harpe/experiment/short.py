"""`harpe short`: short benchmarks of one checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from harpe.errors import HarpeError
from harpe.evaluation.short_tasks import SHOTS, accuracy, offline_tasks, run_short_tasks
from harpe.experiment.directory import settled_dtype
from harpe.experiment.evaluation_options import ShortOptions
from harpe.experiment.reporter import Reporter
from harpe.files import read_json, write_json, write_jsonl
from harpe.models.load import check_vocabulary, load_config, load_model, load_tokenizer, to_accelerator

METRICS = ("acc", "exact_match")
"""Of a question, the first one that lm-eval gives is the score that gets an interval."""


def measure_short(options: ShortOptions, reporter: Reporter | None = None) -> Path:
    """Measure the tasks that are not measured yet; returns the folder.

    Raises
    ------
    HarpeError
        For bad options, missing data, and a folder that holds scores of another measurement.
    """
    reporter = reporter or Reporter()
    names = options.tasks.replace(",", " ").split()
    path = Path(options.out) / "short.json"
    protocol = {"model": Path(options.model).name, "revision": options.revision, "shots": options.shots, "limit": options.limit}
    protocol |= {"offline": options.offline, "tokenizer": options.tokenizer}
    value: dict[str, Any] = {"protocol": protocol, "tasks": {}}
    if path.is_file():
        value = {k: v for k, v in read_json(path).items() if k != "schema_version"}
        if value["protocol"] != protocol:
            raise HarpeError(
                f"--out {options.out} holds scores that were measured in another way (see short.json there). Name another folder."
            )
    missing = [name for name in names if name not in value["tasks"]]
    if not missing:
        reporter.say(f"Everything is measured already; the scores are in {path}.")
        return path.parent
    definitions = {name: offline_tasks(name, _folder(options)) if options.offline else [name] for name in missing}
    tokenizer = load_tokenizer(options.tokenizer or options.model, options.revision if options.tokenizer is None else None)
    check_vocabulary(load_config(options.model, options.revision), tokenizer, options.model)
    dtype, reason = settled_dtype(options.dtype, path, "dtype")
    value["dtype"] = dtype
    reporter.say(f"Arithmetic in {reason}.")
    model = to_accelerator(load_model(options.model, torch.float32, options.revision))
    for done, name in enumerate(missing):
        reporter.progress("short benchmarks", done, len(missing), name)
        shots = options.shots if options.shots is not None else SHOTS.get(name)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            found = run_short_tasks(model, tokenizer, definitions[name], shots, limit=options.limit, batch_size=options.batch_size)
        samples = [{"task": task, **sample} for task, rows in found["samples"].items() for sample in rows]
        metric = next((m for m in METRICS if samples and m in samples[0]), None)
        value["tasks"][name] = {**(accuracy(samples, metric) if metric else {}), "shots": shots, "lm_eval": found["results"]}
        kept = ("task", "doc_id", "target", "filtered_resps", "prompt_hash", *METRICS, "acc_norm")
        write_jsonl(path.parent / f"{name}.jsonl", [{k: _plain(s[k]) for k in kept if k in s} for s in samples])
        write_json(path, _plain(value))
    reporter.progress("short benchmarks", len(missing), len(missing))
    reporter.say(f"The scores are in {path}.")
    return path.parent


def _folder(options: ShortOptions) -> Path:
    named = options.data or os.environ.get("HARPE_DATA")
    if not named:
        raise HarpeError("--offline needs a folder with the questions: name it with --data, or set HARPE_DATA.")
    return Path(named) / "short_bench"


def _plain(value: Any) -> Any:
    """Values that JSON has: numbers of numpy and torch become Python's, everything unknown its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
