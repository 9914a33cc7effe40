"""The embedded corpus: Python source files that exist on every machine where harpe is installed.

It lets the quickstart, the tests and the making of the embedded base model run without any download. The files are
those of the interpreter's standard library and of the packages that harpe itself needs.

The held-out rule is by content: a file whose SHA-256 begins with 0 or 1 (one in eight) is never trained on, neither in
making the base model nor in extending it. Held-out documents and needle haystacks come from those files only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harpe.errors import HarpeError

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "jsonargparse", "rich", "jinja2")
"""Packages that harpe depends on and whose `.py` files are part of the corpus."""

MIN_BYTES, MAX_BYTES = 8_000, 200_000
"""Smaller files are no long documents; larger ones are mostly generated tables."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus."""

    name: str
    """Package and path inside it, with forward slashes, e.g. `stdlib/argparse.py`."""
    text: str
    sha256: str

    @property
    def held_out(self) -> bool:
        """Whether the file is kept out of every training."""
        return self.sha256[0] in "01"


def _package_root(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise HarpeError(
            f"The embedded corpus needs the package {package}, which is not installed; run `make install`."
        )
    return Path(spec.origin).parent


@lru_cache(maxsize=4)
def source_files(packages: tuple[str, ...] = ("stdlib", *PACKAGES)) -> tuple[SourceFile, ...]:
    """All files of the corpus, in the order of their SHA-256: a fixed shuffle that is the same on every machine.

    Tests, installed packages below the standard library, duplicates and files that are not UTF-8 are left out.
    """
    found: dict[str, SourceFile] = {}
    for package in packages:
        root = _package_root(package)
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if any(part.startswith("test") or part in ("site-packages", "idle_test") for part in relative.parts):
                continue
            if not MIN_BYTES <= path.stat().st_size <= MAX_BYTES:
                continue
            raw = path.read_bytes()
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                continue
            digest = hashlib.sha256(raw).hexdigest()
            found.setdefault(digest, SourceFile(f"{package}/{relative.as_posix()}", text, digest))
    if not found:
        raise HarpeError("No Python source files were found for the embedded corpus: is the standard library zipped?")
    return tuple(found[digest] for digest in sorted(found))


def training_files(packages: tuple[str, ...] = ("stdlib", *PACKAGES)) -> list[SourceFile]:
    """Files that may be trained on."""
    return [file for file in source_files(packages) if not file.held_out]


def held_out_files(packages: tuple[str, ...] = ("stdlib", *PACKAGES)) -> list[SourceFile]:
    """Files that are never trained on: the evaluation's documents and haystacks."""
    return [file for file in source_files(packages) if file.held_out]


def tuning_files(packages: tuple[str, ...] = ("stdlib", *PACKAGES)) -> list[SourceFile]:
    """The held-out files (SHA-256 begins with 0) that settings may be tuned on; reported figures use the others."""
    return [file for file in held_out_files(packages) if file.sha256[0] == "0"]


def reported_files(packages: tuple[str, ...] = ("stdlib", *PACKAGES)) -> list[SourceFile]:
    """The held-out files (SHA-256 begins with 1) that reported figures come from, and nothing else."""
    return [file for file in held_out_files(packages) if file.sha256[0] == "1"]


def corpus_hash(files: list[SourceFile]) -> str:
    """SHA-256 over the files' own hashes in order: names the corpus exactly."""
    return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
