"""Whether a model turns queries and keys where, and by what, its configuration says: one pass over two tokens.

A configuration may name a base that its model does not use (Granite 4's hybrids without positions), another number of
key/value heads than its layers have (Falcon's multi-query attention), or bases by layer in an entry of the family's own
(Granite with windows). Bases per head would then do nothing, or something else than the plan says.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from harpe.errors import HarpeError
from harpe.models.families import find_family
from harpe.models.geometry import changed_layers, text_config
from harpe.models.head import hidden_states, within
from harpe.models.per_head import Family, key_value_heads, nested_types
from harpe.positions.phases import is_per_head, of_layer

Pair = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def check_rotation(
    model: PreTrainedModel, name: str = "the model", layers: Sequence[int] | None = None
) -> PreTrainedModel:
    """Read two tokens and look at what is rotated in the layers whose positions a method changes; returns the same
    object.

    Parameters
    ----------
    layers
        The numbers of those layers; None: from the configuration.

    Raises
    ------
    HarpeError
        With the reason, where a layer does not rotate, rotates by other angles or has other heads than the
        configuration says, or is told its positions in another way.
    """
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        return model
    config = text_config(model.config)
    kind, family, heads = config.model_type, find_family(config, name), key_value_heads(config)
    beginning = f"{name} (model type {kind}) cannot have its positions changed: "
    try:
        with _watched(model, family) as (entered, seen, positions):
            within(model, lambda: hidden_states(model, torch.ones(1, 2, dtype=torch.int64, device=model.device)))
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise HarpeError(
            f"{beginning}its forward does not work with the rope parameters that it was given ({error!r})."
        ) from error
    if any(dimensions != 2 for dimensions in positions):
        raise HarpeError(f"{beginning}its rotary module is told positions in several dimensions (multimodal RoPE).")
    with torch.device(model.device):
        module, ids = family.rotary(config), torch.tensor([[0, 1]])
        x = torch.zeros(1, dtype=torch.float32)
        there = [each for each in nested_types(config) if each in config.layer_types]  # else left by a window taken off
        pairs: list[Pair] = [module(x, ids, each) for each in there] or [module(x, ids)]
    changed = changed_layers(config) if layers is None else layers
    # families that run few layers often number them alike
    for layer in [each for each in changed if each in entered] or changed:
        if layer not in seen:
            raise HarpeError(
                f"{beginning}layer {layer} turns no queries and keys, though its configuration has rope parameters."
            )
        pair, found = seen[layer]
        if found % heads:
            raise HarpeError(
                f"{beginning}layer {layer} has {found} key/value heads, and its configuration says {heads}."
            )
        if not any(_alike(pair, of_layer(*each, layer) if is_per_head(each[0]) else each) for each in pairs):
            raise HarpeError(
                f"{beginning}layer {layer} turns by other angles than the rope parameters of its configuration give."
            )
    return model


@torch.no_grad()
def check_scaled(model: PreTrainedModel, whole: int | None = None) -> None:
    """Refuse a family with a norm behind the rotation (nanochat, HunYuan): it takes out any factor of a query or key.
    And, where queries are to be scaled as a `whole` of so many dimensions, one that hands on a part of them (Phi).

    Raises HarpeError.
    """
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        return
    config, turned = text_config(model.config), list[torch.Tensor]()
    family = find_family(config)
    stock, found, widths = family.module.apply_rotary_pos_emb, set[str](), set[int]()

    @functools.wraps(stock)
    def apply(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        widths.add(q.shape[-1])
        turned[:] = stock(q, *args, **kwargs)
        return tuple(turned)

    def enter(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args and any(args[0] is each for each in turned):
            found.add(type(module).__name__)

    parts = [child for each in model.modules() if isinstance(each, family.attentions) for child in each.children()]
    hooks = [child.register_forward_pre_hook(enter) for child in parts]
    family.module.apply_rotary_pos_emb = apply  # type: ignore[attr-defined]
    try:
        within(model, lambda: hidden_states(model, torch.ones(1, 2, dtype=torch.int64, device=model.device)))
    finally:
        family.module.apply_rotary_pos_emb = stock  # type: ignore[attr-defined]
        for hook in hooks:
            hook.remove()
    if found:
        raise HarpeError(
            f"A {config.model_type} normalises queries and keys after they are rotated ({', '.join(sorted(found))}): "
            "attention factors (YaRN's too) and length_scale would be taken out again. Choose a method without, such "
            "as harpe or abf."
        )
    if whole is not None and widths != {whole}:
        raise HarpeError(
            f"A {config.model_type} takes the dimensions that turn apart before it rotates them ({min(widths)} of "
            f"{whole}): length_scale would reach those alone. Leave it out."
        )


class Rotated(NamedTuple):
    """Queries and keys of an attention as they are rotated: [heads, tokens, dimensions], on the CPU."""

    q: torch.Tensor
    k: torch.Tensor


@torch.no_grad()
def rotated_states(model: PreTrainedModel, tokens: int = 16) -> dict[torch.nn.Module, Rotated]:
    """What every attention that rotates makes of a short text."""
    config = text_config(model.config)
    family, seen = find_family(config), dict[torch.nn.Module, Rotated]()
    stock, now = family.module.apply_rotary_pos_emb, list[torch.nn.Module]()

    @functools.wraps(stock)
    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        heads = kwargs.get("unsqueeze_dim", args[-1] if args else 1)
        found = stock(q, k, cos, sin, *args, **kwargs)
        seen[now[-1]] = Rotated(*(x[0].transpose(0, heads - 1).cpu() for x in found))
        return found

    hooks = [
        module.register_forward_pre_hook(lambda module, _: now.append(module))
        for module in model.modules()
        if isinstance(module, family.attentions)
    ]
    family.module.apply_rotary_pos_emb = apply  # type: ignore[attr-defined]
    try:
        ids = torch.arange(tokens, device=model.device)[None] % (config.vocab_size - 1) + 1
        within(model, lambda: hidden_states(model, ids))
    finally:
        family.module.apply_rotary_pos_emb = stock  # type: ignore[attr-defined]
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def _watched(
    model: PreTrainedModel, family: Family
) -> Iterator[tuple[set[int], dict[int, tuple[Pair, int]], list[int]]]:
    """While the block runs, keep the layers that are entered, the pair and the number of key heads of those that
    rotate, and the dimensions of the positions."""
    entered: set[int] = set()
    seen: dict[int, tuple[Pair, int]] = {}
    positions: list[int] = []
    now, stock = [-1], family.module.apply_rotary_pos_emb

    @functools.wraps(stock)  # which also keeps the mark of our hook
    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen[now[0]] = (cos, sin), k.shape[kwargs.get("unsqueeze_dim", args[-1] if args else 1)]
        return stock(q, k, cos, sin, *args, **kwargs)

    def enter(module: torch.nn.Module, *_: Any) -> None:
        now[0] = int(getattr(module, "layer_idx", -1))
        entered.add(now[0])

    def told(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions.append(kwargs["position_ids"].dim() if "position_ids" in kwargs else args[1].dim())

    hooks = [m.register_forward_pre_hook(enter) for m in model.modules() if isinstance(m, family.attentions)]
    hooks += [m.register_forward_pre_hook(told, with_kwargs=True) for m in model.modules() if type(m) is family.rotary]
    family.module.apply_rotary_pos_emb = apply  # type: ignore[attr-defined]
    try:
        yield entered, seen, positions
    finally:
        family.module.apply_rotary_pos_emb = stock  # type: ignore[attr-defined]
        for hook in hooks:
            hook.remove()


def _alike(a: Pair, b: Pair) -> bool:
    """Whether two pairs turn alike; cos and sin come in the dtype of the states."""
    return all(
        x.shape == y.shape
        and torch.allclose(x.double(), y.double(), rtol=0, atol=0.01 if x.dtype.itemsize < 4 else 1e-6)
        for x, y in zip(a, b, strict=True)
    )
