"""Scores that are read back are those of the models that lie beside them, and those of one run are of the same
texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.measurement import measured, refuse_other
from harpe.models.identity import checkpoint_identity
from harpe.report.read.run import is_comparison


def check_models(run: Path) -> None:
    """Compare all scores in a run directory or a comparison with its models. Models that are gone, or lie elsewhere,
    are not missed.

    Raises HarpeError where a model was trained again in its place, or exchanged, after it had been measured; where
    scores do not belong together; in a run directory, where the untouched model is not what the run began with, or was
    measured otherwise than the extended one.
    """
    for scores in sorted((*run.glob("*/scores"), *run.glob("*/seed-*/scores"))):
        found, model = measured(scores), scores.parent / "model"
        if not found or not model.is_dir():
            continue
        now = checkpoint_identity(model)
        for path, of in found.items():
            if isinstance(of.get("model"), dict):
                advice = f"Delete {path.parent} and measure {model} again, or put the model back that was measured."
                refuse_other({"model": of["model"]}, {"model": now}, path, advice)
    if not is_comparison(run):  # whose rows are seen to by `harpe.comparison.inputs.check_rows`
        _check_alike(run)


def _check_alike(run: Path) -> None:
    first: dict[str, Any] | None = None
    for path in sorted(run.glob("*/scores/protocol.json")):
        of = read_json(path)
        if "measuring" not in of:  # of an earlier version, which told less
            continue
        if not (path.parent.parent / "model").is_dir():
            check_untouched(run, of["model"], f"The model that {path} is of")
        alike = {key: value for key, value in of.items() if key not in ("model", "name")}
        first = first or alike
        advice = "Models of one run are measured alike: delete its scores, and start `harpe evaluate` on the run."
        refuse_other(alike, first, path, advice)


def check_untouched(run: Path, model: dict[str, Any], what: str) -> None:
    """HarpeError where a model, told apart by its content, is not the one that a run began with, as far as the run
    tells that."""
    for path in sorted(run.glob("*/stages.json")):
        begun = read_json(path).get("model")
        if isinstance(begun, dict) and begun.get("identity", model) != model:
            raise HarpeError(
                f"{what} is not the one that the run in {run} began with (see {path}): before and after would be of "
                "two models. Put the model back, and delete scores of another one."
            )
