"""Members of a base set go to layers whose positions change, and to no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import harpe
from harpe.bases.choice import SearchOptions, choose_rows
from harpe.commands.bases import base_table, choose
from harpe.errors import HarpeError
from harpe.methods.types import per_head_encoding
from harpe.models.geometry import read_geometry
from harpe.options.bases import BasesOptions

RANGE: dict[str, Any] = {"heads": 2, "layers": 6, "head_dim": 16, "length": 2048, "low": 1e5, "high": 9e5}
CHANGED = (1, 3, 5)


@pytest.mark.parametrize("assignment", ["ascending", "descending", "random", "adaptive"])
def test_own_bases_are_as_many_as_the_changed_layers_have_heads(assignment: Any) -> None:
    head_distances = [[float(7 * layer + head) for head in range(2)] for layer in range(6)]
    search = SearchOptions(layer_bases="own", assignment=assignment)
    choice = choose_rows(search, **RANGE, changed=CHANGED, head_distances=head_distances)
    assert [layer for layer, row in enumerate(choice.rows) if row is not None] == list(CHANGED)
    given = [base for row in choice.rows if row is not None for base in row]
    assert sorted(given) == sorted(choice.chosen.bases) and len(set(given)) == len(given) == 6
    assert (min(given), max(given)) == (1e5, 9e5)  # the ends of the range are among those in use
    assert choice.first == choice.rows[1]
    if assignment == "adaptive":  # the heads of the changed layers alone are ranked
        assert given == sorted(given)


def test_adaptive_ranks_heads_over_the_changed_layers_alone() -> None:
    # in the layers that keep their positions the first head looks farther
    head_distances = [[100.0, 1.0], [5.0, 6.0]] * 3
    choice = choose_rows(SearchOptions(assignment="adaptive"), **RANGE, changed=CHANGED, head_distances=head_distances)
    assert choice.rows == ((1e5, 9e5),) * 6
    assert (
        choose_rows(SearchOptions(assignment="adaptive"), **RANGE, head_distances=head_distances).rows
        == ((9e5, 1e5),) * 6
    )


@pytest.fixture
def layered(make_tiny: Any, tmp_path: Path) -> Path:
    """Windowed and global layers in turn, in one rotary module (gemma2)."""
    types = ["sliding_attention", "full_attention"] * 2
    model = make_tiny("gemma2", layers=4, sliding_window=16, layer_types=types, query_pre_attn_scalar=16)
    model.save_pretrained(tmp_path / "layered")
    return tmp_path / "layered"


def test_a_model_with_windowed_layers_uses_every_member_of_its_own_set(layered: Path) -> None:
    value = choose(BasesOptions(model=str(layered), length=4096, layer_bases="own"))
    assert [row is None for row in value["layers"]] == [True, False, True, False]
    used = [base for row in value["layers"] if row is not None for base in row]
    assert sorted(used) == value["bases"] and len(used) == 4 and value["heads"] == value["layers"][1]
    assert [column.header for column in base_table(value).columns] == ["key/value head", "layer 1", "layer 3"]
    geometry = read_geometry(AutoConfig.from_pretrained(layered), "x")
    assert per_head_encoding(value["layers"], geometry).bases == tuple(value["heads"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_layer_that_keeps_its_positions_needs_no_row_and_others_do(make_tiny: Any) -> None:
    types = ["sliding_attention", "full_attention"]
    options = {"sliding_window": 16, "layer_types": types, "query_pre_attn_scalar": 16}
    model = harpe.apply(make_tiny("gemma2", **options), length=2048, bases=[None, [1e5, 2e5]])
    assert model.config.rope_parameters["bases"] == [None, [1e5, 2e5]]
    with pytest.raises(HarpeError, match="no row for layer 1"):
        harpe.apply(make_tiny("gemma2", **options), length=2048, bases=[[1e5, 2e5], None])
