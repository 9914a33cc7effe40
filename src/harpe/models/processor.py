"""What turns images and sound into a model's inputs: kept as it is beside a model whose text decoder was extended."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from harpe.models.geometry import text_config

FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def keep_processor(config: PreTrainedConfig, folder: Path) -> None:
    """Copy the processor's files from where the model was loaded, a folder or the hub; there are none of a language
    model."""
    if text_config(config) is config or not config.name_or_path:
        return
    for name in FILES:
        file = cached_file(
            config.name_or_path,
            name,
            revision=getattr(config, "_commit_hash", None),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is not None:
            shutil.copyfile(file, folder / name)
