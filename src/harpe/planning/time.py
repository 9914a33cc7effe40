"""Operations, steps, time and cost of a training.

Counted is the model's work, as is usual: two operations a multiplication, a backward pass of twice the forward pass,
the causal half of attention alone, no recompute. Utilisation is this work against what devices could do at most, so
that recompute and exchanges are in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harpe.errors import HarpeError
from harpe.models.geometry import text_config
from harpe.planning.devices import Devices
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer

UTILIZATION = 0.3
"""Of published trainings at such lengths: 0.34 (TRL, Qwen3-8B at 1M on 8 H100, 380 s a step), 0.16 and 0.14
(torchtitan, Llama-3.1-8B at 128k and 256k), 0.24 and 0.38 (EasyContext, LLaMA-2-7B at 128k and 512k on 8 A100)."""
FROZEN = 2 / 3
"""Work on a weight that is not trained, of that on one that is: its own gradient is not formed."""
EXPERTS = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k")


@dataclass(frozen=True)
class TimePlan:
    """Of a whole training; None where a device's speed, or the price, is not known."""

    steps: int
    tokens: int
    """That are trained on: whole steps."""
    operations: float
    hours: float | None
    cost: float | None


def multiplied_parameters(tracer: Tracer, frozen: float = 1.0) -> int:
    """Parameters that a token is multiplied by: matrices of layers, those experts that it is sent to, and the output
    layer. Embeddings are looked up. What is not trained counts as `frozen`."""
    config = text_config(tracer.config)
    chosen = next((value for name in EXPERTS if (value := getattr(config, name, None))), None)
    total = 0.0
    for layer in tracer.layers:
        for parameter in layer.parameters():
            share = 1.0 if parameter.requires_grad else frozen
            if parameter.dim() == 3 and chosen:  # all experts in one tensor
                total += share * parameter.numel() * min(1.0, chosen / parameter.shape[0])
            elif parameter.dim() > 1:
                total += share * parameter.numel()
    head = tracer.model.get_output_embeddings().weight
    return int(total + head.numel() * (1.0 if head.requires_grad else frozen))


def sequence_operations(tracer: Tracer, length: int) -> float:
    """Of one sequence, forward and backward."""
    config = text_config(tracer.config)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    window = getattr(config, "sliding_window", None) or length
    types = getattr(config, "layer_types", None)
    pairs = 0.0  # of a query and a key, over all layers
    for number in range(len(tracer.layers)):
        reach = min(length, window) if types and types[number] == "sliding_attention" else length
        pairs += reach * reach / 2 + (length - reach) * reach
    return 6.0 * multiplied_parameters(tracer, FROZEN) * length + 3 * 4 * width * pairs


def plan_time(
    tracer: Tracer,
    length: int,
    tokens: int,
    devices: Devices,
    settings: Settings,
    utilization: float = UTILIZATION,
    price: float | None = None,
) -> TimePlan:
    """The time of a training on `tokens` tokens in one stage.

    Parameters
    ----------
    utilization
        Share of the devices' speed that a training has, above 0 and at most 1.
    price
        Of a device and hour, in any currency.

    Raises
    ------
    HarpeError
        For numbers that cannot be, and fewer tokens than a step has.
    """
    if not 0 < utilization <= 1:
        raise HarpeError(f"--utilization is {utilization}; it is a share of the devices' speed, above 0, at most 1.")
    if price is not None and not 0 <= price < math.inf:
        raise HarpeError(f"--price is {price}; it is the price of a device and hour, 0 or more.")
    sequences = settings.sequences(length)
    steps = tokens // (sequences * length)
    if steps < 1:
        raise HarpeError(
            f"--tokens {tokens} is less than one step of {sequences * length} tokens; give more tokens, or a smaller "
            "--batch-tokens."
        )
    operations = steps * sequences * sequence_operations(tracer, length)
    peak = devices.peak
    if settings.dtype == "float32":
        peak = None  # the table has the speed of bfloat16
    hours = operations / (devices.count * peak * utilization) / 3600 if peak else None
    cost = hours * devices.count * price if hours is not None and price is not None else None
    return TimePlan(steps, steps * sequences * length, operations, hours, cost)
