"""What a run decides when it begins, and reads back when it is resumed: rows with their bases, the model, the texts,
the steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.files import read_json, write_json
from harpe.methods.types import Stage
from harpe.models.identity import checkpoint_identity
from harpe.positions.geometry import ModelGeometry
from harpe.runs.rows import Row

PLANNED = ("sequence_length", "tokens", "steps", "batch_tokens", "learning_rate", "dtype")
"""Of a plan's training, what a resumed run has to come to as well."""


def model_facts(name: str, revision: str | None, geometry: ModelGeometry) -> dict[str, Any]:
    """What the checkpoint is, by its content, and what was read from its configuration."""
    as_read_back = json.loads(json.dumps(geometry.as_dict()))
    return {"identity": checkpoint_identity(name, revision), "geometry": as_read_back}


def pinned_revision(run: Path, name: str, revision: str | None) -> str | None:
    """The commit on the hub that a run began with, where it began already; else `revision`."""
    path = run / name / "stages.json"
    commit = _part(path, "model", "identity").get("commit") if path.is_file() else None
    return str(commit) if commit else revision


def settled_row(run: Path, name: str, facts: dict[str, Any], make: Callable[[], Row], notes: list[str]) -> Row:
    """A row as the run began with it, from RUN/ROW/stages.json; made, and kept there, where it did not begin yet.

    `notes` gets what was noted when the row was made.

    Raises HarpeError as `make` does; where the file is damaged, or the checkpoint is another one now.
    """
    path = run / name / "stages.json"
    if not path.is_file():
        _check_not_begun(run, path)
        before = len(notes)
        row = make()
        stages = [stage.as_dict() for stage in row.stages]
        write_json(path, {"row": row.as_dict(), "stages": stages, "notes": notes[before:], "model": facts})
        return row
    for part, what in (("identity", "its content"), ("geometry", "what is read from its configuration")):
        there, now = _part(path, "model", part), facts[part]
        if there != now:
            keys = ", ".join(sorted(key for key in {*there, *now} if there.get(key) != now.get(key)))
            raise HarpeError(
                f"The checkpoint is not what the run in {run} began with: {what} differs ({keys}; see {path}). Put it "
                "back, or start another run."
            )
    value, entry = read_json(path), _part(path, "row")
    try:
        notes += map(str, value["notes"])
        return Row.from_dict(entry, [Stage.from_dict(stage) for stage in value["stages"]])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(path, error) from error


def settled_plan(run: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan that the run began with, which stays as it is; `plan`, which is written, where it did not begin yet.

    Raises HarpeError where the run would train on other texts, or otherwise; where plan.json is damaged.
    """
    path = run / "plan.json"
    if not path.is_file():
        _check_not_begun(run, path)
        write_json(path, plan)
        return plan
    training, corpus = _part(path, "training"), _part(path, "corpus")
    if corpus.get("hash") != plan["corpus"]["hash"]:
        raise HarpeError(
            f"The training texts are not those that the run in {run} began with: their hash is another one (see "
            f"{path})."
        )
    for key in PLANNED:
        if training.get(key) != plan["training"][key]:
            raise HarpeError(
                f"This would go on otherwise than the run in {run} began: {key} is {training.get(key)} in {path} and "
                f"{plan['training'][key]} now, as by another version of harpe (see environment.json). Start another "
                "run."
            )
    return read_json(path)


def _check_not_begun(run: Path, path: Path) -> None:
    if any(run.glob("*/stage-*/checkpoint-*")):
        raise HarpeError(
            f"{path} is gone, and the training has begun with what it held. Put it back, or start another run."
        )


def _part(path: Path, *keys: str) -> dict[str, Any]:
    value: Any = read_json(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        raise _damaged(path, f"it has no {' '.join(keys)}")
    return value


def _damaged(path: Path, why: object) -> HarpeError:
    return HarpeError(f"{path} is damaged ({why}). Restore it from a copy, or start another run.")
