"""Which heads copy: the retrieval score of Wu et al. 2024 (arXiv 2404.15574), on harpe's own needles.

There a head copies a token where the model writes a token of the needle and the head's strongest attention rests on
that very token in the needle; the score of a head is the share of the needle's tokens that it copies. Here the answer
is given, not generated, so that all models are asked the same: for every token of the answer, the position that has to
predict it rests most on that token's place in the needle, or does not. `top` is the share of tokens where it does,
`weight` the mean attention there. Both are formed for every query head and averaged over the query heads of a key/value
head, which is what has a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from harpe.errors import HarpeError
from harpe.evaluation.greedy import read
from harpe.evaluation.needles.samples import NEEDLE_TASKS, NeedleWriter
from harpe.models.float_tables import attention_modules
from harpe.models.geometry import text_config
from harpe.models.head_distance import eager_attention
from harpe.models.per_head import key_value_heads

TASK = "multi_key"
"""Eight needles with different keys: what is copied has to be found by its key."""
RETRIEVAL = 0.1
"""From this score on Wu et al. call a head a retrieval head."""


@dataclass(frozen=True)
class CopyPrompt:
    """A needle sample with its answer."""

    ids: tuple[int, ...]
    """Context, question, answer."""
    answer: int
    """Where the answer begins."""
    source: int
    """Where the needle has the same tokens."""


def copy_prompts(writer: NeedleWriter, length: int, count: int, task: str = TASK) -> list[CopyPrompt]:
    """The first samples of a needle task, at `length` tokens, whose answer stands in the needle in the same tokens.

    Raises HarpeError where that is so in no sample.
    """
    found = []
    for sample in writer.samples(NEEDLE_TASKS[task], length, count):
        turn, context = sample.turns[0], sample.context
        answer = tuple(writer.encode(f" {turn.answers[0]}"))
        # the needle is worded like the question, with the answer behind it
        for wanted in ((*turn.question, *answer), (*turn.question[1:], *answer)):
            places = [i for i in range(len(context) - len(wanted)) if context[i : i + len(wanted)] == wanted]
            if places:
                source = places[-1] + len(wanted) - len(answer)
                found.append(CopyPrompt((*context, *turn.question, *answer), len(context) + len(turn.question), source))
                break
    if not found:
        raise HarpeError(
            f"In none of {count} needle samples do the answer's tokens stand in the needle: this tokenizer cuts them "
            "otherwise there, so that copying cannot be seen. Leave it out with --samples 0."
        )
    return found


@torch.inference_mode()
def copy_scores(
    model: PreTrainedModel, prompts: Iterable[CopyPrompt]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`top` and `weight` of every key/value head, float64 [L, H] each; nan for layers that methods do not change."""
    heads, layers = key_value_heads(text_config(model.config)), text_config(model.config).num_hidden_layers
    modules, training = attention_modules(model), model.training
    top, weight = (np.full((layers, heads), np.nan) for _ in range(2))
    for layer in modules:
        top[layer] = weight[layer] = 0.0
    places: list[int] = []

    def look(layer: int) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if not places:  # the context is being read
                return
            attention = output[1][0].double()  # [query heads, queries, keys]
            first = places[-1] + 1 - attention.shape[-1]  # of a window's keys, the number of the oldest
            for query, place in enumerate(places[:-1]):
                row = attention[:, query]
                if place >= first:
                    hit = (row.argmax(dim=-1) == place - first).double()
                    for total, values in ((top, hit), (weight, row[:, place - first])):
                        total[layer] += values.unflatten(0, (heads, -1)).mean(dim=1).cpu().numpy()

        return hook

    tokens = 0
    model.eval()
    handles = [module.register_forward_hook(look(layer)) for layer, module in modules.items()]
    try:
        for prompt in prompts:
            ids, count = torch.tensor([prompt.ids], device=model.device), len(prompt.ids) - prompt.answer
            places[:] = []
            cache = DynamicCache(config=model.config)
            read(model, ids[:, : prompt.answer - 1], cache)
            places[:] = [*range(prompt.source, prompt.source + count), len(prompt.ids) - 2]
            with eager_attention(model):
                model(input_ids=ids[:, prompt.answer - 1 : -1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens += count
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not tokens:
        raise HarpeError("There is no needle sample to see copying on.")
    return top / tokens, weight / tokens
