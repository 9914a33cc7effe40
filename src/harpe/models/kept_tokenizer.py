"""Whether a tokenizer is the same one after it was saved beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from harpe.errors import HarpeError

TEXT = (
    "In 1984 it's 12345.678  of\n\n\tx\u00e9 e\u0301 \u5317\u4eac\u3002 \u0645\u0631 \U0001f642 DON'T can't (n+1)%2;\n"
    "    def f(x):\r\n\treturn x   \n<b>  \u00a0 \u2026 100,000 \u0928\u092e\u0938\u094d\u0924\u0947 "
    "\u041f\u0440\u0438\u0432\u0435\u0442"
)
"""Digits, spaces, line ends, accents and scripts, which the rules of tokenizers part in different ways."""


def loaded_as(tokenizer: PreTrainedTokenizerBase, folder: Path, config: PreTrainedConfig) -> str | None:
    """The class that the tokenizer, saved to `folder`, is loaded as beside a model of this configuration, where that
    splits texts by another rule or has other tokens; None where nothing differs.

    transformers has one class for all tokenizers of some families, whatever the saved one says.
    """
    kept = AutoTokenizer.from_pretrained(str(folder), config=config, trust_remote_code=False)
    return None if _what_splits(kept) == _what_splits(tokenizer) else type(kept).__name__


def check_kept(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str) -> None:
    """Refuse a tokenizer that makes other tokens once it was saved beside a model of this configuration: the model
    would be trained on the tokens of one and used with those of the other.

    Raises HarpeError.
    """
    with TemporaryDirectory(prefix="harpe-") as folder:
        tokenizer.save_pretrained(folder)
        try:
            kept: Any = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        except Exception as error:  # of as many kinds as there are classes
            raise HarpeError(
                f"The tokenizer of {name} cannot be loaded again once it is saved beside a model of type "
                f"{config.model_type} ({type(error).__name__}: {' '.join(str(error).split())[:200]}). Name another one "
                "(--tokenizer)."
            ) from error
    if kept(TEXT)["input_ids"] != tokenizer(TEXT)["input_ids"]:
        raise HarpeError(
            f"The tokenizer of {name} makes other tokens once it is saved beside a model of type {config.model_type}, "
            f"for which transformers loads it as {type(kept).__name__}. Use the model's own tokenizer (without "
            "--tokenizer), or one that transformers keeps beside such a model."
        )


def _what_splits(tokenizer: Any) -> list[Any]:
    """All that decides which tokens a text becomes."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = [state["model"].get(key) for key in ("vocab", "merges", "ignore_merges", "byte_fallback")]
    return [*model, *(state[key] for key in ("added_tokens", "normalizer", "pre_tokenizer"))]
