"""Tables of frequencies found without training: an evolution of one table, after LongRoPE2 (arXiv 2502.20082), or a
coordinate descent over one exponent per layer or per head.

A pair i of inverse frequency theta_i becomes theta_i s^(-e_i) for the scale s. All levels start from the same table, by
parts: e_i = u_i^p (`harpe.methods.parts`).

    shared         e itself evolves, one for all heads: mutation and crossover of the best tables so far, and e never
                   falls from a pair to the next slower one, as in LongRoPE2
    exponent       p moves, one for all heads, up and down in logarithmic steps
    layer, head    the same, one per layer or per key/value head of every layer

The objective, in nats, is the loss of needle answers at the target, plus that of the far half of texts of the target
length, plus half of what the loss within the trained context rises by against the untouched model. It differs from
LongRoPE2's, which is the perplexity of needle answers alone.

Shapes: L layers, H key/value heads, N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from harpe.attention_heads.copying import CopyPrompt
from harpe.attention_heads.gradients import frozen, logarithms, loss_of
from harpe.attention_heads.learned import frozen_encoding
from harpe.errors import HarpeError
from harpe.methods.parts import by_parts, exponents_of
from harpe.methods.types import Encoding
from harpe.models.apply import apply_encoding, remove_windows
from harpe.models.float_tables import encoding_tables, float_tables
from harpe.models.head import hidden_states, token_nll
from harpe.positions.geometry import ModelGeometry
from harpe.reporter import Reporter

SearchLevel = Literal["shared", "exponent", "layer", "head"]
BETAS = (8.0, 1.0)
"""beta_fast and beta_slow of `by-parts`."""
RISE_WEIGHT = 0.5
STEP = 2.0
"""First factor between neighbouring exponents p; its root is taken when a round over all units changed nothing."""
PARENTS, SPREAD, CEILING = 4, 0.1, 1.25
"""Of the evolution: how many of the best tables have children, the standard deviation of a mutation of e, and the
largest e: LongRoPE2 finds factors above the scale for slow pairs."""


@dataclass(frozen=True)
class SearchedTables:
    """What was found, and how it went."""

    encoding: Encoding
    history: tuple[float, ...]
    """Objective of every table that was tried, in nats; the first is the start."""
    exponents: tuple[tuple[float, ...], ...] | None
    """p of every layer and key/value head; None for `shared`, which has a table instead."""

    @property
    def objective(self) -> float:
        """Of the tables found: the smallest of the history."""
        return min(self.history)


def search_tables(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    geometry: ModelGeometry,
    length: int,
    *,
    level: SearchLevel = "head",
    passes: int = 60,
    exponent: float = 2.0,
    prompts: Sequence[CopyPrompt] = (),
    seed: int = 0,
    dtype: str = "float32",
    sliding_window: str = "keep",
    reporter: Reporter | None = None,
) -> SearchedTables:
    """Search tables for a loaded, untouched model, whose weights stay; the model is left with them. Decided by the
    seed.

    Parameters
    ----------
    sequences
        Token ids, `length` or more each; the first `length` are read.
    geometry
        Of the checkpoint, from `read_geometry`.
    length
        The target context in tokens, above the trained one.
    level
        `shared`: one table for all heads. `exponent`: one exponent for all heads. `layer`, `head`: one for each.
    passes
        Tables that are tried, the start among them; one pass reads every sequence and prompt once. The same number is
        the same work at every level.
    exponent
        p of the start.
    prompts
        From `harpe.attention_heads.copying.copy_prompts`, at the target length.
    dtype
        Of the arithmetic; tables are float64.
    sliding_window
        "off" searches without windows, and `geometry` is that without; the untouched model has them.

    Raises
    ------
    HarpeError
        For numbers that make no sense, texts that are too short, checkpoints with a scaling of their own, and a start
        whose objective is not finite.
    """
    _check(sequences, geometry, length, level, passes)
    start = by_parts(geometry, length, exponent=exponent, beta_fast=BETAS[0], beta_slow=BETAS[1])[-1].encoding
    slowed = torch.tensor(exponents_of(geometry, exponent, *BETAS), dtype=torch.float64)
    log_scale = math.log(length / geometry.original_length)
    rng, history = np.random.default_rng(seed), list[float]()
    near, half = geometry.original_length, length // 2
    with frozen(model), torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        before = _mean([float(loss_of(model, ids[:near], 1)) for ids in sequences])
        if sliding_window == "off":
            remove_windows(model)
        logs, log_factors = logarithms(encoding_tables(model.config, start, geometry, length))
        plain = logs + slowed * log_scale
        layers, heads, _ = logs.shape
        # as the tables found will be: where one rotary module serves layers that keep their positions, a stock start
        # would change those as well
        apply_encoding(model, frozen_encoding(logs, log_factors, model, geometry), geometry, length)

        def objective(e: Tensor) -> float:
            with float_tables(model, plain - e * log_scale, log_factors):
                texts = [_losses(model, ids[:length], near, half) for ids in sequences]
                answers = [float(loss_of(model, prompt.ids, prompt.answer)) for prompt in prompts]
            rise = _mean([text[0] for text in texts]) - before
            value = _mean(answers) + _mean([text[1] for text in texts]) + RISE_WEIGHT * max(0.0, rise)
            history.append(value if math.isfinite(value) else math.inf)
            if not math.isfinite(history[0]):
                raise HarpeError("The objective of the start is not finite: give another exponent, or other texts.")
            note = f"objective {min(history):.4f}, from {history[0]:.4f}"
            (reporter or Reporter()).progress("search", len(history), passes, note)
            return history[-1]

        if level == "shared":
            table = _evolve(slowed.numpy(), lambda e: objective(torch.from_numpy(e)), passes, rng)
            best, powers = torch.from_numpy(table).expand(layers, heads, -1), None
        else:
            units = {"exponent": (1, 1), "layer": (layers, 1), "head": (layers, heads)}[level]
            ramp = torch.tensor(exponents_of(geometry, 1.0, *BETAS), dtype=torch.float64)

            def expand(p: NDArray[np.float64]) -> Tensor:
                return ramp ** torch.from_numpy(p).expand(layers, heads).unsqueeze(-1)

            free = range(layers) if geometry.changed_layers is None else geometry.changed_layers
            where = [(layer, head) for layer in ([0] if level == "exponent" else free) for head in range(units[1])]
            found = _descend(np.full(units, exponent), where, lambda p: objective(expand(p)), passes, rng)
            best = expand(found)
            powers = tuple(tuple(row) for row in np.broadcast_to(found, (layers, heads)).tolist())
    encoding = frozen_encoding(plain - best * log_scale, log_factors, model, geometry)
    apply_encoding(model, encoding, geometry, length)
    return SearchedTables(encoding, tuple(history), powers)


def _evolve(
    start: NDArray[np.float64],
    objective: Callable[[NDArray[np.float64]], float],
    passes: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The best of `passes` tables: children of the best so far, by one-point crossover in half of the cases, and
    mutation. Sorting keeps them non-decreasing."""
    tried = [(objective(start), start)]
    while len(tried) < passes:
        parents = [table for _, table in sorted(tried, key=lambda each: each[0])[:PARENTS]]
        child = parents[rng.integers(len(parents))].copy()
        if rng.random() < 0.5:
            cut = rng.integers(len(child))
            child[cut:] = parents[rng.integers(len(parents))][cut:]
        moved = rng.random(len(child)) < 0.3
        moved[rng.integers(len(child))] = True
        child = np.sort(np.clip(child + moved * rng.normal(0.0, SPREAD, len(child)), 0.0, CEILING))
        tried.append((objective(child), child))
    return min(tried, key=lambda each: each[0])[1]


