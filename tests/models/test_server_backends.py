"""What vLLM's and SGLang's backends for transformers models ask of a custom model (neither is run here)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from harpe.models.marker import MARKER
from harpe.positions.rotation import Layout, encode_positions, rotate_per_head

from .tiny_families import FAMILIES

WITHOUT_BACKEND = {"stablelm"}
"""transformers' own class does not call its attention through the attention interface, so that no server can replace it."""
WITHOUT_ARGUMENTS = {"nemotron"}
"""transformers' own class does not hand a server's arguments on to its attention."""
OWN_SCORES = {"gemma2", "gpt_oss"}
"""Their attention caps scores or adds sinks, which the test's attention function does not."""
ROWS_BY_LAYER = {"gemma2", "gpt_oss"}
"""One rotary module serves layers of two kinds: the attention's `forward` picks a layer's row."""


@pytest.fixture(params=FAMILIES)
def served(told: Any, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    answer = told[request.param][1]
    assert "error" not in answer, answer
    return request.param, answer["serving"]


def test_auto_model_makes_the_base_model_of_the_file_with_the_bases_in_it(served: Any) -> None:
    _, found = served
    assert found["base"]
    assert found["buffers"]  # made with weights on the meta device, buffers as they are
    assert found["causal"]


def test_attention_goes_through_the_attention_interface(served: Any) -> None:
    family, found = served
    assert found["supported"] == (family not in WITHOUT_BACKEND)


def test_plans_for_several_devices_are_those_of_the_stock_class(served: Any) -> None:
    _, found = served
    assert found["stock"].startswith("transformers.models.")
    assert found["plans"] == found["stock_plans"]


def test_arguments_of_the_server_reach_its_attention_in_every_layer(served: Any) -> None:
    family, found = served
    if family in WITHOUT_BACKEND:
        pytest.skip("its attention cannot be replaced")
    handed = family not in WITHOUT_ARGUMENTS
    assert found["layers"] == [f"layer {i}" if handed else None for i in range(len(found["layers"]))]
    assert len(found["layers"]) >= 2
    if family not in OWN_SCORES:
        assert (found["own_attention"] - found["eager"]).abs().max() <= 1e-4 * found["eager"].abs().max()


def test_attention_compiled_anew_from_its_source_still_rotates_by_head_or_refuses(served: Any) -> None:
    family, found = served
    if family in WITHOUT_BACKEND:
        pytest.skip("its attention cannot be replaced")
    if family in ROWS_BY_LAYER:
        assert "not given the row of its layer" in found["from_source"]
    else:
        assert torch.equal(found["from_source"], found["eager"])


def test_the_mark_among_the_weights_is_passed_over_by_servers(served: Any) -> None:
    """vLLM drops what the class ignores; both drop names with this part (AutoWeightsLoader's list of unused rotary weights)."""
    _, found = served
    assert "rotary_emb.inv_freq" in MARKER
    assert any(re.search(pattern, f"model.{MARKER}") for pattern in found["ignored"])


def test_heads_that_a_server_split_in_its_own_way_are_refused() -> None:
    """Tensor parallelism of vLLM and SGLang: their weights do not tell which heads a device holds."""
    table = torch.ones(4, 8, dtype=torch.int64)
    q, k = torch.randn(1, 4, 5, 16), torch.randn(1, 2, 5, 16)
    with pytest.raises(ValueError, match="bases for 4 key/value heads, but this layer has 2"):
        rotate_per_head(q, k, *encode_positions(torch.arange(5)[None], table), Layout())
