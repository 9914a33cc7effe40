"""A made-up run directory of `harpe compare`, file by file as the command leaves it."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harpe.files import write_json, write_jsonl

HEADS = 8
RANGE = [1_270_000.0 * (5.0 ** (i / (HEADS - 1))) for i in range(HEADS)]
# name: title, trained, control, per head, base(s), loss at 1,024 to 2,048, needles in per cent, source
FULL: dict[str, tuple[str, bool, bool, bool, list[float], float, float, str]] = {
    "none": ("untouched", False, False, False, [1e4] * HEADS, 4.46, 0.4, ""),
    "base-kept": ("base kept", True, False, False, [1e4] * HEADS, 2.91, 2.0, ""),
    "pi": ("PI", True, False, False, [1e4] * HEADS, 3.48, 1.0, "Chen et al. 2023, arXiv 2306.15595"),
    "ntk": ("NTK-aware", False, False, False, [9.2e4] * HEADS, 3.71, 31.0, "bloc97 2023"),
    "abf": (
        "ABF, top of the range",
        True,
        False,
        False,
        [6.35e6] * HEADS,
        2.196,
        86.0,
        "Xiong et al. 2023, arXiv 2309.16039",
    ),
    "control-top": ("one base, top", True, True, False, [6.3e6] * HEADS, 2.196, 86.4, ""),
    "control-middle": ("one base, arithmetic middle", True, True, False, [3.8e6] * HEADS, 2.191, 90.6, ""),
    "control-geometric": ("one base, geometric middle", True, True, False, [2.84e6] * HEADS, 2.188, 91.0, ""),
    "abf-staged": (
        "ABF, three stages",
        True,
        False,
        False,
        [6.35e6] * HEADS,
        2.207,
        87.5,
        "Xiong et al. 2023, arXiv 2309.16039",
    ),
    "yarn": ("YaRN", True, False, False, [1e4] * HEADS, 2.162, 97.6, "Peng et al. 2023, arXiv 2309.00071"),
    "self-extend": (
        "Self-Extend",
        False,
        False,
        False,
        [1e4] * HEADS,
        2.228,
        96.0,
        "Jin et al. 2024, arXiv 2401.01325",
    ),
    "dca": (
        "dual chunk attention",
        False,
        False,
        False,
        [1e4] * HEADS,
        2.241,
        94.5,
        "An et al. 2024, arXiv 2402.17463",
    ),
    "harpe-uniform-ascending": (
        "HARPE, uniform ascending",
        True,
        False,
        True,
        RANGE,
        2.214,
        92.0,
        "Lian et al. 2024, arXiv 2412.07171",
    ),
    "harpe-uniform-descending": (
        "HARPE, uniform descending",
        True,
        False,
        True,
        RANGE[::-1],
        2.21,
        91.2,
        "Lian et al. 2024, arXiv 2412.07171",
    ),
    "harpe": ("HARPE, peak-valley", True, False, True, RANGE, 2.209, 91.5, "Lian et al. 2024, arXiv 2412.07171"),
    "longrope": (
        "LongRoPE",
        True,
        False,
        False,
        [1e4] * HEADS,
        math.nan,
        math.nan,
        "Ding et al. 2024, arXiv 2402.13753",
    ),
}
FAILS = {"longrope": "The loss became nan at step 5 of stage 1: training diverged. Lower --learning-rate."}
SMALL = ("none", "abf", "control-middle", "harpe", "longrope")
BASELINE = "abf"
TASKS = ("single", "multi_key", "multi_query", "multi_value")
NIAH = tuple(
    f"niah_{t}" for t in "single_1 single_2 single_3 multikey_1 multikey_2 multikey_3 multivalue multiquery".split()
)
OTHER_RULER = ("vt", "cwe", "fwe", "qa_1", "qa_2")
SHORT = ("mmlu", "hellaswag", "arc_challenge", "piqa", "triviaqa")
DOCUMENTS, SAMPLES = 32, 100


def measure(
    name: str, title: str, unit: str, better: str, group: str, task: str | None, length: int | None, n: int
) -> dict[str, Any]:
    keys = ("id", "title", "unit", "better", "group", "task", "length", "documents")
    return dict(zip(keys, (name, title, unit, better, group, task, length, n), strict=True)) | {
        "values": {},
        "differences": {},
    }


def fill(
    entry: dict[str, Any], centres: dict[str, float], seeds: dict[str, int], width: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Values around the centres and differences to the baseline, with invented but consistent ends."""
    top = 100.0 if entry["unit"] == "%" else math.inf
    for name, centre in centres.items():
        by_seed = [float(min(max(centre + rng.normal(0, width / 6), 0.0), top)) for _ in range(seeds[name])]
        value = sum(by_seed) / len(by_seed)
        ends = {"low": max(value - width, 0.0), "high": min(value + width, top)}
        entry["values"][name] = {
            "value": value,
            **ends,
            "seeds": seeds[name],
            "documents": entry["documents"],
            "by_seed": by_seed,
        }
    if BASELINE in centres:
        for name in centres:
            if name != BASELINE:
                d = entry["values"][name]["value"] - entry["values"][BASELINE]["value"]
                half = width / 3 + abs(d) * 0.06
                p = min(1.0, math.exp(-2.5 * abs(d) / half))
                holm = min(1.0, p * (len(centres) - 1))
                entry["differences"][name] = {
                    "value": d,
                    "low": d - half,
                    "high": d + half,
                    "p": p,
                    "holm": holm,
                    "real": holm < 0.05,
                }
    return entry


