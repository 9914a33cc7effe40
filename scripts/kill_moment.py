"""Kills a process, its parent or all of a trial at a chosen file operation: the short windows that a clock would never
hit.

`kill_campaign.py` calls `arm` in the process that it forks, and puts this file as `sitecustomize.py` in the way of the
workers that such a process starts. Python tells every open, rename, removal and new folder to an audit hook before it
happens; the hook counts those below the run directory, and either writes them down (a run that nobody kills) or strikes
at the one it was told.

The environment says what to do: KILL_MOMENT holds JSON with `under` (folder), `trace` (file, or null), `role` (parent
or worker), `number` (of the operation in a process of that role), `delay` (seconds behind it), `target` (self, parent
or group) and `parent` (process id); KILL_TRIAL names the trial and is what its processes are found by.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "shutil.rmtree")


def processes(trial: str) -> list[int]:
    """Ids of the running processes that were started (not forked) with this KILL_TRIAL in their environment."""
    found, mark = [], f"KILL_TRIAL={trial}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                running = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
                if running and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # ended meanwhile, or somebody else's
    return found


def kill(pids: list[int]) -> None:
    """SIGKILL to all of them."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _path(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an event is about, absolute; None where it is no change of the disk."""
    if event == "open":
        path, mode, flags = arguments
        if not (flags & WRITES if isinstance(flags, int) else any(c in str(mode) for c in "wax+")):
            return None
    else:
        path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None
    text = os.fsdecode(path)
    folders = [a for a in arguments[1:] if isinstance(a, int) and a > 2] if event in ("os.remove", "os.rmdir") else []
    if folders and not text.startswith("/"):
        text = f"{os.readlink(f'/proc/self/fd/{folders[0]}')}/{text}"
    return os.path.abspath(text)


def arm() -> None:
    """Count, or strike, as KILL_MOMENT says; nothing where it is not set."""
    if "KILL_MOMENT" not in os.environ:
        return
    order, trial = json.loads(os.environ["KILL_MOMENT"]), os.environ["KILL_TRIAL"]
    role = "worker" if any(".worker" in argument for argument in sys.orig_argv) else "parent"
    trace = os.open(order["trace"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if order["trace"] else None
    count = 0

    def strike() -> None:
        time.sleep(order["delay"])
        if order["target"] != "self":
            kill([int(order["parent"])] if int(order["parent"]) != os.getpid() else [])
        if order["target"] == "group":
            kill(processes(trial))
        if order["target"] != "parent" or int(order["parent"]) == os.getpid():
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event != "open" and event not in EVENTS:
            return
        path = _path(event, arguments)
        if path is None or not path.startswith(order["under"]):
            return
        count += 1
        if trace is not None:
            os.write(trace, f"{role} {count} {event}\n".encode())
        elif role == order["role"] and count == order["number"]:
            if order["delay"]:
                threading.Thread(target=strike, daemon=True).start()
            else:
                strike()

    sys.addaudithook(hook)


if __name__ == "sitecustomize":
    arm()
