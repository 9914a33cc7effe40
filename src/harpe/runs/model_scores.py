"""Reads a folder with the scores of one model, as `harpe ruler`, `long`, `short`, `perplexity` and `evaluate` leave
them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.evaluation.against import asked_in_chat
from harpe.evaluation.long.registry import SUITES
from harpe.files import read_json, read_jsonl, sha256_json
from harpe.measurement import Measurement, check_scores, check_summary
from harpe.report.read.fields import parse
from harpe.report.read.lengths import Effective, Percent
from harpe.report.read.model import ModelScores, Number, OverLengths, ScoreFile, Units
from harpe.report.read.scores import Bin

EVALUATED = ("perplexity.json", "needles.json", "grid.json")
Rows = Iterable[Mapping[str, Any]]
NEEDLE_MEAN, MEAN = "mean of the eight needle tasks", "mean of all 13"


@dataclass
class _Reading:
    """What is collected from the files of a folder."""

    root: Path
    models: list[tuple[Path, Measurement]] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    lengths: list[OverLengths] = field(default_factory=list)
    positions: dict[str, tuple[Bin, ...]] = field(default_factory=dict)
    files: list[ScoreFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def file(self, path: Path, suite: str, of: Measurement, overlap: Any) -> str:
        """Take up a file of scores; returns what it is called on the page."""
        if not isinstance(of.get("model"), dict):
            raise HarpeError(
                f"{path} does not say which model it is of: an earlier version wrote it. Measure again, or take it "
                "out of the folder."
            )
        self.models.append((path, of))
        named = path.relative_to(self.root).as_posix()
        engine = f"server {of['server']}, {of['options']['endpoint']}" if "server" in of else "transformers"
        engine = ", ".join(part for part in (engine, str(of.get("dtype", ""))) if part)
        written = f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"
        self.files.append(ScoreFile(named, suite, engine, _overlap(overlap), written))
        return named

    def add(self, number: Number) -> None:
        """Take up a number; its records have to say the same."""
        if number.units:
            means = [sum(s for s, _ in task.values()) / sum(w for _, w in task.values()) for task in number.units]
            mean = sum(means) / len(means)
            found = 100 * mean if number.unit == "%" else math.exp(mean)
            if not math.isclose(found, number.value, rel_tol=1e-6, abs_tol=1e-6):
                raise HarpeError(
                    f"{self.root / number.file} says {number.value:g} for {number.task}, and the records beside it "
                    f"{found:g}: it was cut short, or changed. Start that measurement again, which completes it."
                )
        self.numbers.append(number)


def _overlap(value: Any) -> str:
    """In words; None for a file of an earlier version."""
    if not isinstance(value, dict):
        return "not recorded"
    if value.get("share") is None:
        return f"not known: {value.get('reason', '')}"
    return f"{value['share']:.2%} of the {value['ngram']}-grams, {value['largest_share_of_a_text']:.2%} of one text"


def _by_task(rows: Rows, task: Callable[[Mapping[str, Any]], Any], unit: str) -> dict[Any, Units]:
    found: dict[Any, dict[Any, tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(task(row), {})[row[unit]] = (float(row["score"]), 1.0)
    return dict(found)


def _tokens(rows: Rows, total: Callable[[Any], float], weight: Callable[[Any], float]) -> Units:
    return {row["document"]: (float(total(row)), float(weight(row))) for row in rows}


def _ruler(read: _Reading, path: Path) -> None:
    value, protocol, of = _asked(path)
    suite = f"RULER ({protocol['samples']['template']} template)"
    file = read.file(path, suite, of, value.get("overlap"))
    units = _by_task(read_jsonl(path.parent / "answers.jsonl"), lambda row: row["task"], "sample")
    length, tasks = value["length"], value["tasks"]
    same = {name: _same(of, "samples", protocol["files"][name], asked_in_chat(of)) for name in tasks}
    for name, cell in tasks.items():
        ends = cell["score"], cell["low"], cell["high"]
        read.add(Number(suite, name, length, "%", *ends, cell["samples"], file, same[name], (units[name],)))
    needles = [name for name in tasks if name.startswith("niah")]
    for title, key, names in ((NEEDLE_MEAN, "needle_mean", needles), (MEAN, "mean", list(tasks))):
        if key in value:
            _mean(read, suite, title, length, {"value": value[key]}, file, [(same[n], units[n]) for n in names])
    _cut_short(read, file, value.get("incomplete", ()))


def _mean(
    read: _Reading, suite: str, title: str, length: int, cell: Any, file: str, parts: list[tuple[str, Units]]
) -> None:
    of, units = sha256_json([same for same, _ in parts]), tuple(units for _, units in parts)
    ends = cell["value"], cell.get("low"), cell.get("high")
    read.add(Number(suite, title, length, "%", *ends, sum(map(len, units)), file, of, units))


def _long(read: _Reading, path: Path) -> None:
    value, protocol, of = _asked(path)
    chat = ", in the chat format" if "chat" in protocol["samples"] else ""
    suite = f"Long-context tasks ({protocol['samples']['filler']} as filler{chat})"
    file = read.file(path, suite, of, value.get("overlap"))
    units = _by_task(read_jsonl(path.parent / "answers.jsonl"), lambda row: (row["task"], row["length"]), "sample")
    files, at_server = protocol["files"], asked_in_chat(of)
    same = {key: _same(of, "samples", files[f"{key[0]}-{key[1]}"], at_server) for key in units}
    for name, task in value["tasks"].items():
        for cell in task["lengths"]:
            key, ends = (name, cell["length"]), (cell["score"], cell["low"], cell["high"])
            read.add(Number(suite, *key, "%", *ends, cell["samples"], file, same[key], (units[key],)))
        read.lengths.append(_over(suite, name, task))
    for name, task in value["suites"].items():
        title = f"mean of {name}"
        names = [each.name for each in SUITES[name].TASKS]
        for cell in task.get("lengths", ()):
            keys = [(each, cell["length"]) for each in names]
            _mean(read, suite, title, cell["length"], cell, file, [(same[key], units[key]) for key in keys])
        if "lengths" in task:
            read.lengths.append(_over(suite, title, task))
    _cut_short(read, file, value["incomplete"])


def _cut_short(read: _Reading, file: str, names: Sequence[str]) -> None:
    if names:
        read.notes.append(f"{file}: cut short, and left out: {', '.join(names)}.")


def _over(suite: str, task: str, value: Any) -> OverLengths:
    area = parse(Percent | None, value["area"], "area")
    return OverLengths(suite, task, parse(Effective | None, value["effective"], "effective"), area, value["reason"])


def _asked(path: Path) -> tuple[dict[str, Any], dict[str, Any], Measurement]:
    """Scores of answers, their protocol, and what they are of."""
    check_scores(path.parent)
    protocol = read_json(path.parent / "protocol.json") if (path.parent / "protocol.json").is_file() else {}
    return read_json(path), protocol, protocol.get("answers") or {}


def _same(of: Measurement, *keys: Any) -> str:
    """What numbers have to share to be paired: the way of measuring, and entries of `of` or other values."""
    return sha256_json([of.get("measuring"), *(of.get(key, key) if isinstance(key, str) else key for key in keys)])


def _short(read: _Reading, path: Path) -> None:
    value = read_json(path)
    of = dict(value.get("measurement", {}))
    suite = "Short benchmarks"
    overlaps = {name: _overlap(task.get("overlap")) for name, task in value["tasks"].items()}
    file = read.file(path, suite, of, None)
    told = overlaps if len(set(overlaps.values())) > 1 else dict.fromkeys(("",), next(iter(overlaps.values()), ""))
    words = "; ".join(": ".join(part for part in each if part) for each in told.items())
    read.files[-1] = ScoreFile(**{**vars(read.files[-1]), "overlap": words})
    for name, task in value["tasks"].items():
        if "score" not in task:
            read.notes.append(f"{file}: {name} has no accuracy; its metrics stand in the file.")
            continue
        records = path.parent / f"{name}.jsonl"
        check_summary(records, of)
        keys = ("task", "doc_id", "prompt_hash", "target")
        units = {
            tuple(str(row[key]) for key in keys): (float(row[task["metric"]]), 1.0)
            for row in read_jsonl(records)
            if task["metric"] in row
        }
        shots = "own" if task["shots"] is None else task["shots"]
        ends, title = (task["score"], task["low"], task["high"]), f"{name} ({task['metric']}, {shots} shots)"
        same = _same(of, "options", task["metric"])
        read.add(Number(suite, title, None, "%", *ends, task["samples"], file, same, (units,)))
        if "note" in task:
            read.notes.append(f"{name}: {task['note']}")


def _perplexity(read: _Reading, path: Path) -> None:
    value = read_json(path)
    of = dict(value.get("measurement", {}))
    check_summary(path.with_suffix(".records.jsonl"), of or None)
    windows, yarn = value["kind"] == "windows", value["average"] == "yarn"
    suite = "Perplexity, sliding windows" if windows else "Perplexity, documents cut to a length"
    file = read.file(path, suite, of, value.get("overlap"))
    title = f"{value['data']}{', windows averaged as by YaRN' if yarn else ''}"
    options = {key: each for key, each in of["options"].items() if key != "key_tokens"}
    same = _same(of, "held_out", options)
    if windows:
        title += f", stride {value['stride']:,}"
        rows = value["documents"]
        units = () if yarn else (_tokens(rows, lambda row: sum(row["nll"]), lambda row: sum(row["tokens"])),)
        ends = value["perplexity"], None, None
        read.add(Number(suite, title, value["window"], "perplexity", *ends, len(rows), file, same, units))
    for point in value.get("points", ()):
        pairs = enumerate(zip(point["nll"], point["tokens"], strict=True))
        units = ({i: (s / n, 1.0) if yarn else (s, float(n)) for i, (s, n) in pairs},)
        ends = point["perplexity"], point["low"], point["high"]
        number = Number(suite, title, point["length"], "perplexity", *ends, len(point["nll"]), file, same, units)
        read.add(number)
    read.positions[f"{title} ({file})"] = parse(tuple[Bin, ...], value["positions"], "positions")
    if keys := value.get("key_tokens"):
        _key_tokens(read, value["data"], keys, file, _same(of, "held_out", "options", *_judged_alone(of)))


def _judged_alone(of: Measurement) -> tuple[str, ...]:
    """What two models have to share beside the options for their key tokens to be the same ones: where each finds its
    own, the model."""
    return () if "model" in of["options"]["key_tokens"] else ("model",)


def _key_tokens(read: _Reading, data: str, keys: dict[str, Any], file: str, same: str) -> None:
    """Perplexity of the tokens that need the long context (LongPPL)."""
    suite = f"LongPPL: tokens that need more than {keys['short_context']:,} tokens, by {keys['judge']}"
    for point in keys["points"]:
        if not point["count"]:
            read.notes.append(f"{file}: no such tokens at {point['length']:,}.")
            continue
        pairs = enumerate(zip(point["nll"], point["tokens"], strict=True))
        units = ({i: (s, float(n)) for i, (s, n) in pairs if n},)
        ends = point["perplexity"], point["low"], point["high"]
        title = f"{data}, key tokens"
        read.add(Number(suite, title, point["length"], "perplexity", *ends, len(units[0]), file, same, units))


def _evaluated(read: _Reading, path: Path) -> None:
    """A file of `harpe evaluate`, whose protocol.json says what all of them are of."""
    folder = path.parent
    check_scores(folder)
    value, of = read_json(path), read_json(folder / "protocol.json")
    same = _same(of, "held_out", "protocol", "tokenizer")
    rows = read_jsonl(path.with_suffix(".jsonl"))
    suite = "Perplexity of held-out documents" if path.stem == "perplexity" else "Needles"
    file = read.file(path, suite, of, value.get("overlap"))
    if path.stem == "perplexity":
        last = len(value["bins"]) - 1
        for key, total, weight in (
            ("short", lambda row: row["short_nll"], lambda row: row["short_tokens"]),
            ("long", lambda row: row["nll"][last], lambda row: row["tokens"][last]),
        ):
            each = value[key]
            title = "windows" if key == "short" else f"positions from {each['start']:,}"
            length, ends = each.get("length", value["length"]), (each["perplexity"], each["low"], each["high"])
            units = (_tokens(rows, total, weight),)
            read.add(Number(suite, title, length, "perplexity", *ends, value["documents"], file, same, units))
        read.positions[f"held-out documents ({file})"] = parse(tuple[Bin, ...], value["bins"], "bins")
        return
    if path.stem == "needles":
        cells = [(each["task"].replace("_", "-"), (each["task"], each["length"]), each) for each in value["tasks"]]
        found = _by_task(rows, lambda row: (row["task"], row["length"]), "index")
    else:
        places = [(n, d) for n in value["lengths"] for d in value["depths"]]
        flat = [cell for line in value["cells"] for cell in line]
        cells = [(f"grid, depth {d:.0%}", (d, n), cell) for (n, d), cell in zip(places, flat, strict=True)]
        found = _by_task(rows, lambda row: (row["depth"], row["length"]), "index")
    for title, place, cell in cells:
        mean, low, high = (100 * cell[name] for name in ("score", "low", "high"))
        read.add(Number(suite, title, place[1], "%", mean, low, high, cell["samples"], file, same, (found[place],)))


def _score_files(folder: Path) -> Iterator[tuple[Path, Callable[[_Reading, Path], None]]]:
    """Every file of scores below a folder, with what reads it."""
    by_name = {"ruler.json": _ruler, "long.json": _long, "short.json": _short}
    for path in sorted(folder.rglob("*.json")):
        if not path.is_file():
            continue
        if path.name in by_name:
            yield path, by_name[path.name]
        elif path.with_suffix(".records.jsonl").is_file():
            yield path, _perplexity
        elif path.name in EVALUATED and (path.parent / "protocol.json").is_file():
            yield path, _evaluated


def read_model(folder: Path) -> ModelScores:
    """All scores of one model below a folder.

    Raises HarpeError where there are none, where they are of two models, where a file is damaged or does not belong to
    what lies beside it, and where one thing was measured twice.
    """
    if not folder.is_dir():
        raise HarpeError(f"There is no folder {folder}.")
    read = _Reading(folder)
    for path, reader in _score_files(folder):
        try:
            reader(read, path)
        except HarpeError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            raise HarpeError(
                f"{path}, or a file beside it, is damaged ({type(error).__name__}: {error}). Measure it again, or take "
                "it out of the folder."
            ) from error
    for answers in sorted(folder.rglob("answers.jsonl*")):
        if not any((answers.parent / name).is_file() for name in ("ruler.json", "long.json")):
            read.notes.append(f"{answers.parent.relative_to(folder)}: cut short before its scores, and left out.")
    if not read.models:
        raise HarpeError(
            f"{folder} holds neither a run (plan.json) nor scores: name a run directory, or a folder with what harpe "
            "ruler, long, short, perplexity or evaluate wrote with --out."
        )
    name, marks = _one_model(read)
    _check_twice(read)
    files = (tuple(read.numbers), tuple(read.lengths), read.positions, tuple(read.files))
    return ModelScores(name, marks, *files, tuple(dict.fromkeys(read.notes)))


def _check_twice(read: _Reading) -> None:
    there: dict[tuple[str, str, int | None], Number] = {}
    for number in read.numbers:
        if (twin := there.setdefault(number.key, number)) is not number:
            where = f" at {number.length:,} tokens" if number.length else ""
            raise HarpeError(
                f"{read.root} holds {number.suite}, {number.task}{where} twice, in {twin.file} and in {number.file}. "
                "Take one of them out of the folder."
            )


def _one_model(read: _Reading) -> tuple[str, dict[str, str]]:
    """Name and marks of the model that all scores are of; a served one is known by its name alone."""
    known = [(path, of) for path, of in read.models if "at_server" not in of["model"]]
    first, of = (known or read.models)[0]
    served = [each for each in read.models if "at_server" in each[1]["model"]]
    for path, other in read.models:
        if "at_server" in other["model"] or not known:
            ends = [Path(str(each["name"]).partition(" at ")[0]).parts[-3:] for each in (of, other)]
            alike = ends[0] == ends[1]
        else:
            alike = other["model"] == of["model"]
        if not alike:
            raise HarpeError(
                f"{read.root} holds scores of two models: {first} is of {of['name']}, and {path} of {other['name']} "
                "(other weights, configuration or name). Give each model a folder of its own, and name one of them "
                "with --against."
            )
    if served:
        files = ", ".join(path.relative_to(read.root).as_posix() for path, _ in served)
        read.notes.append(f"{files}: answered by a server, which tells a model's name alone and not which weights.")
    marks = {"model at the server" if key == "at_server" else key: str(each) for key, each in of["model"].items()}
    return str(of["name"]), marks
