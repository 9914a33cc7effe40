"""Every generation of ours: greedy, and decided by the weights, the prompt and the arguments alone.

A checkpoint may bring a generation_config.json: a repetition penalty, beams, suppressed tokens, a temperature, a limit
of time. `generate` of transformers takes from it whatever the caller leaves open. Here nothing of it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from harpe.models.angles import start_anew
from harpe.models.geometry import text_config

READ = 4096
"""Tokens, over all rows of a batch, in one forward pass of a long reading."""


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer, ascending: the tokenizer's end-of-text token, and those that config.json calls one
    (the end of a turn, with chat models) and that the tokenizer holds for special tokens.

    Special, because the configurations of many families name an id of their own where a checkpoint's says nothing,
    which with another tokenizer is an ordinary word.
    """
    special = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special} | set(
        tokenizer.all_special_ids
    )
    ends = {tokenizer.eos_token_id} - {None}
    for config in (model.config, text_config(model.config)):
        told = getattr(config, "eos_token_id", None)
        ends |= set(told if isinstance(told, (list, tuple)) else [told]) & special
    return sorted(int(i) for i in ends)


@contextmanager
def _without_settings(model: PreTrainedModel) -> Iterator[None]:
    """While the block runs, the model has no settings for generation that `generate` could fill gaps from."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor,
    mask: torch.Tensor,
    budget: int,
    until: Any = None,
) -> torch.Tensor:
    """Greedy continuations of prompts of several lengths, which are padded on the left.

    Parameters
    ----------
    ids, mask
        int64 [B, S]; the mask is 0 where a row is padded.
    budget
        Tokens of an answer at most.
    until
        A `StoppingCriteriaList` that may end answers before.

    Returns
    -------
    int64 [B, N], N <= budget: each row ends with a token of `end_ids`, padded behind it, or is cut.
    """
    ends = end_ids(model, tokenizer)
    pad = next((i for i in (tokenizer.pad_token_id, *ends) if i is not None), 0)
    config = GenerationConfig(
        max_new_tokens=budget, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=ends or None, use_cache=True
    )
    generate: Any = model.generate
    start_anew(model)
    with _without_settings(model):
        out = generate(input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=until)
    return out[:, ids.shape[1] :]


def completions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], budget: int
) -> list[str]:
    """Greedy continuations of prompts (token ids) to an end id or `budget` tokens, as texts without special tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    out = continuations(model, tokenizer, ids, mask, budget)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in out.tolist()]


def read(model: PreTrainedModel, ids: torch.Tensor, cache: Any, whole: bool = False) -> Any:
    """Read ids int64 [B, S] on from what the cache holds, a piece at a time unless `whole`; returns the last piece's
    output.

    Without a cache (None) the model makes its own, and it has to be `whole`.
    """
    size = ids.shape[1] if whole else max(1, READ // ids.shape[0])
    for start in range(0, ids.shape[1], size):
        out = model(input_ids=ids[:, start : start + size], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out


@torch.inference_mode()
def answer(
    model: PreTrainedModel, pending: torch.Tensor, cache: Any, budget: int, whole: bool = False
) -> tuple[torch.Tensor, list[float], Any]:
    """Greedy answers of exactly `budget` tokens to pending int64 [B, S], which is read first; no token ends them.

    Returns
    -------
    int64 [B, budget]; for every row the least distance between its two first logits at any of these tokens; and the
    cache, which holds all but the last token."""
    if cache is None:
        start_anew(model)
    out = read(model, pending, cache, whole)
    tokens: list[torch.Tensor] = []
    margins = []
    for number in range(budget):
        if number:
            out = model(input_ids=tokens[-1], past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].float()
        tokens.append(logits.argmax(-1, keepdim=True))
        values = logits.topk(2).values
        margins.append(values[:, 0] - values[:, 1])
    return torch.cat(tokens, dim=1), torch.stack(margins).amin(0).tolist(), out.past_key_values
