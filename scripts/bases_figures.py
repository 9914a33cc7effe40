"""The figures of docs/choosing-bases.md.

python scripts/bases_figures.py --out docs/figures
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from harpe.bases.base_sets import PUBLISHED_SET, Rule, choose_bases
from harpe.bases.printed_search import all_extrema, summed_distances
from harpe.bases.published_search import candidate_bases
from harpe.commands.bases import choose, write
from harpe.files import write_text
from harpe.options.bases import BasesOptions
from harpe.report.figures.base_sets import number_lines, scatter

SETTING: dict[str, Any] = {"heads": 32, "head_dim": 128, "length": 131_072}
LOW, HIGH, STRIDE = 1e6, 5e6, 3e4


def printed_sums() -> str:
    """The first sum of the printed Algorithm 1 against the number of extrema, for every candidate."""
    candidates = candidate_bases(32, LOW, HIGH, STRIDE)
    peaks, valleys = all_extrema(candidates, 128, 131_072)
    to_peaks, to_valleys = summed_distances(peaks[0]), summed_distances(valleys[0])
    sums = np.array([float(to_valleys[p].sum() + to_peaks[v].sum()) for p, v in zip(peaks, valleys, strict=True)])
    counts = peaks.sum(axis=1) + valleys.sum(axis=1)
    words = f"correlation {np.corrcoef(counts, sums)[0, 1]:.3f}; colour: the base, from 1M (violet) to 5M (yellow)"
    return scatter(
        "The sum of distances of the printed Algorithm 1 against the number of extrema of a candidate: nearly a "
        "straight line.",
        counts.astype(np.float64),
        sums / 1e13,
        list(candidates),
        ("peaks and valleys of the candidate", "its first sum of distances, in 10^13 positions"),
        words,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    out: Path = parser.parse_args().out
    for name, options in (
        ("published", BasesOptions(**SETTING, min=LOW, max=HIGH, strategy="peak-valley", rule="published")),
        ("general", BasesOptions(**SETTING, min=LOW, max=HIGH, strategy="peak-valley", rule="general")),
        ("eight-heads", BasesOptions(heads=8, head_dim=128, length=131_072, min=6e7, max=3e8, strategy="peak-valley")),
    ):
        write(choose(options), out / name)
        (out / name / "bases.json").unlink()
    rules = {"Table 2": list(PUBLISHED_SET)}
    names: tuple[Rule, ...] = ("published", "printed", "general")
    for rule in names:
        rules[rule] = list(choose_bases("peak-valley", rule=rule, low=LOW, high=HIGH, **SETTING).bases)
    write_text(
        out / "rules.svg",
        number_lines(rules, "Bases that the rules choose for 32 heads of 128 at 131,072 tokens in 1M to 5M."),
    )
    write_text(out / "printed-sums.svg", printed_sums())


if __name__ == "__main__":
    main()
