"""Attention inside documents only, in sequences that were packed from several of them.

Every document runs through the model's own attention by itself (sdpa or the family's eager function, with the family's
own mask for that many tokens), so that no mask of a whole sequence is ever made, and what documents need grows with the
squares of their own lengths. Windows, caps and sinks of attention scores are the family's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

import torch
from torch.utils.data import Dataset
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harpe.distributed.layout import refuse_shared
from harpe.errors import HarpeError
from harpe.methods.types import Stage
from harpe.models.angles import moving_rope, moving_stage
from harpe.models.geometry import text_config
from harpe.models.head import hidden_states, within
from harpe.options.training import DocumentMask

NAME = "harpe_documents"
KNOWN = {"full_attention", "sliding_attention"}
"""Kinds of layers that see nothing but what attention shows them, from the start of a document on."""
TOLERANCE = 0.01
"""How far states of a document may be apart when the one before it changes, relative to the largest: products of other
sizes, as where experts are given other tokens, round otherwise."""
FIRST, TOKENS = 10, 24
"""Of the documents in the check: tokens of the first, and of both."""
MakeMask = Callable[[int], torch.Tensor | None]
"""The family's mask for a document of so many tokens."""


class Documents(Dataset[dict[str, torch.Tensor]]):
    """Packed sequences with the number of the document that each token is of, `documents` int64 [S].

    The first token of a document is no target: what it would be foretold from belongs to another one. With positions
    that restart there are `position_ids`, int64 [S], too.
    """

    def __init__(self, sequences: Any, mask: DocumentMask) -> None:
        if not hasattr(sequences, "document_starts"):
            raise HarpeError(f"--document-mask {mask} needs texts that know where documents start.")
        self.sequences, self.mask = sequences, mask

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        item, starts = self.sequences[i], torch.as_tensor(self.sequences.document_starts(i))
        first = torch.zeros_like(item["input_ids"])
        first[starts] = 1
        numbers = first.cumsum(0) - 1
        found = {**item, "labels": item["labels"].masked_fill(first.bool(), -100), "documents": numbers}
        if self.mask == "restart":
            found["position_ids"] = torch.arange(len(numbers)) - starts[numbers]
        return found


def check_document_mask(mask: DocumentMask, stages: list[Stage], parts: int) -> None:
    """Refuse what does not go with documents that cannot see each other.

    Raises
    ------
    HarpeError
        Naming the options.
    """
    if mask == "none":
        return
    refuse_shared(f"--document-mask {mask}", parts)
    if any(stage.encoding.attention is not None for stage in stages):
        raise HarpeError(
            f"--document-mask {mask} does not go with methods that have an attention of their own (Self-Extend, "
            "ReRoPE, dual chunk attention)."
        )
    _refuse_moving(mask, moving_stage(stages))


def _refuse_moving(mask: DocumentMask, moving: str | None) -> None:
    """run-on may have such a rope type: all documents have positions of the one sequence, whose length decides."""
    if mask == "restart" and moving is not None:
        raise HarpeError(
            f"--document-mask restart: rope type {moving} rotates by how long a text is and takes the longest document "
            "of a batch for that, so that the others are not read as if alone. Give --document-mask run-on, or take "
            "another method."
        )


def document_notes(mask: DocumentMask) -> list[str]:
    """What there is to say of it, in sentences for the plan."""
    if mask == "none":
        return []
    places = "begin at position 0" if mask == "restart" else "have the positions of their sequence"
    return [f"Tokens see their own document only; documents {places}, and their first tokens are no targets."]


