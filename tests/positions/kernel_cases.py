"""What the Triton kernel must do: run by test_rotation_triton.py, in Triton's interpreter (TRITON_INTERPRET=1) or on a
CUDA GPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from harpe.positions import rotation, rotation_triton
from harpe.positions.phases import base_frequencies, decode, phase_steps, with_factor, with_length_scale
from harpe.positions.rotation import Layout, encode_positions, rotate_per_head, use_kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
BASES = [1e4, 4.54e6]
LAYOUTS = list(itertools.starmap(Layout, itertools.product((False, True), (1, -1))))
FAR = [[10_000_000, 1_048_576, 131_071, 3, 0, -7], [2**40, -(2**40), 5, 5, 1, 2]]
"""Positions of two sequences. Those of 2**40 are compared with the CPU path alone: float64 products have lost their
digits there."""


@pytest.fixture(autouse=True)
def with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the interpreter the tensors are on the CPU, where `rotation` would not call a kernel."""
    if INTERPRETED:
        monkeypatch.setattr(rotation, "_rotate", rotation_triton.rotate)
        monkeypatch.setattr(rotation, "HELD_ANGLES", 0)  # as with CUDA tensors: the kernel takes positions and steps
    before = use_kernel(None if INTERPRETED else rotation_triton.rotate)
    yield
    use_kernel(before)


def by_tiles(q: torch.Tensor, k: torch.Tensor, first: Any, second: Any, interleaved: bool, direction: int) -> Any:
    """The rotation by torch's operations."""
    return rotation._rotate_tiles(q, k, decode(first, second), Layout(interleaved, direction))


def case(
    heads: int, group: int, dim: int, pairs: int, dtype: torch.dtype, length: int = 6, factor: float | None = None
) -> Any:
    torch.manual_seed(0)
    q, k = (torch.randn(2, length, n, dim, device=DEVICE).to(dtype) for n in (heads * group, heads))
    table = torch.tensor(phase_steps(base_frequencies(BASES[:heads], 2 * pairs)), device=DEVICE)
    return q, k, table if factor is None else with_factor(table, factor)


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert got.dtype == dtype and got.shape == wanted.shape
    assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@triton.jit
def _angles(phase, cos, sin, size: tl.constexpr):
    at = tl.arange(0, size)
    c, s = rotation_triton._cos_and_sin(tl.load(phase + at))
    tl.store(cos + at, c)
    tl.store(sin + at, s)


