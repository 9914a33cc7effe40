"""Whether a folder holds a whole model: what counts as done is what can be loaded, not what has a name."""

from __future__ import annotations

import json
from pathlib import Path

from harpe.errors import HarpeError


def missing_of(folder: Path) -> str | None:
    """What a model's folder lacks, None where it is whole: config.json, and every weight file that the index names,
    each as long as its header says."""
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = ["model.safetensors"]
        if (index := folder / "model.safetensors.index.json").is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"config.json or the index of its weights cannot be read ({error})"
    return next((f"{name} is missing or cut short" for name in names if not _whole(folder / name)), None)


def check_saved(folder: Path) -> None:
    """HarpeError where a folder that counts as done holds no whole model."""
    if missing := missing_of(folder):
        raise HarpeError(
            f"{folder} holds no whole model: {missing}. Move it to another place; then the run goes on and saves it "
            "again."
        )


def _whole(file: Path) -> bool:
    """Whether a safetensors file (8 bytes, header, data) is as long as its header says."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= 100_000_000:
                return False
            header = json.loads(stream.read(size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(ends) and file.stat().st_size == 8 + size + max(ends)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
