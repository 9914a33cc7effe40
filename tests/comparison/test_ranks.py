"""Rows that several processes train together: the comparison of one process a row, also after kills, or a refusal
before any row begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harpe.cli.parser import build_parser, options_of
from harpe.comparison import jobs, resources, trial, worker
from harpe.comparison import ranks as row_ranks
from harpe.comparison.resources import RowProcesses, check_gpus, own_gpus, worker_environment
from harpe.comparison.run import compare
from harpe.distributed import launch, layout
from harpe.distributed.launch import run_ranks
from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.files import read_json, read_jsonl
from harpe.methods.types import Encoding, Stage
from harpe.models.load import load_tokenizer, save_checkpoint
from harpe.options.runs import CompareOptions
from harpe.options.training import TrainingSettings
from harpe.reporter import Reporter
from harpe.runs.rows import Row

METHODS = ["none", "self-extend", "abf-staged", "harpe"]


class Listening(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def options(workspace: Path, out: str = "run", processes: int = 2, **changes: Any) -> CompareOptions:
    """Eight steps of two sequences, which `abf-staged` divides among two lengths."""
    recipe = {
        "title": "tiny",
        "model": str(workspace / "model"),
        "length": 256,
        "data": str(workspace / "texts"),
        "tokens": 4096,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "save_every": 1,
        "seeds": [0],
        "baseline": "none",
        "evaluation": {"data": str(workspace / "texts"), "documents": 2, "samples": 0, "grid_samples": 0},
        "methods": METHODS,
    }
    (workspace / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))
    return CompareOptions(recipe=str(workspace / "recipe.yaml"), out=str(workspace / out), processes_per_row=processes)


@pytest.fixture
def workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do their work in the test's own process, which has imported everything; the processes that they start are
    real."""

    def process(self: Any, job: jobs.Job, slot: int, log: Path) -> int:
        log.touch()
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["", str(self._run), job[0].name, str(job[1]), self._processes.text()])
            return worker.main()

    monkeypatch.setattr(jobs._Workers, "process", process)


@pytest.fixture
def ranks_forked(monkeypatch: pytest.MonkeyPatch, ranks: Any) -> None:
    """The processes of a trial are forked from the test's."""

    def start(count: int, module: str, arguments: list[str], folder: Path, **_: Any) -> None:
        def work() -> int:
            sys.argv = ["", *arguments]
            return trial.main()

        for each in ranks(count, work):
            assert each.wait() in (0, launch.FAILED), each.stderr
        if (folder / "failed.json").is_file():
            raise HarpeError(read_json(folder / "failed.json")["reason"])

    monkeypatch.setattr(trial, "run_ranks", start)


# -- what cannot be


def test_options_of_the_command_line_reach_the_processes_of_a_row() -> None:
    given = ["compare", "r.yaml", "--processes-per-row=4", "--sequence-parallel=2", "--replicas=2", "--mlp-tile=64"]
    given.append("--jobs=2")
    parsed = options_of(build_parser("harpe").parse_args(given))
    processes = RowProcesses.of(parsed, {}, 16)
    assert processes == RowProcesses(count=4, sequence_parallel=2, replicas=2, mlp_tile=64, threads=2)
    assert RowProcesses.read(processes.text()) == processes
    assert replace(processes, offload_activations=True).layout == Layout(4, 2, 2, 64, offload=True)
    assert RowProcesses.of(parsed, {"OMP_NUM_THREADS": "3"}, 16).threads == 3


def test_processes_share_a_sequence_where_one_of_the_stages_or_the_memory_asks_for_it() -> None:
    """Stages of 64 and 128 tokens, two sequences of the longer one a step."""
    one_base = Encoding((1e6, 1e6), 16, per_head=False)
    stages = [Stage(one_base, length, 0.5) for length in (64, 128)]
    rows = [Row("kept", "", "", (Stage(one_base, 128, 0.0),), "ntk", ""), Row("staged", "", "", tuple(stages), "", "")]
    training = TrainingSettings(tokens=2048, batch_tokens=256)
    found = [RowProcesses(count=count).settled(rows, training) for count in (2, 4, 8)]
    assert [each.layout.sequence_parallel for each in found] == [1, 2, 4]
    small = RowProcesses(count=2).settled(rows, training, lambda each: 2.0 - (each.sequence_parallel == 2))
    assert small.layout == Layout(2, 2)
    assert RowProcesses(count=3, sequence_parallel=3).settled(rows[:1], training).layout == Layout(3, 3)
    moving = Stage(replace(one_base, stock={"rope_type": "dynamic", "factor": 2.0}), 128, 1.0)
    rows.append(Row("dynamic", "", "", (moving,), "ntk-dynamic", ""))
    whole = RowProcesses(count=2).settled(rows, training, lambda each: 2.0 - (each.sequence_parallel == 2))
    assert whole.layout.sequence_parallel == 1  # which it cannot have, whatever the memory
    with pytest.raises(HarpeError, match="Rope type dynamic"):
        RowProcesses(count=4).settled(rows, training)
    with pytest.raises(HarpeError, match="A step has 4 sequences, and 3 are read"):  # the first stage's
        RowProcesses(count=3, sequence_parallel=1).settled(rows, training)


