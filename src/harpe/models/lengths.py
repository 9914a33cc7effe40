"""What a checkpoint says of its context beside the number that positions are made from.

Training programs leave the context under names without meaning to transformers, and generation configurations end all
texts there. Servers go by the smallest number that they find, and `generate()` by its own: a model that reads further
would be cut where the original ended.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from harpe.models.geometry import text_config
from harpe.models.scaling import LONGER

NAMES = (*LONGER, "n_positions", "seq_len")
"""Where vLLM 0.32 looks for a context, beside max_position_embeddings."""


def tell_length(model: PreTrainedModel, before: int, length: int) -> None:
    """Have a model that was extended from `before` to `length` tokens say nothing else of its context, in place.

    The names in its configuration, where it has them, get what `max_position_embeddings` says. The generation
    configuration's `max_length` becomes the new context where it was the old one, or between the two; a shorter one is
    its author's wish.
    """
    config = text_config(model.config)
    for name in NAMES:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, config.max_position_embeddings)
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.max_length is not None and before <= generation.max_length < length:
        generation.max_length = length
