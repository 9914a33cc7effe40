"""Token ids for which a model has no embedding: refused where one occurs, not for being in the vocabulary.

Published tokenizers know tokens that their model was never given a row for: Gemma 3 1B one for images, Code Llama 34B
those for filling in, many a padding token. Texts do not hold them, and the models work.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.models.geometry import text_config


def check_vocabulary(
    model_or_config: PreTrainedModel | PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """From here on refuse every token without an embedding where it occurs, with its name.

    It has an effect only where the tokenizer's ids go beyond the embeddings. Then the tokenizer refuses a text that
    holds such a token, and a model refuses such an id, wherever it comes from (data that were packed before, say).

    Raises HarpeError at once where the beginning or end of a text is such a token.
    """
    model = model_or_config if isinstance(model_or_config, PreTrainedModel) else None
    rows = text_config(
        model_or_config.config if isinstance(model_or_config, PreTrainedModel) else model_or_config
    ).vocab_size
    if max(tokenizer.get_vocab().values(), default=-1) < rows:
        return

    def refuse(largest: int) -> None:
        if largest >= rows:
            raise HarpeError(
                f"The token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}) is in a text, but {name} has "
                f"{rows} embeddings, none for it. Take it out of the text; where ordinary words are such tokens, the "
                "tokenizer belongs to another model (--tokenizer)."
            )

    refuse(max((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), default=-1))

    def encode_known(self: PreTrainedTokenizerBase, *args: Any, **kwargs: Any) -> Any:
        encoded = type(self)._encode_plus(self, *args, **kwargs)
        refuse(max(_ids(encoded["input_ids"]), default=-1))
        return encoded

    tokenizer._encode_plus = types.MethodType(encode_known, tokenizer)  # type: ignore[method-assign]  # all encoding leads through it
    if model is not None:

        def look_up_known(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if args and args[0].numel():
                refuse(int(args[0].max()))

        model.get_input_embeddings().register_forward_pre_hook(look_up_known)


def _ids(value: Any) -> Iterator[int]:
    """The ids of one text or of several."""
    if isinstance(value, int):
        yield value
    else:
        for each in value.tolist() if hasattr(value, "tolist") else value:
            yield from _ids(each)
