"""An attention function for transformers whose positions are mapped band by band (`harpe.models.bands`), on stock
models of any family.

q and k arrive rotated at their true positions. Rotations compose, so they are turned further here, by the mapped minus
the true position; the cache keeps keys at true positions. Positions come from the padding mask: a sequence's count of
tokens that are no padding. A constant between these and the positions that the model rotated by cancels between q and
k.

The scores of some queries against all their keys are in memory at a time (`SCORES`). Where those queries have keys in
one band only, torch's scaled_dot_product_attention runs; else the bands' scores share one softmax in float32.

Where heads have different bands (ReRoPE in some of them), it is done for the heads of each kind.

Layers that attend to a sliding window, and layers without RoPE, keep their positions: they run through the same
function with one band.

Shapes: B sequences, Q queries, K keys, H_q query heads, H_k key/value heads, D head dimension, N pairs that turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import causal_mask_function

from harpe.errors import HarpeError
from harpe.methods.types import DualChunk, DynamicSelfExtend, Remapped, ReRoPE, SelfExtend
from harpe.models.bands import Band, dual_chunk_bands, dynamic_bands, plain_bands, rerope_bands, self_extend_bands
from harpe.models.families import find_family
from harpe.models.geometry import changed_layers, rope_key
from harpe.models.per_head import ROPE_TYPE, build_table, key_value_heads, stock_frequencies
from harpe.positions.phases import cos_and_sin, hold, phase_steps
from harpe.positions.rotation import Layout, rotate_per_head

NAME = "harpe_remapped"
"""What transformers calls this attention. It stands in a saved config.json, so that a program without it stops instead
of loading a stock model."""
SCORES = {"cpu": 2**20, "cuda": 2**27}
"""Scores (float32) that are in memory at a time, by type of device: 4 MiB, which a cache holds, and 512 MiB. Few
queries at a time also means few keys outside their bands."""
PIECE = 4096
"""Tokens that are turned at a time."""
NAMES = "Self-Extend, ReRoPE and dual chunk attention"
"""What messages call the methods that have it."""
FormBands = Callable[[torch.Tensor, torch.Tensor], list[Band]]
"""From true positions of queries and keys to a layer's bands."""
_TYPES: dict[str, type[Remapped]] = {
    "self_extend": SelfExtend,
    "dynamic_self_extend": DynamicSelfExtend,
    "dual_chunk": DualChunk,
    "rerope": ReRoPE,
}
_steps: WeakKeyDictionary[torch.nn.Module, torch.Tensor] = WeakKeyDictionary()


@dataclass(frozen=True)
class Span:
    """Passed in place of an attention mask: true positions of the queries and keys, and which keys are padding."""

    query: torch.Tensor
    """int64 [B or 1, Q]."""
    key: torch.Tensor
    """int64 [B or 1, K]."""
    valid: torch.Tensor | None
    """bool [B, K]; None where nothing is padding."""
    padding: tuple[int, ...]
    """Padding before each sequence in tokens."""
    window: int | None
    """Sliding window in tokens, for the layers that have one."""
    query_start: int
    key_start: int


def attention_entry(attention: Remapped) -> dict[str, Any]:
    """What config.json says of it, under `harpe_attention`."""
    name = next(name for name, cls in _TYPES.items() if isinstance(attention, cls))
    values = {key: [list(row) for row in value] if key == "heads" else value for key, value in vars(attention).items()}
    return {"type": name, **values}


def attention_of(config: PreTrainedConfig) -> Remapped | None:
    """The changed attention that a decoder's configuration asks for.

    Raises HarpeError for an entry that this version of harpe does not know.
    """
    entry = getattr(config, "harpe_attention", None)
    if entry is None:
        return None
    values = {key: value for key, value in entry.items() if key != "type"}
    try:
        return _TYPES[entry["type"]](**values)
    except (KeyError, TypeError) as error:
        raise HarpeError(
            f"config.json has harpe_attention {entry}, which this version of harpe does not know; update harpe."
        ) from error