@pytest.mark.parametrize(
    ("changes", "recipe", "sentence"),
    [
        ({"processes_per_row": 0}, {}, "--processes-per-row is 0"),
        ({"jobs": 0}, {}, "--jobs is 0"),
        ({"sequence_parallel": 3}, {}, "--sequence-parallel 3 does not divide the 2 processes"),
        ({"replicas": 3}, {}, "--replicas 3 does not divide the 2 processes"),
        ({"sequence_parallel": 2, "processes_per_row": 1}, {}, "--sequence-parallel 2 does not divide the 1 process"),
        ({"sequence_parallel": 1}, {"batch_tokens": 256}, "A step has 1 sequences, and 2 are read at one time"),
    ],
)
def test_numbers_that_do_not_go_into_each_other_are_refused_before_anything_is_made(
    workspace: Path, changes: dict[str, Any], recipe: dict[str, Any], sentence: str
) -> None:
    for plan in (False, True):
        with pytest.raises(HarpeError, match=sentence):
            compare(replace(options(workspace, **recipe), plan=plan, **changes))
        assert not (workspace / "run").exists()


def test_versions_that_are_too_old_are_refused_for_several_processes_alone(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "version", lambda package: "5.17.0")
    with pytest.raises(HarpeError, match=r"needs transformers 5\.23 or newer"):
        compare(options(workspace))
    compare(replace(options(workspace, processes=1), plan=True))


