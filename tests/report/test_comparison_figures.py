"""The figures of a comparison: means over seeds, places of points and labels, frames."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harpe.errors import HarpeError
from harpe.files import write_json
from harpe.report.figures.charts import limits, position_chart, spread
from harpe.report.figures.panels import position_panels
from harpe.report.means import mean_bins, mean_curve, mean_grid
from harpe.report.page import write_report
from harpe.report.read.run import read_run


@pytest.fixture
def run(small_comparison: Path) -> Path:
    return small_comparison


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def edit(path: Path, **entries: Any) -> None:
    write_json(path, read(path) | entries)


def test_a_forest_point_lies_where_its_difference_is_and_is_filled_only_where_real(run: Path) -> None:
    page = write_report(run).read_text()
    summary = read(run / "summary.json")
    d = next(m for m in summary["measures"] if m["id"] == "needles-mean-2048")["differences"]
    places: dict[str, float] = {}
    marks = []
    for label, body in re.findall(r'<svg viewBox="0 0 230 24"[^>]*aria-label="([^"]*)">(.*?)</svg>', page, re.DOTALL):
        mark = re.search(r'<circle cx="([\d.]+)"[^>]*class="(fill|open)"', body)
        if mark:
            marks.append(("real" in label, mark[2]))
        if mark and "percentage points" in label:
            places[label.split(" minus ")[0]] = float(mark[1])
    assert set(marks) == {(True, "fill"), (False, "open")}
    control, harpe = d["control-middle"]["value"], d["harpe"]["value"]
    zero = float(re.findall(r"--zero:([\d.]+)", page)[-1]) * 2.30  # per cent of 230 pixels
    scale = (places["HARPE, peak-valley"] - zero) / harpe
    assert scale > 0 and places["one base, arithmetic middle"] == pytest.approx(zero + scale * control, abs=0.2)


def test_curves_are_means_over_seeds(run: Path) -> None:
    entry = next(e for e in read_run(run).rows if e.name == "harpe")
    folders = [run / "harpe" / f"seed-{seed}" for seed in (0, 1, 2)]
    files = [read(f / "scores" / "perplexity.json")["bins"] for f in folders]
    for i, b in enumerate(mean_bins(entry)):
        for key in ("nll", "low", "high"):
            assert getattr(b, key) == pytest.approx(sum(f[i][key] for f in files) / 3)
    logs = [[json.loads(line) for line in (f / "stage-1" / "log.jsonl").read_text().splitlines()] for f in folders]
    curve = mean_curve(entry)
    assert curve is not None and curve.tokens == tuple(8192.0 * (i + 1) for i in range(16))
    assert curve.loss == pytest.approx([sum(log[i]["loss"] for log in logs) / 3 for i in range(16)])
    grids = [read(f / "scores" / "grid.json")["cells"] for f in folders]
    grid = mean_grid(entry)
    assert grid is not None and grid.values[3][2] == pytest.approx(sum(g[3][2]["score"] for g in grids) / 3)


def test_a_seed_that_failed_does_not_cut_the_loss_of_the_others_short(run: Path) -> None:
    write_json(run / "harpe" / "seed-1" / "failed.json", {"reason": "Out of memory."})
    log = run / "harpe" / "seed-1" / "stage-1" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    rows = [
        [json.loads(line) for line in (run / f"harpe/seed-{s}/stage-1/log.jsonl").read_text().splitlines()]
        for s in (0, 2)
    ]
    curve = mean_curve(next(e for e in read_run(run).rows if e.name == "harpe"))
    assert curve is not None and curve.loss == pytest.approx(
        [(a["loss"] + b["loss"]) / 2 for a, b in zip(*rows, strict=True)]
    )


def test_seeds_of_different_protocols_have_no_mean(run: Path) -> None:
    path = run / "harpe" / "seed-1" / "scores" / "perplexity.json"
    edit(path, bins=read(path)["bins"][:-1])
    with pytest.raises(HarpeError, match="harpe.*different protocols"):
        write_report(run)


def test_figures_are_well_formed_named_and_their_points_say_their_values(
    comparison: Any, all_methods: tuple[str, ...], tmp_path: Path
) -> None:
    page = write_report(comparison(tmp_path / "run", all_methods)).read_text()
    labels = re.findall(r'<svg viewBox[^>]*class="figure[^"]*" role="img" aria-label="([^"]*)"', page)
    measured = len(all_methods) - 1
    assert (
        len(labels) == 2 + 3 * measured - 1 + 3 * measured
    )  # two charts; maps, panels, differences; for 3 measures an axis and the others
    assert all(len(label) > 40 for label in labels)
    for figure in re.findall(r'<svg viewBox="0 0 (?:860|270) .*?(?=<p class|</div>)', page, re.DOTALL):
        root = ElementTree.fromstring(figure.strip())
        marks = [e for e in root.iter() if "tip" in (e.get("class") or "").split()]
        assert marks and all((e.findtext("title") or "").strip() for e in marks)
        assert not re.search(r"\b(nan|inf)\b", re.sub(r"<title>.*?</title>", "", figure))


def test_perplexities_that_hardly_differ_still_have_numbers_at_their_axis(run: Path) -> None:
    for path in run.glob("*/seed-*/scores/perplexity.json"):
        value = read(path)
        for b in value["bins"]:
            b |= {"nll": 4.3 + b["nll"] / 1000, "low": 4.29, "high": 4.31}
        write_json(path, value)
    panels = [picture for _, picture in position_panels(read_run(run)) if picture is not None]
    assert panels
    for picture in panels:
        root = ElementTree.fromstring(str(picture))
        words = [
            (e.text or "").replace(",", "") for e in root.iter() if e.tag.endswith("text") and float(e.get("x", 0)) < 50
        ]
        assert sum(word.replace(".", "").isdigit() and 30 < float(word) < 180 for word in words) >= 2, words


def test_numbers_that_are_not_finite_do_not_break_the_page(run: Path) -> None:
    summary = read(run / "summary.json")
    for m in summary["measures"][:2]:
        m["values"]["none"] |= {"value": math.nan, "low": math.nan, "high": math.inf}
        m["differences"]["none"] |= {"value": math.nan, "low": math.nan, "high": math.inf}
    write_json(run / "summary.json", summary)
    path = run / "none" / "seed-0" / "scores" / "perplexity.json"
    value = read(path)
    value["bins"][-1] |= {"nll": math.nan, "low": math.nan, "high": math.nan}
    write_json(path, value)
    page = write_report(run).read_text()
    assert "not finite" in page and not re.search(r'="[^"]*\bnan\b', page)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=24), st.floats(1, 20))
def test_labels_keep_their_order_stay_in_the_frame_and_apart(places: list[float], gap: float) -> None:
    found = spread(places, gap, 0.0, 300.0)
    order = sorted(range(len(places)), key=lambda i: places[i])
    room = min(gap, 300 / max(len(places) - 1, 1))
    assert all(-1e-6 <= at <= 300 + 1e-6 for at in found)
    assert all(found[b] - found[a] >= room - 1e-6 for a, b in pairwise(order))


def test_a_frame_of_differences_holds_zero_and_leaves_out_a_few_far_ones() -> None:
    near = [(-0.02, 0.01), (0.0, 0.03), (-0.01, 0.02)]
    assert limits(near) == (-0.02, 0.03)
    low, high = limits([*near, (2.1, 2.4)])
    assert low == -0.02 and 0.03 <= high < 0.2
    assert limits([(0.4, 0.5)]) == (0.0, 0.5)
    assert limits([(math.nan, math.nan)]) == (-1.0, 1.0)


def test_the_chart_compares_the_seeds_that_both_rows_have_as_the_tables_do(run: Path) -> None:
    """A seed that failed is left out of the baseline's line too, whatever its loss was."""
    value = read_run(run)
    other = next(row for row in value.rows if row.trained and row is not value.baseline and len(row.runs) == 3)
    lost = run / other.name / f"seed-{other.runs[-1].seed}"
    (lost / "scores" / "perplexity.json").unlink()
    file = run / value.baseline.name / lost.name / "scores" / "perplexity.json"
    bins = read(file)["bins"]
    edit(file, bins=[{**each, **{key: each[key] + 3 for key in ("nll", "low", "high")}} for each in bins])
    value = read_run(run)
    row = next(row for row in value.rows if row.name == other.name)

    def last(folder: str, seed: int) -> float:
        return float(read(run / folder / f"seed-{seed}" / "scores" / "perplexity.json")["bins"][-1]["nll"])

    seeds = [each.seed for each in row.runs if each.perplexity is not None]
    wanted = sum(last(row.name, seed) - last(value.baseline.name, seed) for seed in seeds) / len(seeds)
    chart = position_chart(value)
    assert chart is not None and len(seeds) == 2
    said = re.search(r"in the last positions: ([^\"]*)", unescape(str(chart.svg)))
    assert said is not None and f"{row.title} {wanted:+.3f}".replace("-", "−") in said[1]