class _Spans:
    """Where the documents of the current batch are: the model's inputs lose their `documents` to it, and attention asks
    it, in the backward pass too, where layers are recomputed."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[int, int]]] = []

    def set(self, documents: torch.Tensor) -> None:
        """From numbers of documents, int64 [B, S]."""
        self.rows = []
        for row in documents.cpu():
            ends = [*((row[1:] != row[:-1]).nonzero().flatten() + 1).tolist(), len(row)]
            self.rows.append(list(zip([0, *ends[:-1]], ends, strict=True)))

    def hook(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kwargs = dict(kwargs)
        documents = kwargs.pop("documents", None)
        self.rows = []
        if documents is not None:
            self.set(documents)
        return args, kwargs

    def attend(
        self, core: str, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        """The model's own attention on each document: q, k, v [B, H, S, D], already rotated, to [B, S, H, D].
        `attention_mask` is what `_mask_maker` gives."""
        run = ALL_ATTENTION_FUNCTIONS[core] if core in ALL_ATTENTION_FUNCTIONS else _eager(module)
        rows = []
        for number in range(len(query)):
            spans = self.rows[number] if self.rows else [(0, query.shape[2])]
            assert spans[-1][1] == query.shape[2], "documents of another batch"
            parts = [
                run(
                    module,
                    *(x[number : number + 1, :, start:end] for x in (query, key, value)),
                    attention_mask(end - start),
                    **more,
                )[0]
                for start, end in spans
            ]
            rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows), None


def _eager(module: Any) -> Any:
    return sys.modules[type(module).__module__].eager_attention_forward


def _mask_maker(core: str) -> Callable[..., MakeMask]:
    stock = ALL_MASK_ATTENTION_FUNCTIONS[core]

    def make_mask(**given: Any) -> MakeMask:
        given |= {"batch_size": 1, "q_offset": 0, "kv_offset": 0, "attention_mask": None}
        return lambda tokens: stock(**{**given, "q_length": tokens, "kv_length": tokens})

    return make_mask


@contextmanager
def not_taken_for_packed() -> Iterator[None]:
    """Within the context positions that do not go up by one are no sign of several texts, for which transformers would
    make a mask of the whole sequence."""
    with patch.object(masking_utils, "find_packed_sequence_indices", lambda *given, **more: None):
        yield


@contextmanager
def inside_documents(model: PreTrainedModel, mask: DocumentMask) -> Iterator[_Spans | None]:
    """Within the context inputs may have `documents`, and tokens see those of their own document only; "none" changes
    nothing.

    Raises
    ------
    HarpeError
        For families whose layers mix tokens otherwise than by attention.
    """
    if mask == "none":
        yield None
        return
    config, spans = cast(Any, text_config(model.config)), _Spans()
    core = config._attn_implementation
    kinds = set(getattr(config, "layer_types", None) or KNOWN)
    if not kinds <= KNOWN or core not in ("sdpa", "eager"):
        raise HarpeError(
            f"--document-mask {mask}: a {config.model_type} has layers ({', '.join(sorted(kinds - KNOWN)) or core}) "
            "that cannot be kept inside documents. Leave it out."
        )
    AttentionInterface.register(NAME, lambda *given, **more: spans.attend(core, *given, **more))
    AttentionMaskInterface.register(NAME, _mask_maker(core))
    hook = model.register_forward_pre_hook(spans.hook, with_kwargs=True)
    config._attn_implementation_internal = NAME
    try:
        with not_taken_for_packed():
            yield spans
    finally:
        config._attn_implementation_internal = core
        hook.remove()


@torch.no_grad()
def check_documents(model: PreTrainedModel, mask: DocumentMask) -> None:
    """Change the first of two documents and look at the states of both; the model stays as it is.

    Raises
    ------
    HarpeError
        Where the second one's change too: something in the family mixes tokens that attention keeps apart.
    """
    if mask == "none":
        return
    _refuse_moving(mask, moving_rope(model.config))
    ids = torch.arange(1, TOKENS + 1, device=model.device)[None] % text_config(model.config).vocab_size
    other, training = ids.clone(), model.training
    other[:, :FIRST] = ids[:, :FIRST].flip(1)
    numbers = (torch.arange(TOKENS)[None] >= FIRST).long()
    model.eval()
    with inside_documents(model, mask):
        states, changed = (
            within(model, lambda ids=each: hidden_states(model, ids), documents=numbers).float()  # type: ignore[misc]
            for each in (ids, other)
        )
    model.train(training)
    apart = (states - changed).abs().amax(-1)[0] / states.abs().max()
    if not apart[FIRST:].max() < TOLERANCE < apart[:FIRST].max():
        raise HarpeError(
            f"--document-mask {mask}: in a {model.config.model_type} a document's states depend on those before it. "
            "Leave it out."
        )
