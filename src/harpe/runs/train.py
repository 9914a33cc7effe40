"""The model of one row of a run: its positions changed, trained where its method trains, saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from harpe.data.packed import PackedDataset
from harpe.distributed.layout import ONE_PROCESS, Layout
from harpe.distributed.processes import ALONE, Processes
from harpe.models.apply import apply_encoding
from harpe.models.load import save_checkpoint, whole_weights
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
    *,
    model: PreTrainedModel | None = None,
    layout: Layout = ONE_PROCESS,
    ranks: Processes = ALONE,
) -> Path:
    """Make the model of one row in `folder`, trained where its method trains; returns the model's folder.

    A row that is done already, with a whole model, is left alone.

    Parameters
    ----------
    data
        May be None for a method without training.
    model
        What `source.load` gives for the layout, where it was loaded already; it is changed.
    layout, ranks
        Of several processes that share the training, each of which calls this.
    """
    target = folder / "model"
    if ranks.broadcast_from_rank0(lambda: _is_done(target)):
        return target

    def report(step: int, steps: int, logged: dict[str, Any]) -> None:
        reporter.progress(f"training {row.title}", step, steps, f"loss {logged['loss']:.3f}")

    if model is None:
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
            layout=layout,
            ranks=ranks,
            report=report,
            tell=reporter.say,
        )
    else:
        apply_encoding(model, row.stages[-1].encoding, source.geometry, length, source.sliding_window)
    trained = model
    weights = whole_weights(model, source.dtype) if layout.sharded else None
    if weights is None:
        model.to(device="cpu", dtype=source.dtype)  # type: ignore[call-arg]
    ranks.broadcast_from_rank0(lambda: save_checkpoint(trained, source.tokenizer, target, length, weights))
    return target


def _is_done(target: Path) -> bool:
    if target.exists():
        check_saved(target)
        return True
    return False