def test_every_process_has_a_gpu_of_its_own_and_rows_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = ["4", "5", "6", "7", "9"]
    assert [own_gpus(cards, slot, 2) for slot in range(3)] == [["4", "5"], ["6", "7"], ["4", "5"]]
    assert own_gpus([], 1, 2) == []
    monkeypatch.setattr(resources, "gpus", lambda environment: ("CUDA_VISIBLE_DEVICES", cards))
    assert worker_environment({}, 1, 2, 16, 2)["CUDA_VISIBLE_DEVICES"] == "6,7"
    check_gpus({}, 5)
    with pytest.raises(HarpeError, match="--processes-per-row 6 needs as many GPUs.* may use 5"):
        check_gpus({}, 6)
    cards[:] = ["MIG-a", "MIG-b"]
    check_gpus({}, 1)
    with pytest.raises(HarpeError, match="parts of one"):
        check_gpus({}, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("ranks_forked")
def test_a_model_that_cannot_be_shared_by_sequence_is_refused_before_any_row_begins(
    workspace: Path, make_tiny: Any
) -> None:
    """One sequence a step, which two processes can only share, and one head."""
    tokenizer = load_tokenizer("embedded")
    model = make_tiny("llama", heads=1, key_value_heads=1, vocab_size=len(tokenizer), max_position_embeddings=64)
    save_checkpoint(model, tokenizer, workspace / "one-head", 64)
    changes = {"model": str(workspace / "one-head"), "batch_tokens": 256, "methods": ["none", "abf"]}
    with pytest.raises(
        HarpeError, match=r"--processes-per-row 2 cannot train abf\. .* does not divide the 1 query heads"
    ):
        compare(options(workspace, **changes))
    assert not (workspace / "run").exists()


# -- the processes themselves

BODIES = {
    "endless": "time.sleep(1000)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(0.3) or sys.exit('broken pipe')",
    "crashed": "sys.exit('ZeroDivisionError: no') if rank == 1 else time.sleep(1000)",
    "told": "tell('the reason') or 3 if rank == 1 else time.sleep(1000)",
    "done": "print(os.environ['WORLD_SIZE'], os.environ['OMP_NUM_THREADS']) or time.sleep(0.3 * rank)",
}
"""What `main` of a module does; they import nothing heavy."""
MODULE = """
import os, signal, sys, time
from pathlib import Path

place, rank = Path({place!r}), int(os.environ["RANK"])


def tell(reason):
    (place / "failed.json").write_text('{{"schema_version": 1, "reason": "%s"}}' % reason)


def main():
    (place / f"{{rank}}.pid").write_text(str(os.getpid()))
    return {body}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module with such a `main`; returns its name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(launch, "GRACE", 1.0)

    def write(kind: str) -> str:
        (tmp_path / f"{kind}_rank.py").write_text(MODULE.format(place=str(tmp_path), body=BODIES[kind]))
        return f"{kind}_rank"

    return write


def gone(place: Path) -> bool:
    """Whether no process of a row runs that has told its number."""
    numbers = [file.read_text() for file in place.glob("*.pid")]
    return bool(numbers) and not any(Path(f"/proc/{number}").exists() for number in numbers if number)


linux = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")


@linux
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("killed", r"^Process 1 of 3 \(counted from 0\) was killed by signal 9 \(SIGKILL\), as for want of memory"),
        ("crashed", r"^Process 1 of 3 \(counted from 0\) ended with code 1: ZeroDivisionError: no \(see .*rank-1.log"),
        ("told", "^the reason$"),
    ],
)
def test_the_process_that_failed_is_told_and_takes_the_others_along(
    kind: str, sentence: str, tmp_path: Path, module: Callable[[str], str]
) -> None:
    """Also where those that miss it end first, with what they say of it."""
    with pytest.raises(HarpeError, match=sentence):
        run_ranks(3, module(kind), [], tmp_path, threads=1)
    assert gone(tmp_path)


@linux
def test_processes_that_end_well_are_waited_for(tmp_path: Path, module: Callable[[str], str]) -> None:
    (tmp_path / "failed.json").write_text("of an earlier start")
    run_ranks(2, module("done"), [], tmp_path, threads=3, silent=True)
    assert [(tmp_path / f"rank-{rank}.log").read_text() for rank in range(2)] == ["2 3\n"] * 2
    assert gone(tmp_path) and not (tmp_path / "failed.json").exists()


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_one_that_has_started_them(
    number: int, tmp_path: Path, module: Callable[[str], str], fork: Any
) -> None:
    name = module("endless")
    parent = fork(lambda: run_ranks(2, name, [], tmp_path, threads=1))
    wait_for(lambda: all((tmp_path / f"{rank}.pid").exists() for rank in range(2)))
    os.kill(parent.pid, number)
    assert parent.wait() == -number
    wait_for(lambda: gone(tmp_path))


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# -- comparisons


def scores(row: Path) -> list[float]:
    """Mean losses of every document by position."""
    entries = [entry for entry in read_jsonl(row / "scores" / "perplexity.jsonl") if "nll" in entry]
    return [nll / count for entry in entries for nll, count in zip(entry["nll"], entry["tokens"], strict=True)]


@pytest.mark.slow
@pytest.mark.usefixtures("workers_here")
def test_rows_of_two_processes_are_those_of_one_and_a_killed_row_goes_on_with_another_number(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, staged = subprocess.Popen, workspace / "run" / "abf-staged" / "seed-0"

    def kill(child: Any) -> None:
        wait_for((staged / "stage-1" / "checkpoint-2" / "complete.json").exists)
        child.kill()

    def start(command: list[str], **given: Any) -> Any:
        child = real(command, **given)
        if row_ranks.__name__ in command and "abf-staged" in command and given["env"]["RANK"] == "1":
            threading.Thread(target=kill, args=(child,), daemon=True).start()
        return child

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    listening = Listening()
    compare(options(workspace), listening)
    assert "A row is trained by 2 processes: weights" in "\n".join(listening.said)
    failed = read_json(staged / "failed.json")["reason"]
    assert failed.startswith("Process 1 of 2 (counted from 0) was killed by signal 9 (SIGKILL)")
    assert not (staged / "model").exists() and (workspace / "run" / "harpe" / "seed-0" / "model").is_dir()

    monkeypatch.setattr(launch.subprocess, "Popen", real)
    compare(options(workspace, processes=1))
    compare(options(workspace, "alone", processes=1))
    for name in ("plan.json", "recipe.yaml"):
        assert (workspace / "run" / name).read_bytes() == (workspace / "alone" / name).read_bytes(), name
    for row in METHODS:
        found, expected = (workspace / out / row / "seed-0" for out in ("run", "alone"))
        assert found.joinpath("record.json").is_file() and not found.joinpath("failed.json").exists()
        for log in expected.glob("stage-*/log.jsonl"):
            got, wanted = (
                [entry["loss"] for entry in read_jsonl(path)] for path in (found / log.relative_to(expected), log)
            )
            assert got == pytest.approx(wanted, abs=1e-5), log
        assert scores(found) == pytest.approx(scores(expected), abs=1e-5), row
        if row != "none":
            config = "model/config.json"
            assert (found / config).read_bytes() == (expected / config).read_bytes()