def test_cos_and_sin_of_a_phase_are_right_to_2e_7() -> None:
    quarters = [quarter << 61 for quarter in range(-4, 4)]
    edges = [edge + d for edge in quarters for d in (-1, 0, 1) if edge + d >= -(2**63)]
    phase = torch.randint(-(2**63), 2**63 - 1, (2**16,), generator=torch.Generator().manual_seed(0))
    phase[: len(edges)] = torch.tensor(edges)
    phase = phase.to(DEVICE)
    cos, sin = torch.empty(2, 2**16, device=DEVICE)
    _angles[(1,)](phase, cos, sin, 2**16)
    angle = phase.double() * (2 * torch.pi / 2**64)
    assert (cos.double() - angle.cos()).abs().max() <= 2e-7
    assert (sin.double() - angle.sin()).abs().max() <= 2e-7


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "group", "dim", "pairs", "factor"),
    [(2, 1, 16, 8, None), (2, 4, 24, 12, 1.25), (1, 3, 20, 5, None)],
    ids=["multi-head", "grouped, 24 dimensions, factor", "one key head, partial"],
)
def test_it_is_the_rotation_of_the_definition_and_its_gradient(
    reference: Any,
    layout: Layout,
    dtype: torch.dtype,
    heads: int,
    group: int,
    dim: int,
    pairs: int,
    factor: float | None,
) -> None:
    q, k, table = case(heads, group, dim, pairs, dtype, factor=factor)
    positions = torch.tensor([FAR[0], [0, 1, 2, 0, 1, 70_000]], device=DEVICE)
    leaves = [q.requires_grad_(), k.requires_grad_()]
    weights = [torch.randn_like(x) for x in leaves]
    options = {"interleaved": layout.interleaved, "direction": layout.direction, "factor": factor or 1.0}
    wanted = [reference(x, positions, BASES[:heads], pairs, **options) for x in leaves]
    wanted_grads = torch.autograd.grad([(w.double() * x).sum() for w, x in zip(weights, wanted, strict=True)], leaves)
    got = rotate_per_head(*leaves, positions, table, layout, 2)
    grads = torch.autograd.grad(got, leaves, weights)
    for a, b in zip((*got, *grads), (*wanted, *wanted_grads), strict=True):
        close(a, b.double(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_cpu_path_at_every_position(dtype: torch.dtype) -> None:
    q, k, table = case(2, 2, 16, 8, dtype)
    positions = torch.tensor(FAR)
    wanted = by_tiles(q.cpu(), k.cpu(), positions, table.cpu(), False, 1)
    got = rotation_triton.rotate(q, k, positions.to(DEVICE), table, False, 1)
    for a, b in zip(got, wanted, strict=True):
        close(a.cpu(), b.double(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("dim", "pairs"), [(16, 8), (20, 6)])
def test_queries_are_scaled_by_the_length_that_they_see(
    reference: Any, dim: int, pairs: int, inplace: bool, dtype: torch.dtype
) -> None:
    q, k, table = case(2, 3, dim, pairs, dtype, factor=1.25)
    coefficients = torch.tensor([[0.5], [1.0]], dtype=torch.float64, device=DEVICE)
    table = with_length_scale(table, coefficients, 64)
    positions = torch.tensor([[0, 1, 63, 64, 65, 70_000], [5, 100, 1000, 10_000, 3000, 2]], device=DEVICE)
    wanted = [reference(x, positions, BASES[:2], pairs, factor=1.25) for x in (q, k)]
    growth = (positions + 1).clamp(min=64).double().log() / torch.tensor(64.0, dtype=torch.float64).log() - 1
    scale = 1 + growth[..., None] * coefficients[:, 0].repeat_interleave(3)
    got = rotation_triton.rotate(q, k, positions, table, False, 1, inplace)
    assert scale.max() > 1.2
    close(got[0], wanted[0] * scale[..., None], dtype)
    close(got[1], wanted[1], dtype)


@pytest.mark.parametrize("layout", [Layout(), Layout(interleaved=True)], ids=str)
@pytest.mark.parametrize(("dim", "pairs"), [(16, 8), (20, 6)])
def test_in_place_overwrites_with_the_same_bits_and_leaves_the_rest(layout: Layout, dim: int, pairs: int) -> None:
    q, k, table = case(2, 3, dim, pairs, torch.float32)
    positions = torch.tensor(FAR, device=DEVICE)
    wanted = rotation_triton.rotate(q, k, positions, table, *layout)
    before = q.clone(), k.clone()
    assert all(torch.equal(a, b) for a, b in zip((q, k), before, strict=True))  # out of place, nothing is overwritten
    room = torch.full((2, 6, 9, dim), 7.0, device=DEVICE)
    room[:, :, 1:7], room[:, :, 7:] = q, k
    got = rotation_triton.rotate(room[:, :, 1:7], room[:, :, 7:], positions, table, *layout, inplace=True)
    assert got[0].data_ptr() == room[:, :, 1:7].data_ptr()
    assert torch.equal(room[:, :, 1:7], wanted[0]) and torch.equal(room[:, :, 7:], wanted[1])
    assert bool((room[:, :, 0] == 7.0).all())


def test_in_place_refuses_elements_that_share_memory() -> None:
    q, k, table = case(2, 1, 16, 8, torch.float32)
    with pytest.raises(ValueError, match="expanded"):
        rotation_triton.rotate(
            q[:, :1].expand(2, 6, 2, 16), k, torch.tensor(FAR, device=DEVICE), table, False, 1, inplace=True
        )


@pytest.mark.parametrize(
    "kind", ["heads first", "slices of one projection", "last dimension strided", "expanded", "reversed batch"]
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_any_strides_of_q_and_k_are_read(reference: Any, kind: str, interleaved: bool) -> None:
    q, k, table = case(2, 2, 16, 8, torch.float32)
    if kind == "heads first":
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    elif kind == "slices of one projection":
        q, k = torch.cat((q, k, k), 2)[:, :, :6].split((4, 2), 2)
    elif kind == "last dimension strided":
        q, k = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k))
    elif kind == "expanded":
        q, k = q[:, :1].expand(-1, 6, -1, -1), k[:1].expand(2, -1, -1, -1)
    else:
        q, k = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k))
    positions = torch.tensor([FAR[0], [0, 1, 2, 3, 4, 5]], device=DEVICE)
    got = rotation_triton.rotate(q, k, positions, table, interleaved, 1)
    for a, x in zip(got, (q, k), strict=True):
        close(a, reference(x, positions, BASES, 8, interleaved=interleaved), torch.float32)
        assert a.stride() == torch.empty_like(x).stride()  # what compiled graphs were promised