def enforce(config: Any) -> None:
    """Choose this attention where a model is made from a configuration that has `harpe_attention`, and keep its name
    for when it is saved.

    transformers forgets the name between loading and saving, and would choose another one when it loads what it saved.
    """
    if getattr(config, "harpe_attention", None) is not None:
        config.attn_implementation = NAME
        config._attn_implementation_internal = NAME


def clear_steps() -> None:
    """Forget the steps of all layers, when configurations have changed."""
    _steps.clear()


def _steps_of(module: torch.nn.Module, config: PreTrainedConfig, layer: int, device: torch.device) -> torch.Tensor:
    """`layer_steps` of an attention module, formed at its first pass."""
    if module not in _steps:
        _steps[module] = layer_steps(config, layer).to(device)
    return _steps[module].to(device)


def span_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    device: Any = "cpu",
    **_: Any,
) -> Span:
    """transformers' protocol for a mask function; the mask is a `Span`."""
    if local_size is None and mask_function is not causal_mask_function:
        raise HarpeError(
            f"{NAMES} take one causal sequence a row: neither packed documents (positions "
            "that restart) nor blocks that see each other. Give each text a row of its own, padded, with its "
            "attention_mask."
        )
    start = int(q_offset)
    end = max(start + q_length, kv_offset + kv_length)
    if attention_mask is not None and bool(attention_mask.all()) and attention_mask.shape[1] >= start + q_length:
        attention_mask = None
    if attention_mask is None:
        key = torch.arange(kv_offset, kv_offset + kv_length, device=device)[None]
        query = torch.arange(start, start + q_length, device=device)[None]
        return Span(query, key, None, (0,) * batch_size, local_size, start, kv_offset)
    if attention_mask.shape[1] < start + q_length:
        raise HarpeError(
            f"The attention_mask has {attention_mask.shape[1]} tokens; with those in the cache it needs "
            f"{start + q_length}."
        )
    seen = torch.nn.functional.pad(attention_mask.to(torch.int64), (0, max(0, end - attention_mask.shape[1])))
    if bool((seen.diff(dim=1) == 1).sum(dim=1).add(seen[:, 0]).gt(1).any()):
        raise HarpeError("The attention_mask hides tokens in the middle of a text. Pad on the left.")
    position = seen.cumsum(dim=1) - 1
    keys = slice(kv_offset, kv_offset + kv_length)
    padding = tuple((seen.cumsum(dim=1) == 0).sum(dim=1).tolist())
    query = position[:, start : start + q_length]
    return Span(query, position[:, keys], seen[:, keys] == 1, padding, local_size, start, kv_offset)


def layer_steps(config: PreTrainedConfig, layer: int) -> torch.Tensor:
    """Steps of a layer's rotation, int64 [1 or H_k, N]; q and k have been multiplied by attention factors already."""
    key = rope_key(config)
    rope = config.rope_parameters if key is None else config.rope_parameters[key]
    if rope.get("rope_type") == ROPE_TYPE:
        table = build_table(config, key)
        return table[layer, ..., 0] if table.dim() == 4 else table[..., 0] if table.dim() == 3 else table
    if rope.get("rope_type") in ("dynamic", "longrope"):
        raise HarpeError(f"{NAMES} need frequencies that do not change with the length; these are {rope['rope_type']}.")
    frequencies, _ = stock_frequencies(config, find_family(config).rotary, rope, key)
    return torch.tensor(phase_steps([frequencies]), dtype=torch.int64, device="cpu")


