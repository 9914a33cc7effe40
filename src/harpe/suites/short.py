"""`harpe short`: short benchmarks of one checkpoint."""

from __future__ import annotations

import math
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from harpe.distributed.processes import Processes, join
from harpe.errors import HarpeError
from harpe.evaluation.against import WRITTEN, check_short, compare_short
from harpe.evaluation.identity import MEASURING, identity_of
from harpe.evaluation.records import record_files
from harpe.evaluation.short.helmet import METRIC, helmet_tasks, is_helmet
from harpe.evaluation.short.hub import LONG, DataSets, as_lm_eval, expanded
from harpe.evaluation.short.offline import LOCAL, NOT_COMPARABLE, OFFLINE, offline_tasks, questions_hash
from harpe.evaluation.short.record import Record
from harpe.evaluation.short.tasks import SHOTS, accuracy, run_short_tasks
from harpe.files import read_json, write_json
from harpe.measurement import check_summary, refuse_other, write_records
from harpe.models.dtype import choose_dtype
from harpe.models.geometry import text_config
from harpe.models.load import load_config, load_model, load_tokenizer, to_accelerator
from harpe.models.vocabulary import check_vocabulary
from harpe.options.measuring import ShortOptions
from harpe.ownership import refuse_foreign
from harpe.reporter import Reporter
from harpe.runs.directory import held_scores
from harpe.runs.overlap import Prompts, training_overlap

Definitions = dict[str, list[Any]]
"""Of lm-eval's tasks, or their names, by the names that were asked for."""
METRICS = ("acc", "exact_match", METRIC)
"""The first one that lm-eval gives of every question is the score that gets an interval."""


def measure_short(options: ShortOptions, reporter: Reporter | None = None) -> Path:
    """Measure the tasks that are not measured yet; returns the folder.

    Started as several processes, each of them calls this and asks its share of the questions; the first one writes the
    files.

    Raises HarpeError for bad options, missing data, and a folder that holds scores of another measurement, or files
    that harpe did not write.
    """
    ranks = join()
    reporter = (reporter if ranks.first else None) or Reporter()
    names = _named(options)
    path = Path(options.out) / "short.json"
    _check(options, names)
    definitions, tokenizer = ranks.on_every_rank(lambda: _read(options, names))
    against = options.against
    with held_scores(path.parent, ranks):
        if against is not None:
            ranks.broadcast_from_rank0(lambda: check_short(Path(against), names))
        _measure_missing(options, names, definitions, tokenizer, path, ranks, reporter)
    if against is not None:
        ranks.broadcast_from_rank0(lambda: compare_short(Path(against), path.parent, names))
    return path.parent


def check_tasks(options: ShortOptions) -> None:
    """Refuse tasks that nobody knows, or whose data are missing, before hours of other work."""
    _read(options, _named(options))


def _measure_missing(
    options: ShortOptions,
    names: list[str],
    definitions: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    ranks: Processes,
    reporter: Reporter,
) -> None:
    value, reason = ranks.broadcast_from_rank0(lambda: _begun(options, path, definitions, tokenizer))
    if missing := [name for name in names if name not in value["tasks"]]:
        reporter.say(f"Arithmetic in {reason}.")
        _measure(options, {name: definitions[name] for name in missing}, tokenizer, value, path, ranks, reporter)
    else:
        reporter.say(f"Everything is measured already; the scores are in {path}.")


def _check(options: ShortOptions, names: list[str]) -> None:
    if options.server is not None:
        raise HarpeError(
            "--server: the short benchmarks compare log-likelihoods of given answers, and servers give text. Leave "
            "--server out: the model then runs in this process. `harpe ruler` can ask a server."
        )
    if options.shots is not None and any(map(is_helmet, names)):
        raise HarpeError("--shots: HELMET's tasks have solved examples of their own, or none. Leave it out for them.")
    if options.batch_size < 1:
        raise HarpeError(f"--batch-size {options.batch_size}: at least one question has to be asked at a time.")
    if wrong := [name for name in names if Path(name).name != name]:
        raise HarpeError(f"--tasks {', '.join(wrong)}: a name of lm-eval's is wanted, not a path.")
    folder = Path(options.out)
    records = [file for name in names for file in record_files(folder / f"{name}.requests.jsonl")]
    against = [folder / name for name in WRITTEN] if options.against is not None else []
    refuse_foreign(folder / "short.json", *(folder / f"{name}.jsonl" for name in names), *records, *against)


