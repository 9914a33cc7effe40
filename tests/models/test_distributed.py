"""Per-head RoPE under FSDP2 and tensor parallelism: two gloo processes on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from .test_families import ids_of, logits, with_bases
from .tiny_families import REPRESENTATIVES, tiny

pytestmark = pytest.mark.slow


def start(rank: int, work: Callable[[int, Path, str], None], folder: Path, family: str) -> int:
    """What each process does."""
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    work(rank, folder, family)
    return 0


@pytest.fixture
def in_two_processes(fork: Any, tmp_path: Path) -> Callable[..., None]:
    """Does the same work in two processes, which know each other."""

    def run(work: Callable[[int, Path, str], None], family: str) -> None:
        both = [
            fork(partial(start, rank, work, tmp_path, family), RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE="2")
            for rank in (0, 1)
        ]
        assert [each.wait() for each in both] == [0, 0], "\n".join(each.stderr for each in both)

    return run


def sharded(rank: int, folder: Path, family: str) -> None:
    """One step's gradients under fully_shard with casts to bfloat16 equal those of a whole model with bfloat16
    weights."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    seen = []
    model = with_bases(tiny(family))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=True)
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append({part.dtype for part in kwargs["position_embeddings"]}), with_kwargs=True
        )
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    ids = ids_of(2, 40)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    changed = [dtypes for dtypes in seen if torch.int32 in dtypes or torch.int64 in dtypes]
    assert changed and not any(dtype.is_floating_point for dtypes in changed for dtype in dtypes)
    whole = with_bases(tiny(family)).to(torch.bfloat16)
    expected = whole(input_ids=ids, labels=ids, use_cache=False).loss
    expected.backward()
    assert abs(float(loss.detach()) - float(expected.detach())) <= 2e-2
    got = model.model.layers[1].self_attn.q_proj.weight.grad.full_tensor().float()
    want = whole.model.layers[1].self_attn.q_proj.weight.grad.float()
    assert (got - want).norm() <= 0.05 * want.norm()


def tensor_parallel(rank: int, folder: Path, family: str) -> None:
    """Every rank rotates its own heads with their own bases: logits as on one process."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    import harpe

    harpe.register()
    vocabulary = 98  # transformers 5.17 splits none that the number of ranks does not divide
    if rank == 0:
        with_bases(tiny(family, vocab_size=vocabulary)).save_pretrained(folder / "m")
    dist.barrier()
    split = DistributedConfig(tp_plan="auto", tp_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder / "m", distributed_config=split, dtype=torch.float32).eval()
    weight = model.model.layers[1].self_attn.k_proj.weight
    assert weight.to_local().shape[0] == 16, "the keys' heads are split"
    ids = ids_of(2, 40)
    got = logits(model, ids)
    expected = logits(with_bases(tiny(family, vocab_size=vocabulary)), ids)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_fsdp2_does_not_cast_the_positions(family: str, in_two_processes: Callable[..., None]) -> None:
    in_two_processes(sharded, family)


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_tensor_parallel_ranks_take_the_bases_of_their_own_heads(
    family: str, in_two_processes: Callable[..., None]
) -> None:
    in_two_processes(tensor_parallel, family)