def write_seed(folder: Path, name: str, seed: int, staged: bool, rng: np.random.Generator) -> None:
    """What one method leaves for one seed."""
    _, trained, _, _, _, loss, needles, _ = FULL[name]
    if name in FAILS:
        write_json(folder / "failed.json", {"reason": FAILS[name]})
        rows = [
            {"step": i + 1, "loss": 2.6 if i < 4 else math.nan, "tokens": 8192 * (i + 1), "seconds": 1.0}
            for i in range(5)
        ]
        write_jsonl(folder / "stage-1" / "log.jsonl", rows)
        return
    lengths = [512, 1024, 2048] if staged else [2048]
    counts = [4, 4, 8] if staged else [16]
    stages = []
    for number, (length, steps) in enumerate(zip(lengths, counts, strict=True), 1):
        if not trained:
            break
        start = 0 if number == 1 else sum(counts[: number - 1])
        rows = []
        for i in range(steps):
            value = loss + 0.55 + 0.9 * math.exp(-(start + i) / 4) + float(rng.normal(0, 0.03))
            rows.append(
                {
                    "step": i + 1,
                    "loss": value,
                    "learning_rate": 1e-3,
                    "grad_norm": 1.0,
                    "tokens": 8192 * (i + 1),
                    "seconds": 3.1 * (i + 1),
                }
            )
        write_jsonl(folder / f"stage-{number}" / "log.jsonl", rows)
        stage = {"length": length, "tokens": 8192 * steps, "steps": steps, "bases": FULL[name][4]}
        stages.append(stage | {"data_hash": f"{seed}{length:04d}" + "5f0c9a7be1" * 6, "seconds": 3.1 * steps})
    tokens, seconds = sum(s["tokens"] for s in stages), sum(s["seconds"] for s in stages)
    write_json(
        folder / "record.json",
        {"stages": stages, "tokens": tokens, "train_seconds": seconds, "evaluate_seconds": 48.3 + seed},
    )
    bins = []
    for start, end in pairwise([0, *(2**k for k in range(4, 12))]):
        nll = 3.9 - 0.17 * math.log2(end / 16)
        nll += max(loss - (3.9 - 0.17 * 7), -0.6) * (max(math.log2(end / 256), 0.0) / 3) ** 1.3 + float(
            rng.normal(0, 0.01)
        )
        bins.append(
            {
                "start": start,
                "end": end,
                "nll": nll,
                "low": nll - 0.06,
                "high": nll + 0.06,
                "tokens": 32 * (end - start),
            }
        )
    values = {key: math.exp(loss + d) for key, d in (("perplexity", 0.0), ("low", -0.06), ("high", 0.06))}
    short = {key: math.exp(2.41 + d) for key, d in (("perplexity", 0.0), ("low", -0.05), ("high", 0.05))}
    perplexity = {"documents": DOCUMENTS, "length": 2048, "bins": bins, "short": {"length": 256, **short}}
    write_json(folder / "scores" / "perplexity.json", perplexity | {"long": {"start": 1024, "end": 2048, **values}})
    grid_lengths, depths = [256, 512, 1024, 2048], [0.0, 0.25, 0.5, 0.75, 1.0]
    cells = []
    for n in grid_lengths:
        share = (
            1 - (1 - needles / 100) * math.log2(n / 256) / 3 if needles > 5 else (1.0 if n == 256 else needles / 100)
        )
        cells.append(
            [{"score": float(rng.binomial(10, share)) / 10, "low": 0.5, "high": 1.0, "samples": 10} for _ in depths]
        )
    write_json(
        folder / "scores" / "grid.json", {"task": "single", "lengths": grid_lengths, "depths": depths, "cells": cells}
    )


