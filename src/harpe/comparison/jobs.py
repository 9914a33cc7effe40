"""The workers of a comparison: one a method and seed, some at a time. None of them, and nothing that they start,
outlives this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from harpe.comparison.resources import RowProcesses, worker_environment
from harpe.distributed.launch import FAILED, how_it_ended
from harpe.files import read_json, write_json
from harpe.reporter import Reporter
from harpe.runs.directory import available_cores
from harpe.runs.rows import Row

Job = tuple[Row, int]
"""A row, and the seed that it is trained with."""
WORKER = "harpe.comparison.worker"
RUNNING_AT_MOST = 0.95
"""Share of a job's expected seconds that counts as done while it runs."""
LAST_WORDS = 10.0
"""Seconds that a worker's output is waited for after its end: something that has left its group may hold it open for
ever."""


def run_jobs(
    run: Path,
    jobs: Sequence[Job],
    at_a_time: int,
    processes: RowProcesses,
    expected: Mapping[str, float],
    slower: float,
    reporter: Reporter,
) -> dict[str, str]:
    """Run every job in a worker, which starts the processes of its row where they are several; returns the reasons of
    those that failed. An interruption ends all of them, and then this.

    `expected` has the seconds of every row, by name, alone, and `slower` how many times as long it takes beside the
    others: one line of progress tells of all jobs.
    """
    workers = _Workers(run, AllJobs(jobs, expected, slower), at_a_time, processes, reporter)
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            futures += (pool.submit(workers.one, job) for job in jobs)
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            workers.end()
            raise
    return workers.failed


class AllJobs:
    """How much of all work is done: what has ended, and what runs by the time that it has taken."""

    def __init__(
        self,
        jobs: Sequence[Job],
        expected: Mapping[str, float],
        slower: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count, self.ended = len(jobs), 0
        self._seconds = {(row.name, seed): max(expected[row.name] * slower, 1e-3) for row, seed in jobs}
        self._clock, self._began = clock, dict[tuple[str, int], float]()
        self._did, self._took = 0.0, 0.0

    def begin(self, job: Job) -> None:
        self._began[job[0].name, job[1]] = self._clock()

    def end(self, job: Job) -> None:
        key = (job[0].name, job[1])
        self.ended += 1
        self._did += self._seconds[key]
        self._took += self._clock() - self._began.pop(key)

    def percent(self) -> int:
        """Of the expected seconds, which the jobs that have ended correct; 100 when all have."""
        if self.ended == self.count:
            return 100
        pace = self._took / self._did if self._did else 1.0
        now, running = self._clock(), 0.0
        for key, began in self._began.items():
            running += min((now - began) / max(pace, 1e-9), RUNNING_AT_MOST * self._seconds[key])
        return int(100 * (self._did + running) / sum(self._seconds.values()))


class _Workers:
    """What the threads share that wait for a process each."""

    def __init__(self, run: Path, jobs: AllJobs, at_a_time: int, processes: RowProcesses, reporter: Reporter) -> None:
        self.failed: dict[str, str] = {}
        self._processes = processes
        self._run, self._jobs, self._at_a_time, self._reporter = run, jobs, at_a_time, reporter
        self._lock, self._ending = threading.Lock(), False
        self._slots = list(range(at_a_time))
        self._children: set[subprocess.Popen[str]] = set()
        self._unheard: BaseException | None = None
        self._tell("")

    def one(self, job: Job) -> None:
        """A job from start to end."""
        with self._lock:
            slot = self._slots.pop()
            self._jobs.begin(job)
        reason = run_worker(self, self._run, job, slot)
        with self._lock:
            self._slots.append(slot)
            self._jobs.end(job)
            if reason is not None:
                self.failed[f"{job[0].name}, seed {job[1]},"] = reason
            if not self._ending:
                self._tell(f"{job[0].title}, seed {job[1]}, done")

    def _tell(self, note: str) -> None:
        """One line for all workers, in percent of the expected work."""
        about = f"{self._jobs.ended} of {self._jobs.count} rows done"
        self._reporter.progress("comparison, %", self._jobs.percent(), 100, f"{about}; {note}" if note else about)

    def end(self) -> None:
        """Kill all workers with what they have started, and start no more; a second interruption does not keep it from
        that."""
        while True:
            try:
                with self._lock:
                    self._ending = True
                    for child in self._children:
                        _kill_group(child)
                return
            except KeyboardInterrupt:
                continue

    def process(self, job: Job, slot: int, log: Path) -> int | None:
        """Run a worker; its exit code, or None where all is being ended."""
        row, seed = job
        command = [sys.executable, "-m", "harpe.distributed.child", WORKER, str(self._run), row.name, str(seed)]
        command.append(self._processes.text())
        cores, count = available_cores(), self._processes.count
        environment = worker_environment(os.environ, slot, self._at_a_time, cores, count)
        with log.open("w", encoding="utf-8") as errors:
            with self._lock:
                if self._ending:
                    return None
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                    start_new_session=True,  # what it starts is in its group, and Ctrl-C reaches this process alone
                )
                self._children.add(child)
            listener = threading.Thread(target=self._listen, args=(child, f"{row.name} {seed}"), daemon=True)
            listener.start()
            if hasattr(os, "waitid"):
                # its number stays taken until the group is gone
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            else:  # macOS before Python 3.13
                child.wait()
            with self._lock:
                _kill_group(child)
                code = child.wait()
                self._children.discard(child)
            listener.join(LAST_WORDS)
            assert child.stdin is not None
            child.stdin.close()
        if self._unheard is not None:
            raise self._unheard
        return None if self._ending else code

    def _listen(self, child: subprocess.Popen[str], name: str) -> None:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if (value := _progress(line)) is not None:
                    of = "" if value["total"] is None else f"/{value['total']}"
                    note = f", {value['note']}" if value["note"] else ""
                    with self._lock:
                        self._tell(f"{name}: {value['what']} {value['done']}{of}{note}")
        # nobody reads what is reported any more; a worker that nobody listens to would wait for ever
        except Exception as error:
            self._unheard = error
            _kill_group(child)


def _progress(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None  # a library that prints
    return value if isinstance(value, dict) and "what" in value else None


def run_worker(workers: _Workers, run: Path, job: Job, slot: int) -> str | None:
    """One worker from start to end; why it failed, or None."""
    folder = run / job[0].name / f"seed-{job[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    code = workers.process(job, slot, folder / "worker.log")
    # the worker's last act: how its process ended behind it changes nothing
    if not code or (folder / "record.json").is_file():
        return None
    if code == FAILED:
        return str(read_json(folder / "failed.json")["reason"])
    log = folder / "worker.log"
    reason = f"its process {how_it_ended(code, log)} (see {log})"
    write_json(folder / "failed.json", {"reason": reason})
    return reason


def _kill_group(child: subprocess.Popen[str]) -> None:
    # gone; macOS says the second where only the dead leader is left
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