def turn(x: torch.Tensor, by: torch.Tensor, steps: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Rotate x [B, H, S, D] further by `by` positions, int64 [B or 1, S], of steps [1 or H_k, N]."""
    pieces = []
    for start in range(0, x.shape[2], PIECE):
        part = x[:, :, start : start + PIECE]
        cos, sin = cos_and_sin(by[:, start : start + PIECE], steps)
        pieces.append(rotate_per_head(part, part[:, :0], *hold(cos, sin), layout)[0])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _key_slices(form: FormBands, span: Span, start: int, end: int, size: int) -> list[slice]:
    """For every band the indices of the keys that queries `start` .. `end` - 1 see, in any sequence of the batch.

    Formed on the CPU, from the first and the last of these queries: a GPU need not be waited for.
    """
    padding = torch.tensor(sorted(set(span.padding)), device="cpu")[:, None]
    ends = torch.tensor([[span.query_start + start, span.query_start + end - 1]], device="cpu") - padding
    slices = []
    for band in form(ends, ends):
        first = int((band.first[:, :1] + padding).min()) - span.key_start
        last = int((band.end[:, 1:] + padding).max()) - span.key_start
        slices.append(slice(min(max(first, 0), size), min(max(last, 0), size)))
    return slices


def _attend(
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]],
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Output [B, H_q, T, D] of T queries over the bands' (q, k, v, seen [B or 1, T, n]), in one softmax."""
    batch, heads, length, _ = parts[0][0].shape
    if len(parts) == 1 and softcap is None and sinks is None:
        q, k, v, seen = parts[0]
        seen = seen | ~seen.any(dim=-1, keepdim=True)  # padding sees anything rather than nothing, which would be NaN
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, seen[:, None], scale=scaling, enable_gqa=heads != k.shape[1]
        )
    scores = []
    for q, k, _, seen in parts:
        # the query heads of a group lie along the queries: no copy of k for each of them
        grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)
        score = (grouped @ k.transpose(2, 3)).float().mul(scaling).unflatten(2, (-1, length))
        if softcap is not None:
            score = torch.tanh(score / softcap) * softcap
        scores.append(score.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min))
    if sinks is not None:
        scores.append(sinks.float().view(1, scores[0].shape[1], -1, 1, 1).expand(batch, -1, -1, length, 1))
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)
    output, at = torch.zeros((), device=weights.device), 0
    for _, _, v, _ in parts:
        share = weights[..., at : at + v.shape[2]].flatten(2, 3).to(v.dtype)
        output, at = output + (share @ v).float(), at + v.shape[2]
    return output.to(parts[0][2].dtype).unflatten(2, (-1, length)).flatten(1, 2)


def _forms(attention: Remapped, layer: int, heads: int, lengths: tuple[int, int]) -> list[tuple[list[int], FormBands]]:
    """The bands of a layer's key/value heads, for queries with `lengths` tokens up to them: which heads, and theirs."""
    everything = list(range(heads))
    if isinstance(attention, ReRoPE):
        capped, window = attention.heads[layer], attention.window
        exact = [head for head in everything if head not in capped]
        both: list[tuple[list[int], FormBands]] = [
            (list(capped), lambda query, key: rerope_bands(query, key, window)),
            (exact, lambda query, key: plain_bands(query, key, None)),
        ]
        return [each for each in both if each[0]]
    if isinstance(attention, DynamicSelfExtend):
        return [(everything, lambda query, key: dynamic_bands(query, key, attention, lengths))]
    if isinstance(attention, SelfExtend):
        return [(everything, lambda query, key: self_extend_bands(query, key, attention))]
    return [(everything, lambda query, key: dual_chunk_bands(query, key, attention))]


