"""The page shows what the files say, says what is missing, and is safe and self-contained."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from harpe.errors import HarpeError
from harpe.files import write_json, write_jsonl
from harpe.report.figures.bases import waveform
from harpe.report.page import write_report
from harpe.report.read.measures import mean_score
from harpe.report.read.run import read_run
from harpe.report.read.scores import Score
from harpe.report.tables.results import main_table as main_cells
from harpe.report.tables.table import markdown
from harpe.report.terminal import main_table

HARPE_BASES = [248_000.0, 331_000.0, 452_000.0, 547_000.0, 655_000.0, 790_000.0, 931_000.0, 1_130_000.0]
METHODS = {
    "base": (
        "Before",
        "The pretrained model as it is, past its trained length without any training.",
        False,
        [10_000.0] * 8,
    ),
    "harpe": ("HARPE", "Every key/value head has a base of its own; trained at the full length.", True, HARPE_BASES),
    "one-base": (
        "One base (control)",
        "The same training with the middle of the range in every head: what HARPE gains over it comes from its bases.",
        True,
        [689_000.0] * 8,
    ),
}
TASKS = ("single", "multi_key", "multi_query", "multi_value")


def wilson(hits: int, n: int) -> dict[str, Any]:
    p, z = hits / n, 1.959964
    middle, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n),
    )
    return {
        "score": p,
        "samples": n,
        "low": max(middle - half, 0.0),
        "high": min(middle + half, 1.0),
        "interval": "wilson",
    }


def write_scores(folder: Path, kind: int, rng: np.random.Generator) -> None:
    """Made-up scores: kind 0 fails past 256 tokens, 1 and 2 hold, 2 a little less well."""
    edges = [0, *(2**k for k in range(4, 12))]
    bins = []
    for start, end in pairwise(edges):
        beyond = 0.9 * math.log2(end / 256) ** 1.3 if kind == 0 and end > 256 else 0
        nll = 3.4 - 0.16 * math.log2(end / 16) + 0.03 * kind + beyond
        width = 0.05 + 0.02 * float(rng.random())
        bins.append(
            {
                "start": start,
                "end": end,
                "nll": nll,
                "low": nll - width,
                "high": nll + width,
                "tokens": 40 * (end - start),
            }
        )
    long = [183.4127, 11.2319, 11.8842][kind]
    perplexity = {
        "documents": 40,
        "length": 2048,
        "bins": bins,
        "short": {
            "length": 256,
            "perplexity": 17.0361 + 0.31 * kind,
            "low": 16.21 + 0.3 * kind,
            "high": 17.93 + 0.3 * kind,
        },
        "long": {"start": 1024, "end": 2048, "perplexity": long, "low": long * 0.96, "high": long * 1.045},
    }
    write_json(folder / "perplexity.json", perplexity)
    short = [(199, 186, 171, 122), (198, 181, 168, 118), (197, 183, 160, 115)]
    hits = {256: short, 2048: [(9, 2, 0, 0), (193, 168, 149, 97), (181, 141, 122, 84)]}
    rows = [{"task": t, "length": n, **wilson(hits[n][kind][i], 200)} for n in hits for i, t in enumerate(TASKS)]
    write_json(folder / "needles.json", {"tasks": rows})
    lengths, depths = [256, 512, 1024, 2048], [0.0, 0.25, 0.5, 0.75, 1.0]
    chance = [[1.0, 0.3, 0.08, 0.03], [1.0, 0.99, 0.97, 0.93], [1.0, 0.97, 0.93, 0.84]][kind]
    cells = [
        [wilson(int(rng.binomial(40, min(p + (0.02 if d in (0, 1) else 0), 1))), 40) for d in depths] for p in chance
    ]
    write_json(folder / "grid.json", {"task": "single", "lengths": lengths, "depths": depths, "cells": cells})


def make_run(run: Path) -> Path:
    """A complete synthetic run directory."""
    model = {
        "name": "tiny-llama-24m",
        "model_type": "llama",
        "layers": 8,
        "query_heads": 8,
        "key_value_heads": 8,
        "head_dim": 64,
    }
    model |= {"rotary_dim": 64, "parameters": 24_117_248, "original_length": 256, "base": 10_000.0}
    names = ("name", "title", "explanation", "trained", "bases")
    plan = {
        "title": "tiny-llama-24m from 256 to 2,048 tokens",
        "model": model,
        "original_length": 256,
        "target_length": 2048,
        "range": {
            "low": 256_000.0,
            "high": 1_130_000.0,
            "reference": 85_556.0,
            "why": "3 B to 15 B, B the NTK-aware base",
        },
        "reasons": [
            "8 key/value heads, hence 8 bases.",
            "Their waveforms cover each other's valleys up to 2,048 tokens.",
        ],
        "methods": [dict(zip(names, (name, *entry), strict=True)) for name, entry in METHODS.items()],
        "training": {
            "tokens": 20_971_520,
            "steps": 640,
            "sequence_length": 2048,
            "batch_tokens": 32_768,
            "learning_rate": 3e-4,
        }
        | {"dtype": "float32", "dtype_reason": "the processor has no fast bfloat16"},
        "corpus": {"hash": "4f1c9a0b77d2e6a5", "tokens": 61_203_441, "documents": 18_322, "held_out_documents": 240}
        | {"description": "long documents of public-domain prose"},
    }
    write_json(run / "plan.json", plan)
    write_json(
        run / "environment.json",
        {"python": "3.11.9", "torch": "2.13.0", "processor": "x86_64, 2 cores", "threads": "2"},
    )
    rng = np.random.default_rng(0)
    for kind, (name, entry) in enumerate(METHODS.items()):
        write_scores(run / name / "scores", kind, rng)
        if entry[2]:
            losses = 2.45 + 0.05 * kind + 1.4 * np.exp(-np.arange(640) / 60) + rng.normal(0, 0.05, 640)
            keys = {"learning_rate": 3e-4, "grad_norm": 1.0, "seconds": 1.5}
            rows = [{"step": i + 1, "loss": float(v), "tokens": 32_768 * (i + 1), **keys} for i, v in enumerate(losses)]
            write_jsonl(run / name / "stage-1" / "log.jsonl", rows)
    long, mean = "perplexity, tokens 1,024 to 2,048", "needle mean at 2,048"
    points = "percentage points"
    differences = [
        {
            "name": "HARPE minus one base",
            "measure": long,
            "value": -0.652,
            "low": -0.913,
            "high": -0.401,
            "unit": "perplexity",
        },
        {"name": "HARPE minus one base", "measure": mean, "value": 11.0, "low": 6.2, "high": 15.9, "unit": points},
        {
            "name": "HARPE minus before",
            "measure": "needle mean at 256",
            "value": -1.5,
            "low": -3.9,
            "high": 0.9,
            "unit": points,
        },
    ]
    reading = [
        "At 2,048 tokens HARPE finds clearly more needles than the same training with one base for all heads.",
        "At the original 256 tokens the two and the model before cannot be told apart.",
        "One training run per row: the intervals cover the test samples, not the randomness of training.",
    ]
    text = " the wind had turned at noon, and the boats <did> not return.\n"
    generation = {"prompt": "The lighthouse keeper wrote in his log that", "text": text}
    bins = [list(edge) for edge in pairwise([0, *(2**k for k in range(4, 12))])]
    rising = [0.004 * i * i for i in range(len(bins))]
    values = {"base": [9 * v for v in rising], "harpe": [-v / 3 for v in rising]}
    ends = {
        name: {"value": v, "low": [x - 0.02 for x in v], "high": [x + 0.02 for x in v], "seeds": 1}
        for name, v in values.items()
    }
    positions = {"reference": "one-base", "documents": 40, "resamples": 10_000, "bins": bins, "differences": ends}
    write_json(run / "positions.json", positions)
    marked = [d | {"significant": i < 2} for i, d in enumerate(differences)]
    write_json(run / "summary.json", {"differences": marked, "reading": reading, "generation": generation})
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def markdown_table(run: Path) -> str:
    return markdown(main_cells(read_run(run)))


def edit(path: Path, **entries: Any) -> None:
    write_json(path, json.loads(path.read_text()) | entries)


def main_rows(page: str) -> list[list[str]]:
    """Cells of the first table of scores, as plain text with one space between parts."""
    table = re.findall(r'<table class="scores[^"]*">.*?</table>', page, re.DOTALL)[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL)
    return [
        [" ".join(re.sub(r"<[^>]+>", " ", c).split()) for c in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in rows
    ]


def numbers(cell: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"[\d,]+\.?\d*", cell)]


def expected(run: Path, name: str) -> list[list[float]]:
    """Value, low, high, n of every cell, straight from the files."""
    perplexity = json.loads((run / name / "scores" / "perplexity.json").read_text())
    needles = json.loads((run / name / "scores" / "needles.json").read_text())["tasks"]
    cells = [
        [perplexity[k]["perplexity"], perplexity[k]["low"], perplexity[k]["high"], perplexity["documents"]]
        for k in ("short", "long")
    ]
    at_target = {t["task"]: t for t in needles if t["length"] == 2048}
    cells += [
        [100 * at_target[t]["score"], 100 * at_target[t]["low"], 100 * at_target[t]["high"], at_target[t]["samples"]]
        for t in TASKS
    ]
    return cells


def test_every_number_of_the_main_table_is_the_files_number_with_interval_and_n(run: Path) -> None:
    rows = main_rows(write_report(run).read_text())
    assert len(rows) == len(METHODS)
    for name, row in zip(METHODS, rows, strict=True):
        wanted = expected(run, name)
        for cell, want in zip(row[:6], wanted, strict=True):
            decimals = 1 if "%" in cell else 2
            assert "–" in cell and "n = " in cell
            assert numbers(cell) == [round(v, decimals) for v in want[:3]] + [want[3]]
        mean = sum(cell[0] for cell in wanted[2:5]) / 3
        assert numbers(row[6])[0] == pytest.approx(mean, abs=0.051)
        assert numbers(row[6])[3] == 600


def test_the_terminal_and_markdown_tables_hold_the_same_cells_as_the_page(run: Path) -> None:
    rows = main_rows(write_report(run).read_text())
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(main_table(run))
    terminal, text = console.export_text(), markdown_table(run)
    for row in rows:
        for cell in row:
            value, interval, n = cell.split(" ", 2)
            assert f"{value} ({interval}; {n})" in text
            assert value in terminal and interval.replace("–", " – ") in terminal and n in terminal


def test_the_terminal_table_cuts_no_number_at_80_columns(run: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(main_table(run))
    text = console.export_text()
    assert "…" not in text
    assert all(part in text for part in ("(control)", "176.08", "191.67", "93.0", "98.3%", "n = 600"))


def test_markdown_is_a_rectangle(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["methods"][0]["title"] = "a | b\n<c>"
    write_json(run / "plan.json", plan)
    lines = markdown_table(run).splitlines()
    assert len(lines) == 2 + len(METHODS)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}


def test_interval_of_the_mean_contains_it_and_equals_the_part_for_equal_exact_parts() -> None:
    mean = mean_score([Score(0.5, 0.4, 0.6, 10), Score(0.9, 0.9, 0.9, 10), Score(1.0, 1.0, 1.0, 10)])
    assert mean.score == pytest.approx(0.8) and mean.samples == 30
    assert (mean.low, mean.high) == pytest.approx((0.8 - 0.1 / 3, 0.8 + 0.1 / 3))


def test_page_refers_to_nothing_outside_itself(run: Path) -> None:
    page = re.sub(r'href="data:image/svg\+xml;base64,[^"]*"', "", write_report(run).read_text())
    assert not re.search(
        r"https?:|//[a-z]|@import|\burl\(|<link|<img|<iframe|\bsrc=|fetch\(|import\(", page, re.IGNORECASE
    )
    targets = re.findall(r'href="([^"]*)"', page)
    assert targets and all(t.startswith("#") and f'id="{t[1:]}"' in page for t in targets)


def test_text_from_files_is_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    plan = json.loads((run / "plan.json").read_text())
    plan["title"] = plan["model"]["name"] = plan["range"]["why"] = evil
    plan["reasons"], plan["corpus"]["description"] = [evil], evil
    for method in plan["methods"]:
        method["title"] = method["explanation"] = evil
    write_json(run / "plan.json", plan)
    edit(run / "environment.json", **{evil: evil})
    edit(run / "summary.json", reading=[evil], generation={"prompt": evil, "text": evil})
    page = write_report(run).read_text()
    assert page.count("<script") == 1 and "<img" not in page  # the page's own
    assert html.escape(evil).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page
    assert not re.search(r'aria-label="[^"]*<', page)


@pytest.mark.parametrize("name", ["perplexity", "needles", "grid"])
def test_a_missing_score_is_shown_as_not_run(run: Path, name: str) -> None:
    (run / "harpe" / "scores" / f"{name}.json").unlink()
    page = write_report(run).read_text()
    assert "not run" in page
    cells = main_rows(page)[1]
    assert cells.count("not run") == {"perplexity": 2, "needles": 5, "grid": 0}[name]
    assert markdown_table(run).count("not run") == cells.count("not run")


def test_a_page_is_written_from_the_plan_alone(run: Path) -> None:
    for path in [*run.rglob("scores/*.json"), *run.rglob("log.jsonl"), run / "summary.json", run / "environment.json"]:
        path.unlink()
    assert all(cell == "not run" for row in main_rows(write_report(run).read_text()) for cell in row)


def test_one_missing_task_is_not_run_and_so_is_the_mean(run: Path) -> None:
    path = run / "one-base" / "scores" / "needles.json"
    edit(path, tasks=[t for t in json.loads(path.read_text())["tasks"] if t["task"] != "multi_key"])
    row = main_rows(write_report(run).read_text())[2]
    assert [i for i, cell in enumerate(row) if cell == "not run"] == [3, 6]


FILES = ["plan.json", "summary.json", *(f"harpe/scores/{name}.json" for name in ("perplexity", "needles", "grid"))]
BROKEN = [b"{", b"[]", b"\xff\xfe{", b'{"schema_version": 99}']
LACKING = b'{"bins": 3, "tasks": [{}], "cells": [[1]], "reading": 1}'
CASES = [(name, damage) for name in [*FILES, "environment.json"] for damage in BROKEN] + [
    (name, LACKING) for name in FILES
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_file_is_named(run: Path, name: str, damage: bytes) -> None:
    (run / name).write_bytes(damage)
    with pytest.raises(HarpeError, match=re.escape(name)):
        write_report(run)


def test_a_damaged_log_is_named_and_a_cut_last_line_is_not_damage(run: Path) -> None:
    log = run / "harpe" / "stage-1" / "log.jsonl"
    text = log.read_text()
    log.write_text(text + '{"step": 641, "lo')
    write_report(run)
    log.write_text('{"step": 1}\n' + text)
    with pytest.raises(HarpeError, match="log.jsonl"):
        write_report(run)


def test_of_a_step_logged_twice_the_later_row_counts(run: Path) -> None:
    row = {"step": 2, "loss": 9.0, "tokens": 65_536}
    log = run / "harpe" / "stage-1" / "log.jsonl"
    log.write_text(log.read_text() + json.dumps(row) + "\n")
    curve = read_run(run).rows[1].runs[0].curve
    assert curve is not None and len(curve.loss) == 640 and curve.loss[1] == 9.0


def test_no_plan_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="no plan.json"):
        write_report(tmp_path)


def test_a_method_name_cannot_leave_the_run_directory(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["methods"][0]["name"] = "../harpe"
    write_json(run / "plan.json", plan)
    with pytest.raises(HarpeError, match="plan.json"):
        write_report(run)


def test_two_writes_are_byte_identical(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert write_report(run) == run / "report" / "index.html"


def test_figures_are_well_formed_named_and_say_what_they_show(run: Path) -> None:
    page = write_report(run).read_text()
    figures = re.findall(r'<svg [^>]*class="figure[^>]*>(?:<svg .*?</svg>|(?!<svg).)*?</svg>', page, re.DOTALL)
    assert len(figures) == 6 + 2 * len(
        METHODS
    )  # two of bases, two charts, two differences; a map and a panel for each row
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("role") == "img" and len(root.get("aria-label") or "") > 40
        assert "nan" not in figure and "inf" not in figure
    assert "trained length 256" in page and "248,000" in page and "689,000" in page


def test_numbers_that_are_not_finite_do_not_break_the_page(run: Path) -> None:
    path = run / "base" / "scores" / "perplexity.json"
    value = json.loads(path.read_text())
    for key in ("nll", "low", "high"):
        value["bins"][-1][key] = float("nan")
    value["long"]["perplexity"] = float("inf")
    write_json(path, value)
    log = run / "harpe" / "stage-1" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 641, "loss": NaN, "tokens": 21004288}\n')
    page = write_report(run).read_text()
    assert "not finite" in page and not re.search(r'="[^"]*\bnan\b', page)


def test_waveform_is_the_formula_and_its_gaussian_average() -> None:
    base, dim = 5000.0, 16
    distances = np.arange(0.0, 40.0)
    direct = [
        2 / math.sqrt(dim) * sum(math.cos(m * base ** (-2 * i / dim)) for i in range(dim // 2)) for m in distances
    ]
    np.testing.assert_allclose(waveform(base, dim, distances), direct, atol=1e-12)
    deviation = 16.0 / math.sqrt(12)
    around = np.linspace(-8 * deviation, 8 * deviation, 20_001)
    weights = np.exp(-((around / deviation) ** 2) / 2)
    smoothed = (waveform(base, dim, 20.0 + around) * weights).sum() / weights.sum()
    np.testing.assert_allclose(waveform(base, dim, np.array([20.0]), 16.0), smoothed, atol=1e-9)


def test_differences_by_position_are_those_of_the_file_with_a_picture_and_numbers(run: Path) -> None:
    page = write_report(run).read_text()
    part = page.split("Minus the baseline, with intervals")[1].split("</figure>")[0]
    assert "minus that of One base (control) on the same" in part
    found = json.loads((run / "positions.json").read_text())["differences"]
    for name in ("base", "harpe"):
        for value, low, high in zip(*(found[name][key] for key in ("value", "low", "high")), strict=True):
            words = [f"{number:+.3f}".replace("-", "−") for number in (value, low, high)]
            assert f"<b>{words[0]}</b><small>{words[1]} to {words[2]}</small>" in part
    assert part.count('role="img"') == 2 and re.search(
        r'aria-label="Before: loss by position[^"]* positions 1,024 to 2,048', part
    )
    (run / "positions.json").unlink()
    assert "with intervals" not in write_report(run).read_text()


def test_every_needle_map_can_be_saved_in_red_to_green_from_the_page_itself(run: Path) -> None:
    page = write_report(run).read_text()
    saved = re.findall(r'<a download="needles-([^"]+)\.svg" href="data:image/svg\+xml;base64,([^"]+)">', page)
    assert [name for name, _ in saved] == list(METHODS)
    for name, data in saved:
        grid = json.loads((run / name / "scores" / "grid.json").read_text())
        root = ElementTree.fromstring(base64.b64decode(data))
        cells = [each.get("fill") for each in root.iter("{http://www.w3.org/2000/svg}rect")]
        shares = [cell["score"] for row in grid["cells"] for cell in row]
        assert len(cells) == len(shares) + 50
        for share, colour in zip(shares, cells, strict=False):
            stops = ((240, 73, 110), (235, 184, 57), (12, 215, 159))
            half, place = (stops[:2], 2 * share) if share < 0.5 else (stops[1:], 2 * share - 1)
            expected = [a + (b - a) * place for a, b in zip(*half, strict=True)]
            assert [int((colour or "")[k : k + 2], 16) for k in (1, 3, 5)] == pytest.approx(expected, abs=0.51)
        words = "".join(root.itertext())
        assert all(f"{length:,}" in words for length in grid["lengths"]) and "context length in tokens" in words
