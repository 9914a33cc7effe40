"""What a checkpoint with a scaling of its own (linear, YaRN, LongRoPE, Llama 3) was trained on, from its configuration.

Two things count, and both come from angles. Before the scaling the pairs came to L0 theta_i, with it to L theta'_i,
theta' being the scaled inverse frequencies and L the longer context; the larger of the two is the *trained angle* of a
pair, beyond which its angles are new. And the attention factor, by which cos and sin are multiplied: the weights have
adapted to it.

Whether a scaling was trained with, and from which context to which, a configuration does not say outright: see
`declared`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from harpe.models.per_head import is_factor_alone, stock_frequencies
from harpe.models.trained_base import SCALED, module_frequencies

SHORTEST_PRETRAINING = 2048
"""Tokens; no RoPE model of full size was pretrained on less (LLaMA and GPT-NeoX-20B: 2,048)."""
LONGER = ("max_sequence_length", "max_seq_length", "max_seq_len", "seq_length", "model_max_length")
"""Keys of a configuration, without meaning to transformers, in which training programs leave the context."""


class Trained(NamedTuple):
    """What a checkpoint was trained on."""

    length: int
    attention_factor: float
    trained_angles: tuple[float, ...] | None
    """Radians by pair; None where there was no scaling."""


class Declared(NamedTuple):
    """What a configuration says of contexts, in tokens."""

    before: int
    """Before its scaling."""
    after: int
    """With it; `before` where the scaling is taken not to have been trained with."""
    why: str = ""
    """For the plan, where another reading is possible: which was taken, from what, and what to do if it is wrong."""


def declared(config: PreTrainedConfig, rope: dict[str, Any], outer: PreTrainedConfig | None = None) -> Declared:
    """Contexts before and after the scaling in `rope`, as far as a configuration (and the tokenizer beside it) tells.

    `max_position_embeddings` M is the context that a checkpoint is for. It is longer than that before the scaling, L0,
    where the scaling was trained with (Llama 3.1, Phi-3, gpt-oss), and L0 where the reader was told to add one (Qwen2.5
    with YaRN).
        llama3, longrope    trained with if M > L0
        yarn                trained with if M >= factor L0 (Qwen3's M counts 8,192 tokens of answer) or `finetuned`, or
                            if harpe made it, whose M is the length that it was given
        dynamic             never: up to L0 it changes nothing
        linear              two conventions, M is L0 or factor L0: see `_linear`; M where harpe made it
    """
    kind, limit = rope.get("rope_type", "default"), config.max_position_embeddings
    before, factor = rope.get("original_max_position_embeddings"), rope.get("factor") or 1.0
    if kind == "linear":
        return _linear(config, factor, before, outer or config)
    before = int(before or limit) if kind != "default" else limit
    ours = getattr(config, "harpe_original_length", None) is not None
    by_yarn = limit if ours or limit >= round(factor * before) else before
    with_it = {"llama3": limit, "longrope": limit, "yarn": by_yarn}.get(kind, before)
    if kind == "yarn" and rope.get("finetuned"):  # checkpoints of YaRN's authors
        with_it = max(limit, factor * before)
    return Declared(before, max(before, int(with_it)))


def _linear(config: PreTrainedConfig, factor: float, original: int | None, outer: PreTrainedConfig) -> Declared:
    """transformers' documentation asked to leave max_position_embeddings as it was before the scaling (Vicuna,
    LongChat), others raised it (DeepSeek-Coder, LLaMA-2-7B-32K, Gemma 3)."""
    limit, ours = config.max_position_embeddings, getattr(config, "harpe_original_length", None)
    if ours is not None:  # whose factor may be larger than what it was trained to
        return Declared(int(ours), int(limit))
    original = original or getattr(config, "original_max_position_embeddings", None)
    if original is not None:
        return Declared(int(original), int(max(limit, factor * original)))
    if factor <= 1:
        return Declared(limit, limit)
    longer, why = int(factor * limit), None
    for key in LONGER:
        if getattr(config, key, None) in (limit, longer):
            why, first = f"{key} is {getattr(config, key)}", getattr(config, key) == longer
            break
    else:
        told = _tokenizer_length(outer)
        if told in (limit, longer):
            why, first = f"the tokenizer's model_max_length is {told}", told == longer
        else:
            first = limit / factor < SHORTEST_PRETRAINING <= limit
            why = (
                f"{limit / factor:.0f} tokens are too few for a pretraining"
                if first
                else "nothing in it says otherwise"
            )
    if first:
        return Declared(
            limit,
            longer,
            f"max_position_embeddings, {limit}, is taken for the context before linear scaling, {longer} for that with "
            f"it ({why}).",
        )
    return Declared(
        int(limit / factor),
        limit,
        f"max_position_embeddings, {limit}, is taken for the context with linear scaling, {limit / factor:.0f} for "
        f"that before it ({why}). If it is that before, give --original-length {longer}.",
    )


def _tokenizer_length(config: PreTrainedConfig) -> int | None:
    """`model_max_length` of the tokenizer that lies beside a configuration; None where there is none."""
    source = config.name_or_path
    if not source:
        return None
    try:
        path = cached_file(source, "tokenizer_config.json", revision=getattr(config, "_commit_hash", None))
        told = json.loads(Path(path).read_text(encoding="utf-8")).get("model_max_length") if path else None
    except (OSError, ValueError, AttributeError):
        return None
    return int(told) if isinstance(told, int | float) and told < 1e9 else None


def trained_with(
    config: PreTrainedConfig,
    rotary: type,
    rope: dict[str, Any],
    plain: list[float],
    key: str | None,
    given: int | None,
    outer: PreTrainedConfig | None = None,
) -> Trained:
    """Context, attention factor and trained angles of a checkpoint.

    Parameters
    ----------
    rope
        Rope parameters of the layers that attend to everything, under `key` where layer types have entries of their
        own.
    plain
        Their inverse frequencies without the scaling.
    given
        The trained context by hand. No longer than that before the scaling, it says that the scaling was not trained
        with.
    outer
        The configuration that `config` is part of.
    """
    before, after, _ = declared(config, rope, outer)
    length = after if given is None else given
    if is_factor_alone(rope):
        return Trained(int(length), module_frequencies(config, rotary, key, length)[1], None)
    if rope.get("rope_type", "default") not in SCALED or length <= before:
        return Trained(int(length), 1.0, None)
    scaled, _ = stock_frequencies(config, rotary, rope, key, length)
    _, factor = module_frequencies(config, rotary, key, length)  # of the module: PhiMoE has one of its own
    return Trained(int(length), factor, tuple(max(before * p, length * s) for p, s in zip(plain, scaled, strict=True)))
