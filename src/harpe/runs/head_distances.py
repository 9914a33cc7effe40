"""Measures how far the heads of a checkpoint look, for --assignment adaptive."""

from __future__ import annotations

from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.files import cache_folder
from harpe.models.head_distance import SHORTEST, cached_head_distances
from harpe.runs.texts import training_ids

DOCUMENTS = 8
"""Texts that are read."""
EMBEDDED_TOKENS = 100_000
"""Of the embedded corpus, files are collected until there are about this many tokens."""


def measured_distances(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: str, text_field: str, context: int
) -> tuple[list[list[float]], str]:
    """Mean attention distance of every key/value head, [layers, heads], on the first texts of `data`; and a sentence
    that says so."""
    ids, _ = training_ids(data, tokenizer, text_field, EMBEDDED_TOKENS)
    texts = list(islice((each for each in ids if len(each) >= SHORTEST), DOCUMENTS))
    found, _ = cached_head_distances(model, texts, context, cache_folder() / "head-distances")
    low, high = found.min(), found.max()
    note = (
        f"Heads look {low:.0f} to {high:.0f} tokens back on average (mean attention distance inside {context} tokens, "
        f"{len(texts)} of the training texts); those that look farther get the larger bases."
    )
    return found.tolist(), note
