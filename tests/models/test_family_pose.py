"""Skipped positions in every family: states are those of a long text whose gap is masked, or the family is refused."""

from __future__ import annotations

import pytest
import torch

from harpe.errors import HarpeError
from harpe.methods.types import per_head_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry, sliding_layers
from harpe.models.head import hidden_states
from harpe.training.pose import check_skips, skipped_positions

from .tiny_families import FAMILIES, REPRESENTATIVES, bases_of, tiny

TARGET, FIRST, SIZE = 128, 13, 40


@torch.no_grad()
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.matrix) for name in FAMILIES],
)
def test_a_family_reads_across_a_gap_as_it_reads_a_long_text(family: str) -> None:
    model = tiny(family).eval()
    geometry = read_geometry(model.config, family)
    apply_encoding(model, per_head_encoding(bases_of(model), geometry), geometry, TARGET)
    if sliding_layers(model.config):
        with pytest.raises(HarpeError, match="see a window of 16 tokens"), skipped_positions(model, SIZE, TARGET):
            pass
        return
    ids = torch.arange(3, 3 + SIZE)[None]
    places = torch.cat([torch.arange(FIRST), torch.arange(TARGET - (SIZE - FIRST), TARGET)])
    whole, seen = torch.full((1, TARGET), 2), torch.zeros(1, TARGET, dtype=torch.int64)
    whole[0, places], seen[0, places] = ids[0], 1
    wanted = hidden_states(model, whole, attention_mask=seen)[:, places]
    with skipped_positions(model, SIZE, TARGET):
        check_skips(model, SIZE)
        got = hidden_states(model, ids, position_ids=places[None])
    torch.testing.assert_close(got, wanted, atol=3e-5, rtol=1e-4)
