"""Per-head RoPE under FSDP2 and tensor parallelism: two gloo processes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from .test_families import ids_of, logits, with_bases
from .tiny_families import REPRESENTATIVES, tiny

pytestmark = pytest.mark.slow


def start(rank: int, work: str, folder: str, family: str) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        {"sharded": sharded, "tensor_parallel": tensor_parallel}[work](rank, Path(folder), family)
    finally:
        dist.destroy_process_group()


def in_two_processes(work: str, folder: Path, family: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from models.test_distributed import start; "
        "start(int(sys.argv[2]), *sys.argv[3:])"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1])]
    running = []
    for rank in ("0", "1"):
        environment = {**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        whole = [*command, rank, work, str(folder), family]
        running.append(subprocess.Popen(whole, env=environment, stderr=subprocess.PIPE, text=True))
    told = [process.communicate(timeout=240)[1] for process in running]
    assert not any(process.returncode for process in running), "\n".join(told)


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
def test_fsdp2_does_not_cast_the_positions(family: str, tmp_path: Path) -> None:
    in_two_processes("sharded", tmp_path, family)


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_tensor_parallel_ranks_take_the_bases_of_their_own_heads(family: str, tmp_path: Path) -> None:
    in_two_processes("tensor_parallel", tmp_path, family)
