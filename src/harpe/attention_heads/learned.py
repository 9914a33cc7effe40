"""Tables of frequencies learned with frozen weights: after AdaRoPE (arXiv 2607.19363), which learns ln theta for every
head and pair, and LeRoPE (arXiv 2607.10134), which learns one for all heads.

Here ln theta moves from a start, such as MrRoPE's, by a step of its own for every pair, which heads and layers share or
not, and so may the logarithm of the attention factor. Adam lowers the loss of the next token on texts of the target
length, and that of the answers of needle samples where they are given: text alone teaches tables that retrieve worse.
The two papers train the weights along, and AdaRoPE's factor depends on the length; neither is done here.

Shapes: L layers, H key/value heads, N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harpe.attention_heads.copying import CopyPrompt
from harpe.attention_heads.gradients import frozen, logarithms, loss_of
from harpe.errors import HarpeError
from harpe.methods.types import Encoding, table_encoding, with_attention_factor
from harpe.models.apply import apply_encoding
from harpe.models.float_tables import encoding_tables, float_tables
from harpe.models.geometry import changed_layers
from harpe.positions.geometry import ModelGeometry
from harpe.reporter import Reporter

Level = Literal["shared", "layer", "head"]
"""Who has a step of its own: each pair, each pair of every layer, each pair of every head of every layer."""


@dataclass(frozen=True)
class LearnedTables:
    """What was learned, and how it went."""

    encoding: Encoding
    losses: tuple[float, ...]
    """In nats, before every step: of its text, with the weighted loss of its answer where there are prompts."""


def learn_tables(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    start: Encoding,
    geometry: ModelGeometry,
    length: int,
    *,
    level: Level = "head",
    steps: int = 40,
    rate: float = 0.01,
    factors: bool = False,
    prompts: Sequence[CopyPrompt] = (),
    answer_weight: float = 1.0,
    seed: int = 0,
    dtype: str = "float32",
    reporter: Reporter | None = None,
) -> LearnedTables:
    """Learn tables for a loaded model, whose weights stay; the model is left with them.

    Decided by the seed. A step reads one sequence, and one prompt where there are any; all are read before one is read
    again.

    Parameters
    ----------
    sequences
        Token ids; the first `length` of each are read.
    start
        Where the frequencies begin.
    geometry
        Of the original checkpoint, from `read_geometry`.
    length
        The target context in tokens.
    level
        `shared`: heads that start alike stay alike, to the bit. `layer`, `head`: as the name says.
    rate
        Of Adam, in natural logarithms: 0.01 changes a frequency by about 1 % a step.
    factors
        Learn attention factors too: one per key/value head, the same in all layers, with `head`; else one for all.
    prompts
        From `harpe.attention_heads.copying.copy_prompts`, at the target length; the loss of their answers is added with
        `answer_weight`.
    dtype
        Of the arithmetic; tables are float64.

    Raises
    ------
    HarpeError
        For a start that no table can say, numbers that make no sense, texts of fewer than two tokens, and a loss that
        is not finite.
    """
    _check(sequences, level, steps, rate, answer_weight)
    logs, log_factors = logarithms(encoding_tables(model.config, start, geometry, length))
    # as the learned tables will be: where one rotary module serves layers that keep their positions, a stock start
    # would change those as well
    apply_encoding(model, frozen_encoding(logs, log_factors, model, geometry), geometry, length)
    layers, heads, pairs = logs.shape
    shape = (layers if level != "shared" else 1, heads if level == "head" else 1, pairs)
    step = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    by = torch.zeros(1, heads if level == "head" else 1, dtype=torch.float64, requires_grad=factors)
    optimiser = torch.optim.Adam([step, by] if factors else [step], lr=rate)
    generator, losses = torch.Generator().manual_seed(seed), list[float]()
    texts, asked = (_order(len(each), steps, generator) for each in (sequences, prompts))
    with frozen(model), torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        for number in range(steps):
            parts = [(sequences[texts[number]][:length], 1, 1.0)]
            if prompts and answer_weight:
                parts.append((prompts[asked[number]].ids, prompts[asked[number]].answer, answer_weight))
            total = 0.0
            for ids, first, weight in parts:
                with float_tables(model, logs + step, log_factors + by):
                    loss = weight * loss_of(model, ids, first)
                    loss.backward()
                total += float(loss.detach())
            if not math.isfinite(total):
                raise HarpeError(f"The loss of step {number + 1} of learning tables is {total}: give a smaller rate.")
            losses.append(total)
            optimiser.step()
            optimiser.zero_grad()
            (reporter or Reporter()).progress("tables", number + 1, steps, f"loss {total:.4f}")
    encoding = frozen_encoding(logs + step.detach(), log_factors + by.detach(), model, geometry)
    apply_encoding(model, encoding, geometry, length)
    return LearnedTables(encoding, tuple(losses))


def _check(sequences: Sequence[Sequence[int]], level: str, steps: int, rate: float, answer_weight: float) -> None:
    if level not in ("shared", "layer", "head"):
        raise HarpeError(f"level is {level}; choose shared, layer or head.")
    if steps < 1 or not math.isfinite(rate) or rate <= 0 or not math.isfinite(answer_weight) or answer_weight < 0:
        raise HarpeError(
            f"steps is {steps}, rate {rate:g} and answer_weight {answer_weight:g}; steps and rate are above 0, and the "
            "weight is not below it."
        )
    if not sequences or any(len(ids) < 2 for ids in sequences):
        raise HarpeError("Tables are learned on texts of two tokens or more; give some.")


def _order(count: int, steps: int, generator: torch.Generator) -> list[int]:
    """So many numbers below `count`, all of them before one comes again."""
    rounds = -(-steps // count) if count else 0
    return [number for _ in range(rounds) for number in torch.randperm(count, generator=generator).tolist()][:steps]


def frozen_encoding(logs: Tensor, log_factors: Tensor, model: PreTrainedModel, geometry: ModelGeometry) -> Encoding:
    """The tables as an encoding: one for all layers where all are alike."""
    changed = changed_layers(model.config)
    own = [logs[layer].exp().tolist() for layer in changed]
    rows = dict(zip(changed, own, strict=True))
    alike = all(table == own[0] for table in own)
    encoding = table_encoding([own[0]] if alike else [rows.get(layer) for layer in range(len(logs))], geometry)
    # the checkpoint's own factor stays its own
    factors = (log_factors[changed[0]].exp() / geometry.attention_factor).tolist()
    return with_attention_factor(encoding, factors, geometry, 1.0)
