"""Signals end a verb with a sentence, and a comparison with all that it has started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from harpe.cli import main as cli
from harpe.comparison import jobs
from harpe.comparison.jobs import run_worker
from harpe.comparison.resources import own_gpus, threads_of, visible_gpus, worker_environment
from harpe.errors import HarpeError
from harpe.files import read_json, write_json

# -- in this process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_verb_with_the_sentence_of_ctrl_c_and_its_own_code(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # as in a terminal: what starts the tests in the background switches signals off
    started = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        "harpe.commands.bases.run", lambda options, terminal: os.kill(os.getpid(), number) or time.sleep(60)
    )
    try:
        assert cli.main(["bases", "--length=256", "--model=embedded"]) == code
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(number, started)
    name = "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"
    assert (
        f"{name}. Nothing that was saved is lost: the same command (extend: with --resume) goes on."
        in capsys.readouterr().err
    )


def test_a_signal_that_nohup_has_switched_off_stays_off_and_a_launcher_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        "harpe.commands.bases.run", lambda options, terminal: found.append(signal.getsignal(signal.SIGHUP))
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["bases", "--length=256", "--model=embedded"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["bases", "--length=256", "--model=embedded"]) == 0
    assert found == [signal.SIG_IGN, before]


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 2, ["0", "1", "0"]),
        ("4,5", 2, ["4", "5", "4"]),
        (" 5 , 4", 2, ["5", "4", "5"]),
        ("7", 1, ["7", "7", "7"]),
        ("GPU-8932f937,GPU-0f1b2c3d", 2, ["GPU-8932f937", "GPU-0f1b2c3d", "GPU-8932f937"]),
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b", "MIG-a"]),  # a process finds the first part only, whatever is named
        ("4,-1,5", 1, ["4", "4", "4"]),
        ("4,,5", 1, ["4", "4", "4"]),
        ("", 0, ["", "", ""]),
        ("-1", 0, ["", "", ""]),
        (None, 0, ["", "", ""]),
    ],
)
def test_workers_take_turns_over_the_gpus_that_this_process_may_use(
    visible: str | None, count: int, expected: list[str]
) -> None:
    entries = visible_gpus(visible, count)
    assert [",".join(own_gpus(entries, slot, 1)) for slot in range(3)] == expected


def test_threads_that_the_user_asked_for_are_those_of_every_process() -> None:
    def threads(value: dict[str, str]) -> str:
        return worker_environment(value, 0, 2, 16)["OMP_NUM_THREADS"]

    assert [threads({}), threads({"OMP_NUM_THREADS": "3"}), threads({"OMP_NUM_THREADS": "3,2"})] == ["8", "3", "3"]
    assert worker_environment({}, 0, 32, 16)["OMP_NUM_THREADS"] == "1" and threads_of(" ") is None
    for wrong in ("all", "0", "-2", "1.5"):
        with pytest.raises(HarpeError, match="OMP_NUM_THREADS is"):
            threads_of(wrong)


def test_a_worker_that_was_killed_when_its_row_was_finished_has_not_failed(tmp_path: Path) -> None:
    class Killed:
        def process(self, job: Any, slot: int, log: Path) -> int:
            log.touch()
            if slot:
                write_json(log.with_name("record.json"), {})
            return -signal.SIGKILL

    workers, row = cast(Any, Killed()), cast(Any, SimpleNamespace(name="row"))
    assert (
        "SIGKILL" in str(run_worker(workers, tmp_path / "a", (row, 0), 0))
        and (tmp_path / "a/row/seed-0/failed.json").is_file()
    )
    assert (
        run_worker(workers, tmp_path / "b", (row, 0), 1) is None
        and not (tmp_path / "b/row/seed-0/failed.json").exists()
    )


# -- processes

STARTS_ANOTHER = """
import os, subprocess, sys
if "harpe.distributed.child" in sys.orig_argv:  # as a loader of data or a benchmark does
    child = subprocess.Popen(["sleep", "1000"])
    name = {folder!r} + f"/{{sys.orig_argv[-3]}}.pids"
    open(name + ".new", "w").write(f"{{os.getpid()}} {{child.pid}}")
    os.rename(name + ".new", name)
