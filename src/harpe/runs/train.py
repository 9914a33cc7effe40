"""The model of one row of a run: its positions changed, trained where its method trains, saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harpe.data.packing import PackedDataset
from harpe.models.apply import apply_encoding
from harpe.models.load import save_checkpoint
from harpe.models.saved import check_saved
from harpe.options.training import TrainingSettings
from harpe.reporter import Reporter
from harpe.runs.rows import Row
from harpe.runs.source import Source
from harpe.training.stages import train_stages


def train_row(
    folder: Path,
    row: Row,
    source: Source,
    data: PackedDataset | None,
    options: TrainingSettings,
    length: int,
    reporter: Reporter,
) -> Path:
    """Make the model of one row in `folder`, trained where its method trains; returns the model's folder.

    A row that is done already, with a whole model, is left alone. `data` may be None for a method without training.
    """
    target = folder / "model"
    if target.exists():
        check_saved(target)
        return target

    def report(step: int, steps: int, logged: dict[str, Any]) -> None:
        reporter.progress(f"training {row.title}", step, steps, f"loss {logged['loss']:.3f}")

    model = source.load()
    if row.trained:
        assert data is not None
        train_stages(
            model,
            source.geometry,
            row.stages,
            data,
            options,
            folder,
            sliding_window=source.sliding_window,
            report=report,
            tell=reporter.say,
        )
    else:
        apply_encoding(model, row.stages[-1].encoding, source.geometry, length, source.sliding_window)
    model.to(device="cpu", dtype=source.dtype)  # type: ignore[call-arg]
    save_checkpoint(model, source.tokenizer, target, length)
    return target
