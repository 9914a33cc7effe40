"""The one line of progress that a comparison prints for all of its rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harpe.comparison.jobs import AllJobs, Job
from harpe.comparison.resources import slowdown


def jobs_of(*names: str) -> list[Job]:
    return [(cast(Any, SimpleNamespace(name=name)), 0) for name in names]


def test_percent_is_of_expected_seconds_and_corrected_by_the_rows_that_have_ended() -> None:
    clock = [0.0]
    trained, plain, other = jobs_of("trained", "plain", "other")
    work = AllJobs([trained, plain, other], {"trained": 60, "plain": 20, "other": 20}, 1, lambda: clock[0])
    assert work.percent() == 0
    work.begin(plain)
    clock[0] = 10.0
    assert work.percent() == 10
    clock[0] = 40.0  # twice the expected time, and still at work
    assert work.percent() == 19
    work.end(plain)
    assert work.percent() == 20
    work.begin(trained)
    clock[0] = 40.0 + 60.0  # half of it, at half the expected pace
    assert work.percent() == 50
    clock[0] = 160.0
    work.end(trained)
    work.begin(other)
    work.end(other)
    assert work.percent() == 100 and work.ended == 3


@pytest.mark.parametrize(
    ("threads", "at_a_time", "cores", "processes", "times"),
    [
        (None, 1, 2, 1, 1.0),
        (None, 2, 2, 1, 2.0),  # measured on both cores, of which it then has one
        ("1", 2, 2, 1, 1.0),  # measured with the one thread that it then has
        ("1", 4, 2, 1, 2.0),
        ("1", 2, 8, 4, 1.0),
        ("4", 2, 4, 2, 2.0),
        (None, 2, 8, 4, 2.0),
    ],
)
def test_a_row_takes_longer_beside_others_by_what_they_share_of_the_cores(
    threads: str | None, at_a_time: int, cores: int, processes: int, times: float
) -> None:
    environment = {} if threads is None else {"OMP_NUM_THREADS": threads}
    assert slowdown(environment, at_a_time, cores, processes) == times


@pytest.mark.parametrize(("at_a_time", "processes", "times"), [(4, 1, 1.0), (8, 1, 2.0), (2, 2, 1.0), (2, 4, 2.0)])
def test_rows_on_gpus_of_their_own_do_not_slow_one_another(
    at_a_time: int, processes: int, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harpe.comparison.resources.gpus", lambda environment: ("CUDA_VISIBLE_DEVICES", list("0123")))
    assert slowdown({}, at_a_time, 16, processes) == times


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_rows_that_share_the_cores_are_expected_to_take_so_much_longer(at_a_time: int) -> None:
    clock = [0.0]
    jobs = jobs_of("a", "b")
    work = AllJobs(jobs, {"a": 50, "b": 50}, at_a_time, lambda: clock[0])
    for job in jobs[:at_a_time]:
        work.begin(job)
    clock[0] = 25.0
    assert work.percent() == 25


def test_a_comparison_with_nothing_left_is_done() -> None:
    assert AllJobs([], {}, 2).percent() == 100
