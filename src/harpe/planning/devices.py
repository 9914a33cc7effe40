"""Devices that a training is planned for: how many, how much memory, how fast."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harpe.errors import HarpeError

PEAKS = {
    "A10": 125e12,
    "A100": 312e12,
    "A6000": 155e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
    "RTX3090": 71e12,
    "RTX4090": 165e12,
}
"""Dense bfloat16 operations a second with float32 sums, from the makers' data sheets as of November 2026. A100, H100
and B200 are those of the SXM boards."""
MEMORIES = {
    "A10": 24,
    "A6000": 48,
    "B200": 180,
    "GH200": 96,
    "H100": 80,
    "H200": 141,
    "L4": 24,
    "L40S": 48,
    "MI300X": 192,
    "RTX3090": 24,
    "RTX4090": 24,
}
"""Gigabytes where a name has one size; the A100 has two."""
GB = 10**9
RESERVE = 0.2
"""Share of a device's memory that a plan leaves free, so that a training may need a quarter more than planned: the
driver, NCCL and pieces between allocations are not counted, and plans are within a fifth of what others have
published."""
PATTERN = re.compile(r"(?:(\d+)\s*x\s*)?([A-Za-z][A-Za-z0-9]*)(?:-(\d+(?:\.\d+)?)\s*GB)?", re.IGNORECASE)


@dataclass(frozen=True)
class Devices:
    """`count` devices of one kind, 8 a node unless said otherwise."""

    count: int
    name: str
    memory: int
    """Bytes of one."""
    peak: float | None = None
    """Operations a second in bfloat16, where it is known."""
    reserve: float = RESERVE

    @property
    def usable(self) -> int:
        """Bytes of one that a plan may fill."""
        return int(self.memory * (1 - self.reserve))

    @property
    def cpu(self) -> bool:
        return self.name == "CPU"

    def times(self, factor: int) -> Devices:
        """The same kind, `factor` times as many."""
        memory = self.memory // factor if self.cpu else self.memory
        return Devices(self.count * factor, self.name, memory, self.peak, self.reserve)

    def __str__(self) -> str:
        memory = f"{self.memory / GB:.3g}"
        return f"{self.count}x{self.name}-{memory}GB"


def read_devices(text: str, reserve: float = RESERVE) -> Devices:
    """Devices out of 8xH100-80GB, 16xA100-40GB, H200, 4xCPU.

    Without a size it is that of the device's data sheet, of CPU the machine's memory divided by the processes. A device
    that is not in the table needs its size; its time is not planned.

    Raises
    ------
    HarpeError
        For what is no such text, and a size that is not known.
    """
    found = PATTERN.fullmatch(text.strip())
    if not found or int(found[1] or 1) < 1:
        raise HarpeError(f"--devices is {text}; write number, x, name and memory, such as 8xH100-80GB, or 2xCPU.")
    if not 0 <= reserve < 1:
        raise HarpeError(f"--reserve is {reserve}; it is a share of a device's memory, from 0 to below 1.")
    count, name, size = int(found[1] or 1), found[2].upper(), found[3]
    if name == "CPU":
        memory = int(float(size) * GB) if size else machine_memory() // count
        return Devices(count, name, memory, None, reserve)
    size = size or MEMORIES.get(name)
    if size is None:
        raise HarpeError(f"--devices {text} does not say how much memory a {found[2]} has: write {text}-80GB, say.")
    return Devices(count, name, int(float(size) * GB), PEAKS.get(name), reserve)


def machine_memory() -> int:
    """Bytes of this machine's memory, or of the part that its control groups may use."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limits():
        with suppress(OSError):
            text = path.read_text().strip()
            found += [int(text)] if text.isdigit() else []
    return min(found)


def _limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """Files with the limits of the control groups of this process, of both versions, from its own to the outermost."""
    lines = own.read_text().splitlines() if own.is_file() else []
    for _, controllers, place in (line.split(":", 2) for line in lines):
        top, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        if not controllers or "memory" in controllers.split(","):
            group = top / place.lstrip("/")
            yield from (folder / name for folder in (group, *group.parents) if folder.is_relative_to(top))
