"""Pieces of sequences, layouts, and what srun tells: no process is started here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler, default_collate

from harpe.distributed.layout import Layout, check_layout, check_versions, choose_layout
from harpe.distributed.processes import _adopt_slurm
from harpe.errors import HarpeError
from harpe.methods.types import Stage, stock_encoding
from harpe.models.geometry import read_geometry
from harpe.options.training import LayoutOptions
from harpe.training.pieces import Pieces
from harpe.training.sequence_parallel import check_sequence_parallel
from harpe.training.stages import check_stages

from .test_stages import LENGTH, Counting, options


@given(
    parts=st.sampled_from([1, 2, 4]),
    groups=st.sampled_from([1, 2, 3]),
    micro_batch=st.integers(1, 3),
    steps=st.integers(1, 3),
)
def test_accelerate_deals_the_pieces_so_that_every_group_reads_whole_sequences_in_order(
    parts: int, groups: int, micro_batch: int, steps: int
) -> None:
    data, world = Counting(steps * groups * micro_batch, 16), parts * groups
    pieces = Pieces(data, parts, micro_batch)
    batches = BatchSampler(SequentialSampler(pieces), micro_batch, drop_last=False)  # type: ignore[arg-type]
    dealt = [list(BatchSamplerShard(batches, world, rank)) for rank in range(world)]
    read = []
    for turn in range(steps):
        for group in range(groups):
            ranks = range(group * parts, (group + 1) * parts)
            got = [default_collate([pieces[i] for i in dealt[rank][turn]]) for rank in ranks]
            if parts > 1:
                places = torch.cat([each["position_ids"] for each in got], 1)
                assert torch.equal(places, torch.arange(16).expand(micro_batch, 16))
            ids, targets = (torch.cat([each[key] for each in got], 1) for key in ("input_ids", "shift_labels"))
            assert torch.equal(targets[:, :-1], ids[:, 1:]) and bool((targets[:, -1] == -100).all())
            read += list(ids)
    assert torch.equal(torch.stack(read), torch.stack([data[i]["input_ids"] for i in range(len(data))]))


def test_processes_without_sequences_of_their_own_share_them() -> None:
    assert choose_layout(8, LayoutOptions(), [8], 1) == Layout(8, 1)
    assert choose_layout(8, LayoutOptions(), [2], 1) == Layout(8, 4)
    assert choose_layout(8, LayoutOptions(replicas=2), [4, 8], 2) == Layout(8, 4, 2)
    assert choose_layout(1, LayoutOptions(), [1], 1) == Layout()
    with pytest.raises(HarpeError, match="A step has 3 sequences, and 2 are read at one time"):
        check_layout(Layout(2), [3], 1)
    assert choose_layout(2, LayoutOptions(), [3], 1) == Layout(2, 2)
    with pytest.raises(HarpeError, match="--sequence-parallel 2 does not divide the 1 process"):
        check_layout(Layout(1, 2), [1], 1)


@pytest.mark.parametrize(
    ("family", "changes", "parts", "length", "message"),
    [
        ("llama", {}, 3, 96, "does not divide the 4 query heads"),
        ("llama", {}, 4, 66, "does not divide sequences of 66 tokens"),
        (
            "llama",
            {"num_attention_heads": 6, "num_key_value_heads": 3},
            2,
            64,
            "3 key/value heads do not go into each other",
        ),
        ("llama", {"_attn_implementation": "eager"}, 2, 64, "keeps causal order without a mask"),
        ("mistral", {"sliding_window": 32}, 2, 64, "sliding window of 32 tokens needs flash attention"),
    ],
)
def test_what_cannot_be_shared_by_sequence_is_refused(
    make_tiny: Any, family: str, changes: dict[str, Any], parts: int, length: int, message: str
) -> None:
    model = make_tiny(family)
    for key, value in changes.items():
        setattr(model.config, key, value)
    with pytest.raises(HarpeError, match=message):
        check_sequence_parallel(model, parts, length)
    check_sequence_parallel(model, 1, length)
    if family == "mistral":  # a window that nothing falls out of
        check_sequence_parallel(model, parts, 32)


ONES = [1.0] * 8
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, "short_factor": ONES}
TWO_SETS = {**LONGROPE, "long_factor": [2.0] * 8}
ONE_SET = {**LONGROPE, "long_factor": ONES}


@pytest.mark.parametrize("rope", [DYNAMIC, TWO_SETS, ONE_SET])
def test_a_sequence_whose_length_decides_its_rotation_is_shared_by_none(make_tiny: Any, rope: dict[str, Any]) -> None:
    """Stock transformers rotates a piece otherwise than the same tokens of the whole: those rope types are refused."""
    stock = make_tiny("llama", max_position_embeddings=32, rope_parameters={**rope, "rope_theta": 1e4})
    pieces = []
    for reach in (LENGTH // 2, LENGTH):
        turned, _ = stock.model.rotary_emb(torch.zeros(1), torch.arange(reach)[None])
        pieces.append(turned[:, : LENGTH // 2])
    moves = not torch.equal(*pieces)
    assert moves == (rope is not ONE_SET)
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    stages = [Stage(stock_encoding(rope, geometry), LENGTH, 1.0)]
    check_stages(stages, options(), Layout(2, 1))
    if not moves:
        check_stages(stages, options(), Layout(2, 2))
        return
    for settings in (options(), options(batch_tokens=0)):  # the layout that is chosen where a step has one sequence
        with pytest.raises(
            HarpeError, match=f"Rope type {rope['rope_type']}.*Give --sequence-parallel 1.*another method"
        ):
            check_stages(stages, settings, Layout(2, 2))
    beside = make_tiny("llama")  # layers whose positions no method changes
    beside.config.rope_parameters = {"full_attention": {"rope_type": "default"}, "sliding_attention": rope}
    with pytest.raises(HarpeError, match=f"Rope type {rope['rope_type']}"):
        check_sequence_parallel(beside, 2, LENGTH)


def test_tasks_of_srun_get_the_names_that_torch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for nodes, first in (("gpu[07-09,12]", "gpu07"), ("a1,b[2-3]", "a1"), ("host", "host")):
        step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
        environment = {**step, "SLURM_JOB_ID": "123456", "SLURM_STEP_NODELIST": nodes}
        monkeypatch.setattr("os.environ", environment)
        _adopt_slurm()
        got = [environment[key] for key in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
        assert got == ["16", "9", "1", first, "23456"]


def test_older_versions_are_told_before_several_processes_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions()
    monkeypatch.setattr("harpe.distributed.layout.version", lambda package: "5.17.0")
    with pytest.raises(HarpeError, match=r"needs transformers 5\.23 or newer; 5\.17\.0 is installed"):
        check_versions()
