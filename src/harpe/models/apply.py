"""Change the positions of a loaded model in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from harpe.errors import HarpeError
from harpe.methods.types import Encoding
from harpe.models.attention import apply_attention
from harpe.models.families import check_groups, find_family
from harpe.models.geometry import changed_layers, remove_window, rope_key, text_config
from harpe.models.install import install
from harpe.models.lengths import tell_length
from harpe.models.old_keys import FACTORS
from harpe.models.per_head import LENGTH, ROPE_TYPE, stock_frequencies
from harpe.models.remapped_attention import NAMES
from harpe.models.rotation_check import check_rotation, check_scaled
from harpe.models.trained_base import check_applied
from harpe.positions.geometry import ModelGeometry


def rope_parameters(
    config: PreTrainedConfig, encoding: Encoding, geometry: ModelGeometry, length: int
) -> dict[str, Any]:
    """The entry of `rope_parameters` in config.json for the layers that change.

    One base for all heads, and every rope type of transformers, stay stock; where there is an attention factor, the
    checkpoint's or the encoding's, which the type `default` cannot hold, one base is LongRoPE without any scaling. One
    factor per head is written as bases per head, equal ones too, as is a scale of queries by length; with it the
    frequencies of a stock rope type are written as a table. Bases per head are one list,
    or a list by layer where they differ, or where layers with a sliding window read from the same rotary module and
    keep their positions (whose entry then stands under `local`).

    One base under a changed attention is written as equal bases per head, which turn alike: a program that knows no
    such attention stops at the rope type. transformers keeps that whenever it saves the model, and drops the name of
    the attention.
    """
    key = rope_key(config)
    old = dict(config.rope_parameters if key is None else config.rope_parameters[key])
    if old.get("local") is not None:  # an earlier stage of a method has been here
        old = dict(old["local"])
    share = old.get("partial_rotary_factor")
    # there are families that pass over it, while the scaled rope types of transformers would not
    obeyed = share is not None and int(share * geometry.head_dim) == geometry.rotary_dim
    kept = {"partial_rotary_factor": share} if obeyed else {}
    if getattr(config, "harpe_original_length", None) is None and old.get("rope_theta") != geometry.base:
        # the family raises the base by a rule of its own
        old = {"rope_type": "default", "rope_theta": geometry.base, **kept}
    if encoding.stock is not None:
        if not encoding.length_scale:
            return {**encoding.stock, **kept}
        encoding = _as_table(config, encoding, {**encoding.stock, **kept}, key)
    given, trained = encoding.attention_factor, geometry.attention_factor
    factor = [trained * of_head for of_head in given] if isinstance(given, tuple) else trained * given
    stays_stock = not encoding.per_head and encoding.attention is None and not encoding.length_scale
    if stays_stock and not isinstance(factor, list):
        shared = {"rope_type": "default", "rope_theta": encoding.bases[0], **kept}
        if factor == 1.0:
            return shared
        none = [1.0] * (encoding.rotary_dim // 2)
        scaling: dict[str, Any] = {"short_factor": none, "long_factor": list(none), "factor": 1.0}
        scaling["original_max_position_embeddings"] = length
        own = {name: factor for name in FACTORS if name in old}  # PhiMoE's names of it
        return {**shared, "rope_type": "longrope", **scaling, "attention_factor": factor, **own}
    if factor != 1.0:
        kept["attention_factor"] = factor
    if encoding.length_scale:
        kept |= {"length_scale": _listed(encoding.length_scale), LENGTH: geometry.original_length}
    entry = {"rope_type": ROPE_TYPE, "rope_theta": geometry.base, **kept}
    keeps_windows = key is None and any("sliding" in kind for kind in getattr(config, "layer_types", None) or [])
    layers, changed = config.num_hidden_layers, set(changed_layers(config))
    by_layer: Sequence[Any] | None = encoding.layer_bases
    name, row = "bases", cast(Any, encoding.bases)
    if encoding.tables is not None:
        name, row, by_layer = "frequencies", encoding.tables[0], encoding.tables if len(encoding.tables) > 1 else None
    if by_layer is None and not keeps_windows:
        return {**entry, name: _listed(row)}
    rows = by_layer or (row,) * layers
    entry[name] = [_listed(row) if row is not None and layer in changed else None for layer, row in enumerate(rows)]
    if keeps_windows:
        entry["local"] = {key: value for key, value in old.items() if key not in ("bases", "frequencies")}
    return entry


def _as_table(config: PreTrainedConfig, encoding: Encoding, stock: dict[str, Any], key: str | None) -> Encoding:
    """The frequencies and the attention factor of a stock rope type, as tables hold them."""
    if stock["rope_type"] == "dynamic" or stock.get("short_factor") != stock.get("long_factor"):
        raise HarpeError(
            f"length_scale goes with frequencies that do not change with the length of the text; those of the rope "
            f"type {stock['rope_type']} do. Leave it out, or choose a method such as by-parts."
        )
    frequencies, factor = stock_frequencies(config, find_family(config).rotary, stock, key)
    table = (tuple(frequencies),) * len(encoding.bases)
    return replace(encoding, stock=None, per_head=True, tables=(table,), attention_factor=factor)


def _listed(value: Any) -> Any:
    """Tuples as JSON has them."""
    return [_listed(each) for each in value] if isinstance(value, tuple | list) else value


def apply_encoding(
    model: PreTrainedModel, encoding: Encoding, geometry: ModelGeometry, length: int, sliding_window: str = "keep"
) -> PreTrainedModel:
    """Put an encoding into a loaded model and set its context to `length` tokens; returns the same object.

    The rotary modules are made anew from the changed configuration, so that the model is what a fresh load of its saved
    configuration would give. The trained context is kept in the configuration as `harpe_original_length`. May be called
    again with another encoding, for the next stage of a method.

    Parameters
    ----------
    geometry
        Of the original checkpoint, from `read_geometry`.
    sliding_window
        "off" lets every layer attend to everything; "keep" changes nothing.

    Raises
    ------
    HarpeError
        Where the family makes something else of it (`check_applied`, `check_rotation`).
    """
    if encoding.attention is not None and encoding.length_scale:
        raise HarpeError(f"length_scale does not go with {NAMES}, which keep true lengths.")
    install()
    config = text_config(model.config)
    family = find_family(config)
    if sliding_window == "off":
        remove_windows(model)
    key, entry = rope_key(config), rope_parameters(config, encoding, geometry, length)
    if entry["rope_type"] == ROPE_TYPE:
        check_groups(config)
    _put(config, entry, key)
    config.harpe_original_length = geometry.original_length
    before = min(geometry.original_length, config.max_position_embeddings)
    dynamic = encoding.stock is not None and encoding.stock["rope_type"] == "dynamic"
    # transformers' dynamic NTK takes this number for the trained context, beyond which it changes the base
    config.max_position_embeddings = geometry.original_length if dynamic else length
    tell_length(model, before, length)
    if entry["rope_type"] == ROPE_TYPE:
        config.validate_rope()
    else:
        check_applied(config, family.rotary, dict(entry), key)
    renew_rotary(model)
    check_rotation(model)
    check_factors(model, encoding, geometry)
    return apply_attention(model, encoding.attention)


def _put(config: PreTrainedConfig, entry: dict[str, Any], key: str | None) -> None:
    config.rope_parameters = entry if key is None else {**config.rope_parameters, key: entry}
    if hasattr(config, LENGTH) and LENGTH in entry:
        # transformers prefers it to the one in the entry (Phi-3, and exports that older programs can read)
        setattr(config, LENGTH, entry[LENGTH])


def check_encoding(config: PreTrainedConfig, encoding: Encoding, geometry: ModelGeometry, length: int) -> None:
    """Refuse, by the configuration alone, a stock rope type that the family makes something else of (`check_applied`),
    and values by head where it groups heads otherwise (`check_groups`).

    Raises HarpeError.
    """
    config = copy.deepcopy(text_config(config))
    key, entry = rope_key(config), rope_parameters(config, encoding, geometry, length)
    if entry["rope_type"] == ROPE_TYPE:
        check_groups(config)
    else:
        _put(config, entry, key)
        check_applied(config, find_family(config).rotary, dict(entry), key)


def windows_note(config: PreTrainedConfig, encoding: Encoding, geometry: ModelGeometry, length: int) -> str | None:
    """A sentence where layers with a window, which methods leave as they are, change with the others."""
    config = text_config(config)
    stock = rope_parameters(config, encoding, geometry, length)["rope_type"] != ROPE_TYPE
    if not stock or rope_key(config) is not None or len(changed_layers(config)) == config.num_hidden_layers:
        return None
    return (
        f"But all layers of a {config.model_type} read from one rotary module, to which this method gives a stock rope "
        "type: layers with a sliding window change their positions as well."
    )


def check_factors(model: PreTrainedModel, encoding: Encoding, geometry: ModelGeometry) -> None:
    """Refuse a family whose attention would not have the factors of an encoding (`check_scaled`); may be asked before
    anything is changed.

    Raises HarpeError.
    """
    factor = encoding.attention_factor
    if encoding.stock is not None and not encoding.length_scale:
        config = text_config(model.config)
        entry = rope_parameters(config, encoding, geometry, geometry.original_length)
        factor = stock_frequencies(config, find_family(config).rotary, entry, rope_key(config))[1]
    if encoding.length_scale or factor != 1.0:
        check_scaled(model, geometry.head_dim if encoding.length_scale else None)


def renew_rotary(model: PreTrainedModel) -> None:
    """Make the rotary modules anew from the model's configuration."""
    config = text_config(model.config)
    rotary, device = find_family(config).rotary, next(model.parameters()).device
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is rotary:
                with torch.device(device):
                    setattr(parent, name, type(module)(config))


def remove_windows(model: PreTrainedModel) -> None:
    """Let every layer of a loaded model attend to everything: `remove_window`, and what its modules have read."""
    remove_window(model.config)
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            setattr(module, "sliding_window", None)  # noqa: B010
        if getattr(module, "is_sliding", False) is True:
            setattr(module, "is_sliding", False)  # noqa: B010
        for name in ("attention_type", "layer_type"):
            if "sliding" in str(getattr(module, name, "")):
                setattr(module, name, "full_attention")