def test_positions_may_be_one_row_for_the_batch_expanded_or_a_slice() -> None:
    q, k, table = case(2, 2, 16, 8, torch.float32)
    row = torch.tensor([FAR[0]], device=DEVICE)
    wanted = rotation_triton.rotate(q, k, row.repeat(2, 1), table, False, 1)
    for positions in (row, row.expand(2, 6), torch.stack((row, row), -1)[..., 1], row.repeat(2, 1).T.contiguous().T):
        got = rotation_triton.rotate(q, k, positions, table, False, 1)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_many_blocks_of_tokens_and_a_last_one_that_is_not_full(reference: Any) -> None:
    """More tokens than a program takes, across the border of two sequences, and enough programs that each turns its
    whole group."""
    for pairs, length in ((64, 75), (4, 1000)):
        torch.manual_seed(1)
        q, k = torch.randn(2, length, 2, 2 * pairs, device=DEVICE), torch.randn(2, length, 1, 2 * pairs, device=DEVICE)
        table = torch.tensor(phase_steps(base_frequencies(BASES[:1], 2 * pairs)), device=DEVICE)
        positions = torch.randint(0, 1_048_576, (2, length), device=DEVICE)
        for programs in (1, 10**6):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(rotation_triton, "PROGRAMS", programs)
                got = rotation_triton.rotate(q, k, positions, table, False, 1)
            for a, x in zip(got, (q, k), strict=True):
                close(a, reference(x, positions, BASES[:1], pairs), torch.float32)


def test_nothing_is_done_with_no_tokens() -> None:
    q, k, table = case(2, 2, 16, 8, torch.float32, length=0)
    assert rotation_triton.rotate(q, k, torch.empty(2, 0, dtype=torch.int64, device=DEVICE), table, False, 1)[
        0
    ].shape == (2, 0, 4, 16)


