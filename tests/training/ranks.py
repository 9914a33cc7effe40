"""Ranks of a launcher for tests: `python ranks.py COUNT MODULE FUNCTION ARGUMENT…`, or `in_ranks` from a test.

One process imports everything once and then forks, so that eight ranks cost little more than one. Ranks find each other
as those of torchrun do, by the environment.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.multiprocessing

TESTS = Path(__file__).parents[1]


def in_ranks(count: int, module: str, function: str, *arguments: str) -> str:
    """Call a function of a test module in `count` processes; what they print. Fails where one fails."""
    command = [sys.executable, __file__, str(count), module, function, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def _rank(rank: int, count: int, port: int, module: str, function: str, arguments: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    getattr(importlib.import_module(module), function)(*arguments)


def main() -> None:
    count, module, function, *arguments = sys.argv[1:]
    sys.path.insert(0, str(TESTS))
    importlib.import_module(module)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _rank, (int(count), port, module, function, arguments), int(count), start_method="fork"
    )


if __name__ == "__main__":
    main()
