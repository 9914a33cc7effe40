"""A file of a comparison whose entries have wrong types is refused, and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harpe.errors import HarpeError
from harpe.files import write_json
from harpe.report.page import write_report


@pytest.fixture
def run(small_comparison: Path) -> Path:
    return small_comparison


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def edit(path: Path, **entries: Any) -> None:
    write_json(path, read(path) | entries)


PLAN_DAMAGE: list[dict[str, Any]] = [
    {"seeds": ["0"]},
    {"seeds": 3},
    {"baseline": "nobody"},
    {"title": None},
    {"target_length": "2048"},
    {"methods": [{"name": "a"}]},
    {"methods": "all"},
    {"training": []},
]
FIRST = ("measures", 0)
SUMMARY_DAMAGE: list[tuple[tuple[Any, ...], Any]] = [
    ((*FIRST, "values", "abf", "value"), "9.1"),
    ((*FIRST, "values", "abf", "seeds"), 3.5),
    ((*FIRST, "values", "abf", "low"), None),
    ((*FIRST, "values", "nobody"), {"value": 1.0, "low": 1.0, "high": 1.0, "seeds": 1, "documents": 1}),
    ((*FIRST, "differences", "harpe", "real"), 1),
    ((*FIRST, "unit"), "bits"),
    ((*FIRST, "better"), "bigger"),
    (("interval",), "seeds"),
    (("baseline",), "harpe"),
    (("reading",), "all well"),
    (("measures", 1, "id"), "loss-short"),
]


@pytest.mark.parametrize("damage", PLAN_DAMAGE, ids=str)
def test_a_plan_of_wrong_types_is_refused_by_name(run: Path, damage: dict[str, Any]) -> None:
    edit(run / "plan.json", **damage)
    with pytest.raises(HarpeError, match=r"plan\.json"):
        write_report(run)


@pytest.mark.parametrize(("place", "value"), SUMMARY_DAMAGE, ids=str)
def test_a_summary_of_wrong_types_is_refused_by_name(run: Path, place: tuple[Any, ...], value: Any) -> None:
    summary = read(run / "summary.json")
    inner = summary
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_json(run / "summary.json", summary)
    with pytest.raises(HarpeError, match=r"summary\.json"):
        write_report(run)


@pytest.mark.parametrize("text", ['{"stages": [{"length": "2048"}]}', '{"tokens": 1.5}', '{"train_seconds": "1"}', "{"])
def test_a_damaged_record_is_refused_by_name(run: Path, text: str) -> None:
    path = run / "harpe" / "seed-2" / "record.json"
    path.write_text(text)
    with pytest.raises(HarpeError, match=r"harpe/seed-2/record\.json"):
        write_report(run)
