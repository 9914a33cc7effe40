"""Loss by position: each method minus a reference on the same documents, with a paired interval at every position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harpe.evaluation.statistics.resampling import RESAMPLES, Units, paired
from harpe.files import read_json, read_jsonl, write_json
from harpe.measurement import check_scores, common_seeds
from harpe.ownership import remove_ours
from harpe.report.read.run import read_run


@dataclass(frozen=True)
class Losses:
    """Of one model."""

    bins: list[tuple[int, int]]
    """Positions [start, end)."""
    nll: np.ndarray
    """Sums over the tokens of a bin, in nats: float64 [documents, bins]."""
    tokens: np.ndarray
    """float64 [documents, bins]."""
    texts: str | None
    """SHA-256 of the documents, where the protocol beside the scores names it."""

    def on_every_rank(self, other: Losses) -> bool:
        """Whether the same positions of the same documents were measured."""
        return self.bins == other.bins and np.array_equal(self.tokens, other.tokens) and self.texts == other.texts


def read_losses(scores: Path) -> Losses | None:
    """What `harpe evaluate` left in a folder of scores; None where perplexity was not measured, or its records are
    gone."""
    if not all((scores / name).is_file() for name in ("perplexity.json", "perplexity.jsonl")):
        return None
    check_scores(scores)
    rows = sorted(read_jsonl(scores / "perplexity.jsonl"), key=lambda row: row["document"])
    bins = [(b["start"], b["end"]) for b in read_json(scores / "perplexity.json")["bins"]]
    protocol = scores / "protocol.json"
    texts = read_json(protocol).get("held_out") if protocol.is_file() else None
    nll, tokens = (np.array([row[key] for row in rows], float) for key in ("nll", "tokens"))
    return Losses(bins, nll, tokens, texts)


def position_differences(
    losses: Mapping[str, Mapping[int, Losses]], reference: str, trained: set[str], *, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """Nats a token by position, every method minus `reference`; None where nothing can be compared.

    Parameters
    ----------
    losses
        By method and seed. A method of which some seed was measured on other documents than the reference is left out.

    Returns
    -------
    reference, documents, resamples, bins ([start, end) of each) and differences: by method value, low and high, a
    number a bin, and the number of seeds. Intervals are those of `harpe.evaluation.statistics.resampling`, of each bin
    by itself: over documents, and seeds where there are three."""
    if not losses.get(reference):
        return None
    first = next(iter(losses[reference].values()))
    differences: dict[str, Any] = {}
    for method, found in losses.items():
        seeds = common_seeds(sorted(found), sorted(losses[reference]), {method, reference} <= trained)
        if method == reference or seeds is None or not all(each.on_every_rank(first) for each in found.values()):
            continue
        mine, other = seeds
        a, b = np.array([found[seed].nll for seed in mine]), np.array([losses[reference][seed].nll for seed in other])
        draws = [
            paired(a[:, :, i], b[:, :, i], Units.of(first.tokens[:, i].tolist()), resamples=resamples)
            for i in range(len(first.bins))
        ]
        ends = [each.interval() for each in draws]
        differences[method] = {key: [getattr(end, key) for end in ends] for key in ("value", "low", "high")}
        differences[method]["seeds"] = len(mine)
    if not differences:
        return None
    counts = {"documents": len(first.nll), "resamples": resamples, "bins": [list(edges) for edges in first.bins]}
    return {"reference": reference, **counts, "differences": differences}


def gathered(
    methods: Sequence[str], seeds: Sequence[int], scores: Callable[[str, int], Path]
) -> dict[str, dict[int, Losses]]:
    """The losses of all methods and seeds that were measured."""
    found = {name: {seed: read_losses(scores(name, seed)) for seed in seeds} for name in methods}
    return {name: {seed: each for seed, each in of.items() if each is not None} for name, of in found.items()}


def write_positions(run: Path) -> None:
    """positions.json of a run directory: every row minus the control beside a HARPE row, else minus the model as it
    was. One of earlier scores goes where those that are there have none."""
    value = read_run(run)
    reference = value.reference
    if reference is None:
        return
    losses = gathered([row.name for row in value.rows], [0], lambda name, seed: run / name / "scores")
    found = position_differences(losses, reference.name, {row.name for row in value.rows if row.trained})
    if found is not None:
        write_json(run / "positions.json", found)
    else:
        remove_ours(run / "positions.json")
