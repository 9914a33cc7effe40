"""Every generation of ours: greedy, and decided by the weights, the prompt and the arguments alone.

A checkpoint may bring a generation_config.json: a repetition penalty, beams, suppressed tokens, a temperature, a limit
of time. `generate` of transformers takes from it whatever the caller leaves open. Here nothing of it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from harpe.errors import HarpeError
from harpe.evaluation.cache import RowCache, why_padded
from harpe.evaluation.row_attention import one_query
from harpe.models.angles import moving_rope, start_anew
from harpe.models.geometry import text_config

READ = 4096
"""Tokens, over all rows of a batch, in one forward pass of a long reading."""
PIECE = 1024
"""Tokens of a prompt in one forward pass. Attention forms the products of a piece with itself that the causal mask then
throws away, where the cache holds something before it; short pieces have few of them."""
SHARED = 256
"""Tokens that two prompts have in common at least, where they are read once."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
ANSWERING = 4
"""A token of an answer takes about as long as this many of a prompt; for estimates of the time left."""


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


def numbers(logits: torch.Tensor) -> torch.Tensor:
    """The same logits, of any shape. Raises HarpeError where some are no numbers (NaN), which have a largest one too:
    answers, and choices between answers, would be taken for those of a model that knows nothing."""
    if bool(logits.isnan().any()):
        raise HarpeError(
            "The model's logits are no numbers (NaN), and nothing that it says can be scored: its weights or its "
            "configuration are damaged, or the arithmetic is too coarse for it (--dtype float32)."
        )
    return logits


class _Numbers(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return numbers(scores)


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
        out = generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=until,
            logits_processor=LogitsProcessorList([_Numbers()]),
        )
    return out[:, ids.shape[1] :]


class _Decided(StoppingCriteria):
    """Ends a row of `generate` where its caller has seen enough, and keeps how many tokens it had come to."""

    def __init__(self, enough: Callable[[int, list[int]], bool], prompt: int) -> None:
        self._enough, self._prompt = enough, prompt
        self.tokens: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        for row, ids in enumerate(input_ids[:, self._prompt :].tolist()):
            if row not in self.tokens and self._enough(row, ids):
                self.tokens[row] = len(ids)
        return torch.tensor([row in self.tokens for row in range(len(input_ids))], device=input_ids.device)


def completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    budget: int,
    enough: Callable[[int, str], bool] = lambda row, text: False,
    tick: Callable[[float], None] = lambda share: None,
) -> list[str]:
    """Greedy continuations of prompts (token ids) to an end id or `budget` tokens, as texts without special tokens.

    The prompts are read one by one and answered together; what one has in common with another is read once. Models
    that `harpe.evaluation.cache.why_padded` names read them padded on the left, together, by transformers' `generate`;
    where the length of a text decides its rotation, one after the other.

    Parameters
    ----------
    enough
        Asked after every token, with the number of a prompt and its answer so far, whether the answer may end here.
    tick
        Told from time to time which share of the work is done.
    """

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    def stop(row: int, ids: list[int]) -> bool:
        # where a run of byte tokens spells no text, ASCII in it is lost too
        return not _BYTE.fullmatch(str(tokenizer.convert_ids_to_tokens(ids[-1]))) and enough(row, text(ids))

    if why_padded(model) is None:
        return [text(ids) for ids in _answer_rows(model, prompts, budget, set(end_ids(model, tokenizer)), stop, tick)]
    # where the length of a text decides its rotation, padding would count too
    size = 1 if moving_rope(model.config) else len(prompts)
    texts: list[str] = []
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
        decided = _Decided(lambda row, ids, start=start: stop(start + row, ids), width)  # type: ignore[misc]
        out = continuations(model, tokenizer, ids, mask, budget, StoppingCriteriaList([decided])).tolist()
        texts += [text(ids[: decided.tokens.get(row)]) for row, ids in enumerate(out)]
        tick(len(texts) / (len(prompts) + 1))
    return texts


@torch.inference_mode()
def _answer_rows(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    budget: int,
    ends: Container[int],
    stop: Callable[[int, list[int]], bool],
    tick: Callable[[float], None],
) -> list[list[int]]:
    """Greedy answers to prompts as token ids: the prompts read one by one, the answers in one batch.

    A row whose answer has ended leaves the batch.
    """
    cache = RowCache(model, len(prompts), max(map(len, prompts)) + budget)
    whole, read_tokens = sum(map(len, prompts)) + ANSWERING * budget * len(prompts), 0
    answers: list[list[int]] = [[] for _ in prompts]
    before: int | None = None
    for row in sorted(range(len(prompts)), key=lambda i: (list(prompts[i]), i)):
        prompt = prompts[row]
        if before is not None and (same := _common(prompts[before], prompt[:-1])) >= SHARED:
            cache.begin_as(row, before, same)
        while (start := cache.lengths[row]) < len(prompt):
            piece = torch.tensor([prompt[start : start + PIECE]], device=model.device)
            with cache.read_row(row):
                logits = model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            cache.lengths[row] += piece.shape[1]
            tick((read_tokens + cache.lengths[row]) / whole)
        read_tokens, before = read_tokens + len(prompt), row
        answers[row].append(int(numbers(logits[0, -1].float()).argmax()))
    going = list(range(len(prompts)))
    for number in range(budget):
        for place in reversed(range(len(going))):
            ids = answers[going[place]]
            if ids[-1] in ends or len(ids) == budget or stop(going[place], ids):
                cache.drop(place)
                going[place] = going[-1]
                going.pop()
        if not going:
            break
        tick((read_tokens + ANSWERING * number * len(prompts)) / whole)
        with one_query(model):
            logits = model(
                input_ids=torch.tensor([[answers[row][-1]] for row in going], device=model.device),
                attention_mask=cache.mask(),
                position_ids=torch.tensor(cache.lengths, device=model.device)[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        cache.lengths = [length + 1 for length in cache.lengths]
        for row, token in zip(going, numbers(logits[:, -1].float()).argmax(-1).tolist(), strict=True):
            answers[row].append(token)
    return answers


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


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
        logits = numbers(out.logits[:, -1].float())
        tokens.append(logits.argmax(-1, keepdim=True))
        values = logits.topk(2).values
        margins.append(values[:, 0] - values[:, 1])
    return torch.cat(tokens, dim=1), torch.stack(margins).amin(0).tolist(), out.past_key_values
