"""Before and after: the scores of two models on the same questions, and the difference with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.evaluation.statistics.intervals import mean_of_differences, paired_difference
from harpe.files import read_json, read_jsonl, sha256_file, write_json, write_text
from harpe.measurement import Measurement, check_scores, check_summary, measurement_id, refuse_other
from harpe.ownership import COMMENT

Scores = dict[Any, float]
"""Of every question, by what names it."""
WRITTEN = ("against.json", "against.md")


def check_answers(
    verb: str, before: Path, after: Path, names: Sequence[str], file_of: Callable[[dict[str, Any]], str]
) -> None:
    """Refuse a folder whose answers cannot be compared with those that are, or will be, in `after`, where the samples
    and protocol.json lie already. Parameters are those of `compare_answers`."""
    for name in names:
        first, second = before / f"{name}.jsonl", after / f"{name}.jsonl"
        if not first.is_file():
            raise HarpeError(
                f"--against {before} holds no {name}.jsonl: make it by `harpe {verb}` with the same options and "
                "another model."
            )
        if sha256_file(first) != sha256_file(second):
            raise HarpeError(
                f"--against {before}: the samples of {name} there are others than those in {after} (length, seed, "
                "tokenizer and template have to be the same), so that the scores cannot be compared."
            )
    check_scores(before)
    of = _answers_of(before, after)
    _alike(before, of[0], of[1], ("measuring", "samples"))
    if asked_in_chat(of[0]) != asked_in_chat(of[1]):
        raise HarpeError(
            f"--against {before}: one of the two was asked in a server's chat format (--endpoint chat) and the other "
            "was not, so that their prompts differ. Measure both in the same way, or leave --against out."
        )
    answered = {file_of(row) for row in _answers(before)}
    for name in names:
        if name not in answered:
            raise _unscored(f"--against {before}", name)


def compare_answers(
    verb: str, before: Path, after: Path, names: Sequence[str], file_of: Callable[[dict[str, Any]], str]
) -> None:
    """Compare the answers in two folders of `harpe ruler` or `harpe long`; writes against.json and against.md into
    `after`.

    Parameters
    ----------
    names
        Files of samples, without their ending.
    file_of
        The one that a record's sample is in.

    Raises
    ------
    HarpeError
        Where answers are missing, or the samples of the two differ.
    """

    def scores(folder: Path, name: str) -> Scores:
        return {row["sample"]: float(row["score"]) for row in _answers(folder) if file_of(row) == name}

    check_answers(verb, before, after, names, file_of)
    check_scores(after)
    _compare(before, after, names, scores, "sample", _answers_of(before, after))


def _answers(folder: Path) -> list[dict[str, Any]]:
    path = folder / "answers.jsonl"
    return read_jsonl(path) if path.is_file() else []


def _answers_of(*folders: Path) -> list[Measurement]:
    return [read_json(folder / "protocol.json").get("answers") or {} for folder in folders]


def _unscored(folder: str, task: str) -> HarpeError:
    return HarpeError(f"{folder} holds no scores of {task}. Measure it there first, or leave {task} out of --tasks.")


def check_short(before: Path, tasks: Sequence[str]) -> None:
    """Refuse a folder of `harpe short` without scores of every question of the tasks."""
    if not (before / "short.json").is_file():
        raise HarpeError(
            f"--against {before} holds no short.json: make it by `harpe short` with the same options and another model."
        )
    there = read_json(before / "short.json")["tasks"]
    for task in tasks:
        if task not in there:
            raise _unscored(f"--against {before}", task)
        if not there[task].get("metric"):
            raise HarpeError(
                f"{task} has no score of every question, by which two models could be compared. Leave it out of "
                "--tasks, or leave --against out."
            )


def compare_short(before: Path, after: Path, tasks: Sequence[str]) -> None:
    """Compare the scores in two folders of `harpe short`; writes against.json and against.md into `after`.

    Raises HarpeError where scores are missing, or the questions, prompts or metrics of the two differ.
    """

    def scores(folder: Path, task: str) -> Scores:
        metric = read_json(folder / "short.json")["tasks"].get(task, {}).get("metric")
        rows = read_jsonl(folder / f"{task}.jsonl") if metric else []
        return {
            (metric, row["task"], row["doc_id"], row["prompt_hash"], str(row["target"])): float(row[metric])
            for row in rows
        }

    check_short(before, tasks)
    of = [read_json(folder / "short.json").get("measurement", {}) for folder in (before, after)]
    for folder, each in zip((before, after), of, strict=True):
        for task in tasks:
            check_summary(folder / f"{task}.jsonl", each or None)
    _alike(before, of[0], of[1], ("measuring", "options"))
    _compare(before, after, tasks, scores, "question", of)


def _alike(before: Path, first: Measurement, second: Measurement, keys: Sequence[str]) -> None:
    """Refuse to compare what was measured in another way; model, tokenizer and dtype may differ."""
    mine, other = ({key: of.get(key) for key in keys} for of in (first, second))
    refuse_other(mine, other, before, "Measure both with the same options and the same harpe, or leave --against out.")


def asked_in_chat(of: Measurement) -> bool:
    """Whether a server put samples into a chat format, which the samples themselves do not show."""
    return bool((of.get("options") or {}).get("endpoint") == "chat")


def _names(of: Sequence[Measurement]) -> list[str]:
    """What the two models are called, with the beginning of their hashes where that does not tell them apart."""
    names = [str(each.get("name", "a model")) for each in of]
    if names[0] != names[1]:
        return names
    marks = [str(each.get("model", {}).get("commit") or measurement_id(each.get("model", {})))[:12] for each in of]
    return [f"{name}, {mark}" for name, mark in zip(names, marks, strict=True)]


def _compare(
    before: Path,
    after: Path,
    tasks: Sequence[str],
    scores: Callable[[Path, str], Scores],
    unit: str,
    of: Sequence[Measurement],
) -> None:
    found: dict[str, dict[str, Any]] = {}
    differences = []
    for task in tasks:
        first, second = scores(before, task), scores(after, task)
        for folder, there in ((f"--against {before}", first), (f"{after}", second)):
            if not there:
                raise _unscored(folder, task)
        if first.keys() != second.keys():
            raise HarpeError(
                f"--against {before}: {len(first.keys() ^ second.keys())} {unit}s of {task} differ from those in "
                f"{after} (text, prompt or number), so that the scores cannot be compared. Measure both with the same "
                "options."
            )
        x, y = [first[key] for key in second], list(second.values())
        difference = paired_difference(y, x)
        differences.append([b - a for a, b in zip(x, y, strict=True)])
        found[task] = {
            "before": 100 * sum(x) / len(x),
            "after": 100 * sum(y) / len(y),
            **difference.as_dict("difference", 100),
            "better": sum(b > a for a, b in zip(x, y, strict=True)),
            "worse": sum(b < a for a, b in zip(x, y, strict=True)),
            "samples": len(x),
        }
    mean = mean_of_differences(differences)
    value: dict[str, Any] = {
        name: f"{model} ({folder})"
        for name, model, folder in zip(("before", "after"), _names(of), (before, after), strict=True)
    }
    value |= {"interval": f"bootstrap over {unit}s, paired", "tasks": found}
    if len(found) > 1:
        value["mean"] = {key: sum(task[key] for task in found.values()) / len(found) for key in ("before", "after")}
        value["mean"] |= mean.as_dict("difference", 100)
    write_json(after / "against.json", value)
    write_text(after / "against.md", COMMENT + _markdown(value, unit))


def _markdown(value: dict[str, Any], unit: str) -> str:
    lines = [
        f"Before: {value['before']}. After: {value['after']}. Scores in per cent, differences in points with 95% "
        f"intervals ({value['interval']}; the mean's: within the tasks). Where no score changed, an interval has no "
        "width and tells nothing.",
        "",
        f"| task | before | after | difference | better | worse | {unit}s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in [*value["tasks"].items(), *([("mean of the tasks", value["mean"])] if "mean" in value else [])]:
        change = f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
        counts = [str(row.get(key, "")) for key in ("better", "worse", "samples")]
        lines.append(f"| {name} | {row['before']:.1f} | {row['after']:.1f} | {change} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"
