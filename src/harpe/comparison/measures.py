"""Reads the scores of all methods and seeds of a comparison into measures: one number a unit (document, sample), paired
over methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harpe.comparison.suites.base import Measure
from harpe.comparison.suites.registry import SUITES


def collect(run: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[Measure]:
    """All measures of a run; what a method lacks is left out of them."""
    measures: dict[str, Measure] = {}
    for method in methods:
        for seed in seeds:
            for suite in SUITES:
                for measure, records in suite.measures(run / method / f"seed-{seed}" / "scores"):
                    if rows := sorted(records, key=lambda record: (record[1], record[0])):
                        measures.setdefault(measure.id, measure).found[method, seed] = rows
    return list(measures.values())
