"""Memory and operations of every family follow from its own code."""

from __future__ import annotations

import pytest

from harpe.planning.devices import read_devices
from harpe.planning.memory import plan_memory
from harpe.planning.settings import Settings
from harpe.planning.time import multiplied_parameters
from harpe.planning.trace import Tracer

from .tiny_families import FAMILIES, tiny_config


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_planned(family: str) -> None:
    tracer = Tracer(tiny_config(family))
    plan = plan_memory(tracer, 512, read_devices("2xH100"), Settings(sequence_parallel=1))
    assert plan.total > 12 * sum(p.numel() for p in tracer.model.parameters()) / 2


def test_tokens_of_experts_count_for_those_that_are_chosen() -> None:
    config = tiny_config("mixtral")
    every, chosen = (Tracer(tiny_config("mixtral")), Tracer(config))
    config.num_experts_per_tok = 1
    every.config.num_experts_per_tok = every.config.num_local_experts
    experts = [p for layer in every.layers for p in layer.parameters() if p.dim() == 3]
    assert experts
    unused = sum(p.numel() - p[0].numel() for p in experts)
    assert multiplied_parameters(every) - multiplied_parameters(chosen) == unused
