"""Self-Extend and dual chunk attention as methods: defaults, reach, refusals."""

from __future__ import annotations

import pytest

from harpe.errors import HarpeError
from harpe.methods.dual_chunk import dca
from harpe.methods.self_extend import groups_of, self_extend, self_extend_dynamic, self_extend_length
from harpe.methods.types import DualChunk, DynamicSelfExtend, SelfExtend
from harpe.positions.geometry import ModelGeometry

LLAMA_2 = ModelGeometry("llama", 32, 32, 32, 128, 128, 4096, 10_000.0, 32_000)


def largest_distance(length: int, window: int, group: int) -> int:
    """Of the last token to the first, by the paper's formula."""
    return (length - 1) // group + window - window // group


def test_the_papers_setting_reaches_99328_tokens_and_the_group_that_would_do_is_named() -> None:
    assert self_extend_length(4096, 1024, 32) == 99_328
    assert self_extend(LLAMA_2, 99_328, window=1024, group=32)[0].encoding.attention == SelfExtend(1024, 32)
    with pytest.raises(HarpeError, match=r"reaches 99,328 tokens, not 131,072.*a group of 43"):
        self_extend(LLAMA_2, 131_072, window=1024, group=32)
    self_extend(LLAMA_2, 131_072, window=1024, group=43)


@pytest.mark.parametrize("window", [1, 30, 64, 100, 255])
@pytest.mark.parametrize("group", [1, 3, 7, 16, 101])
def test_the_reach_is_the_longest_text_whose_positions_stay_in_the_trained_context(window: int, group: int) -> None:
    reach = self_extend_length(256, window, group)
    assert largest_distance(reach, window, group) == 255 < largest_distance(reach + 1, window, group)


def test_without_options_the_smallest_group_that_reaches_is_taken() -> None:
    (stage,) = self_extend(LLAMA_2, 131_072)
    assert (
        stage.share == 0.0
        and stage.length == 131_072
        and set(stage.encoding.bases) == {10_000.0}
        and not stage.encoding.per_head
    )
    chosen = stage.encoding.attention
    assert isinstance(chosen, SelfExtend) and chosen.window == 1024
    assert largest_distance(131_072, 1024, chosen.group) < 4096 <= largest_distance(131_072, 1024, chosen.group - 1)


@pytest.mark.parametrize("window", [1, 64, 100, 230, 255])
def test_the_dynamic_group_is_the_smallest_with_which_a_text_stays_in_the_trained_context(window: int) -> None:
    found = groups_of(window, 256, 1, 1500)
    assert found[0] == (1, 0, 256) and found[-1][1] < 1500 <= found[-1][2]
    for length in range(1, 1501):
        smallest = next(g for g in range(1, 2000) if largest_distance(length, window, g) < 256)
        assert [group for group, above, upto in found if above < length <= upto] == [smallest]
    for shortest, longest in ((1, 256), (257, 257), (300, 900), (-5, 3)):
        assert groups_of(window, 256, shortest, longest) == [
            each for each in groups_of(window, 256, 1, 2000) if each[2] >= shortest and each[1] < longest
        ]


def test_dynamic_self_extend_reaches_any_length() -> None:
    for length in (8192, 10**7):
        (stage,) = self_extend_dynamic(LLAMA_2, length)
        assert stage.encoding.attention == DynamicSelfExtend(1024, 4096) and stage.share == 0.0
    with pytest.raises(HarpeError, match="window is 4096"):
        self_extend_dynamic(LLAMA_2, 8192, window=4096)


def test_dual_chunk_defaults_are_the_papers() -> None:
    (stage,) = dca(LLAMA_2, 131_072)
    assert stage.encoding.attention == DualChunk(3072, 1024) and stage.share == 0.0
    assert dca(LLAMA_2, 131_072, chunk=2560, local=512)[0].encoding.attention == DualChunk(2560, 512)


@pytest.mark.parametrize(
    ("window", "group", "message"), [(4096, 2, "window is 4096"), (0, 2, "window is 0"), (64, 0, "group is 0")]
)
def test_self_extend_refuses(window: int, group: int, message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        self_extend(LLAMA_2, 8192, window=window, group=group)


@pytest.mark.parametrize(("chunk", "local"), [(4096, None), (0, 10), (3072, 1025), (1000, 2000), (3072, 0)])
def test_dual_chunk_refuses(chunk: int, local: int | None) -> None:
    with pytest.raises(HarpeError, match="chunk"):
        dca(LLAMA_2, 8192, chunk=chunk, local=local)
