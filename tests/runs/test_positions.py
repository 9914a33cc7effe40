"""Loss by position, minus a reference: paired, with intervals that a naive bootstrap gives too, and only on the same
documents."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harpe.comparison.summary import complete
from harpe.files import read_json, write_json, write_jsonl
from harpe.runs.position_losses import Losses, position_differences, read_losses, write_positions

BINS = [(0, 16), (16, 64)]


def losses(rng: np.random.Generator, own: np.ndarray, gain: float, spread: float, texts: str | None = "a") -> Losses:
    """Losses of documents that are easy or hard (`own`), alike for all models, and of a model that gains `gain` nats a
    token."""
    tokens = np.tile([float(end - start) for start, end in BINS], (len(own), 1))
    nll = tokens * (3.0 + own[:, None] - np.array([0.0, gain]) + rng.normal(0, spread, (len(own), 2)))
    return Losses(BINS, nll, tokens, texts)


def naive(first: list[Losses], second: list[Losses], at: int, resamples: int) -> tuple[float, float]:
    """The ends of the interval, draw by draw in plain Python with numbers of its own. Means of three seeds
    or more have Student's distribution."""
    draw, drawn = random.Random(5), []
    seeds, documents = len(first), len(first[0].nll)

    def of(s: int, rows: list[int]) -> float:
        total = sum(first[s].nll[d, at] - second[s].nll[d, at] for d in rows)
        return float(total / sum(first[s].tokens[d, at] for d in rows))

    for _ in range(resamples):
        rows = [draw.randrange(documents) for _ in range(documents)]
        drawn.append([of(s, rows) for s in range(seeds)])
    means = [statistics.mean(each) for each in drawn]
    if seeds >= 3:
        whole = [of(s, list(range(documents))) for s in range(seeds)]
        noise = statistics.mean(statistics.variance(each) for each in drawn) - statistics.variance(whole)
        spread = max(0.0, statistics.variance(whole) - noise / 2) ** 0.5 / seeds**0.5
        for i in range(resamples):
            chi = draw.gammavariate((seeds - 1) / 2, 2) / (seeds - 1)
            means[i] += spread * draw.gauss(0, 1) / chi**0.5
    means.sort()
    return means[round(0.025 * resamples)], means[round(0.975 * resamples)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_is_that_of_a_naive_crossed_bootstrap(seeds: int) -> None:
    rng = np.random.default_rng(1)
    own = rng.normal(0, 1.0, 12)
    mine = [losses(rng, own, 0.05 + 0.02 * seed, 0.03) for seed in range(seeds)]
    theirs = [losses(rng, own, 0.0, 0.03) for _ in range(seeds)]
    found = position_differences({"m": dict(enumerate(mine)), "r": dict(enumerate(theirs))}, "r", {"m", "r"})
    assert found is not None and found["bins"] == [[0, 16], [16, 64]] and found["documents"] == 12
    for at in range(2):
        value, low, high = (found["differences"]["m"][key][at] for key in ("value", "low", "high"))
        expected = naive(mine, theirs, at, 4000)
        assert (low, high) == (
            pytest.approx(expected[0], abs=0.15 * (high - low)),
            pytest.approx(expected[1], abs=0.15 * (high - low)),
        )
        totals = [(a.nll - b.nll)[:, at].sum() / a.tokens[:, at].sum() for a, b in zip(mine, theirs, strict=True)]
        assert value == pytest.approx(statistics.mean(totals))
        assert high - low < 0.2  # unpaired it would be about as wide as the documents differ, one nat


def test_what_was_measured_on_other_documents_or_seeds_is_not_compared() -> None:
    rng = np.random.default_rng(2)
    own = rng.normal(0, 1.0, 6)
    reference = {seed: losses(rng, own, 0.0, 0.01) for seed in (0, 1)}
    every: dict[str, dict[int, Losses]] = {
        "reference": reference,
        "untrained": {0: losses(rng, own, 0.3, 0.01)},
        "other texts": {0: losses(rng, own, 0.3, 0.01, texts="b")},
        "fewer": {0: losses(rng, own[:5], 0.3, 0.01)},
        "other seed": {2: losses(rng, own, 0.3, 0.01)},
        "half": {1: losses(rng, own, 0.3, 0.01), 2: losses(rng, own, 9.0, 0.01)},
        "nothing": {},
    }
    found = position_differences(every, "reference", set(every) - {"untrained"}, resamples=500)
    assert found is not None and found["differences"].keys() == {"untrained", "half"}
    assert found["differences"]["half"]["seeds"] == 1 and found["differences"]["half"]["value"][1] == pytest.approx(
        -0.3, abs=0.02
    )
    assert (
        position_differences(every, "nothing", set()) is None
        and position_differences({"r": reference}, "r", set()) is None
    )


def write_losses(scores: Path, of: Losses) -> None:
    rows = [{"document": n, "nll": list(nll), "tokens": list(of.tokens[n])} for n, nll in enumerate(of.nll)]
    write_jsonl(scores / "perplexity.jsonl", rows[::-1])  # the order of the lines means nothing
    bins = [{"start": start, "end": end, "nll": 1.0, "low": 0.9, "high": 1.1, "tokens": 9} for start, end in of.bins]
    ends = {"perplexity": 2.0, "low": 1.0, "high": 3.0}
    summary: dict[str, Any] = {
        "documents": len(rows),
        "bins": bins,
        "short": {"length": 16, **ends},
        "long": {"start": 16, "end": 64, **ends},
    }
    write_json(scores / "perplexity.json", summary)
    write_json(scores / "protocol.json", {"held_out": of.texts})


def write_run(run: Path, names: dict[str, bool], **more: Any) -> None:
    model = dict.fromkeys(
        ("layers", "query_heads", "key_value_heads", "head_dim", "rotary_dim", "parameters", "original_length"), 2
    )
    methods = [
        {
            "name": name,
            "title": name,
            "explanation": "",
            "trained": trained,
            "bases": [2e4, 3e4] if name == "harpe" else [2e4, 2e4],
        }
        for name, trained in names.items()
    ]
    plan = {
        "title": "t",
        "model": {"name": "m", "model_type": "llama", "base": 1e4, **model},
        "original_length": 16,
        "target_length": 64,
    }
    plan |= {
        "range": {"low": 1e4, "high": 2e4, "reference": 1e4, "why": ""},
        "reasons": [],
        "methods": methods,
        "training": {},
        "corpus": {},
    }
    write_json(run / "plan.json", {**plan, **more})


def test_a_run_is_compared_with_its_control_or_else_with_the_model_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    own = rng.normal(0, 1.0, 8)
    for name, gain in (("base", 0.0), ("harpe", 0.5), ("one-base", 0.4)):
        write_losses(tmp_path / name / "scores", losses(rng, own, gain, 0.001))
    write_run(tmp_path, {"base": False, "harpe": True, "one-base": True})
    write_positions(tmp_path)
    found = read_json(tmp_path / "positions.json")
    assert found["reference"] == "one-base" and found["differences"].keys() == {"base", "harpe"}
    assert found["differences"]["harpe"]["value"] == [pytest.approx(0, abs=0.002), pytest.approx(-0.1, abs=0.002)]
    write_run(tmp_path, {"base": False, "harpe": True})
    write_positions(tmp_path)
    found = read_json(tmp_path / "positions.json")
    assert found["reference"] == "base" and found["differences"]["harpe"]["high"][1] < -0.45
    assert read_losses(tmp_path / "nowhere") is None
    for name in ("harpe", "one-base"):
        (tmp_path / name / "scores" / "perplexity.jsonl").unlink()
    write_positions(tmp_path)
    assert not (tmp_path / "positions.json").exists()


def test_a_summary_of_an_earlier_version_gets_its_positions_and_keeps_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    own = rng.normal(0, 1.0, 8)
    for name, gain in (("m", 0.2), ("r", 0.0)):
        write_losses(tmp_path / name / "seed-0" / "scores", losses(rng, own, gain, 0.001))
    write_run(tmp_path, {"m": True, "r": True}, seeds=[0], baseline="r")
    write_json(tmp_path / "summary.json", {"baseline": "r", "measures": ["kept"]})
    complete(tmp_path)
    value = read_json(tmp_path / "summary.json")
    assert value["measures"] == ["kept"] and value["positions"]["differences"]["m"]["value"][1] == pytest.approx(
        -0.2, abs=0.002
    )