def make_summary(
    names: list[str], seeds: list[int], ruler: tuple[int, ...], rng: np.random.Generator
) -> dict[str, Any]:
    counts = {name: len(seeds) if FULL[name][1] else 1 for name in names}
    loss, needles = {n: FULL[n][5] for n in names}, {n: FULL[n][6] for n in names}
    windows = measure(
        "loss-short", "loss in windows of 256 tokens", "nats", "lower", "perplexity", None, 256, DOCUMENTS
    )
    far = measure("loss-long", "loss at positions 1,024 to 2,048", "nats", "lower", "perplexity", None, 2048, DOCUMENTS)
    measures = [
        fill(windows, {n: 2.405 + 0.004 * i for i, n in enumerate(names)}, counts, 0.045, rng),
        fill(far, loss, counts, 0.05, rng),
    ]
    for length, drop in ((256, 0.05), (2048, 1.0)):
        found = {n: 100 - (100 - v) * drop for n, v in needles.items()}
        for i, task in enumerate(TASKS):
            m = measure(
                f"needles-{task}-{length}",
                f"{task} at {length:,} tokens",
                "%",
                "higher",
                "needles",
                task,
                length,
                SAMPLES,
            )
            measures.append(fill(m, {n: max(v - 3 * i, 0.0) for n, v in found.items()}, counts, 5.5, rng))
        m = measure(
            f"needles-mean-{length}",
            f"needle mean at {length:,} tokens",
            "%",
            "higher",
            "needles",
            None,
            length,
            3 * SAMPLES,
        )
        measures.append(fill(m, {n: max(v - 3, 0.0) for n, v in found.items()}, counts, 3.5, rng))
    measures.append(
        fill(measure("grid-mean", "needle grid", "%", "higher", "needles", None, None, 200), needles, counts, 3.0, rng)
    )
    for length in ruler:
        for i, task in enumerate((*NIAH, *OTHER_RULER)):
            m = measure(f"ruler-{task}-{length}", f"{task} at {length:,}", "%", "higher", "ruler", task, length, 50)
            measures.append(fill(m, {n: max(v - 4 * i, 0.0) for n, v in needles.items()}, counts, 6.0, rng))
        for kind, n in (("niah", 400), ("all", 650)):
            m = measure(
                f"ruler-{kind}-{length}", f"RULER {kind} at {length:,}", "%", "higher", f"ruler-{kind}", None, length, n
            )
            measures.append(fill(m, {k: max(v - 14, 0.0) for k, v in needles.items()}, counts, 2.5, rng))
    if ruler:
        for corpus, lengths in (("proof-pile", range(2048, max(ruler) + 1, 2048)), ("govreport", (32_768,))):
            for length in lengths:
                m = measure(
                    f"curve-{corpus}-{length}",
                    f"loss of {corpus} at {length:,}",
                    "nats",
                    "lower",
                    "perplexity",
                    corpus,
                    length,
                    10,
                )
                measures.append(fill(m, loss, counts, 0.05, rng))
        for task in SHORT:
            m = measure(f"short-{task}", task, "%", "higher", "short", task, None, 1000)
            measures.append(fill(m, dict.fromkeys(names, 40.0), counts, 2.0, rng))
    whole = len(seeds) >= 3
    reading = [
        "Every trained method with a larger base reads 2,048 tokens; the base kept and PI do not learn to in 131,072 "
        "tokens.",
        "HARPE (peak-valley) finds more needles than ABF at the top of its range, and not more than one base in the "
        "middle of it.",
        "YaRN is ahead of all others in perplexity and needles at this size.",
    ]
    interval = "seeds and documents" if whole else "documents only"
    value = {
        "baseline": BASELINE,
        "seeds": seeds,
        "resamples": 10_000,
        "interval": interval,
        "measures": measures,
        "reading": reading,
    }
    return value | {
        "positions": make_positions({n: loss[n] - loss[BASELINE] for n in names if n != BASELINE})
        if BASELINE in names
        else None
    }


