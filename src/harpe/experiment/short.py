"""`harpe short`: short benchmarks of one checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.processes import Processes, join
from harpe.evaluation.short_offline import LOCAL, NOT_COMPARABLE, offline_tasks
from harpe.evaluation.short_record import Record
from harpe.evaluation.short_tasks import SHOTS, accuracy, run_short_tasks
from harpe.experiment.against import compare_short
from harpe.experiment.directory import settled_dtype
from harpe.experiment.evaluation_options import ShortOptions
from harpe.experiment.overlap import Prompts, training_overlap
from harpe.experiment.reporter import Reporter
from harpe.files import read_json, write_json, write_jsonl
from harpe.models.load import load_config, load_model, load_tokenizer, to_accelerator
from harpe.models.vocabulary import check_vocabulary

METRICS = ("acc", "exact_match")
"""Of a question, the first one that lm-eval gives is the score that gets an interval."""


def measure_short(options: ShortOptions, reporter: Reporter | None = None) -> Path:
    """Measure the tasks that are not measured yet; returns the folder.

    Started as several processes, each of them calls this and asks its share of the questions; the first one writes the files.

    Raises
    ------
    HarpeError
        For bad options, missing data, and a folder that holds scores of another measurement.
    """
    team = join()
    reporter = (reporter if team.first else None) or Reporter()
    names = options.tasks.replace(",", " ").split()
    path = Path(options.out) / "short.json"
    value = team.from_first(lambda: _begun(options, path))
    missing = [name for name in names if name not in value["tasks"]]
    if missing:
        _measure(options, missing, value, path, team, reporter)
    else:
        reporter.say(f"Everything is measured already; the scores are in {path}.")
    against = options.against
    if against is not None:
        team.from_first(lambda: compare_short(Path(against), path.parent, names))
    return path.parent


def _begun(options: ShortOptions, path: Path) -> dict[str, Any]:
    """What short.json holds of this measurement."""
    if options.server is not None:
        raise HarpeError(
            "--server: the short benchmarks compare log-likelihoods of given answers, and servers give text. Leave --server out: the model "
            "then runs in this process. `harpe ruler` can ask a server."
        )
    protocol = {"model": Path(options.model).name, "revision": options.revision, "shots": options.shots, "limit": options.limit}
    protocol |= {"offline": options.offline, "tokenizer": options.tokenizer}
    if not path.is_file():
        return {"protocol": protocol, "tasks": {}}
    value = {k: v for k, v in read_json(path).items() if k != "schema_version"}
    if value["protocol"] != protocol:
        raise HarpeError(f"--out {options.out} holds scores that were measured in another way (see short.json there). Name another folder.")
    return value


def _settled(options: ShortOptions, value: dict[str, Any], path: Path) -> tuple[str, str]:
    """The dtype of the arithmetic and why; kept in short.json."""
    dtype, reason = settled_dtype(options.dtype, path, "dtype")
    if value.get("dtype", dtype) != dtype:
        raise HarpeError(f"--dtype {dtype}: the scores in {path} began in {value['dtype']}. Leave --dtype out, or name another folder.")
    write_json(path, {**value, "dtype": dtype})
    return dtype, reason


def _measure(options: ShortOptions, names: list[str], value: dict[str, Any], path: Path, team: Processes, reporter: Reporter) -> None:
    """Measure tasks; each goes into short.json when it is done. While it runs, NAME.requests.jsonl keeps what was answered."""

    def read() -> tuple[dict[str, list[Any]], PreTrainedTokenizerBase]:
        definitions = {name: offline_tasks(name, _folder(options)) if options.offline or name in LOCAL else [name] for name in names}
        tokenizer = load_tokenizer(options.tokenizer or options.model, options.revision if options.tokenizer is None else None)
        check_vocabulary(load_config(options.model, options.revision), tokenizer, options.model)
        return definitions, tokenizer

    definitions, tokenizer = team.alike(read)
    dtype, reason = team.from_first(lambda: _settled(options, value, path))
    value["dtype"] = dtype
    reporter.say(f"Arithmetic in {reason}.")
    model = team.alike(lambda: to_accelerator(load_model(options.model, torch.float32, options.revision)))
    for done, name in enumerate(names):
        reporter.progress("short benchmarks", done, len(names), name)
        shots = options.shots if options.shots is not None else SHOTS.get(name)

        def progress(done: int, total: int, name: str = name) -> None:
            reporter.progress(f"blocks of {name}", done, total, team.note)

        record = Record(path.parent / f"{name}.requests.jsonl", options.batch_size, team, reporter.say, progress)
        if record.known:
            reporter.say(f"{name}: {record.known} requests were answered before.")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            found = run_short_tasks(
                model, tokenizer, definitions[name], shots, limit=options.limit, batch_size=options.batch_size, record=record, team=team
            )
        if team.first:
            samples = [{"task": task, **sample} for task, rows in found["samples"].items() for sample in rows]
            value["tasks"][name] = _scores(name, samples, shots)
            asked = Prompts([_prompts(rows) for rows in found["samples"].values()], tokenizer)
            value["tasks"][name]["overlap"] = training_overlap(options.model, tokenizer, asked, reporter)
            value["tasks"][name]["lm_eval"] = found["results"]
            kept = ("task", "doc_id", "target", "filtered_resps", "prompt_hash", *METRICS, "acc_norm")
            write_jsonl(path.parent / f"{name}.jsonl", [{k: _plain(s[k]) for k in kept if k in s} for s in samples])
            write_json(path, _plain(value))
            record.path.unlink(missing_ok=True)
    team.wait()
    reporter.progress("short benchmarks", len(names), len(names))
    reporter.say(f"The scores are in {path}.")


def _scores(name: str, samples: list[dict[str, Any]], shots: int | None) -> dict[str, Any]:
    metric = next((m for m in METRICS if samples and m in samples[0]), None)
    note = {"note": NOT_COMPARABLE} if name in LOCAL else {}
    return {**(accuracy(samples, metric) if metric else {}), "shots": shots, **note}


def _prompts(samples: list[dict[str, Any]]) -> list[str]:
    """What is asked, solved examples included; once where a question is asked with several answers."""
    return list(dict.fromkeys(str(request[0]) for sample in samples for request in sample["arguments"]))


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
