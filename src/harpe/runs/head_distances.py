"""Measures what methods ask of the heads of a checkpoint: how far they look, and how they pick tokens out."""

from __future__ import annotations

from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.files import cache_folder
from harpe.methods.measured import HeadQuantity
from harpe.models.geometry import changed_layers
from harpe.models.head_distance import SHORTEST, cached, cached_head_distances
from harpe.models.position_awareness import position_awareness
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
    texts = _texts(tokenizer, data, text_field)
    found, _ = cached_head_distances(model, texts, context, cache_folder() / "head-distances")
    asked = found[list(changed_layers(model.config))]
    low, high = asked.min(), asked.max()
    note = (
        f"Heads look {low:.0f} to {high:.0f} tokens back on average (mean attention distance inside {context} tokens, "
        f"{len(texts)} of the training texts)."
    )
    return found.tolist(), note


def measured_heads(
    what: HeadQuantity,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str,
    text_field: str,
    context: int,
) -> tuple[list[list[float]], str]:
    """`measured_distances`, or the position awareness of every key/value head, on the same texts."""
    if what == "distances":
        return measured_distances(model, tokenizer, data, text_field, context)
    texts = _texts(tokenizer, data, text_field)
    found, _ = cached("awareness", position_awareness, model, texts, context, cache_folder() / "head-awareness")
    asked = found[list(changed_layers(model.config))]
    note = (
        f"Heads give {asked.min():.2%} to {asked.max():.2%} of the tokens more than 3 times the mean attention, before "
        f"rotation ({len(texts)} of the training texts); they are ranked by it once, not on each prompt."
    )
    return found.tolist(), note


def _texts(tokenizer: PreTrainedTokenizerBase, data: str, text_field: str) -> list[list[int]]:
    ids, _ = training_ids(data, tokenizer, text_field, EMBEDDED_TOKENS)
    return list(islice((each for each in ids if len(each) >= SHORTEST), DOCUMENTS))
