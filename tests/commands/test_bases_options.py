"""What a plan says of how its bases were chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harpe
from harpe.errors import HarpeError
from harpe.files import read_json


def plan_of(workspace: Path, **options: Any) -> dict[str, Any]:
    settings = {"length": 256, "tokens": 1024, "batch_tokens": 512, "learning_rate": 1e-3, "dtype": "float32"}
    options = {"method": "harpe", **options}
    harpe.extend(str(workspace / "model"), data=str(workspace / "texts"), out=workspace / "run", **(settings | options))
    return read_json(workspace / "run" / "plan.json")


def test_the_plan_says_which_rule_was_taken_and_why(workspace: Path) -> None:
    plan = plan_of(workspace, strategy="peak-valley", assignment="descending")
    text = plan["methods"][1]["explanation"]
    assert (
        "peak-valley, descending over the heads" in text
        and "the general rule: the constants of the published one belong to" in text
    )
    first, second = plan["methods"][1]["bases"]
    assert plan["range"]["low"] <= second < first <= plan["range"]["high"]


def test_the_plan_points_to_the_lower_range_where_steps_are_few(workspace: Path) -> None:
    plan = plan_of(workspace)
    assert "rule critical" in plan["range"]["why"]
    assert any("2 steps are few" in reason and "--range short" in reason for reason in plan["reasons"])


def test_a_range_that_was_chosen_is_not_questioned(workspace: Path) -> None:
    plan = plan_of(workspace, range="short")
    assert "rule short" in plan["range"]["why"]
    assert not any("steps are few" in reason for reason in plan["reasons"])


@pytest.mark.parametrize("options", [{"assignment": "random"}, {"layer_bases": "own"}, {"rule": "general"}])
def test_one_base_has_nothing_to_assign(workspace: Path, options: dict[str, Any]) -> None:
    with pytest.raises(HarpeError, match="leave them out for --method abf"):
        plan_of(workspace, method="abf", **options)
