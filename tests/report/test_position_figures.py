"""Pictures of differences by position: where points and bands lie, what is filled, and what they say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harpe.errors import HarpeError
from harpe.files import read_json, write_json
from harpe.report.figures.panels import difference_panel
from harpe.report.page import write_report
from harpe.report.read.positions import parse_positions
from harpe.report.read.run import Row
from harpe.report.tables.positions import difference_positions

BINS = [[0, 64], [64, 256], [256, 1024]]
VALUE, LOW, HIGH = [0.01, -0.2, -0.4], [-0.03, -0.3, -0.55], [0.05, -0.1, -0.25]
GIVEN = {"reference": "r", "documents": 9, "resamples": 100, "bins": BINS}


def row(name: str, title: str) -> Row:
    return Row(name, title, "", trained=True, control=False, per_head=True, bases=(1e4, 2e4))


METHOD = row("m", "HARPE & co")


def made(**changes: Any) -> Any:
    return parse_positions({**GIVEN, "differences": {"m": {"value": VALUE, "low": LOW, "high": HIGH, **changes}}})


def test_few_documents_that_agree_show_nothing_clear() -> None:
    for documents, clear in ((5, 0), (6, 2)):
        few = parse_positions(
            {**GIVEN, "documents": documents, "differences": {"m": {"value": VALUE, "low": LOW, "high": HIGH}}}
        )
        assert sum(step.clear for step in few.methods["m"]) == clear


def test_points_and_bands_lie_where_the_values_are_and_only_clear_ones_are_filled() -> None:
    picture = difference_panel(made(), METHOD, "one base", 64)
    assert picture is not None
    root = ElementTree.fromstring(picture)
    points = [(float(p.get("cx")), float(p.get("cy")), p.get("class")) for p in root.iter("circle")]
    assert [css.split()[1] for _, _, css in points] == ["open", "point", "point"]
    # the scale is taken from two points; the zero line and the corners of the bands have to agree with it
    (x1, y1, _), (x2, y2, _), (x3, y3, _) = points
    up = (y3 - y1) / (VALUE[2] - VALUE[0])
    assert y2 == pytest.approx(y1 + up * (VALUE[1] - VALUE[0]), abs=0.2) and up < 0
    zero = [line for line in root.iter("line") if line.get("class") == "axis" and line.get("y1") == line.get("y2")]
    assert any(float(line.get("y1")) == pytest.approx(y1 - up * VALUE[0], abs=0.2) for line in zero)
    assert (x3 - x2) / (x2 - x1) == pytest.approx(
        math.log(512 / 128) / math.log(128 / 8), abs=0.02
    )  # geometric middles; 0 counts as 1
    corners = []
    for frame in root.iter("svg"):
        for band in frame.iter("path"):
            if band.get("class") == "band" and frame is not root:
                numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", band.get("d"))]
                corners += [
                    (x + float(frame.get("x")), y + float(frame.get("y")))
                    for x, y in zip(numbers[::2], numbers[1::2], strict=True)
                ]
    expected = {
        (x, y1 + up * (end - VALUE[0]))
        for (x, *_), low, high in zip(points, LOW, HIGH, strict=True)
        for end in (low, high)
    }
    for x, y in expected:
        assert any(math.hypot(x - a, y - b) < 0.4 for a, b in corners)
    assert "at 2 of 3 positions; positions 256 to 1,024: −0.400 (−0.550 to −0.250) nats a token" in root.get(
        "aria-label"
    )
    tips = [title.text for title in root.iter("title")]
    assert tips[0] == "HARPE & co minus one base, positions 0 to 64: +0.010 (−0.030 to +0.050) nats a token, not clear"


def test_the_table_has_every_difference_with_its_interval() -> None:
    table = difference_positions(made(), [row("none", "none"), METHOD])
    assert [column.head for column in table.columns] == ["0–64", "64–256", "256–1,024"]
    (line,) = table.rows
    assert [cell.plain() for cell in line.cells if cell] == [
        "+0.010 (−0.030 to +0.050)",
        "−0.200 (−0.300 to −0.100)",
        "−0.400 (−0.550 to −0.250)",
    ]


def test_what_is_not_finite_leaves_a_gap_and_what_is_damaged_is_refused() -> None:
    picture = difference_panel(
        made(value=[0.1, math.nan, 0.3], low=[0.0, math.nan, 0.2], high=[0.2, math.nan, 0.4]), METHOD, "r", 64
    )
    assert picture is not None and "nan" not in picture and picture.count("<circle") == 2
    assert difference_panel(made(), row("other", "other"), "r", 64) is None
    with pytest.raises(ValueError, match="one for each of 3 bins"):
        made(low=[0.1])


def test_both_pages_have_the_pictures_their_alternative_text_and_the_numbers_below(small_comparison: Path) -> None:
    page = write_report(small_comparison).read_text()
    value = read_json(small_comparison / "summary.json")
    part = page.split("Minus the baseline, with intervals")[1].split("Each method with its interval")[0]
    differences = value["positions"]["differences"]
    assert part.count('role="img"') == len(differences) and "over seeds and documents" in part
    for numbers in differences.values():
        assert f"{numbers['value'][-1]:+.3f}".replace("-", "−") in part
    value["positions"] = None
    write_json(small_comparison / "summary.json", {k: v for k, v in value.items() if k != "schema_version"})
    assert "with intervals" not in write_report(small_comparison).read_text()
    value["positions"] = {"reference": "abf"}
    write_json(small_comparison / "summary.json", {k: v for k, v in value.items() if k != "schema_version"})
    with pytest.raises(HarpeError, match=r"summary\.json lacks the entry"):
        write_report(small_comparison)
