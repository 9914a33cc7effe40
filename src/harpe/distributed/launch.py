"""Processes that train together on one machine, started by one that waits for them: it sees how each of them ends.

They find each other as those of torchrun do. Its own launcher starts every process in a session of its own, which
whoever kills a whole group does not reach; these stay in the group of the one that starts them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from harpe.distributed.child import lifeline
from harpe.errors import BrokenOff, HarpeError, OtherFailed
from harpe.files import read_json, write_json

FAILED = 3
"""Exit code of a process that has written why it failed, or has heard that another one did."""
POLL = 0.05
"""Seconds between two looks at the processes."""
GRACE = 5.0
"""Seconds after the first failure in which others may end by themselves: one that was killed may be seen to end after
those that miss it."""


def reported(failed: Path, work: Callable[[], object]) -> int:
    """Work; the exit code of the process. A sentence why it failed goes to the file `failed`, an end of memory too."""
    try:
        work()
    except BrokenOff as error:  # whoever has started all of them knows which one has ended
        print(error, file=sys.stderr)
        return 1
    except OtherFailed:
        return FAILED
    except HarpeError as error:
        write_json(failed, {"reason": str(error)})
        return FAILED
    except (torch.OutOfMemoryError, MemoryError) as error:
        what = str(error).splitlines()[0] if str(error) else "no more to be had"
        write_json(failed, {"reason": f"Out of memory: {what}."})
        return FAILED
    return 0


def how_it_ended(code: int, log: Path) -> str:
    """Of a process, by its exit code, with the last line of its log where it ended by itself."""
    if code >= 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with code {code}{': ' + last[-1] if last else ''}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"was killed by signal {-code} ({name}){', as for want of memory' if -code == signal.SIGKILL else ''}"


def run_ranks(
    count: int, module: str, arguments: Sequence[str], folder: Path, *, threads: int, silent: bool = False
) -> None:
    """Run `main` of a module in `count` processes and wait for them; when one fails, or this process ends, all end.

    Parameters
    ----------
    folder
        Gets rank-N.log, their standard error and the standard output of all but the first, and failed.json, where they
        tell by `reported` why they failed.
    threads
        Of each process.
    silent
        The standard output of the first goes to its log too, and no sentence names the logs: the folder is not kept.

    Raises
    ------
    HarpeError
        With the reason in failed.json, or how the process ended that failed first.
    """
    failed = folder / "failed.json"
    folder.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    # the store in which they meet is kept here: of a port that is only named, another could be first
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "harpe.distributed.child", module, *arguments]
    ranks: list[subprocess.Popen[bytes]] = []
    with lifeline() as stdin, ExitStack() as stack:
        try:
            for rank in range(count):
                file = stack.enter_context((folder / f"rank-{rank}.log").open("wb"))
                environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                out: Any = None if rank == 0 and not silent else file
                ranks.append(subprocess.Popen(command, stdin=stdin, stdout=out, stderr=file, env=environment))
            rank, code = _failure(ranks, failed)
        finally:
            for each in ranks:
                each.kill()
            for each in ranks:
                each.wait()
    if not code:
        return
    if failed.is_file():
        raise HarpeError(str(read_json(failed)["reason"]))
    log = folder / f"rank-{rank}.log"
    where = "" if silent else f" (see {log})"
    raise HarpeError(f"Process {rank} of {count} (counted from 0) {how_it_ended(code, log)}{where}")


def _failure(ranks: Sequence[subprocess.Popen[bytes]], failed: Path) -> tuple[int, int]:
    """Wait for the end of all; number and exit code of the one that failed, killed ones first, or zeros."""
    while not (first := _bad(ranks)):
        if all(each.poll() == 0 for each in ranks):
            return 0, 0
        time.sleep(POLL)
    until = time.monotonic() + GRACE
    while time.monotonic() < until and not failed.is_file() and any(each.poll() is None for each in ranks):
        time.sleep(POLL)
    # libraries abort where another process is missing
    killed = {rank: code for rank, code in _bad(ranks).items() if code < 0 and code != -signal.SIGABRT}
    return next(iter((killed or first).items()))


def _bad(ranks: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    codes = {rank: each.poll() for rank, each in enumerate(ranks)}
    return {rank: code for rank, code in codes.items() if code}
