"""Records of several processes: what killed ones have left is put together in order, once each, and nothing else is
touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from harpe.distributed.processes import ALONE
from harpe.errors import HarpeError
from harpe.evaluation.records import Records
from harpe.files import read_jsonl
from harpe.measurement import write_records


def rows(*numbers: int) -> list[dict[str, int]]:
    return [{"n": n, "value": n * n} for n in numbers]


def opened(path: Path, told: list[str] | None = None) -> Records:
    return Records(path, lambda row: row["n"], ALONE, (told if told is not None else []).append)


def test_what_several_killed_processes_left_is_put_in_order_and_their_files_go(tmp_path: Path) -> None:
    path, told = tmp_path / "a[1].jsonl", list[str]()  # a name that a pattern of file names would not find
    for name, numbers in (
        ("a[1].jsonl", (3,)),
        ("a[1].jsonl.0", (0, 5)),
        ("a[1].jsonl.11", (4, 1)),
        ("a[1].jsonl.x", (8,)),
        ("b.jsonl.0", (9,)),
    ):
        write_records(tmp_path / name, rows(*numbers), {})
    with (tmp_path / "a[1].jsonl.11").open("a") as stream:
        stream.write('{"n": 2, "val')
    records = opened(path, told)
    assert list(records.rows) == [0, 1, 3, 4, 5] and read_jsonl(path) == rows(0, 1, 3, 4, 5)
    assert len(told) == 1 and "a[1].jsonl.11 was cut short" in told[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a[1].jsonl", "a[1].jsonl.x", "b.jsonl.0"]
    for row in rows(7, 2, 3):
        records.add(row)  # 3 is there
    assert read_jsonl(tmp_path / "a[1].jsonl.0") == rows(7, 2)
    assert records.gather() == rows(0, 1, 2, 3, 4, 5, 7) == read_jsonl(path)


def test_a_kill_between_putting_together_and_removing_doubles_nothing(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.0", "a.jsonl.1"):
        write_records(tmp_path / name, rows(1), {})
    assert opened(tmp_path / "a.jsonl").gather() == rows(1)


def test_nothing_measured_leaves_no_file_and_a_broken_line_is_an_error(tmp_path: Path) -> None:
    assert opened(tmp_path / "a.jsonl").gather() == [] and not any(tmp_path.iterdir())
    write_records(tmp_path / "a.jsonl.0", rows(1), {})
    with (tmp_path / "a.jsonl.0").open("a") as stream:
        stream.write('broken\n{"n": 2}\n')
    with pytest.raises(HarpeError, match=r"Line 3 of .*a\.jsonl\.0"):
        opened(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.3"])
@pytest.mark.parametrize("content", ['{"n": 1}\n', "", "a text\n", '{"harpe": 1}\n'])
def test_a_file_that_harpe_did_not_write_is_neither_read_nor_moved(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    write_records(tmp_path / "a.jsonl.0", rows(2), {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(HarpeError, match=f"{name} is there already, and harpe did not write it"):
        opened(tmp_path / "a.jsonl")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_processes_left_of_another_model_is_not_taken(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", rows(1), {"name": "a", "model": {"weights": "1"}})
    write_records(tmp_path / "a.jsonl.1", rows(2), {"name": "b", "model": {"weights": "2"}})
    of = {"name": "c", "model": {"weights": "1"}}  # what a model is called does not count
    with pytest.raises(HarpeError, match=r"a\.jsonl\.1 holds results of another model \(weights: 2 there, 1 now\)"):
        Records(tmp_path / "a.jsonl", lambda row: row["n"], ALONE, print, of)
    (tmp_path / "a.jsonl.1").unlink()
    assert list(Records(tmp_path / "a.jsonl", lambda row: row["n"], ALONE, print, of).rows) == [1]
