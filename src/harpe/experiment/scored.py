"""Scores that are read back are those of the models that lie beside them."""

from __future__ import annotations

from pathlib import Path

from harpe.measurement import measured, refuse_other
from harpe.models.identity import checkpoint_identity


def check_models(run: Path) -> None:
    """Compare all scores in a run directory or a comparison with its models. Models that are gone, or lie elsewhere, are not missed.

    Raises
    ------
    HarpeError
        Where a model was trained again in its place, or exchanged, after it had been measured; where scores do not belong together.
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
