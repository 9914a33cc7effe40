"""One of several processes that train a row with a seed together, as its worker starts them
(`harpe.distributed.launch`)."""

from __future__ import annotations

import sys
from pathlib import Path

from harpe.comparison.inputs import at_commit, data_folder
from harpe.comparison.recipe import begun_recipe
from harpe.comparison.resources import RowProcesses
from harpe.comparison.worker import Lines, begun_row, source_of, training_options
from harpe.data.packed import PackedDataset
from harpe.distributed.launch import reported
from harpe.distributed.processes import join
from harpe.files import read_json
from harpe.reporter import Reporter
from harpe.runs.train import train_row


def train(run: Path, name: str, seed: int, processes: RowProcesses) -> None:
    """This process's part of a row, whose inputs the worker has looked at."""
    ranks, plan = join(tensors=True), read_json(run / "plan.json")
    recipe, row = at_commit(begun_recipe(run), plan["inputs"]), begun_row(run, plan, name)
    options = training_options(recipe, seed, plan["training"]["dtype"])
    source, layout = source_of(recipe), processes.layout
    train_row(
        run / name / f"seed-{seed}",
        row,
        source,
        PackedDataset(data_folder(run, seed, recipe.length), recipe.length),
        options,
        recipe.length,
        Lines() if ranks.first else Reporter(),
        model=ranks.on_every_rank(lambda: source.load(layout, options.dtype)),
        layout=layout,
        ranks=ranks,
    )


def main() -> int:
    """Returns the exit code."""
    run, name, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    failed = run / name / f"seed-{seed}" / "logs" / "failed.json"
    return reported(failed, lambda: train(run, name, seed, RowProcesses.read(sys.argv[4])))
