"""What a checkpoint is, by its content: what a score, a pair of scores or a run that is gone on with must be of."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file, extract_commit_hash

from harpe.errors import HarpeError
from harpe.files import sha256_json, sha256_once
from harpe.models.load import load_config, resolve

UNREAD = ("_name_or_path", "name_or_path", "transformers_version")
"""Entries of config.json that say where a checkpoint comes from; nothing is computed from them."""


def checkpoint_identity(name: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What decides everything that a checkpoint computes; equal for equal models, wherever they lie and whatever they
    are called.

    A folder is the SHA-256 of its configuration (but for `UNREAD`, and an adapter's, where there is one) and that of
    its weights: every safetensors file whole, by name. Sizes and times would not do, since a model that is trained on
    has the same shapes. A name on the hub is the commit that it stands for, which is such a hash already. The
    generation configuration does not count: nothing that harpe generates reads it. Nor does the tokenizer
    (`harpe.data.packing.tokenizer_identity`).

    Reading a folder takes about a second for each gigabyte, several files at a time, once in a process
    (`harpe.files.sha256_once`); loading the model takes at least that.

    Returns
    -------
    {"config": …, "weights": …} or {"commit": …}; plain strings, for JSON.

    Raises
    ------
    HarpeError
        For a checkpoint that cannot be read or found, and for a folder without weights in safetensors.
    """
    target = resolve(name)
    if not (folder := Path(target)).is_dir():
        load_config(target, revision)  # in sentences, what may fail
        commit = extract_commit_hash(cached_file(target, "config.json", revision=revision), None)
        if commit is None:
            raise HarpeError(
                f"The commit of {name} on the hub cannot be told. Name a folder that holds the model, or a --revision."
            )
        return {"commit": commit}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise HarpeError(f"The folder {folder} holds no weights in safetensors.")
    try:
        settings = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (folder / "config.json", folder / "adapter_config.json")
            if path.is_file()
        ]
        with ThreadPoolExecutor(8) as pool:
            weights = [[path.name, digest] for path, digest in zip(files, pool.map(sha256_once, files), strict=True)]
    except (OSError, ValueError) as error:
        raise HarpeError(f"The checkpoint in {folder} cannot be read ({error}).") from error
    config = [{key: value for key, value in each.items() if key not in UNREAD} for each in settings]
    return {"config": sha256_json(config), "weights": sha256_json(weights)}
