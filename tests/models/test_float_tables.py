"""Models that turn by float tables, in every family: the logits are those of the table of integers, and the gradients
those of autograd through stock transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from harpe.attention_heads.learned import learn_tables
from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import per_head_encoding, shared_encoding, table_encoding, with_attention_factor
from harpe.models.apply import apply_encoding
from harpe.models.float_tables import float_tables, model_tables
from harpe.models.geometry import changed_layers, read_geometry

from .test_families import COSTLY, ids_of, logits, rope_of, rotary_of
from .tiny_families import bases_of, tiny

PLACES = torch.arange(40)[None] + 30


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found = model(input_ids=ids, position_ids=PLACES, use_cache=False).logits
    return torch.nn.functional.cross_entropy(found[0, :-1].double(), ids[0, 1:])


NORM_BEHIND = ("hunyuan_v1_dense", "nanochat")


def logs_of(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(each.nan_to_num(1.0).log() for each in model_tables(model.config))


@COSTLY
def test_logits_are_those_of_the_same_table_of_integers_bit_for_bit(family: str) -> None:
    model, ids = tiny(family), ids_of(1, 300)
    geometry, generator = read_geometry(model.config, family), torch.Generator().manual_seed(1)
    changed, (logs, log_factors) = set(changed_layers(model.config)), logs_of(model)
    logs += 0.3 * torch.randn(logs.shape, generator=generator, dtype=torch.float64)
    undone = family in NORM_BEHIND  # where factors are refused
    factors = [1.0 if undone else 0.9 + 0.1 * head for head in range(logs.shape[1])]
    log_factors = torch.tensor(factors, dtype=torch.float64).log().expand(log_factors.shape)
    tables = [table.exp().tolist() if layer in changed else None for layer, table in enumerate(logs)]
    encoding = with_attention_factor(table_encoding(tables, geometry), factors, geometry, 8.0)
    by_integers = apply_encoding(copy.deepcopy(model), encoding, geometry, 4096)
    before, wanted = logits(model, ids), logits(by_integers, ids)
    assert not torch.allclose(wanted, before, atol=1e-3)
    for base in (model, by_integers):  # also in a model that has tables of its own
        with float_tables(base, logs, log_factors):
            found = logits(base, ids)
        if base is by_integers or len(changed) == len(logs):
            assert torch.equal(found, wanted)
        # layers that keep their positions turn by cos and sin in the one, by integers in the other
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, ids), before)
    read, by = model_tables(by_integers.config)
    rows = sorted(changed)
    torch.testing.assert_close(read[rows], logs.exp()[rows], rtol=1e-14, atol=0)
    torch.testing.assert_close(by[rows], log_factors.exp()[rows], rtol=1e-14, atol=0)


@COSTLY
def test_gradients_add_up_to_those_of_autograd_through_the_stock_model(family: str) -> None:
    # one rotary module for all layers: then none keeps its positions, for what stands in its place turns them all
    kinds = {"layer_types": ["full_attention"] * 4} if family in ("gemma2", "gpt_oss") else {}
    model, ids, (layer_type, _) = tiny(family, **kinds), ids_of(1, 40), rope_of(tiny(family, **kinds))
    experts = hasattr(model.config, "num_experts_per_tok")  # whose product has no float64
    model, near = (model, 1e-3) if experts else (model.double(), 1e-4)
    start, log_factors = logs_of(model)
    changed = sorted(changed_layers(model.config))
    row = start[changed[0], 0].clone().requires_grad_()
    stock = rotary_of(model).forward
    example = stock(torch.zeros(1), PLACES, *layer_type)[0]
    neighbours = torch.equal(example[..., ::2], example[..., 1::2])

    def with_gradients(x: Any, position_ids: Any = None, *key: Any, **named: Any) -> Any:
        key = key or tuple(named.values())
        if layer_type and key != layer_type:
            return stock(x, position_ids, *key)
        phase = position_ids.double()[..., None] * row.exp()
        if example.shape[-1] > len(row):
            phase = phase.repeat_interleave(2, dim=-1) if neighbours else torch.cat((phase, phase), dim=-1)
        return phase.cos().to(x.dtype), phase.sin().to(x.dtype)

    rotary_of(model).forward = with_gradients
    wanted_loss = loss_of(model, ids)
    rotary_of(model).forward = stock
    (wanted,) = torch.autograd.grad(wanted_loss, row)
    logs = start.clone().requires_grad_()
    with float_tables(model, logs, log_factors):
        found_loss = loss_of(model, ids)
        (found,) = torch.autograd.grad(found_loss, logs)
    torch.testing.assert_close(found_loss, wanted_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[changed].sum(dim=(0, 1)), wanted, rtol=near, atol=near * float(wanted.abs().max()))
    others = [layer for layer in range(len(found)) if layer not in changed]
    assert not found[others].any()


def test_gradients_of_every_head_and_factor_are_those_of_finite_differences() -> None:
    model, ids = tiny("llama").double(), ids_of(1, 40)
    logs, log_factors = logs_of(model)
    logs, log_factors = logs.requires_grad_(), log_factors.requires_grad_()
    with float_tables(model, logs, log_factors):
        by_logs, by_factors = torch.autograd.grad(loss_of(model, ids), (logs, log_factors))

    @torch.no_grad()
    def difference(layer: int, head: int, pair: int | None, by: float = 3e-4) -> float:
        ends = []
        for sign in (1, -1):
            moved, scaled = logs.clone(), log_factors.clone()
            if pair is None:
                scaled[layer, head] += sign * by
            else:
                moved[layer, head, pair] += sign * by
            with float_tables(model, moved, scaled):
                ends.append(float(loss_of(model, ids)))
        return (ends[0] - ends[1]) / (2 * by)

    for layer in range(2):
        for head in range(2):
            assert difference(layer, head, None) == pytest.approx(float(by_factors[layer, head]), rel=2e-2, abs=2e-4)
            for pair in (3, 4, 6):
                assert difference(layer, head, pair) == pytest.approx(
                    float(by_logs[layer, head, pair]), rel=2e-2, abs=2e-4
                )


def test_what_a_model_turns_by_is_read_from_bases_and_stock_types() -> None:
    model = tiny("llama")
    geometry = read_geometry(model.config, "x")
    plain = torch.tensor([1e4 ** (-i / 8) for i in range(8)], dtype=torch.float64)
    torch.testing.assert_close(model_tables(model.config)[0], plain.expand(2, 2, 8), rtol=1e-6, atol=0)
    model = apply_encoding(model, per_head_encoding(bases_of(model), geometry), geometry, 4096)
    rows = [[base ** (-i / 8) for i in range(8)] for base in bases_of(model)]
    torch.testing.assert_close(model_tables(model.config)[0], torch.tensor([rows] * 2, dtype=torch.float64))


def test_what_no_table_can_say_is_refused() -> None:
    refused: dict[str, tuple[str, dict[str, Any]]] = {
        "by the length of its text": ("ntk-dynamic", {}),
        "inside the attention": ("self-extend", {}),
        "Queries are scaled": ("harpe-parts", {"length_scale": [0.0, 1.0]}),
    }
    for reason, (method, options) in refused.items():
        model = tiny("llama")
        geometry = read_geometry(model.config, "x")
        stages = make_stages(method_named(method), geometry, 2048, options)
        apply_encoding(model, stages[-1].encoding, geometry, 2048)
        with pytest.raises(HarpeError, match=reason):
            model_tables(model.config)
    model = tiny("llama")
    logs, log_factors = logs_of(model)
    with pytest.raises(HarpeError, match="has the shape"), float_tables(model, logs[:, :, 1:], log_factors):
        pass


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2", "smollm3", "gpt_neox"])
def test_learned_tables_leave_layers_that_keep_their_positions(family: str) -> None:
    model, ids = tiny(family), list(range(3, 60))
    geometry = read_geometry(model.config, family)
    start = shared_encoding(40_000.0, geometry)
    found = learn_tables(model, [ids], start, geometry, 1024, steps=2, rate=0.05)
    tables, changed = found.encoding.tables, changed_layers(model.config)
    assert tables is not None
    assert [layer for layer, table in enumerate(tables) if table is not None] == changed
    with torch.no_grad():
        after = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert after < found.losses[0]
