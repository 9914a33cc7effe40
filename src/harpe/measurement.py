"""What results are of: kept beside them, and compared before anything is taken for what is asked for.

A measurement is a dict of plain values: `model` and `tokenizer` by content, the texts by hash, the options, the dtype
of the arithmetic, and `measuring`, a number that is raised where harpe measures in another way. `name`, what the model
is called, is there for readers alone. Summaries hold its SHA-256 as `measurement`, records hold all of it in their
first line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.files import read_json, sha256_json, write_text
from harpe.ownership import RECORDS, refuse_foreign

NOT_COMPARED = ("schema_version", "name")
KINDS = {
    "model": "of another model",
    "tokenizer": "with another tokenizer",
    "held_out": "of other texts",
    "questions": "of other questions",
    "server": "of another server",
}
"""What a difference is called, by where it is; all else are options."""
GROUPS = ("options", "protocol", "samples")
"""Entries that only hold others together."""
SUMMARIES = {name: name for name in ("perplexity", "needles", "grid")} | {"ruler": "answers", "long": "answers"}
"""NAME.json with its records in NAME.jsonl, beside the protocol.json that says what they are of."""

Measurement = dict[str, Any]


def measurement_id(of: Measurement) -> str:
    """SHA-256 of everything that decides results."""
    return sha256_json({key: value for key, value in of.items() if key not in NOT_COMPARED})


def refuse_other(there: Measurement, now: Measurement, where: Path, advice: str) -> None:
    """Refuse to mix two measurements.

    Raises HarpeError where they differ: model, tokenizer, texts, or which of the options, entry by entry.
    """
    found: dict[str, list[str]] = {}
    there, now = _flat(there), _flat(now)
    for key in dict.fromkeys((*KINDS, *there, *now)):
        if key not in NOT_COMPARED:
            for path, old, new in _differences((key,), there.get(key), now.get(key)):
                found.setdefault(KINDS.get(key, "with other options"), []).append(
                    f"{path}: {_shown(old)} there, {_shown(new)} now"
                )
    if found:
        words = ", and ".join(f"{kind} ({'; '.join(parts)})" for kind, parts in found.items())
        raise HarpeError(f"{where} holds results {words}. {advice}")


def _flat(of: Measurement) -> Measurement:
    """Without `GROUPS`: their entries stand beside the others."""
    groups = [of[key] for key in GROUPS if isinstance(of.get(key), dict)]
    return {key: value for key, value in of.items() if not isinstance(value, dict) or key not in GROUPS} | {
        key: value for group in groups for key, value in group.items()
    }


def _differences(path: tuple[str, ...], old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences((*path, str(key)), old.get(key), new.get(key))
    elif old != new:
        inner = path[1:] if path[0] in KINDS else path
        yield " ".join(inner or path).replace("_", "-"), old, new


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= 80 else f"{text[:77]}…"


def write_records(path: Path, rows: Iterable[dict[str, Any]], of: Measurement) -> None:
    """Write records, one a line, behind a line that says whose they are and what they are of; atomically."""
    head = RECORDS + json.dumps({"schema_version": 1, "of": of}, ensure_ascii=False)[1:]
    refuse_foreign(path)
    write_text(path, "".join(f"{line}\n" for line in (head, *(json.dumps(row, ensure_ascii=False) for row in rows))))


def records_of(path: Path) -> Measurement:
    """What the records in a file are of; empty for a file that harpe did not write."""
    with path.open("rb") as stream:
        line = stream.readline()
    if not line.startswith(RECORDS.encode()):
        return {}
    try:
        return dict(json.loads(line)["of"])
    except (ValueError, KeyError, TypeError) as error:
        raise HarpeError(f"The first line of {path} is damaged ({error}). Delete the file to measure again.") from error


def check_summary(path: Path, of: Measurement | None) -> None:
    """Refuse a summary, or records, that are of something else than what lies beside them; a file that is not there is
    right.

    Raises HarpeError, as for one that was copied from another folder, or whose protocol is gone.
    """
    if not path.is_file():
        return
    if path.suffix == ".json":
        there = read_json(path).get("measurement")
    else:  # records: FILE.jsonl, FILE.jsonl.RANK
        there = measurement_id(found) if (found := records_of(path)) else None
    # earlier versions wrote neither
    if there != (measurement_id(of) if of is not None and "measuring" in of else None):
        raise HarpeError(
            f"{path} is of another measurement than the one that is told beside it: it was copied there, or what tells "
            "it was. Delete it to measure again, or name another folder."
        )


def check_scores(folder: Path) -> None:
    """See that the score files of a verb in a folder belong together (`check_summary`)."""
    protocol = folder / "protocol.json"
    of = read_json(protocol) if protocol.is_file() else None
    for name in (file for pair in SUMMARIES.items() for file in (f"{pair[0]}.json", f"{pair[1]}.jsonl")):
        check_summary(folder / name, of.get("answers", of) if of is not None else None)


def measured(scores: Path) -> dict[Path, Measurement]:
    """What the scores of one model are of, by the file that says so: those of `harpe evaluate`, and of the other verbs
    in a comparison.

    Raises HarpeError where files of one measurement do not belong together.
    """
    found: dict[Path, Measurement] = {}
    for folder in (scores, *sorted(scores.glob("ruler-*")), scores / "long"):
        check_scores(folder)
        if (path := folder / "protocol.json").is_file():
            of = read_json(path)
            found[path] = of.get("answers", of)
    for path in (scores / "short" / "short.json", *sorted(scores.glob("curve-*.json"))):
        if path.is_file():
            found[path] = dict(read_json(path).get("measurement", {}))
            records = path.parent.glob("*.jsonl") if path.name == "short.json" else [path.with_suffix(".records.jsonl")]
            for file in records:
                check_summary(file, found[path] or None)
    return {path: of for path, of in found.items() if of}


def common_seeds(mine: Sequence[int], other: Sequence[int], both_trained: bool) -> tuple[list[int], list[int]] | None:
    """Seeds of two methods that are compared: the same ones, or all against the one of a method without training."""
    if not mine or not other:
        return None
    if not both_trained:
        return list(mine), list(other)
    both = [seed for seed in mine if seed in other]
    return (both, both) if both else None
