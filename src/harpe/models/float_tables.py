"""A loaded model that turns by tables of float numbers, with gradients by them: what heads want, and learned tables.

The tables take the place of what the attentions of the layers that a method changes are handed; all others keep theirs.
Shapes: L layers, H key/value heads, N pairs of dimensions that turn.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from harpe.errors import HarpeError
from harpe.methods.types import Encoding
from harpe.models.angles import moving_rope
from harpe.models.apply import apply_encoding
from harpe.models.families import check_groups, find_family
from harpe.models.geometry import changed_layers, rope_key, text_config
from harpe.models.install import install
from harpe.models.per_head import ROPE_TYPE, hook, key_value_heads, stock_frequencies, table_rows
from harpe.models.remapped_attention import NAMES
from harpe.positions.geometry import ModelGeometry
from harpe.positions.learned import float_table, rotate_by_table
from harpe.positions.phases import base_frequencies

IN_ATTENTION = (
    f"{NAMES} change positions inside the attention, which no table of frequencies says. Choose another --method."
)


def model_tables(config: PreTrainedConfig) -> tuple[Tensor, Tensor]:
    """What a model of this configuration turns by: inverse frequencies in radians a position, float64 [L, H, N], and
    what cos and sin are multiplied by, float64 [L, H]. Rows of layers whose positions no method changes are nan.

    Raises
    ------
    HarpeError
        Where a table cannot say it: rotations that depend on the length of the text (dynamic NTK, LongRoPE with two
        sets of factors), positions changed inside the attention (Self-Extend, ReRoPE, dual chunk attention), and
        queries that are scaled by length (length_scale).
    """
    config = text_config(config)
    family = find_family(config)
    if (moving := moving_rope(config)) is not None:
        raise HarpeError(
            f"Rope type {moving} turns a token by the length of its text, which no table of frequencies says. Choose "
            "another --method."
        )
    if getattr(config, "harpe_attention", None) is not None:
        raise HarpeError(IN_ATTENTION)
    key, heads, layers = rope_key(config), key_value_heads(config), config.num_hidden_layers
    rope = config.rope_parameters if key is None else config.rope_parameters[key]
    if rope.get("length_scale"):
        raise HarpeError(
            "Queries are scaled by the number of tokens (length_scale), which no table of frequencies says. Choose "
            "positions without."
        )
    if rope["rope_type"] != ROPE_TYPE:
        row, factor = stock_frequencies(config, family.rotary, rope, key)
        rows: list[Any] = [[row] * heads]
    else:
        factor = rope.get("attention_factor") or 1.0
        default = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        pairs = len(stock_frequencies(config, family.rotary, {"rope_type": "default", **default}, key)[0])
        given, _ = table_rows(rope)
        rows = [each if each is None or "frequencies" in rope else base_frequencies(each, 2 * pairs) for each in given]
    changed = set(changed_layers(config))
    rows = rows * layers if len(rows) == 1 else rows
    width = next(len(row[0]) for row in rows if row is not None)
    nothing = torch.full((heads, width), torch.nan, dtype=torch.float64)
    tables = [
        torch.tensor(row, dtype=torch.float64) if row is not None and layer in changed else nothing
        for layer, row in enumerate(rows)
    ]
    factors = torch.tensor(factor, dtype=torch.float64).expand(layers, heads).clone()
    factors[[layer for layer in range(layers) if layer not in changed]] = torch.nan
    return torch.stack(tables), factors


def encoding_tables(
    config: PreTrainedConfig, encoding: Encoding, geometry: ModelGeometry, length: int
) -> tuple[Tensor, Tensor]:
    """`model_tables` of a model that is given an encoding; no weights are needed. Raises HarpeError as it does."""
    if encoding.attention is not None:
        raise HarpeError(IN_ATTENTION)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return model_tables(apply_encoding(empty, encoding, geometry, length).config)


def attention_modules(model: PreTrainedModel, layers: Iterable[int] | None = None) -> dict[int, torch.nn.Module]:
    """The attentions of some layers by their number; None: of the layers whose positions a method changes. Of other
    layers those that have one: hybrids have layers without.

    Raises HarpeError where one is not found, or is there twice, and for a family that groups its heads otherwise
    (`harpe.models.families.check_groups`).
    """
    config = text_config(model.config)
    check_groups(config)
    changed = changed_layers(config)
    wanted = list(changed if layers is None else layers)
    classes, found = find_family(config).attentions, dict[int, torch.nn.Module]()
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(module, classes) and layer in wanted:
            if layer in found:
                raise HarpeError(f"Layer {layer} of this {config.model_type} has two attentions: which one is unclear.")
            found[layer] = module
    if missing := [layer for layer in wanted if layer in changed and layer not in found]:
        raise HarpeError(
            f"No attention of layer {missing[0]} of this {config.model_type} was found: its heads cannot be looked at."
        )
    return found


@contextmanager
def float_tables(model: PreTrainedModel, log_frequencies: Tensor, log_factors: Tensor) -> Iterator[PreTrainedModel]:
    """While the block runs, `model` turns by these tables, with gradients by them.

    Where layers are recomputed in the backward pass, that pass has to end inside of the block and before the next
    forward pass.

    Parameters
    ----------
    log_frequencies
        Natural logarithms of inverse frequencies in radians a position, [L or 1, H, N]; -inf for a pair that does not
        turn. float64: float32 is off by radians at 100,000 tokens.
    log_factors
        Of what multiplies cos and sin, [L or 1, H], all of it: also what the checkpoint was trained with.

    Raises
    ------
    HarpeError
        For tables of another shape, and models that `model_tables` refuses.
    """
    install()
    config = text_config(model.config)
    family, there = find_family(config), model_tables(config)[0].shape
    for shape, wanted in ((log_frequencies.shape, there), (log_factors.shape, there[:2])):
        if shape[1:] != wanted[1:] or shape[0] not in (1, wanted[0]):
            raise HarpeError(f"A table has the shape {list(shape)}; this model takes {list(wanted)}, or 1 for layers.")
    hook(family)  # ours comes on top of it, and has its mark
    layers = max(len(log_frequencies), len(log_factors))
    tables = float_table(log_frequencies.expand(layers, -1, -1), log_factors.expand(layers, -1)).to(model.device)
    positions: list[Tensor] = []
    below = family.module.apply_rotary_pos_emb

    @functools.wraps(below)
    def apply(q: Tensor, k: Tensor, first: Tensor, second: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (first.dtype == torch.int64 and second.is_floating_point()):
            return below(q, k, first, second, *args, **kwargs)
        head_dim = kwargs.get("unsqueeze_dim", args[-1] if args else 1)
        return rotate_by_table(q, k, first, second, family.layout, head_dim)

    def told(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions[:] = [kwargs["position_ids"] if "position_ids" in kwargs else args[1]]

    def enter(layer: int, module: torch.nn.Module) -> Any:
        place = list(inspect.signature(type(module).forward).parameters).index("position_embeddings") - 1

        def exchange(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            pair = positions[0].to(torch.int64), tables[layer if layers > 1 else 0]
            if "position_embeddings" in kwargs:
                return args, {**kwargs, "position_embeddings": pair}
            return (*args[:place], pair, *args[place + 1 :]), kwargs

        return module.register_forward_pre_hook(exchange, with_kwargs=True)

    handles = [m.register_forward_pre_hook(told, with_kwargs=True) for m in model.modules() if type(m) is family.rotary]
    handles += [enter(layer, module) for layer, module in attention_modules(model).items()]
    family.module.apply_rotary_pos_emb = apply  # type: ignore[attr-defined]
    try:
        yield model
    finally:
        family.module.apply_rotary_pos_emb = below  # type: ignore[attr-defined]
        for handle in handles:
            handle.remove()