def _descend(
    start: NDArray[np.float64],
    units: Sequence[tuple[int, int]],
    objective: Callable[[NDArray[np.float64]], float],
    passes: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Greedy coordinate descent: units in an order drawn anew every round, each one step down, and up where that was
    no better; what is better is kept at once."""
    best, point, left, step = objective(start), start, passes - 1, STEP
    while True:
        changed = False
        for number in rng.permutation(len(units)):
            for factor in (1 / step, step):
                if not left:
                    return point
                other = point.copy()
                other[units[number]] *= factor
                value, left = objective(other), left - 1
                if value < best:
                    best, point, changed = value, other, True
                    break
        if not changed:
            step = math.sqrt(step)


def _losses(model: PreTrainedModel, ids: Sequence[int], near: int, half: int) -> tuple[float, float]:
    """Mean loss within the trained context and over the far half, from one forward pass: what comes later does not
    change a prefix."""
    row = torch.tensor([list(ids)], device=model.device)
    losses = token_nll(model, hidden_states(model, row[:, :-1]), row[:, 1:]).flatten().double()
    return float(losses[: near - 1].mean()), float(losses[half - 1 :].mean())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _check(sequences: Sequence[Sequence[int]], geometry: ModelGeometry, length: int, level: str, passes: int) -> None:
    if level not in get_args(SearchLevel):
        raise HarpeError(f"level is {level}; choose shared, exponent, layer or head.")
    if passes < 1:
        raise HarpeError(f"passes is {passes}; at least one is needed, for the start.")
    if length <= geometry.original_length:
        raise HarpeError(
            f"length is {length:,}, and the model was trained with {geometry.original_length:,} tokens: there is "
            "nothing to search. Give a longer length."
        )
    if not sequences or any(len(ids) < length for ids in sequences):
        raise HarpeError(
            f"Tables are searched on texts of {length:,} tokens or more; give longer ones, or a shorter length."
        )
