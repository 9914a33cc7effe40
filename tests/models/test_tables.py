"""A table of frequencies for every head: bases written as tables are the same bits; pairs that do not turn; loading,
export and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harpe.errors import HarpeError
from harpe.methods.types import Encoding, Stage, per_head_encoding, table_encoding, with_attention_factor
from harpe.models.apply import apply_encoding
from harpe.models.export import export_checkpoint
from harpe.models.geometry import changed_layers, read_geometry
from harpe.models.load import load_model
from harpe.positions.phases import base_frequencies

from .test_families import COSTLY, ids_of, logits, module_of, rope_of, rotary_of
from .tiny_families import REPRESENTATIVES, bases_of, heads_of, tiny


def table_of(model: Any, bases: list[float], still: int = 0) -> list[list[float]]:
    """The frequencies of bases, the slowest `still` pairs of every head not turning."""
    rows = base_frequencies(bases, read_geometry(model.config, "x").rotary_dim)
    return [[*row[: len(row) - still], *[0.0] * still] for row in rows]


def put(model: Any, encoding: Encoding) -> Any:
    return apply_encoding(model, encoding, read_geometry(model.config, "x"), 4096)


@COSTLY
def test_bases_written_as_tables_are_the_same_bits(family: str) -> None:
    model, ids = tiny(family), ids_of(1, 200)
    geometry = read_geometry(model.config, "x")
    by_bases = put(copy.deepcopy(model), per_head_encoding(tuple(bases_of(model)), geometry))
    encoding = table_encoding([table_of(model, bases_of(model))], geometry)
    by_table = put(copy.deepcopy(model), encoding)
    assert torch.equal(logits(by_table, ids), logits(by_bases, ids))
    assert Stage.from_dict(Stage(encoding, 4096, 1.0).as_dict()).encoding == encoding
    # and by layer, each with heads in another order
    rows = [bases_of(model)[:: 1 if layer % 2 else -1] for layer in range(geometry.layers)]
    by_bases = put(copy.deepcopy(model), per_head_encoding(rows, geometry))
    tables = [table_of(model, row) for row in rows]
    by_table = put(copy.deepcopy(model), table_encoding(tables, geometry))
    assert torch.equal(logits(by_table, ids), logits(by_bases, ids))


@COSTLY
def test_pairs_that_do_not_turn_stay_and_others_turn_as_before(family: str) -> None:
    model = tiny(family)
    geometry, heads = read_geometry(model.config, family), heads_of(model)
    pairs, still = geometry.rotary_dim // 2, geometry.rotary_dim // 6
    module, layer_type = module_of(model), rope_of(model)[0]
    given = table_of(model, bases_of(model), still)
    changed = put(copy.deepcopy(model), table_encoding([given], geometry))
    generator = torch.Generator().manual_seed(4)
    k = torch.randn(1, heads, 9, 2 * pairs, generator=generator)
    positions = torch.randint(0, 3_000_000, (1, 9), generator=generator)

    def turned(owner: Any) -> torch.Tensor:
        pair = rotary_of(owner)(k, positions, *layer_type)
        if pair[1].dim() == 4 and pair[0].dtype == torch.int64:
            pair = (pair[0], pair[1][changed_layers(owner.config)[0]])
        return module.apply_rotary_pos_emb(k, k, *pair)[1]

    got = turned(changed)
    plain = turned(put(copy.deepcopy(model), per_head_encoding(tuple(bases_of(model)), geometry)))
    same = (got == k).reshape(heads, -1, 2 * pairs).all(1)  # by head and dimension
    assert (same.sum(-1) == 2 * still).all()
    torch.testing.assert_close(got[..., ~same[0]], plain[..., ~same[0]], atol=0, rtol=0)


@pytest.mark.parametrize("family", REPRESENTATIVES)
@pytest.mark.parametrize("factors", [None, "by head"])
def test_a_saved_and_an_exported_model_has_its_tables(family: str, factors: str | None, tmp_path: Path) -> None:
    model, ids = tiny(family), ids_of(1, 90)
    geometry = read_geometry(model.config, "x")
    encoding = table_encoding([table_of(model, bases_of(model), 2)], geometry)
    if factors:
        given = [1.1 + 0.1 * head for head in range(heads_of(model))]
        encoding = with_attention_factor(encoding, given, geometry, 2.0)
    model = put(model, encoding)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved"), ids), expected)
    export_checkpoint(load_model(tmp_path / "saved"), tmp_path / "exported")
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    assert torch.equal(logits(stranger, ids), expected)


def test_tables_of_another_shape_are_refused() -> None:
    geometry = read_geometry(tiny("llama").config, "x")
    row = [0.1] * (geometry.rotary_dim // 2)
    good = [row] * geometry.key_value_heads
    table_encoding([good], geometry)
    for tables, words in (
        ([good[:-1]], "heads of"),
        ([[row[:-1]] * geometry.key_value_heads], "heads of"),
        ([good, good, good], "tables for 3 layers"),
        ([good, None], "no table for layer 1"),
        ([[[*row[:-1], -1.0]] * geometry.key_value_heads], "must be a number of 0 or above"),
        ([[[*row[:-1], float("nan")]] * geometry.key_value_heads], "must be a number of 0 or above"),
    ):
        with pytest.raises(HarpeError, match=words):
            table_encoding(tables, geometry)


def test_a_configuration_with_wrong_tables_is_refused() -> None:
    model = tiny("llama")
    geometry = read_geometry(model.config, "x")
    model = put(model, table_encoding([table_of(model, bases_of(model))], geometry))
    right = model.config.rope_parameters["frequencies"]
    for wrong in (right[:-1], [right[0], right[1][:-1]], [[*right[0][:-1], -1.0], right[1]], [right] * 3):
        config = copy.deepcopy(model.config)
        config.rope_parameters["frequencies"] = wrong
        with pytest.raises(ValueError, match="frequencies"):
            config.validate_rope()
    config = copy.deepcopy(model.config)
    config.rope_parameters["bases"] = bases_of(model)
    with pytest.raises(ValueError, match="bases and frequencies"):
        config.validate_rope()