def _over_bands(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    span: Span,
    form: FormBands,
    turned: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Output [B, H_q, Q, D] of heads that have the same bands; `turned` rotates q or k further by positions."""
    found, length, size = form(span.query, span.key), query.shape[2], key.shape[2]
    whole = _key_slices(form, span, 0, length, size)
    queries, keys = {id(span.query): query}, dict[int, torch.Tensor]()
    rows = max(1, SCORES.get(key.device.type, 2**24) // (query.shape[0] * query.shape[1] * size))
    outputs = []
    for start in range(0, length, rows):
        end, parts = min(start + rows, length), []
        for number, (band, seen_keys) in enumerate(zip(found, _key_slices(form, span, start, end, size), strict=True)):
            if seen_keys.start >= seen_keys.stop:
                keys.pop(number, None)  # a group's, of which no later query has any
                continue
            if id(band.query) not in queries:
                queries[id(band.query)] = turned(query, band.query - span.query)
            if number not in keys:
                stop = whole[number].stop
                same = band.key is span.key
                keys[number] = key if same else turned(key[:, :, :stop], (band.key - span.key)[:, :stop])
            there = span.key[:, None, seen_keys]
            seen = (there >= band.first[:, start:end, None]) & (there < band.end[:, start:end, None])
            if span.valid is not None:
                seen = seen & span.valid[:, None, seen_keys]
            q, k = queries[id(band.query)][:, :, start:end], keys[number][:, :, seen_keys]
            parts.append((q, k, value[:, :, seen_keys], seen))
        if torch.is_grad_enabled() and rows < length:
            outputs.append(checkpoint(_attend, parts, scaling, softcap, sinks, use_reentrant=False))
        else:
            outputs.append(_attend(parts, scaling, softcap, sinks))
    return torch.cat(outputs, dim=2)


def remapped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: query [B, H_q, Q, D], key and value [B, H_k, K, D] -> [B, Q, H_q, D]."""
    config: Any = module.config
    span, attention, layer = attention_mask, attention_of(config), int(module.layer_idx)  # type: ignore[arg-type]
    if not isinstance(span, Span):
        raise HarpeError(f"{NAMES} take a mask of padding (attention_mask [batch, tokens]), not one of pairs.")
    if attention is None:
        raise HarpeError(
            f"The attention {NAME} was asked for, but the configuration has no harpe_attention; load the model with "
            "harpe."
        )
    if dropout:
        raise HarpeError(f"{NAMES} have no attention dropout: set attention_dropout to 0.")
    if span.key.shape[1] != key.shape[2]:
        raise HarpeError(
            f"There are {key.shape[2]} keys for a mask of {span.key.shape[1]}: this kind of cache is not supported."
        )
    scaling = key.shape[3] ** -0.5 if scaling is None else scaling
    heads = key.shape[1]
    if layer not in changed_layers(config):

        def plain(positions: torch.Tensor, keys: torch.Tensor) -> list[Band]:
            return plain_bands(positions, keys, span.window)

        output = _over_bands(query, key, value, span, plain, lambda x, by: x, scaling, softcap, s_aux)
        return output.transpose(1, 2).contiguous(), None
    if isinstance(attention, ReRoPE) and heads != key_value_heads(config):
        raise HarpeError(f"ReRoPE needs all heads of a layer in one process; here are {heads} key/value heads of it.")
    steps, layout = _steps_of(module, config, layer, key.device), find_family(config).layout
    first, last = span.query_start - max(span.padding), span.query_start + query.shape[2] - min(span.padding)
    outputs, order = [], list[int]()
    for chosen, form in _forms(attention, layer, heads, (first + 1, last)):
        own = steps if len(steps) == 1 else _of_heads(steps, chosen, heads, dim=0)
        q, k, v = (_of_heads(x, chosen, heads) for x in (query, key, value))
        sinks = None if s_aux is None else _of_heads(s_aux, chosen, heads, dim=0)
        turned = partial(turn, steps=own, layout=layout)
        outputs.append(_over_bands(q, k, v, span, form, turned, scaling, softcap, sinks))
        order += chosen
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    output = _of_heads(output, sorted(range(heads), key=order.__getitem__), heads)
    return output.transpose(1, 2).contiguous(), None


def _of_heads(x: torch.Tensor, chosen: list[int], heads: int, dim: int = 1) -> torch.Tensor:
    """Of x, with all key/value heads or the query heads of all of them along `dim`, those of the chosen, in their
    order."""
    if chosen == list(range(heads)):
        return x
    index = torch.tensor(chosen, device=x.device)
    return x.unflatten(dim, (heads, -1)).index_select(dim, index).flatten(dim, dim + 1)


def register() -> None:
    """Teach transformers this attention. Safe to call again."""
    AttentionInterface.register(NAME, remapped_attention)
    AttentionMaskInterface.register(NAME, span_mask)
