"""`harpe bases --strategy searched`: tables of a checkpoint, in a file that the method `tables` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harpe.bases.base_sets import choose_bases
from harpe.cli.terminal import Terminal
from harpe.commands.bases import run
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.methods.registry import make_stages, method_named
from harpe.models.geometry import read_geometry
from harpe.models.load import load_config
from harpe.options.bases import BasesOptions


def options(folder: Path, **other: Any) -> BasesOptions:
    given: dict[str, Any] = {
        "model": "embedded",
        "data": "embedded",
        "length": 512,
        "strategy": "searched",
        "passes": 2,
    }
    return BasesOptions(**{**given, "out": str(folder), **other})


def test_the_verb_writes_tables_and_says_how_they_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(options(tmp_path / "new" / "out", level="layer"), Terminal())
    file = tmp_path / "new" / "out" / "tables.json"
    made = read_json(file)["made_by"]
    assert made["level"] == "layer" and len(made["history"]) == 2
    (stage,) = make_stages(
        method_named("tables"), read_geometry(load_config("embedded"), "embedded"), 512, {"file": str(file)}
    )
    assert stage.encoding.tables is not None
    assert "harpe extend embedded --method tables --length 512 --method-options" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"heads": 8}, "leave --heads out"),
        ({"layer_bases": "own"}, "leave --layer-bases out"),
        ({"range": "short"}, "leave --range out"),
        ({"model": None}, "give --model, --data, --out"),
        ({"data": None}, "give --model, --data, --out"),
        ({"out": None}, "give --model, --data, --out"),
        ({"passes": 1}, "give 2 or more"),
        ({"length": 256}, "nothing to search"),
        ({"strategy": "uniform"}, "--level, --passes and --sliding-window are those of --strategy searched"),
        ({"strategy": "uniform", "level": None, "passes": None, "sliding_window": "off"}, "--sliding-window are those"),
    ],
)
def test_what_a_search_cannot_use_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        run(options(tmp_path, **other), Terminal())


def test_a_file_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "tables.json").write_text("mine")
    with pytest.raises(HarpeError, match="harpe did not write it"):
        run(options(tmp_path), Terminal())
    assert (tmp_path / "tables.json").read_text() == "mine"


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HarpeError, match="Name another"):
        run(options(tmp_path / "file"), Terminal())
    assert (tmp_path / "file").read_text() == "mine"


def test_too_few_texts_are_refused_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("word " * 5000)
    with pytest.raises(HarpeError, match="has 1 texts of 512 tokens or more"):
        run(options(tmp_path / "out", data=str(tmp_path / "one.txt")), Terminal())
    assert not (tmp_path / "out").exists()


def test_bases_of_extend_are_not_searched() -> None:
    with pytest.raises(HarpeError, match="Run harpe bases --strategy searched first"):
        choose_bases("searched", heads=8, head_dim=32, length=512, low=1e4, high=1e5)