def _named(options: ShortOptions) -> list[str]:
    names, context = options.tasks.replace(",", " ").split(), 0
    if not names:
        raise HarpeError("--tasks names no task; give names of lm-eval's (`lm_eval ls tasks` lists them).")
    if LONG in names:
        context = int(text_config(load_config(options.model, options.revision)).max_position_embeddings)
    return expanded(names, context)


def _read(options: ShortOptions, names: list[str]) -> tuple[Definitions, PreTrainedTokenizerBase]:
    config = load_config(options.model, options.revision)
    tokenizer = load_tokenizer(*options.tokenizer_of(options.model))
    definitions: Definitions = {}
    sets = _data_sets(options)
    check = sets.check if options.offline else sets.needed  # both know lm-eval's names
    for name in names:
        if is_helmet(name):
            definitions[name] = helmet_tasks(name, _folder(options, "helmet"), tokenizer)
        elif name in LOCAL or (options.offline and name in OFFLINE):
            definitions[name] = offline_tasks(name, _folder(options, "short_bench"))
        else:
            definitions[name] = [as_lm_eval(name)]
            check(name)
    check_vocabulary(config, tokenizer, options.model)
    return definitions, tokenizer


def _begun(
    options: ShortOptions, path: Path, definitions: Definitions, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Any], str]:
    """What short.json holds of this measurement, whole tasks alone, and why the dtype is what it is."""
    there = {k: v for k, v in read_json(path).items() if k != "schema_version"} if path.is_file() else {"tasks": {}}
    began = there.get("measurement", {}).get("dtype")
    dtype, reason = choose_dtype(options.dtype, began, "these scores")
    asked = {"shots": options.shots, "limit": options.limit, "offline": options.offline, "lm_eval": _lm_eval_version()}
    facts = {"options": asked, "dtype": dtype, "measuring": MEASURING["short"]}
    of = {**identity_of(options.model, options.revision, tokenizer), **facts}
    advice = "Name another folder with --out, or delete this one to measure again."
    if path.is_file():
        refuse_other(there.get("measurement", {}), of, path, advice)
        of = there["measurement"]
    for name, definition in definitions.items():
        check_summary(path.parent / f"{name}.jsonl", of)
        if not (path.parent / f"{name}.jsonl").is_file():
            there["tasks"].pop(name, None)
        elif name in there["tasks"] and (questions := there["tasks"][name].get("questions")) is not None:
            now = _data_sets(options).hashes(questions) if isinstance(questions, dict) else _questions(definition)
            refuse_other({"questions": questions}, {"questions": now}, path, advice)
    return {"measurement": of, **there}, reason


def _lm_eval_version() -> str | None:
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return None


def _questions(definition: list[Any]) -> str | None:
    """What names the questions of a task of `offline`; lm-eval's version stands for those of its own tasks."""
    return questions_hash(definition) if "custom_dataset" in definition[0] else None


