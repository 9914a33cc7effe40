"""Time and result of the base searches: the published rule beside a naive implementation, and the general rule over
geometries.

    python scripts/bases_benchmark.py --result benchmarks/DATE-bases

Times are CPU seconds of one thread (run it with OMP_NUM_THREADS=1), the smallest of three for what takes less than ten
seconds. The naive implementation forms every waveform term by term with NumPy, and walks extrema and counts covers in
Python loops; it must find the same bases.
"""

from __future__ import annotations

import argparse
import datetime
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harpe.bases.assignment import assign
from harpe.bases.base_sets import PUBLISHED_SET, uniform_bases
from harpe.bases.complementarity import complementarity, random_sets
from harpe.bases.general_search import general_base_search, general_candidates
from harpe.bases.published_search import published_base_search
from harpe.files import read_json, write_json, write_text
from harpe.runs.directory import write_environment

GEOMETRIES = (
    (32, 128, 131_072, 1e6, 5e6),
    (8, 128, 131_072, 5.8e7, 2.9e8),
    (8, 32, 2048, 1.27e6, 6.36e6),
    (4, 64, 32_768, 2e5, 1e6),
    (2, 128, 1_000_000, 1e8, 5e8),
    (1, 64, 8192, 1e5, 5e5),
    (32, 128, 1024, 1e5, 5e5),
    (128, 256, 131_072, 1e6, 5e6),
    (32, 128, 10_000_000, 1e9, 5e9),
    (128, 256, 10_000_000, 1e9, 5e9),
)
"""Heads, head size, length, range."""
FEW = (1, 2, 4, 8, 16, 32)
"""Numbers of key/value heads that are compared at head size 128 and 131,072 tokens, in the critical range of
Llama-3."""
LLAMA3_RANGE = (5.79e7, 2.9e8)
LAYERS = 32
"""For a set with a member for every head of every layer."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and result."""
    best, value = math.inf, None
    for _ in range(3):
        start = time.process_time()
        value = work()
        best = min(best, time.process_time() - start)
        if best > 10:
            break
    return best, value


def naive_peaks(waveform: list[float]) -> list[int]:
    """The walk over peaks in plain loops."""
    maxima = [m for m in range(1, len(waveform) - 1) if waveform[m - 1] < waveform[m] > waveform[m + 1]]
    target, kept = max(waveform[m] for m in maxima), list[int]()
    for number, m in enumerate(maxima):
        if abs(waveform[m] - target) > 1e-3:
            continue
        if not kept or m > kept[-1] + 50:
            kept.append(m)
        if len(kept) == 30 or number + 1 == len(maxima):
            break
        start = min(m + 50, maxima[number + 1])
        target = max(waveform[start : start + 500])
    return kept


def naive_valleys(waveform: list[float]) -> list[int]:
    """The walk over valleys in plain loops."""
    minima = [m for m in range(1, len(waveform) - 1) if waveform[m - 1] > waveform[m] < waveform[m + 1]]
    target, kept = min(waveform[m] for m in minima), list[int]()
    for number in range(len(minima) - 1, -1, -1):
        m = minima[number]
        if abs(waveform[m] - target) > 1e-3:
            continue
        if not kept or m < kept[0] - 60:
            kept.insert(0, m)
        if len(kept) == 30 or number == 0:
            break
        before = waveform[: max(0, min(m - 50, minima[number - 1]))]
        if not before:
            break
        target = min(before)
    return kept


def naive_published() -> list[float]:
    """The published rule for Table 2: waveforms term by term (NumPy), extrema and covers in loops."""
    candidates = [1e6 + 3e4 * i for i in range(134)]
    m = np.arange(1000, 131_073, dtype=np.float64)
    peaks, valleys = [], []
    for base in candidates:
        waveform = np.zeros_like(m)
        for i in range(64):
            waveform += np.cos(m * base ** (-2 * i / 128))
        values = (waveform * (2 / math.sqrt(128))).tolist()
        peaks.append(naive_peaks(values))
        valleys.append(naive_valleys(values))
    picked, all_peaks, all_valleys = [0], list(peaks[0]), list(valleys[0])
    while len(picked) < 32:
        best: tuple[int, int, int] | None = None
        for j in range(len(candidates)):
            if j in picked:
                continue
            near = [abs(p - v) for p in peaks[j] for v in all_valleys] + [
                abs(p - v) for v in valleys[j] for p in all_peaks
            ]
            near = [distance for distance in near if distance <= 3]
            key = (-len(near), sum(d * d for d in near), j)
            best = key if best is None else min(best, key)
        assert best is not None
        picked.append(best[2])
        all_peaks += peaks[best[2]]
        all_valleys += valleys[best[2]]
        both = set(all_peaks) & set(all_valleys)
        all_peaks, all_valleys = [p for p in all_peaks if p not in both], [v for v in all_valleys if v not in both]
    return sorted(candidates[j] for j in picked)


def peak_memory(code: str) -> float:
    """Peak resident memory of a fresh process that runs `code`, in MB."""
    # VmHWM and not ru_maxrss: the latter keeps what the parent had when it forked
    code += "\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def published() -> dict[str, Any]:
    fast, found = timed(lambda: published_base_search(32, 128, 131_072, 1e6, 5e6, 3e4))
    slow, naive = timed(naive_published)
    million = "from harpe.bases.published_search import *\npublished_base_search(32, 128, 1_000_000, 1e6, 5e6, 3e4)"
    return {
        "seconds": fast,
        "naive_seconds": slow,
        "ratio": slow / fast,
        "same_bases": list(found.bases) == naive,
        "table_2": list(found.bases) == list(PUBLISHED_SET),
        "memory_at_1m_positions_mb": peak_memory(million),
    }


