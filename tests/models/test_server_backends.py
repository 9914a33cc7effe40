"""What vLLM's and SGLang's backends for transformers models ask of a custom model.

Neither is installed for the tests; `scripts/vllm_check.py` runs vLLM itself.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harpe.models.marker import MARKER
from harpe.models.per_head import _own_pair
from harpe.positions.rotation import Layout, encode_positions, rotate_per_head

from .exported import named
from .tiny_families import FAMILIES

WITHOUT_BACKEND = {"stablelm"}
"""transformers' own class does not call its attention through the attention interface, so that no server can replace
it."""
WITHOUT_ARGUMENTS = {"nemotron"}
"""transformers' own class does not hand a server's arguments on to its attention."""
OWN_SCORES = {"gemma2", "gpt_oss"}
"""Their attention caps scores or adds sinks, which the test's attention function does not."""


@pytest.fixture(params=named(FAMILIES))
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


def test_attention_whose_forward_is_exchanged_still_rotates_by_layer_and_head(served: Any) -> None:
    """vLLM compiles it anew from its source, to merge q, k and v; what picks a layer's rows must not go with it."""
    family, found = served
    if family in WITHOUT_BACKEND:
        pytest.skip("its attention cannot be replaced")
    assert torch.equal(found["from_source"], found["eager"])


def test_the_mark_among_the_weights_is_passed_over_by_servers(served: Any) -> None:
    """vLLM drops what the class ignores; both drop names with this part (AutoWeightsLoader's list of unused rotary
    weights)."""
    _, found = served
    assert "rotary_emb.inv_freq" in MARKER
    assert any(re.search(pattern, f"model.{MARKER}") for pattern in found["ignored"])


class Merged(torch.nn.Module):
    """What vLLM's QKVParallelLinear tells of itself."""

    def __init__(self, rank: int, size: int, heads: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))
        self.tp_rank, self.tp_size, self.total_num_kv_heads = rank, size, heads
        self.num_kv_heads, self.num_kv_head_replicas = (heads // size, 1) if size < heads else (1, size // heads)


class OfGroup(torch.nn.Module):
    """What SGLang's ColumnParallelLinear tells of itself: the group in the place of the rank."""

    def __init__(self, rank: int, size: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))
        self.tp_group = SimpleNamespace(rank_in_group=rank, world_size=size) if size > 1 else None
        self.output_size, self.output_size_per_partition, self.gather_output = outputs, outputs // size, False


class Columns(torch.nn.Module):
    """What vLLM's ColumnParallelLinear tells of itself."""

    def __init__(self, rank: int, size: int, outputs: int, gather_output: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))
        self.tp_rank, self.tp_size, self.gather_output = rank, size, gather_output
        self.output_size, self.output_size_per_partition = outputs, outputs // size


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_device_of_a_server_takes_the_bases_of_the_heads_that_it_holds(size: int) -> None:
    """4 key/value heads over 1 to 8 devices; with 8, each head is on two of them."""
    table = torch.arange(4)[:, None] * torch.ones(8, dtype=torch.int64)
    pair = (torch.zeros(1, 5, dtype=torch.int64), table)

    def bases(name: str, projection: torch.nn.Module) -> list[int]:
        attention = torch.nn.Module()
        attention.add_module(name, projection)
        return _own_pair(attention, pair)[1][:, 0].tolist()

    for rank in range(size):
        holds = [head for head in range(4) if head * size < 4 * (rank + 1) and (head + 1) * size > 4 * rank]
        assert bases("qkv_proj", Merged(rank, size, 4)) == holds
        if size <= 4:
            assert bases("k_proj", Columns(rank, size, 64)) == holds
            assert bases("k_proj", OfGroup(rank, size, 64)) == holds
        assert bases("k_proj", Columns(rank, size, 64, gather_output=True)) == [0, 1, 2, 3]


def test_heads_that_were_split_in_an_unknown_way_are_refused() -> None:
    """A projection that tells nothing of the heads that it holds."""
    table = torch.ones(4, 8, dtype=torch.int64)
    q, k = torch.randn(1, 4, 5, 16), torch.randn(1, 2, 5, 16)
    with pytest.raises(ValueError, match="bases for 4 key/value heads, but this layer has 2"):
        rotate_per_head(q, k, *encode_positions(torch.arange(5)[None], table), Layout())
