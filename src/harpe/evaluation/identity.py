"""What a measurement is of: model and tokenizer by content, and harpe's way of measuring by number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.token_ids import tokenizer_identity
from harpe.models.identity import checkpoint_identity

MEASURING = {"evaluate": 2, "long": 1, "perplexity": 2, "ruler": 3, "short": 4}
"""By verb. Raised whenever the same model, texts and options give other numbers than before: results of both are not
mixed."""


def reading_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides how a tokenizer reads and writes: its content, and settings that its serialised form lacks."""
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    added = tokenizer("", verbose=False)["input_ids"]
    cleaned = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    return {**tokenizer_identity(tokenizer), **special, "around_text": list(added), "cleans_spaces": cleaned}


def identity_of(name: str | Path, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`model` and `tokenizer` of a measurement, by content; `name` is for readers: of a folder the end of its path, as
    the rest is the machine's."""
    called = "/".join(Path(name).absolute().parts[-3:]) if Path(name).is_dir() else name
    called = f"{called}{f' at {revision}' if revision else ''}"
    return {"name": called, "model": checkpoint_identity(name, revision), "tokenizer": reading_identity(tokenizer)}
