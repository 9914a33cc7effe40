"""Titles tell the rows of tables, pages and figures apart."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harpe.files import read_json, write_json
from harpe.report.page import write_report
from harpe.report.titles import Titled, alike, distinct_titles


def row(name: str, title: str, method: str = "yarn", trained: bool = True, **options: Any) -> Titled:
    return Titled(name, title, method, trained, options)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("a", "YaRN"), row("b", "ABF", "abf")], ["YaRN", "ABF"]),
        ([row("a", "YaRN"), row("b", "YaRN", beta_fast=4)], ["YaRN (default beta_fast)", "YaRN (beta_fast 4)"]),
        (
            [row("a", "YaRN", beta_fast=4), row("b", "yarn  ", beta_fast=8)],
            ["YaRN (beta_fast 4)", "yarn (beta_fast 8)"],
        ),
        ([row("a", "X"), row("b", "\uff38", "abf")], ["X (yarn)", "\uff38 (abf)"]),
        ([row("a", "X"), row("b", "X", trained=False)], ["X (trained)", "X (not trained)"]),
        ([row("a", "X", factors=[1.0] * 64), row("b", "X", factors=[2.0] * 64)], ["X (a)", "X (b)"]),
        ([row("a", "X"), row("b", "X")], ["X (a)", "X (b)"]),
        ([row("a", "X (b)"), row("b", "X"), row("c", "X")], ["X (b) (a)", "X (b) (b)", "X (c)"]),
        (
            [row("a", "X", base=1234567.0), row("b", "X", base=1234567.1)],
            ["X (base 1,234,567)", "X (base 1,234,567.1)"],
        ),
    ],
)
def test_equal_titles_get_the_options_that_differ_or_else_the_names(rows: list[Titled], expected: list[str]) -> None:
    assert distinct_titles(rows) == expected


@given(
    st.lists(
        st.tuples(st.text(max_size=3), st.sampled_from(["a", "a (r1)", "A", "a (n 1)"]), st.integers(0, 2)), max_size=6
    )
)
def test_titles_are_always_distinct(found: list[tuple[str, str, int]]) -> None:
    rows = [Titled(f"r{i}", start + title, "m", True, {"n": n}) for i, (start, title, n) in enumerate(found)]
    assert not alike(distinct_titles(rows))


def test_the_page_the_tables_and_the_figures_of_a_plan_with_equal_titles_tell_its_rows_apart(
    small_comparison: Path,
) -> None:
    plan = read_json(small_comparison / "plan.json")
    for method in plan["methods"][1:4]:
        method["title"] = "YaRN with a title of some length"
    write_json(small_comparison / "plan.json", plan)
    page = write_report(small_comparison).read_text()
    rows = list(csv.DictReader((small_comparison / "report" / "tables.csv").open()))
    titles = {entry["method"]: entry["method_title"] for entry in rows}
    assert len(set(titles.values())) == len(titles) == 5
    markdown = (small_comparison / "report" / "tables.md").read_text()
    for title in titles.values():
        assert f"| {title} |" in markdown and page.count(title) >= 5
    _, *parts = re.split(r'<svg viewBox="0 0 (\d+) \d+" class="figure overview lines"', page)
    assert len(parts) >= 2
    for width, figure in zip(parts[::2], parts[1::2], strict=True):  # no label is cut off at the right
        labels = re.findall(r'<text x="([\d.]+)"[^>]*class="t name label"[^>]*>([^<]*)<', figure)
        assert labels and all(float(x) + 6.5 * len(label) < int(width) for x, label in labels)
