"""One sequence on several processes: DeepSpeed's Ulysses attention (arXiv 2309.14509, 2506.13996), without its engine.

Every process has a piece of the sequence. Queries, keys and values are rotated at the positions of the piece, all heads
by their own bases; an all-to-all then gives every process the whole sequence of some heads, the model's own attention
runs, and another all-to-all goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harpe.distributed.layout import Layout, refuse_shared
from harpe.errors import HarpeError, optional_module
from harpe.methods.types import Stage
from harpe.models.angles import moving_beside, moving_stage
from harpe.models.geometry import sliding_layers, text_config
from harpe.models.per_head import key_value_heads

TOLERANCE = 0.01
"""How far losses in pieces and whole may be apart: bfloat16 rounds otherwise, positions that are lost show more."""
TOKENS = 8
"""Of every process, in the check."""


def check_installed() -> None:
    """HarpeError where DeepSpeed is not installed."""
    _ulysses()


def _ulysses() -> Any:
    module = "deepspeed.runtime.sequence_parallel.ulysses_sp"
    return optional_module(module, "deepspeed", "--sequence-parallel needs", "scale").UlyssesSPAttentionHF


def check_shared_stages(stages: Iterable[Stage], parts: int) -> None:
    """Refuse positions that follow the length of the text where `parts` processes share one: each would take the end of
    its own piece for that of the text, and rotate the same text in as many ways.

    Raises HarpeError.
    """
    if moving := moving_stage(stages):
        _refuse_moving(moving, parts)


def _refuse_moving(moving: str, parts: int) -> None:
    refuse_shared(f"Rope type {moving}, which rotates by how long a text is,", parts, "take another method")


def check_sequence_parallel(model: PreTrainedModel, parts: int, length: int) -> None:
    """Refuse a model or a length that cannot be shared by sequence: attention sees all positions of some heads.

    Parameters
    ----------
    parts
        Processes that share a sequence; 1: nothing is refused.
    length
        Tokens of a sequence.

    Raises
    ------
    HarpeError
        With the reason.
    """
    if parts == 1:
        return
    config = text_config(model.config)
    if moving := moving_beside(config):
        _refuse_moving(moving, parts)
    attention, heads, shared = config._attn_implementation, config.num_attention_heads, key_value_heads(config)
    alone = "Give --sequence-parallel 1, or another number."
    if length % parts:
        raise HarpeError(f"--sequence-parallel {parts} does not divide sequences of {length} tokens. {alone}")
    if heads % parts:
        raise HarpeError(
            f"--sequence-parallel {parts} does not divide the {heads} query heads, of which every process takes its "
            f"share. {alone}"
        )
    if shared % parts and parts % shared:
        raise HarpeError(
            f"--sequence-parallel {parts} and {shared} key/value heads do not go into each other: every process takes "
            f"whole heads, or a head goes to several of them. {alone}"
        )
    if attention != "sdpa" and not attention.startswith("flash"):
        raise HarpeError(
            f"--sequence-parallel {parts} needs an attention that keeps causal order without a mask (sdpa, flash); a "
            f"{config.model_type} is computed with {attention}. Give --sequence-parallel 1."
        )
    window = getattr(config, "sliding_window", None) or 0
    if sliding_layers(config) and window < length and attention == "sdpa":
        raise HarpeError(
            f"--sequence-parallel {parts} with a sliding window of {window} tokens needs flash attention: sdpa knows "
            "windows by a mask, which does not go between processes. Give --sequence-parallel 1, or --sliding-window "
            "off."
        )


@contextmanager
def sequence_parallel(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Within the context the model's attention is that of whole sequences, which the processes of a group have in
    pieces: inputs are pieces of equal length with `position_ids`. Nothing happens with one piece a sequence.

    DeepSpeed puts its attention in the place of the model's own under the same name, because transformers asks for
    names; the entry is put back at the end.
    """
    if layout.sequence_parallel == 1:
        yield
        return
    kind = _ulysses()
    import deepspeed
    import deepspeed.ops

    config = text_config(model.config)
    name, heads = config._attn_implementation, config.num_attention_heads
    # on a CPU it would compile an exchange of its own, which nothing here calls
    deepspeed.ops.__compatible_ops__ |= {name: False for name in deepspeed.ops.__compatible_ops__ if "shm" in name}
    deepspeed.init_distributed("nccl" if model.device.type == "cuda" else "gloo", verbose=False)
    core = ALL_ATTENTION_FUNCTIONS[name]
    attention = kind(
        attn=core,
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        kv_head_count=key_value_heads(config),
        num_hidden_layers=config.num_hidden_layers,
        process_group=_group(layout),
        seq_length_is_variable=True,
    )
    attention.core_attn_implementation = name

    def whole(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        # a mask would be of the piece; causal order follows from the attention, which is refused other masks
        attention.batch_size = query.shape[0]
        for name in ("required_query_shape", "required_key_value_shape", "required_context_shape"):
            shape = getattr(attention, name)
            setattr(attention, name, torch.Size([shape[0], query.shape[0], *shape[2:]]))
        groups = getattr(module, "num_key_value_groups", None)
        try:
            return attention(module, query, key, value, None, **kwargs)
        finally:
            if groups is not None:  # DeepSpeed changes it where key/value heads are copied
                module.num_key_value_groups = groups

    ALL_ATTENTION_FUNCTIONS[name] = whole
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = core


_groups: dict[Layout, Any] = {}


def _group(layout: Layout) -> Any:
    """This process's group of neighbours; made once, because every process has to be there when it is made."""
    if layout not in _groups:
        _groups[layout] = torch.distributed.new_subgroups(layout.sequence_parallel)[0]
    return _groups[layout]


@torch.no_grad()
def check_exchange(model: PreTrainedModel, layout: Layout) -> None:
    """Read some tokens whole and in pieces, within `chunked_loss`; the model stays as it is.

    Raises
    ------
    HarpeError
        Where the losses differ: the model mixes positions in another place than its attention, or its attention is not
        called by name.
    """
    if layout.sequence_parallel == 1:
        return
    parts, kind, training = layout.sequence_parallel, model.config.model_type, model.training
    ids = torch.arange(1, 2 + TOKENS * parts, device=model.device)[None] % text_config(model.config).vocab_size
    inputs, targets = ids[:, :-1], ids[:, 1:]
    places = torch.arange(TOKENS * parts, device=model.device)[None]
    first = TOKENS * (torch.distributed.get_rank() % parts)
    cut = slice(first, first + TOKENS)
    model.eval()
    whole = model(input_ids=inputs, shift_labels=targets, position_ids=places).loss
    try:
        with sequence_parallel(model, layout):
            loss = model(input_ids=inputs[:, cut], shift_labels=targets[:, cut], position_ids=places[:, cut]).loss
    except (AssertionError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HarpeError(
            f"The attention of a {kind} cannot be shared by sequence ({why}). Give --sequence-parallel 1."
        ) from error
    model.train(training)
    torch.distributed.all_reduce(loss, group=_group(layout))
    loss /= parts
    if not torch.allclose(loss, whole, atol=TOLERANCE, rtol=TOLERANCE):
        raise HarpeError(
            f"The loss of {TOKENS * parts} tokens of a {kind} is {loss:.5g} in {parts} pieces and {whole:.5g} whole: "
            "the model mixes positions elsewhere than in its attention. Give --sequence-parallel 1."
        )