def general(heads: int, head_dim: int, length: int, low: float, high: float) -> dict[str, Any]:
    seconds, found = timed(lambda: general_base_search(heads, head_dim, length, general_candidates(heads, low, high)))
    start = time.process_time()
    measured = complementarity(found.bases, head_dim, length)
    measuring = time.process_time() - start
    random = random_sets(heads, head_dim, length, low, high)
    same = "from harpe.bases.general_search import *\nfrom harpe.bases.complementarity import complementarity\n"
    same += f"b = general_base_search({heads}, {head_dim}, {length}, general_candidates({heads}, {low}, {high}))\n"
    rows = {
        "uniform": complementarity(uniform_bases(heads, low, high), head_dim, length),
        "one_base": complementarity([(low + high) / 2], head_dim, length),
        "published_set": complementarity(PUBLISHED_SET, head_dim, length),
    }
    return {
        "heads": heads,
        "head_dim": head_dim,
        "length": length,
        "low": low,
        "high": high,
        "seconds": seconds,
        "measuring_seconds": measuring,
        "sweeps": found.sweeps,
        "memory_mb": peak_memory(f"{same}complementarity(b.bases, {head_dim}, min({length}, 2_000_000))"),
        "general": measured.as_dict(),
        **{name: value.as_dict() for name, value in rows.items()},
        "random_median": float(np.median(random)),
        "random_p95": float(np.percentile(random, 95)),
        "random_largest": float(random[-1]),
    }


def few_heads() -> list[dict[str, Any]]:
    """What few heads lose, and what bases of their own in every layer bring."""
    low, high = LLAMA3_RANGE
    rows = []
    for heads in FEW:
        one = general_base_search(heads, 128, 131_072, general_candidates(heads, low, high)).bases
        many = general_base_search(LAYERS * heads, 128, 131_072, general_candidates(LAYERS * heads, low, high)).bases
        layers = assign(many, "ascending", heads=heads, layers=LAYERS, layer_bases="own")
        rows.append(
            {
                "heads": heads,
                "same": complementarity(one, 128, 131_072).as_dict(),
                "own_all_layers": complementarity(many, 128, 131_072).as_dict(),
                "own_mean_of_layers": float(np.mean([complementarity(row, 128, 131_072).covered for row in layers])),
            }
        )
    return rows


def markdown(value: dict[str, Any]) -> str:
    """The result for people."""
    p = value["published"]
    lines = [
        f"# Choosing bases: time and complementarity ({value['date']})",
        "",
        "CPU seconds of one thread.",
        "",
        "| published rule, 32 heads of 128, 134 candidates, 131072 positions | |",
        "|---|---|",
        f"| harpe | {p['seconds']:.2f} s |",
        f"| naive (NumPy term by term, Python loops) | {p['naive_seconds']:.1f} s |",
        f"| ratio | {p['ratio']:.0f} |",
        f"| same bases; those of Table 2 | {'yes' if p['same_bases'] else 'NO'}; "
        f"{'yes, 32 of 32' if p['table_2'] else 'NO'} |",
        f"| peak memory of the process at 1,000,000 positions | {p['memory_at_1m_positions_mb']:.0f} MB |",
        "",
        "The general rule: search time, peak memory of the process, and C (share of distances under a peak of some "
        "base) in percent with",
        "the longest stretch without; beside it as many evenly spaced bases, one base, the published set of 32 "
        "whatever the number of",
        "heads, and 1000 random sets of the same size and range (median, 95%, largest).",
        "",
        "| heads | head size | length | range | search | memory | general | uniform | one base | published 32 | random "
        "sets |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def cell(found: dict[str, Any]) -> str:
        return f"{100 * found['covered']:.3f} ({found['longest_uncovered']})"

    for r in value["general"]:
        random = ", ".join(f"{100 * r[name]:.3f}" for name in ("random_median", "random_p95", "random_largest"))
        lines.append(
            f"| {r['heads']} | {r['head_dim']} | {r['length']} | {r['low']:.3g} to {r['high']:.3g} | "
            f"{r['seconds']:.2f} s | {r['memory_mb']:.0f} MB | {cell(r['general'])} | {cell(r['uniform'])} | "
            f"{cell(r['one_base'])} | {cell(r['published_set'])} | {random} |"
        )
    lines += [
        "",
        f"Few heads: head size 128, 131072 tokens, bases of 57.9M to 290M (Llama-3), {LAYERS} layers, the general "
        "rule. C in percent; with",
        "bases of their own in every layer, of one layer (mean) and of all layers together.",
        "",
        "| key/value heads | same bases in all layers | own: one layer | own: all layers together |",
        "|---|---|---|---|",
    ]
    for r in value["few"]:
        together = 100 * r["own_all_layers"]["covered"]
        lines.append(f"| {r['heads']} | {cell(r['same'])} | {100 * r['own_mean_of_layers']:.3f} | {together:.3f} |")
    facts = "; ".join(f"{k} {v}" for k, v in value["environment"].items() if k != "schema_version")
    return "\n".join([*lines, "", f"Made with `OMP_NUM_THREADS=1 python scripts/bases_benchmark.py`. {facts}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True)
    result: Path = parser.parse_args().result
    value: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "published": published(),
        "few": few_heads(),
        "general": [],
    }
    for geometry in GEOMETRIES:
        value["general"].append(general(*geometry))
        print(geometry, value["general"][-1]["general"], flush=True)
    write_environment(result.parent / ".bases")
    value["environment"] = read_json(result.parent / ".bases" / "environment.json")
    (result.parent / ".bases" / "environment.json").unlink()
    (result.parent / ".bases").rmdir()
    write_json(result.with_suffix(".json"), value)
    write_text(result.with_suffix(".md"), markdown(value))
    print(markdown(value))


if __name__ == "__main__":
    main()
