"""What needs a C++ compiler: Inductor and flex attention on the CPU."""

from __future__ import annotations

import shutil

import pytest
import torch

from .test_families import ids_of, logits, with_bases
from .tiny_families import REPRESENTATIVES, tiny

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in REPRESENTATIVES]


@pytest.mark.parametrize("family", [*SLOW, pytest.param("gpt_neox", marks=pytest.mark.matrix)])
def test_inductor_gives_the_same_logits(family: str) -> None:
    model, ids = with_bases(tiny(family)), ids_of(1, 24)
    expected = logits(model, ids)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    got = logits(compiled, ids)
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("family", SLOW)
def test_flex_attention_agrees_with_eager(family: str) -> None:
    """Forward only: flex attention has no backward pass on the CPU."""
    ids = ids_of(1, 128)
    model = with_bases(tiny(family, attn_implementation="eager"))
    expected = logits(model, ids)
    model.set_attn_implementation("flex_attention")
    assert (logits(model, ids) - expected).abs().max() <= 2e-5 * expected.abs().max()
