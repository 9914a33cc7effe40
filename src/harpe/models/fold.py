"""Attention factors folded into the weights: cos and sin as they are, and queries that are as much larger.

A factor f of cos and sin multiplies queries and keys, and scores by f^2; so do query weights times f^2. They are those
of the dimensions that turn, in the rows of the head's queries: of the norm behind the projection where there is one,
else of the projection and its bias. What is found is tried: the model is run before and after, and every head's
rotated queries and keys must be f and 1/f of what they were.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from harpe.errors import HarpeError
from harpe.models.apply import renew_rotary
from harpe.models.families import find_family
from harpe.models.geometry import changed_layers, rope_key, text_config
from harpe.models.old_keys import FACTORS
from harpe.models.per_head import ROPE_TYPE, is_factor_alone, key_value_heads, stock_frequencies, table_rows
from harpe.models.rotation_check import Rotated, check_scaled, rotated_states

NORMS = ("q_norm", "q_layernorm", "query_layernorm")
"""What families call the norm of the queries."""


def fold_attention_factor(model: PreTrainedModel) -> str:
    """Fold the attention factor of a loaded model's rope parameters into its weights, in place; returns a sentence on
    it.

    Without it, one base for all heads is a stock configuration again. Exact up to the rounding of the weights' dtype.

    Raises HarpeError where there is no factor, and where a family forms queries in a way that does not take it; the
    model is then not to be used any more.
    """
    config = text_config(model.config)
    family, key, heads = find_family(config), rope_key(config), key_value_heads(config)
    rope = config.rope_parameters if key is None else config.rope_parameters[key]
    ours = rope.get("rope_type") == ROPE_TYPE
    given = rope.get("attention_factor") or 1.0 if ours else stock_frequencies(config, family.rotary, rope, key)[1]
    factors = torch.tensor(given if isinstance(given, list) else [given] * heads, dtype=torch.float64, device="cpu")
    if bool((factors == 1).all()):
        raise HarpeError("The model has no attention factor that could be folded into its weights. Leave --fold out.")
    if getattr(config, "clip_qkv", None) is not None:
        raise _refusal(config, f"it cuts queries off at {config.clip_qkv:g} (clip_qkv)")
    check_scaled(model)
    before = rotated_states(model)
    layers = set(changed_layers(config)) if ours or key is not None else set(range(config.num_hidden_layers))
    folded = [module for module in before if int(module.layer_idx) in layers]  # type: ignore[arg-type]
    for module in folded:
        _fold(module, config, factors, 2 * _pairs(model))
    entry = _without_factor(rope)
    config.rope_parameters = entry if key is None else {**config.rope_parameters, key: entry}
    renew_rotary(model)
    after = rotated_states(model)
    for module, states in before.items():
        wanted = factors if module in folded else torch.ones_like(factors)
        if not _is_folded(states, after[module], wanted, 2 * _pairs(model)):
            raise _refusal(config, f"the queries of {type(module).__name__} follow from its weights in an unknown way")
    values = sorted({f"{value:.6g}" for value in factors.tolist()})
    words = f"factor of {values[0]}" if len(values) == 1 else f"factors of {', '.join(values)} (by key/value head)"
    return (
        f"The attention {words} has been folded into the query weights of {len(folded)} layers: they are larger by its "
        "square, and queries and keys are rotated without it."
    )


def _refusal(config: PreTrainedConfig, reason: str) -> HarpeError:
    return HarpeError(f"The attention factor of a {config.model_type} cannot be folded: {reason}. Leave --fold out.")


def _pairs(model: PreTrainedModel) -> int:
    """Pairs that turn."""
    config = text_config(model.config)
    key = rope_key(config)
    rope = config.rope_parameters if key is None else config.rope_parameters[key]
    kept = {name: rope[name] for name in ("partial_rotary_factor",) if name in rope}
    plain = {"rope_type": "default", "rope_theta": 1e4, **kept}
    return len(stock_frequencies(config, find_family(config).rotary, plain, key)[0])


def _without_factor(rope: dict[str, Any]) -> dict[str, Any]:
    """The entry with a factor of 1; a stock one with one base where that is all that is left."""
    plain = {key: rope[key] for key in ("partial_rotary_factor",) if key in rope}
    if rope["rope_type"] == ROPE_TYPE:
        entry = {key: value for key, value in rope.items() if key != "attention_factor"}
        rows, by_layer = table_rows(entry)
        if by_layer or "frequencies" in entry or entry.get("length_scale") or len(set(rows[0])) > 1:
            return entry
        return {"rope_type": "default", "rope_theta": rows[0][0], **plain}
    if is_factor_alone(rope):
        return {"rope_type": "default", "rope_theta": rope["rope_theta"], **plain}
    # an exported model has it under the names of vLLM too
    return {**rope, "attention_factor": 1.0, **{name: 1.0 for name in FACTORS if name in rope}}


@torch.no_grad()
def _fold(module: torch.nn.Module, config: PreTrainedConfig, factors: torch.Tensor, turning: int) -> None:
    """Multiply the weights of one attention's queries."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    by_row = torch.ones(heads, size, dtype=torch.float64, device="cpu")
    by_row[:, :turning] = factors.square().repeat_interleave(heads // len(factors))[:, None]
    norm: Any = next((child for name, child in module.named_children() if name in NORMS), None)
    if norm is not None and any(parameter.numel() for parameter in norm.parameters()):
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        if weight is None or weight.numel() not in (size, heads * size):
            raise _refusal(config, f"{type(norm).__name__} has no weight for every dimension of a query")
        if weight.numel() == size:
            if bool((by_row != by_row[0]).any()):
                raise _refusal(config, "all heads share one norm of queries, and their factors differ")
            by_row = by_row[0]
        offset = _offset(norm, weight)
        for parameter, added in ((weight, offset), (bias, 0.0)):
            if parameter is not None:
                by = by_row.reshape(parameter.shape).to(parameter.device)
                parameter.copy_((parameter.double() + added) * by - added)
        return
    places = torch.arange(heads * size)
    for name in ("q_proj", "qkv_proj", "query_key_value"):
        projection: Any = getattr(module, name, None)
        if projection is None:
            continue
        if name == "query_key_value":  # q, k and v of a head lie together
            places = (torch.arange(heads)[:, None] * 3 * size + torch.arange(size)).flatten()
        weight, by = projection.weight, by_row.flatten().to(projection.weight.device)
        rows = {"q_proj": heads * size, "query_key_value": 3 * heads * size}.get(name)
        if weight.dim() != 2 or (rows is not None and weight.shape[0] != rows) or weight.shape[0] < heads * size:
            break
        weight[places] = (weight[places].double() * by[:, None]).to(weight.dtype)
        if projection.bias is not None:
            projection.bias[places] = (projection.bias[places].double() * by).to(weight.dtype)
        return
    raise _refusal(config, f"{type(module).__name__} has no projection of queries that is known")


def _offset(norm: torch.nn.Module, weight: torch.Tensor) -> float:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's, else 0."""
    probe: Any = copy.deepcopy(norm)
    for parameter in probe.parameters():
        parameter.zero_()
    x = torch.linspace(-1, 1, weight.numel(), device=weight.device, dtype=weight.dtype).view(1, *weight.shape)
    return 1.0 if bool(probe(x).any()) else 0.0


def _is_folded(before: Rotated, after: Rotated, factors: torch.Tensor, turning: int) -> bool:
    """Whether queries are `factors` times what they were, keys one by them, and the dimensions that do not turn as they
    were; the noise of a dtype, which layers pass on, is averaged over a head."""
    for old, new, power in ((before.q, after.q, 1), (before.k, after.k, -1)):
        wanted = factors.pow(power).repeat_interleave(old.shape[0] // len(factors))
        for part, by in ((slice(turning), wanted), (slice(turning, None), torch.ones_like(wanted))):
            a, b = old[..., part].double().flatten(1), new[..., part].double().flatten(1)
            if not a.numel():
                continue
            found = (a * b).sum(1) / a.square().sum(1)
            tolerance = 1e-4 if old.dtype.itemsize >= 4 else 0.02
            if (found / by - 1).abs().max() > tolerance or (b - found[:, None] * a).norm() > 0.1 * b.norm():
                return False
    return True
