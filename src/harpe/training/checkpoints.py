"""Checkpoints of a stage: which are harpe's and whole, the weights in them, and when older ones go."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from harpe.distributed.processes import ALONE, Processes
from harpe.errors import HarpeError
from harpe.files import read_json, remove_folder, remove_leftovers, sha256_file, write_json

MARK = "complete.json"
"""Written into a checkpoint before it gets its name. What lacks it is not harpe's, and is neither read nor deleted."""

KEPT = 2
"""Whole checkpoints that a stage keeps."""


def mark_complete(checkpoint: Path, ranks: Processes = ALONE) -> None:
    """Write the mark, with every file's size and SHA-256, as the last act of saving; all processes read a share of the
    files."""
    there = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK)
    names = sorted(path.relative_to(checkpoint).as_posix() for path in there)
    mine = {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256_file(checkpoint / name)}
        for name in ranks.share(names)
    }
    files = {name: fact for share in ranks.gather(mine) for name, fact in share.items()}
    if ranks.first:
        write_json(checkpoint / MARK, {"files": {name: files[name] for name in names}})


def is_complete(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are to the byte what they were when it was marked."""
    try:
        files = read_json(checkpoint / MARK)["files"]
        return bool(files) and all(_is_same(checkpoint / name, fact) for name, fact in files.items())
    except (HarpeError, OSError, KeyError, TypeError, AttributeError):
        return False


def _is_same(file: Path, fact: dict[str, int | str] | int) -> bool:
    if isinstance(fact, int):  # marks had sizes only
        return file.is_file() and file.stat().st_size == fact
    return file.is_file() and file.stat().st_size == fact["bytes"] and sha256_file(file) == fact["sha256"]


def step_of(checkpoint: Path) -> int | None:
    """The step in a name such as `checkpoint-40`; None for any other name."""
    match = re.fullmatch(r"checkpoint-([1-9]\d*)", checkpoint.name)
    return int(match[1]) if match else None


def _numbered(folder: Path) -> dict[int, Path]:
    """Folders with names of checkpoints by step, the newest first."""
    found = {
        step: path for path in folder.glob("checkpoint-*") if (step := step_of(path)) is not None and path.is_dir()
    }
    return dict(sorted(found.items(), reverse=True))


def last_complete(folder: Path, tell: Callable[[str], None] = lambda sentence: None) -> Path | None:
    """The newest whole checkpoint of a stage; `tell` hears of newer ones that were damaged, which stay until they are
    made again."""
    for checkpoint in _numbered(folder).values():
        if (checkpoint / MARK).is_file():
            if is_complete(checkpoint):
                return checkpoint
            tell(
                f"{checkpoint} is not whole: its files are not those that its {MARK} tells of. The training goes on "
                "from the one before."
            )
    return None


def check_room(folder: Path, done: int, steps: int, save_every: int) -> None:
    """Remove what a killed process has left of a save, and refuse a stage whose checkpoints would fall on what is not
    harpe's.

    Raises
    ------
    HarpeError
        Naming what is in the way.
    """
    remove_leftovers(folder)
    for step in sorted({*range(save_every, steps, save_every), steps}):
        path = folder / f"checkpoint-{step}"
        if step > done and (path.exists() or path.is_symlink()) and not is_own(path):
            raise HarpeError(
                f"{path} is not harpe's (it has no {MARK}), and the training would save there. Move it to another "
                "place."
            )


def is_own(checkpoint: Path) -> bool:
    """Whether harpe made a folder, so that it may be replaced or deleted."""
    return step_of(checkpoint) is not None and not checkpoint.is_symlink() and (checkpoint / MARK).is_file()


def remove_checkpoints(folder: Path, before: int | None = None, keep: int = 0) -> None:
    """Delete harpe's checkpoints of a stage, those of steps below `before`, but for the newest `keep` of them; nobody
    else's."""
    own = [path for step, path in _numbered(folder).items() if is_own(path) and (before is None or step < before)]
    for path in own[keep:]:
        remove_folder(path)


def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Put a checkpoint's weights into a model in place, tensor by tensor: no second copy of them is in memory.

    Raises
    ------
    HarpeError
        Where one is missing, has another shape, or is unknown.
    """
    index = checkpoint / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    there, wrong, filled = model.state_dict(), set(), set()
    with torch.no_grad():
        for file in files:
            with safe_open(checkpoint / file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (no mapping)
                    value = weights.get_tensor(name)
                    if name not in there or there[name].shape != value.shape:
                        wrong.add(name)
                        continue
                    there[name].copy_(value)
                    filled.add(there[name].data_ptr())
    # tied ones share their memory
    wrong |= {name for name, value in there.items() if value.numel() and value.data_ptr() not in filled}
    if wrong:
        raise HarpeError(
            f"{checkpoint} does not hold the weights of this model: {', '.join(sorted(wrong)[:3])} do not fit. Move it "
            "away."
        )
