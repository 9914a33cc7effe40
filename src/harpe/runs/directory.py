"""The run directory: made once, resumed only with the same recipe."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from harpe._version import __version__
from harpe.data.tokenised import worth_keeping
from harpe.distributed.processes import Processes
from harpe.errors import HarpeError
from harpe.files import held_place, read_json, remove_leftovers, write_json, write_text
from harpe.locks import OWN, locked
from harpe.models.dtype import choose_dtype

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


BEFORE = {"split_special_tokens": False}
"""What versions did that had no such option, where the default is something else."""


NAMED_FILES = ("model", "tokenizer", "data")
"""Options that name files, which may have moved."""


def open_run(out: str | Path, options: Any, resume: bool) -> Path:
    """The run directory, made with the recipe of `options` in it, or checked against it; the caller holds its lock
    (`held`).

    A recipe of a version that lacked some of today's options is read as if they had been given as they are by default.

    Raises HarpeError when the folder holds something else; when it holds a run and `resume` is False; when its recipe
    differs from the one at hand (the message shows the difference).
    """
    run, recipe = Path(out), options.recipe()
    path, text = run / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False)
    if path.is_file():
        defaults = {field.name: field.default for field in fields(options) if field.default is not MISSING} | BEFORE
        there = {key: value for key, value in defaults.items() if key in recipe} | read_recipe(path)
        if there != yaml.safe_load(text):
            now = yaml.safe_load(text)
            other = [key for key in {**there, **now} if there.get(key) != now.get(key)]
            moved = f" Where these are the same files under other names, write the names of now into {path}."
            raise HarpeError(
                f"{run} holds a run with another recipe; name another --out, or give the same options."
                f"{moved if {*other} <= {*NAMED_FILES} else ''}\n{_difference(there, recipe)}"
            )
        if not resume:
            raise HarpeError(f"{run} holds a run with this recipe. Go on with it by --resume, or name another --out.")
        return run
    _refuse_foreign(run)
    if resume:
        raise HarpeError(f"There is no run in {run} to resume; leave --resume out to start one.")
    write_text(path, text)
    return run


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run directory while it is worked on, and remove what a killed process has left in it; what is no run of
    harpe does not even get a lock file.

    Raises HarpeError where another process holds it, or it holds something else.
    """
    if not (run / "recipe.yaml").is_file():
        _refuse_foreign(run)
    with locked(run):
        if (run / "recipe.yaml").is_file():
            remove_leftovers(run)
        yield


@contextmanager
def held_scores(path: Path, ranks: Processes) -> Iterator[None]:
    """Hold the file or folder of a measurement, on the first process for all of them; of a run, the run directory.

    Raises HarpeError where another measurement is at work there.
    """
    hold = held(path) if (path / "recipe.yaml").is_file() else held_place(path)
    with ExitStack() as stack:
        ranks.broadcast_from_rank0(lambda: stack.enter_context(hold))
        yield


def _refuse_foreign(run: Path) -> None:
    if run.exists() and (not run.is_dir() or _holds_more_than_work(run)):
        raise HarpeError(
            f"--out {run} exists and holds no run of harpe; nothing in it is touched. Name another directory."
        )


def _holds_more_than_work(run: Path) -> bool:
    """Than tokens of a run whose data were refused (`removed_on_refusal`)."""
    entries = [entry for entry in run.iterdir() if entry.name not in OWN]
    if [entry.name for entry in entries] != ["data"] or not entries[0].is_dir():
        return bool(entries)
    files = [path for path in entries[0].rglob("*") if path.is_file()]
    return not all(any(parent.name.endswith(".unfinished") for parent in path.parents) for path in files)


def read_recipe(path: Path) -> dict[str, Any]:
    """recipe.yaml of a run; HarpeError where it is damaged."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise HarpeError(
            f"{path} cannot be read ({str(error).splitlines()[0]}). Restore it from a copy, or name another --out."
        ) from error
    if not isinstance(value, dict):
        raise HarpeError(f"{path} holds no recipe of a run. Restore it from a copy, or name another --out.")
    return value


def _without_work(data: Path) -> list[Path]:
    """The folders of a run's data in which no hours of work lie."""
    work = [path for path in data.rglob("*.unfinished") if any(map(worth_keeping, path.iterdir()))]
    if not work:
        return [data]
    return [path for path in data.iterdir() if not any(path == each or path in each.parents for each in work)]


@contextmanager
def removed_on_refusal(run: Path, unless: bool) -> Iterator[None]:
    """Remove what a new run has written where its data are refused, so that the mended command may use the same name.

    Nothing else goes, and what was tokenised of the texts stays (`harpe.data.tokenised`). The folder itself belongs to
    the lock, which removes it where it made it.
    """
    try:
        yield
    except HarpeError:
        if not unless:
            for folder in (*_without_work(run / "data"), run / "samples", run / "logs"):
                shutil.rmtree(folder, ignore_errors=True)
            for path in [run / "recipe.yaml", run / "environment.json", *run.glob("*/stages.json")]:
                path.unlink(missing_ok=True)
                if path.parent != run:
                    with suppress(OSError):
                        path.parent.rmdir()
        raise


def resume_dtype(wanted: str, before: Path, *keys: str) -> tuple[str, str]:
    """`choose_dtype`, where `before` tells under `keys` in which the work was begun."""
    if wanted == "auto" and before.is_file():
        value: Any = read_json(before)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise HarpeError(
                f"{before} is damaged: it does not tell the {' '.join(keys)}. Restore it from a copy, or name another "
                "--out."
            )
        return choose_dtype(wanted, str(value), "this run")
    return choose_dtype(wanted)


def _difference(there: dict[str, Any], now: dict[str, Any]) -> str:
    keys = sorted(k for k in {*there, *now} if there.get(k) != now.get(k))
    return "\n".join(f"  {key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in keys)


def write_environment(run: Path) -> list[str]:
    """Keep versions and machine as environment.json; where a run goes on in others, as environment-2.json and so on.

    Returns
    -------
    A sentence for what differs from the time before: where it is any, the numbers may differ in their last digits.
    """
    facts = {"harpe": __version__, **{name: version(name) for name in PACKAGES}}
    facts |= {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "threads": str(torch.get_num_threads()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    number = 1
    while (path := _environment(run, number)).is_file():
        number += 1
    if number > 1:
        before = read_json(_environment(run, number - 1))
        changed = [
            f"{key} {before.get(key)} then, {value} now" for key, value in facts.items() if before.get(key) != value
        ]
        if not changed:
            return []
        write_json(path, facts)
        return [
            f"This run goes on in another environment, which may change the last digits: {'; '.join(changed)} "
            f"({path.name})."
        ]
    write_json(path, facts)
    return []


def _environment(run: Path, number: int) -> Path:
    return run / ("environment.json" if number == 1 else f"environment-{number}.json")


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def check_disk(path: Path, needed: int, what: str) -> None:
    """Refuse to start what would fill the disk: `needed` bytes must be free where `path` lies."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        unit, size = ("GB", 1e9) if needed >= 1e9 else ("MB", 1e6)
        raise HarpeError(
            f"{what} needs about {needed / size:.1f} {unit} under {path}, and {free / size:.1f} {unit} are free. Free "
            "some space or choose another --out."
        )


def size_of_weights(run: Path) -> int:
    """Bytes of the models and checkpoints in a run; 0 where there is none."""
    return sum(path.stat().st_size for path in run.rglob("*.safetensors") if path.is_file())


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