"""
"""Run by every Python that the comparison starts: its workers have a process of their own, and tell its number and
theirs."""
ENDLESS = "import time\n\n\ndef main():\n    time.sleep(1000)\n"
"""A worker that works for ever, and has nothing to import."""


@pytest.fixture
def started(workspace: Path, fork: Any) -> Iterator[Callable[[], Any]]:
    """Starts `harpe compare` on two rows that take minutes; ends what a failing test has left."""
    (workspace / "hooks").mkdir()
    (workspace / "hooks" / "sitecustomize.py").write_text(STARTS_ANOTHER.format(folder=str(workspace)))
    (workspace / "hooks" / "endless.py").write_text(ENDLESS)
    recipe = {
        "title": "slow",
        "model": str(workspace / "model"),
        "length": 256,
        "data": str(workspace / "texts"),
        "tokens": 1024,
        "batch_tokens": 512,
        "dtype": "float32",
        "seeds": [0],
        "baseline": "none",
        "methods": ["none", {"name": "ntk", "train": False}],
        "evaluation": {
            "data": str(workspace / "texts"),
            "documents": 2,
            "samples": 0,
            "grid_samples": 0,
            "perplexity": {"long": {"data": str(workspace / "texts"), "window": 64, "stride": 1}},
        },
    }
    (workspace / "slow.yaml").write_text(yaml.safe_dump(recipe))
    path = os.pathsep.join([str(workspace / "hooks"), os.environ.get("PYTHONPATH", "")])
    command = ["compare", str(workspace / "slow.yaml"), f"--out={workspace / 'run'}", "--jobs=2"]
    yield lambda: fork(lambda: cli.main(command), PYTHONPATH=path)
    for number in (int(n) for file in workspace.glob("*.pids") for n in file.read_text().split()):
        if alive(number):
            os.kill(number, signal.SIGKILL)


def alive(number: int) -> bool:
    """Whether a process runs; a dead one that nobody has asked for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def waited(condition: Callable[[], Any], what: str) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come in two minutes")


def running(workspace: Path) -> dict[str, list[int]]:
    """Numbers of each row's worker and of what it has started, as soon as both are there."""
    files = {name: workspace / f"{name}.pids" for name in ("none", "ntk")}
    waited(lambda: all(file.is_file() for file in files.values()), "the workers")
    found = {name: [int(number) for number in file.read_text().split()] for name, file in files.items()}
    for name, file in files.items():
        file.rename(workspace / f"{name}-{found[name][0]}.pids")  # those of the next start are others
    return found


linux = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])  # those that can be caught take one way, which is tested above
def test_workers_and_what_they_have_started_end_with_the_comparison(
    name: str, workspace: Path, started: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work itself is nothing here: that of a comparison is ended in the next test."""
    monkeypatch.setattr(jobs, "WORKER", "endless")
    process, number = started(), signal.Signals[name]
    pids = [pid for row in running(workspace).values() for pid in row]
    assert len(pids) == 4 and all(map(alive, pids))
    os.kill(process.pid, number)
    if number == signal.SIGKILL:
        assert process.wait() == -signal.SIGKILL
        waited(lambda: not any(map(alive, pids)), "the workers' end")
    else:
        assert process.wait() == 128 + number
        assert not any(map(alive, pids))  # they were gone before it was
        assert "Nothing that was saved is lost" in process.stderr and "Traceback" not in process.stderr
    assert not list((workspace / "run").glob("*/seed-0/failed.json"))  # an interrupted row has not failed


@linux
@pytest.mark.slow
def test_a_worker_that_is_killed_alone_takes_along_what_it_has_started_and_is_tried_again(
    workspace: Path, started: Callable[[], Any]
) -> None:
    """And what ends the comparison ends workers that measure."""
    reason = workspace / "run" / "none" / "seed-0" / "failed.json"
    measured = [workspace / "run" / name / "seed-0" / "scores" / "perplexity.json" for name in ("none", "ntk")]
    process = started()
    (worker, grandchild), others = running(workspace).values()
    waited(lambda: all(path.is_file() for path in measured), "the first measures")
    os.kill(worker, signal.SIGTERM)
    waited(reason.is_file, "the reason")
    assert not alive(worker) and not alive(grandchild) and all(map(alive, others))
    told = read_json(reason)["reason"]
    assert "killed by signal 15 (SIGTERM)" in told and "worker.log" in told
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    waited(lambda: not any(map(alive, others)), "the other worker's end")
    process = started()
    pids = [pid for row in running(workspace).values() for pid in row]
    waited(lambda: not reason.exists(), "the second try")
    assert all(map(alive, pids))
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143 and not any(map(alive, pids))
    assert not list((workspace / "run").glob("*/seed-0/failed.json"))


@pytest.mark.slow
def test_an_extension_that_is_terminated_says_how_to_go_on_and_does(workspace: Path, fork: Any) -> None:
    command = ["extend", str(workspace / "model"), "--length=256", f"--data={workspace / 'texts'}"]
    command += [f"--out={workspace / 'run'}", "--tokens=20480", "--batch-tokens=512", "--save-every=1"]
    command += ["--dtype=float32", "--method=harpe"]
    process = fork(lambda: cli.main(command))
    stage = workspace / "run" / "harpe" / "stage-1"
    waited(lambda: list(stage.glob("checkpoint-*/complete.json")), "the first checkpoint")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143
    assert "Ended by SIGTERM. Nothing that was saved is lost" in process.stderr and "--resume" in process.stderr
    assert fork(lambda: cli.main([*command, "--resume"])).wait() == 0
    assert (workspace / "run" / "harpe" / "model" / "config.json").is_file()
