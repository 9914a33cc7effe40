"""The rotation without tables, against its definition in float64."""

from __future__ import annotations

import itertools
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from harpe.positions import rotation
from harpe.positions.phases import base_frequencies, cos_and_sin, of_heads, phase_steps, with_factor
from harpe.positions.rotation import HELD_ANGLES, Layout, encode_positions, free_scratch, rotate_per_head

BASES = [1e4, 1e6, 4.54e6]
LAYOUTS = list(itertools.starmap(Layout, itertools.product((False, True), (1, -1))))


def table_of(bases: list[float], pairs: int) -> torch.Tensor:
    return torch.tensor(phase_steps(base_frequencies(bases, 2 * pairs)))


def random_qk(
    batch: int, length: int, heads: int, group: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return torch.randn(batch, length, heads * group, dim).to(dtype), torch.randn(batch, length, heads, dim).to(dtype)


def compact(position_ids: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair that `encode_positions` gives for many angles, for few as well."""
    return position_ids.to(torch.int64), table


@pytest.mark.parametrize("start", [0, 131_072, 1_048_576 - 4096, 10_000_000, 2**31, -1_048_576])
def test_cos_and_sin_are_right_to_1e_6_at_any_position(start: int) -> None:
    positions = torch.arange(start, start + 4096)[None]
    cos, sin = cos_and_sin(positions, table_of(BASES, 64))
    exact = torch.tensor([[base ** (-i / 64) for i in range(64)] for base in BASES], dtype=torch.float64)
    angle = positions[:, :, None, None].double() * exact
    assert (cos.double() - angle.cos()).abs().max() <= 1e-6
    assert (sin.double() - angle.sin()).abs().max() <= 1e-6


def test_float32_angles_would_not_pass_that_test() -> None:
    positions = torch.arange(1_048_576 - 4096, 1_048_576)
    exact = torch.tensor([1e4 ** (-i / 64) for i in range(64)], dtype=torch.float64)
    stock = (positions[:, None].float() * exact.float()).cos()
    assert (stock.double() - (positions[:, None].double() * exact).cos()).abs().max() > 1e-3


POSITIONS = {
    "left padding": [[1, 1, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]],
    "packing": [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 0]],
    "decoding at ten million": [[10_000_000 + i for i in range(7)], [9_999_990 + 3 * i for i in range(7)]],
    "negative": [[-5, -4, -1, 0, 1, -1_048_576, 2], [-7, -6, -5, -4, -3, -2, -1]],
    "unordered": [[9, 2, 131_071, 5, 0, 1_048_576, 3], [1, 1, 1, 70_000, 70_000, 8, 8]],
}


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("form", [encode_positions, compact])
def test_any_positions_are_rotated_as_the_definition_says(reference: Any, kind: str, form: Any) -> None:
    positions = torch.tensor(POSITIONS[kind])
    q, k = random_qk(2, 7, 3, 2, 16)
    got = rotate_per_head(q, k, *form(positions, table_of(BASES, 8)), Layout(), 2)
    for x, turned in zip((q, k), got, strict=True):
        assert (turned - reference(x, positions, BASES, 8)).abs().max() <= 2e-6 * x.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("dim", "pairs"), [(16, 8), (20, 10), (20, 6), (6, 1)])
@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_every_layout_size_and_factor_and_its_gradient(
    reference: Any, layout: Layout, dim: int, pairs: int, factor: float
) -> None:
    """Partial rotary, odd numbers of pairs, GQA; with heads first, as transformers has them, and not contiguous."""
    positions = torch.tensor(POSITIONS["unordered"])
    table = table_of(BASES, pairs) if factor == 1.0 else with_factor(table_of(BASES, pairs), factor)
    leaves = [x.requires_grad_() for x in random_qk(2, 7, 3, 2, dim)]
    weights = [torch.randn_like(x) for x in leaves]
    options = {"interleaved": layout.interleaved, "direction": layout.direction, "factor": factor}
    wanted = [reference(x, positions, BASES, pairs, **options) for x in leaves]
    wanted_grads = torch.autograd.grad([(w * x).sum() for w, x in zip(weights, wanted, strict=True)], leaves)
    for form in (encode_positions, compact):
        got = rotate_per_head(*(x.transpose(1, 2) for x in leaves), *form(positions, table), layout)
        got = [x.transpose(1, 2) for x in got]
        grads = torch.autograd.grad([(w * x).sum() for w, x in zip(weights, got, strict=True)], leaves)
        for a, b in zip((*got, *grads), (*wanted, *wanted_grads), strict=True):
            assert (a - b).abs().max() <= 2e-6 * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [encode_positions, compact])
def test_half_precision_is_the_float32_rotation_rounded_once(dtype: torch.dtype, form: Any) -> None:
    positions = torch.arange(1_048_576 - 300, 1_048_576)[None]
    q, k = random_qk(1, 300, 3, 2, 24, dtype)
    pair = form(positions, table_of(BASES, 8))
    got = rotate_per_head(q, k, *pair, Layout(), 2)
    exact = rotate_per_head(q.float(), k.float(), *pair, Layout(), 2)
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(got, exact, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "pairs"), [(64, 32), (40, 10)])
def test_neither_the_form_of_the_pair_nor_the_size_of_the_tiles_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, dtype: torch.dtype, dim: int, pairs: int
) -> None:
    """Nor does the number of positions in the call: a token that is decoded alone is rotated as in a long forward
    pass."""
    q, k = random_qk(2, 67, 3, 4, dim, dtype)
    positions = torch.randint(0, 1_048_576, (2, 67))
    table = table_of(BASES, pairs)
    whole = rotate_per_head(q, k, *encode_positions(positions, table), layout, 2)
    assert (
        encode_positions(positions, table)[0].dtype == torch.int32 and compact(positions, table)[0].dtype == torch.int64
    )
    for tile in (1, 7 * 2 * 15 * dim, 2**30):  # of one token, of seven, of all
        monkeypatch.setattr(rotation, "TILE", tile)
        for form in (encode_positions, compact):
            again = rotate_per_head(q, k, *form(positions, table), layout, 2)
            assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    for token in (0, 66):
        one = slice(token, token + 1)
        alone = rotate_per_head(q[:, one], k[:, one], *encode_positions(positions[:, one], table), layout, 2)
        assert all(torch.equal(a[:, one], b) for a, b in zip(whole, alone, strict=True))


PLACES = {
    "from 0": [range(1000)],
    "from a place within a stretch": [range(1_000_037, 1_001_037)],
    "across zero": [range(-500, 500)],
    "two documents in one row": [range(700), range(300)],
    "many short documents": [range(25)] * 40,
    "a jump ahead": [range(640), range(4096, 4456)],
}


@pytest.mark.parametrize("tile", [2**30, 2**18, 200 * 15 * 16, 50 * 15 * 16])
@pytest.mark.parametrize("places", PLACES)
def test_a_token_in_a_run_of_consecutive_positions_has_the_bits_that_it_has_alone(
    monkeypatch: pytest.MonkeyPatch, places: str, tile: int
) -> None:
    """What makes long texts fast on a CPU is not seen in the result: tiles of one stretch, of many and of parts of
    one."""
    positions = torch.tensor([place for run in PLACES[places] for place in run])[None]
    assert positions.shape == (1, 1000)
    q, k = random_qk(1, 1000, 3, 4, 16)
    table = with_factor(table_of(BASES, 8), 1.25)
    monkeypatch.setattr(rotation, "TILE", tile)
    got = rotate_per_head(q, k, *compact(positions, table), Layout(), 2)
    scrambled = torch.randperm(1000)
    monkeypatch.setattr(rotation, "TILE", 16 * 15)
    alone = rotate_per_head(q[:, scrambled], k[:, scrambled], *compact(positions[:, scrambled], table), Layout(), 2)
    assert all(torch.equal(a[:, scrambled], b) for a, b in zip(got, alone, strict=True))


def test_rows_of_a_batch_with_padding_of_their_own_are_rotated_as_alone() -> None:
    q, k = random_qk(3, 900, 3, 2, 16)
    table = table_of(BASES, 8)
    positions = torch.stack([(torch.arange(900) - padding).clamp(min=0) for padding in (0, 133, 700)])
    got = rotate_per_head(q, k, *compact(positions, table), Layout(), 2)
    for row in range(3):
        one = slice(row, row + 1)
        alone = rotate_per_head(q[one], k[one], *compact(positions[one], table), Layout(), 2)
        assert all(torch.equal(a[one], b) for a, b in zip(got, alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_memory_that_is_kept_is_float32_whatever_the_default_dtype(dtype: torch.dtype) -> None:
    """Servers and from_pretrained make the model's dtype the default one."""
    q, k = random_qk(1, 500, 3, 2, 16, torch.bfloat16)
    pair = compact(torch.arange(500)[None], table_of(BASES, 8))
    expected = rotate_per_head(q, k, *pair, Layout(), 2)
    free_scratch()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        got = rotate_per_head(q, k, *pair, Layout(), 2)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_tensors_without_data_leave_nothing_behind_for_those_with() -> None:
    """Fake tensors say that they are on the CPU; memory that is kept must not become one of them."""
    q, k = random_qk(2, 500, 3, 2, 16, torch.bfloat16)
    positions, table = torch.stack((torch.arange(500), torch.arange(500) + 7)), table_of(BASES, 8)
    with FakeTensorMode() as fake:
        pretended = [fake.from_tensor(x) for x in (q, k, positions, table)]
        out = rotate_per_head(*pretended[:2], *compact(*pretended[2:]), Layout(), 2)
        assert [x.shape for x in out] == [q.shape, k.shape]
    got = rotate_per_head(q, k, *compact(positions, table), Layout(), 2)
    one = rotate_per_head(q[1:], k[1:], *compact(positions[1:], table), Layout(), 2)
    assert all(type(a) is torch.Tensor and torch.equal(a[1:], b) for a, b in zip(got, one, strict=True))


@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("head_dim", [1, 2])
def test_a_decoded_token_has_the_bits_of_the_long_pass_with_and_without_gradients(
    layout: Layout, head_dim: int, dim: int
) -> None:
    q, k = random_qk(2, 300, 3, 2, dim, torch.bfloat16)
    positions, table = torch.stack((torch.arange(300) + 5, torch.arange(300))), table_of(BASES, 8)
    whole = rotate_per_head(q, k, *compact(positions, table), layout, 2)
    for grad in (False, True):
        for form in (encode_positions, compact):  # the second: bases that differ by layer
            one = [x[:, 150:151] if head_dim == 2 else x[:, 150:151].transpose(1, 2) for x in (q, k)]
            with torch.set_grad_enabled(grad):
                got = rotate_per_head(*one, *form(positions[:, 150:151], table), layout, head_dim)
            for a, b in zip(got, whole, strict=True):
                assert torch.equal(a if head_dim == 2 else a.transpose(1, 2), b[:, 150:151])


@pytest.mark.parametrize("form", [encode_positions, compact])
def test_nothing_to_rotate_is_nothing(form: Any) -> None:
    for batch, length in ((1, 0), (0, 5)):
        q, k = random_qk(batch, length, 3, 2, 16)
        positions = torch.zeros(batch, length, dtype=torch.int64)
        assert [x.shape for x in rotate_per_head(q, k, *form(positions, table_of(BASES, 8)), Layout(), 2)] == [
            q.shape,
            k.shape,
        ]


def test_one_row_of_positions_serves_a_whole_batch() -> None:
    q, k = random_qk(3, 7, 3, 2, 16)
    positions, table = torch.arange(7)[None], table_of(BASES, 8)
    for form in (encode_positions, compact):
        one = rotate_per_head(q, k, *form(positions, table), Layout(), 2)
        each = rotate_per_head(q, k, *form(positions.expand(3, 7), table), Layout(), 2)
        assert all(torch.equal(a, b) for a, b in zip(one, each, strict=True))


def test_a_slice_of_the_heads_is_rotated_as_in_the_whole() -> None:
    """What tensor parallelism relies on."""
    q, k = random_qk(1, 5, 4, 2, 16)
    table, positions = table_of([*BASES, 2e5], 8), torch.arange(5)[None]
    for form in (encode_positions, compact):
        pair = form(positions, table)
        whole_q, whole_k = rotate_per_head(q, k, *pair, Layout(), 2)
        for rank in range(2):
            mine, theirs = slice(4 * rank, 4 * rank + 4), slice(2 * rank, 2 * rank + 2)
            part_q, part_k = rotate_per_head(q[:, :, mine], k[:, :, theirs], *of_heads(*pair, rank, 2), Layout(), 2)
            assert torch.equal(part_q, whole_q[:, :, mine]) and torch.equal(part_k, whole_k[:, :, theirs])


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in [*args, *(kwargs or {}).values()] if isinstance(x, torch.Tensor)}
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in known:
                storage = x.untyped_storage()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def free(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize(
    ("length", "heads", "group", "dtype"),
    [
        (4096, 32, 1, torch.bfloat16),
        (2048, 32, 1, torch.float32),
        (4096, 8, 4, torch.float32),
        (4096, 1, 32, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("threads", "most"), [(1, 3 * 2**23), (64, 2**28)])
def test_temporaries_stay_below_24_mib_for_one_thread_and_256_for_any_number(
    monkeypatch: pytest.MonkeyPatch, length: int, heads: int, group: int, dtype: torch.dtype, threads: int, most: int
) -> None:
    """128 dimensions a head; counted operation by operation."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q, k = (torch.zeros(1, length, n, 128, dtype=dtype) for n in (heads * group, heads))
    positions, table = torch.arange(length)[None], torch.ones(heads, 64, dtype=torch.int64)
    free_scratch()
    rotate_per_head(q, k, *compact(positions, table), Layout(), 2)
    with Live() as live:
        out = rotate_per_head(q, k, *compact(positions, table), Layout(), 2)
    assert live.now == sum(x.nbytes for x in out)  # so nothing more has been kept, and the counting works
    kept = free_scratch()
    assert kept > 0 and 2**18 <= live.most - live.now + kept <= most


@pytest.mark.parametrize(("heads", "group"), [(32, 1), (8, 4), (1, 32)])
def test_temporaries_on_an_accelerator_without_a_kernel_stay_below_256_mib(heads: int, group: int) -> None:
    """On tensors without data, which take the path of devices that are not a CPU."""
    with torch.device("meta"):
        q, k = (torch.empty(1, 131_072, n, 128, dtype=torch.bfloat16) for n in (heads * group, heads))
        positions, table = torch.empty(1, 131_072, dtype=torch.int64), torch.empty(heads, 64, dtype=torch.int64)
    with Live() as live:
        out = rotate_per_head(q, k, *compact(positions, table), Layout(), 2)
    assert live.now == sum(x.nbytes for x in out)
    assert 2**24 <= live.most - live.now <= 2**28


def test_held_angles_are_16_mib_at_most() -> None:
    table = table_of(BASES, 64)
    length = HELD_ANGLES // table.numel()
    assert sum(x.nbytes for x in encode_positions(torch.arange(length)[None], table)) <= 2**24
    assert encode_positions(torch.arange(length + 1)[None], table)[1] is table


RSS = """
import re, torch
from harpe.positions.phases import *
from harpe.positions.rotation import *
torch.set_num_threads(1)
table = torch.tensor(phase_steps(base_frequencies([1e4 * (1 + h) for h in range(32)], 8)))
q, k = (torch.ones(1, 131072, 32, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
pair = encode_positions(torch.arange(131072)[None], table)
# in KiB; ru_maxrss would begin at the parent's
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
small = torch.ones(1, 64, 32, 8, dtype=torch.bfloat16, requires_grad=True)
rotate_per_head(small, small, pair[0][:, :64], table, Layout(), 2)[0].sum().backward()
before = peak()
out = rotate_per_head(q, k, *pair, Layout(), 2)
torch.autograd.backward(out, [x.detach() for x in out])
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory of a process from /proc")
def test_the_process_grows_by_outputs_and_gradients_alone() -> None:
    """Forward and backward at 131,072 tokens x 32 heads: cos and sin of all of them would add 128 MiB, in float32."""
    found = subprocess.run([sys.executable, "-c", RSS], capture_output=True, text=True, check=True)
    outputs_and_gradients = 4 * 131_072 * 32 * 8 * 2 / 2**20
    assert outputs_and_gradients * 0.9 <= float(found.stdout) <= outputs_and_gradients + 64