def make_positions(last: dict[str, float]) -> dict[str, Any]:
    """Differences that grow from zero to `last` at the end, with intervals that hold zero at the first half of the
    positions."""
    edges = list(pairwise([0, *(2**k for k in range(4, 12))]))
    shares = [i / (len(edges) - 1) for i in range(len(edges))]
    differences = {}
    for name, end in last.items():
        value = [end * share for share in shares]
        half = [0.004 + (abs(v) if share < 0.5 else 0.3 * abs(v)) for v, share in zip(value, shares, strict=True)]
        ends = {
            "low": [v - h for v, h in zip(value, half, strict=True)],
            "high": [v + h for v, h in zip(value, half, strict=True)],
        }
        differences[name] = {"value": value, **ends, "seeds": 3}
    bins = [list(edge) for edge in edges]
    return {
        "reference": BASELINE,
        "documents": DOCUMENTS,
        "resamples": 10_000,
        "bins": bins,
        "differences": differences,
    }


def make_comparison(
    run: Path,
    names: tuple[str, ...] = SMALL,
    seeds: tuple[int, ...] = (0, 1, 2),
    ruler: tuple[int, ...] = (),
    published: str | None = None,
) -> Path:
    """A complete comparison; `longrope` has failed in every seed."""
    rng = np.random.default_rng(0)
    model = {
        "name": "tiny-3.6m",
        "model_type": "llama",
        "layers": 4,
        "query_heads": HEADS,
        "key_value_heads": HEADS,
        "head_dim": 32,
    }
    model |= {"rotary_dim": 32, "parameters": 3_640_576, "original_length": 256, "base": 10_000.0}
    methods = []
    for name in names:
        title, trained, control, per_head, bases, _, _, source = FULL[name]
        lengths = (
            [(512, 32_768, 4), (1024, 32_768, 4), (2048, 65_536, 8)] if name == "abf-staged" else [(2048, 131_072, 16)]
        )
        stages = (
            [{"length": n, "tokens": t, "steps": s, "encoding": f"base {bases[0]:,.0f}"} for n, t, s in lengths]
            if trained
            else []
        )
        entry = {
            "name": name,
            "title": title,
            "explanation": f"What {title} does to the positions, in one sentence.",
            "source": source,
        }
        entry |= {"trained": trained, "control": control, "bases": bases, "per_head": per_head, "stages": stages}
        methods.append(
            entry
            | {
                "options": {"base": bases[0]}
                if not per_head
                else {"strategy": "peak-valley", "assignment": "ascending"}
            }
        )
    plan = {
        "kind": "comparison",
        "title": "tiny-3.6m from 256 to 2,048 tokens: every method on one budget",
        "model": model,
        "original_length": 256,
        "target_length": 2048,
        "range": {
            "low": RANGE[0],
            "high": RANGE[-1],
            "reference": 1_749_000.0,
            "why": "0.726 to 3.63 times the critical base",
        },
        "reasons": [
            "Target 2048 tokens is 8 times the 256 that the model was trained on.",
            "All methods read the same 131,072 tokens.",
        ],
        "seeds": list(seeds),
        "baseline": BASELINE,
        "published": published,
        "methods": methods,
        "training": {
            "tokens": 131_072,
            "batch_tokens": 8192,
            "learning_rate": 1e-3,
            "schedule": "linear",
            "dtype": "bfloat16",
        },
        "corpus": {
            "hashes": {"0": "ab" * 32},
            "tokens": 8_200_000,
            "documents": 778,
            "description": "Python files",
            "held_out_documents": 60,
        },
        "evaluation": {"documents": DOCUMENTS, "samples": SAMPLES, "grid_samples": 10},
    }
    write_json(run / "plan.json", plan)
    write_json(run / "environment.json", {"python": "3.11.9", "torch": "2.13.0", "processor": "x86_64", "threads": "2"})
    for name in names:
        for seed in seeds if FULL[name][1] else (0,):
            write_seed(run / name / f"seed-{seed}", name, seed, name == "abf-staged", rng)
    write_json(run / "summary.json", make_summary([n for n in names if n not in FAILS], list(seeds), ruler, rng))
    return run


@pytest.fixture(scope="session")
def comparison() -> Any:
    """The function that makes run directories of comparisons."""
    return make_comparison


@pytest.fixture(scope="session")
def _small_comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("comparison") / "run")


@pytest.fixture
def small_comparison(_small_comparison: Path, tmp_path: Path) -> Path:
    """Five methods with three seeds, made once and copied; longrope failed."""
    return Path(shutil.copytree(_small_comparison, tmp_path / "run"))


@pytest.fixture(scope="session")
def all_methods() -> tuple[str, ...]:
    return tuple(FULL)