@pytest.mark.parametrize("axis", ["batch", "token", "head", "dimension"])
@pytest.mark.parametrize("direction", [1, -1])
def test_offsets_beyond_2_31_elements_are_right(reference: Any, axis: str, direction: int) -> None:
    """The last elements of one axis, 2**31 + 2**20 from the first, in memory of which only their pages are ever
    touched.

    The strides themselves fit an int32, as those of real tensors do: it is their products that must not be formed in
    one.
    """
    sizes, steps = [2, 2, 2, 4], [16, 8, 4, 1]
    where = ("batch", "token", "head", "dimension").index(axis)
    if axis != "dimension":
        sizes[where] = 6
        steps = [96, 16, 4, 1] if axis == "head" else [96, 8, 4, 1]
    steps[where] = (2**31 + 2**20) // (sizes[where] - 1)
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    room = torch.empty(2**31 + 2**20 + 1024, dtype=torch.bfloat16, device=DEVICE)
    q = room.as_strided(sizes, steps)
    values = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(q)
    q.copy_(values)
    table = torch.tensor(phase_steps(base_frequencies(BASES, 4)), device=DEVICE)
    positions = torch.randint(0, 1_048_576, sizes[:2], device=DEVICE)
    rotation_triton.rotate(q, values.clone(), positions, table, False, direction, inplace=True)
    close(q, reference(values, positions, BASES, 2, direction=direction), torch.bfloat16)


def test_a_model_gives_the_same_logits_and_gradients_with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the hooks, with left padding: positions of two rows; q and k as the attention's transposed views."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from harpe.models.install import install

    install()
    rope = {"rope_type": "harpe", "rope_theta": 1e4, "bases": BASES, "attention_factor": 1.1}
    size = {
        "hidden_size": 60,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=50, head_dim=12, initializer_range=0.1, rope_parameters=rope, **size)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(DEVICE)
    ids = torch.randint(0, 50, (2, 9), device=DEVICE)
    positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5], list(range(1_000_000, 1_000_009))], device=DEVICE)
    calls, found = [], []
    for function in (rotation_triton.rotate, by_tiles):

        def rotate(*args: Any, function: Any = function) -> Any:
            calls.append(function)
            return function(*args)

        monkeypatch.setattr(rotation, "_rotate", rotate)
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    assert calls == [rotation_triton.rotate] * 4 + [by_tiles] * 4  # two layers, forward and backward
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_large_tensors_agree_with_the_torch_path(dtype: torch.dtype, layout: Layout) -> None:
    """Full-size blocks and vector loads: 8192 tokens, heads of 128 and partial heads of 80; forward and backward."""
    for group, dim, pairs in ((4, 128, 64), (1, 80, 16), (4, 96, 48)):
        torch.manual_seed(0)
        q = torch.randn(1, 8192, 8 * group, dim, device=DEVICE, dtype=dtype, requires_grad=True)
        k = torch.randn(1, 8192, 8, dim, device=DEVICE, dtype=dtype, requires_grad=True)
        table = torch.tensor(phase_steps(base_frequencies([1e4 * (h + 1) for h in range(8)], 2 * pairs)), device=DEVICE)
        pair = encode_positions(torch.arange(1_040_384, 1_048_576, device=DEVICE)[None], table)
        assert pair[0].dtype == torch.int64
        got = rotate_per_head(q, k, *pair, layout, 2)
        grads = torch.autograd.grad(got, (q, k), [x.detach() for x in got])
        with torch.no_grad():
            wanted = by_tiles(q, k, *pair, *layout)
            back = by_tiles(*wanted, *pair, layout.interleaved, -layout.direction)
        for a, b in zip((*got, *grads), (*wanted, *back), strict=True):
            assert (a - b).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2) * b.abs().max()


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA GPU")
def test_a_tensor_of_more_than_2_31_elements_is_right_to_its_end() -> None:
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    length = 2**31 // (32 * 128) + 4096
    q = torch.ones(1, length, 32, 128, device=DEVICE, dtype=torch.bfloat16)
    table = torch.tensor(phase_steps(base_frequencies([1e4 * (h + 1) for h in range(8)], 128)), device=DEVICE)
    positions = torch.arange(length, device=DEVICE)[None]
    got, _ = rotation_triton.rotate(q, q[:, :, :8], positions, table, False, 1)
    wanted, _ = by_tiles(q[:, -64:], q[:, -64:, :8], positions[:, -64:], table, False, 1)
    assert (got[:, -64:] - wanted).abs().max() <= 2e-2