def _measure(
    options: ShortOptions,
    definitions: Definitions,
    tokenizer: PreTrainedTokenizerBase,
    value: dict[str, Any],
    path: Path,
    ranks: Processes,
    reporter: Reporter,
) -> None:
    """Measure tasks; each goes into short.json when it is done. While it runs, NAME.requests.jsonl keeps what was
    answered."""
    of = value["measurement"]
    if ranks.first:
        write_json(path, value)
    model = ranks.on_every_rank(lambda: to_accelerator(load_model(options.model, torch.float32, options.revision)))
    data = _data_sets(options)
    for done, (name, definition) in enumerate(definitions.items()):
        reporter.progress("short benchmarks", done, len(definitions), name)
        shots = options.shots if options.shots is not None else SHOTS.get(name)

        def progress(done: int, total: int, name: str = name) -> None:
            reporter.progress(f"blocks of {name}", done, total, ranks.note)

        record = Record(path.parent / f"{name}.requests.jsonl", options.batch_size, ranks, reporter.say, progress, of)
        if record.known:
            reporter.say(f"{name}: {record.known} requests were answered before.")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=of["dtype"] == "bfloat16"):
            found = run_short_tasks(
                model,
                tokenizer,
                definition,
                shots,
                limit=options.limit,
                batch_size=options.batch_size,
                record=record,
                ranks=ranks,
                data=data,
            )
        if ranks.first:
            read = {task: _read_first(rows) for task, rows in found["samples"].items()}
            samples = [{"task": task, **sample} for task, rows in read.items() for sample in rows]
            asked = Prompts([_prompts(rows) for rows in read.values()], tokenizer)
            value["tasks"][name] = {
                **scores_of(name, samples, shots, found["results"].get(name, {})),
                "questions": data.hashes(data.used) or _questions(definition),
                "overlap": training_overlap(options.model, tokenizer, asked, reporter),
                "lm_eval": found["results"],
            }
            kept = ("task", "doc_id", "target", "filtered_resps", "prompt_hash", *METRICS, "acc_norm")
            rows = [
                {key: _plain(sample[key]) for key in kept if key in sample} | ({"cut": True} if sample["cut"] else {})
                for sample in samples
            ]
            write_records(path.parent / f"{name}.jsonl", rows, of)
            write_json(path, _plain(value))
            record.path.unlink(missing_ok=True)
    ranks.wait()
    reporter.progress("short benchmarks", len(definitions), len(definitions))
    reporter.say(f"The scores are in {path}.")


def _read_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every question once: lm-eval gives all of them again for each way in which a task reads an answer (its filters),
    the task's first one first."""
    return [row for row in rows if row.get("filter") == rows[0].get("filter")]


def _metric(samples: list[dict[str, Any]], theirs: dict[str, Any]) -> str | None:
    """The metric that every question has, where its mean over them is the number that lm-eval gives the task, if it
    gives one: the tasks of a group may be measured otherwise, or weigh the same however many questions they have."""
    metric = next((m for m in METRICS if samples and all(m in sample for sample in samples)), None)
    own = theirs.get(f"{metric},{samples[0].get('filter')}") if metric else None
    same = own is None or math.isclose(100 * own, accuracy(samples, metric or "")["score"], rel_tol=1e-6)
    return metric if same else None


def scores_of(name: str, samples: list[dict[str, Any]], shots: int | None, theirs: dict[str, Any]) -> dict[str, Any]:
    """What short.json says of a task, out of its questions and of lm-eval's own numbers (`theirs`): no score where they
    have none in common."""
    metric = _metric(samples, theirs)
    whole = [sample for sample in samples if not sample["cut"]]
    used = {str(sample.get("filter")) for sample in samples}
    cut, notes = len(samples) - len(whole), [NOT_COMPARABLE] if name in LOCAL else []
    told: dict[str, Any] = {}
    if cut:
        told["cut"] = {"questions": cut, "whole": accuracy(whole, metric) if metric and whole else None}
        score = told["cut"]["whole"] and f"{told['cut']['whole']['score']:.1f}% on the {len(whole)} others"
        notes.append(f"the beginning of {cut} questions was cut off, longer than the context; {score or 'all were'}")
    if metric and (others := sorted({key.partition(",")[2] for key in theirs if key.startswith(f"{metric},")} - used)):
        notes.append(f"answers read by lm-eval's filter {', '.join(used)}; by {', '.join(others)}: see lm_eval there")
    note = {"note": "; ".join(notes)} if notes else {}
    return {**(accuracy(samples, metric) if metric else {}), "shots": shots, **told, **note}


def _prompts(samples: list[dict[str, Any]]) -> list[str]:
    """What is asked, solved examples included; once where a question is asked with several answers."""
    return list(dict.fromkeys(str(request[0]) for sample in samples for request in sample["arguments"]))


def _data_sets(options: ShortOptions) -> DataSets:
    named = options.data or os.environ.get("HARPE_DATA")
    return DataSets(Path(named) / "hub" if named else None, options.offline)


def _folder(options: ShortOptions, part: str) -> Path:
    named = options.data or os.environ.get("HARPE_DATA")
    if not named:
        raise HarpeError(f"A folder with {part} in it is needed: name it with --data, or set HARPE_DATA.")
    return Path(named) / part


def _plain(value: Any) -> Any:
    """Values that JSON has: numbers of numpy and torch become Python's, everything unknown its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
