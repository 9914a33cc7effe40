"""Whether the processes of a row can train every row, found before any row begins by such processes: they load the
model, put every stage's positions in, and train on one sequence without a step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from harpe.comparison.inputs import at_commit
from harpe.comparison.recipe import begun_recipe
from harpe.comparison.resources import RowProcesses
from harpe.comparison.worker import source_of, training_options
from harpe.distributed.launch import reported, run_ranks
from harpe.distributed.layout import Layout
from harpe.distributed.processes import join
from harpe.errors import HarpeError
from harpe.files import read_json, write_json
from harpe.methods.types import Stage
from harpe.models.apply import apply_encoding
from harpe.options.recipe import ComparisonRecipe
from harpe.runs.preflight import seconds_per_token
from harpe.runs.rows import Row
from harpe.runs.source import Source
from harpe.training.loss import check_training_loss, chunked_loss
from harpe.training.sequence_parallel import check_exchange, check_sequence_parallel
from harpe.training.stages import check_stages
from harpe.training.tiles import check_tiles

MODULE = "harpe.comparison.trial"


def tried(
    run: Path, recipe: ComparisonRecipe, rows: Sequence[Row], dtype: str, processes: RowProcesses
) -> tuple[float, float]:
    """Seconds a token of training by all processes of a row, and of reading by one.

    Raises HarpeError where they cannot train one of the rows, with the reason.
    """
    asked: dict[str, Any] = {"revision": recipe.revision, "dtype": dtype}
    asked["rows"] = {row.name: [stage.as_dict() for stage in row.stages] for row in rows if row.trained}
    with TemporaryDirectory() as place:
        write_json(Path(place, "asked.json"), asked)
        arguments = [str(run), place, processes.text()]
        run_ranks(processes.count, MODULE, arguments, Path(place), threads=processes.threads, silent=True)
        found = read_json(Path(place, "found.json"))
    return float(found["train"]), float(found["read"]) * processes.count


def try_rows(run: Path, place: Path, processes: RowProcesses) -> None:
    """This process's part; questions and answer are in the folder `place`."""
    ranks, asked = join(tensors=True), read_json(place / "asked.json")
    recipe = at_commit(begun_recipe(run), {"model": {"commit": asked["revision"]}})
    source, options, layout = source_of(recipe), training_options(recipe, 0, asked["dtype"]), processes.layout
    rows = {name: [Stage.from_dict(stage) for stage in stages] for name, stages in asked["rows"].items()}
    model = ranks.on_every_rank(lambda: source.load(layout, options.dtype))
    for name, stages in rows.items():
        try:
            check_stages(stages, options, layout)
            for stage in stages:
                _check(model, stage, source, layout)
        except HarpeError as error:
            raise HarpeError(f"--processes-per-row {processes.count} cannot train {name}. {error}") from error
    train, read = seconds_per_token(model, options, recipe.length, layout, ranks)
    if ranks.first:
        write_json(place / "found.json", {"train": train, "read": read})


def _check(model: PreTrainedModel, stage: Stage, source: Source, layout: Layout) -> None:
    """As the training of the stage does when it begins."""
    apply_encoding(model, stage.encoding, source.geometry, stage.length, source.sliding_window)
    check_sequence_parallel(model, layout.sequence_parallel, stage.length)
    with chunked_loss(model):
        check_training_loss(model)
        check_exchange(model, layout)
        check_tiles(model, layout.mlp_tile)


def main() -> int:
    """Returns the exit code."""
    run, place, processes = Path(sys.argv[1]), Path(sys.argv[2]), RowProcesses.read(sys.argv[3])
    return reported(place / "failed.json", lambda: try_rows(run, place, processes))
