"""The base that a checkpoint was trained with, from what its rotary module computes, and the check that a module takes
what is put in.

A configuration may hide the base (HunYuan raises `rope_theta` by a fixed `alpha`), so that it is taken from the inverse
frequencies of the family's own rotary module, made from the untouched configuration. Those of a scaling that is known
here come from `rope_theta`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from harpe.errors import HarpeError
from harpe.models.per_head import stock_frequencies
from harpe.positions.phases import base_frequencies

SCALED = ("linear", "yarn", "longrope", "llama3")
"""Types of scaling that a checkpoint can have been trained with."""
KNOWN = ("default", "dynamic", *SCALED)
"""Types whose frequencies come from `rope_theta` by transformers' own formulas; dynamic ones up to the trained
context."""
TOLERANCE = 1e-5
"""Relative. float32 arithmetic strays by 4e-7; formulas that differ, by 1e-2 and more."""


def module_frequencies(
    config: PreTrainedConfig, rotary: type, key: str | None, length: int = 1
) -> tuple[list[float], float]:
    """Inverse frequencies that the family's rotary module holds, and the factor by which it multiplies cos and sin in a
    text of `length` tokens. `key` is the layer type, where layer types have rope parameters of their own."""
    with torch.device("cpu"), torch.no_grad():
        module = rotary(copy.copy(config))
        frequencies = getattr(module, "inv_freq" if key is None else f"{key}_inv_freq").double().tolist()
        cos, _ = module(torch.zeros(1), torch.tensor([[0, length - 1]]), *(() if key is None else (key,)))
    return frequencies, float(cos.flatten()[0])


def trained_base(
    config: PreTrainedConfig, rotary: type, rope: dict[str, Any], key: str | None, name: str
) -> tuple[float, dict[str, Any], list[float]]:
    """The base, the rope parameters that say the same, and the inverse frequencies of that base without a scaling.

    The parameters are `rope` itself, unless the family makes another base of them (HunYuan): then `default` with that
    base.

    Raises HarpeError for frequencies that follow neither a base nor a known scaling (proportional RoPE), and a family
    whose formula puts in others.
    """
    kept = {name: rope[name] for name in ("partial_rotary_factor",) if name in rope}

    def plain(base: float) -> list[float]:
        return stock_frequencies(config, rotary, {"rope_type": "default", "rope_theta": base, **kept}, key)[0]

    found, _ = module_frequencies(config, rotary, key)
    base, kind = float(rope["rope_theta"]), rope.get("rope_type", "default")
    if (
        kind in KNOWN
        and _alike(found, stock_frequencies(config, rotary, rope, key)[0])
        and _alike(plain(base), _powers(base, len(found)))
    ):
        return base, rope, plain(base)
    fitted = _fit(found)
    if fitted > 1 and _alike(found, _powers(fitted, len(found))):
        near = np.float32(fitted)  # transformers raises float32 bases: one of those around it gives the same bits
        for base in (float(near + ulp * np.spacing(near)) for ulp in sorted(range(-16, 17), key=abs)):
            if plain(base) == found:
                return base, {"rope_type": "default", "rope_theta": base, **kept}, found
    raise HarpeError(
        f"{name} (model type {config.model_type}, rope type {kind}) turns by frequencies that follow no base: there is "
        "none to start from, and its own formula would put others in. harpe extends plain RoPE and checkpoints scaled "
        f"by {', '.join(SCALED)}."
    )


def check_applied(config: PreTrainedConfig, rotary: type, rope: dict[str, Any], key: str | None) -> None:
    """Refuse a family that makes something else of stock rope parameters, a copy of which is `rope`, that its
    configuration has been given.

    Raises HarpeError with the rope type.
    """
    wanted, factor = stock_frequencies(config, rotary, rope, key)
    try:
        config.validate_rope()
        found, by = module_frequencies(config, rotary, key)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HarpeError(
            f"A {config.model_type} does not take the rope type {rope['rope_type']} as other families do ({error}). "
            "Choose a method with plain bases, such as abf or harpe."
        ) from error
    plain = rope["rope_type"] == "default"
    if not _alike(found, _powers(rope["rope_theta"], len(found)) if plain else wanted) or not math.isclose(
        by, factor, rel_tol=TOLERANCE
    ):
        raise HarpeError(
            f"The rotary module of a {config.model_type} has a formula of its own for the rope type "
            f"{rope['rope_type']} and would turn by other frequencies than the method asks for; choose another method, "
            "such as harpe."
        )


def _powers(base: float, pairs: int) -> list[float]:
    """base^(-2i/d)."""
    return base_frequencies([base], 2 * pairs)[0]


def _alike(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=TOLERANCE) for x, y in zip(a, b, strict=True))


def _fit(frequencies: list[float]) -> float:
    """The base B for which B^(-i/n) comes closest to n frequencies: least squares of their logarithms; nan where there
    is none."""
    if len(frequencies) < 2 or min(frequencies) <= 0:
        return math.nan
    exponents = -np.arange(len(frequencies)) / len(frequencies)
    return float(np.exp((exponents * np.log(frequencies)).sum() / (exponents**2).sum()))
