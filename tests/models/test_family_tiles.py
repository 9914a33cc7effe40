"""Every family's feed-forward layers in tiles give the gradients of whole sequences, or are refused."""

from __future__ import annotations

import pytest
import torch

from harpe.errors import HarpeError
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.tiles import check_tiles, mlp_tiles

from .tiny_families import FAMILIES, REPRESENTATIVES, tiny

REFUSED = {"gpt_oss"}
"""Whose layers give scores of their router beside states."""


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name in REPRESENTATIVES else pytest.mark.matrix)
        for name in FAMILIES
    ],
)
def test_a_family_has_the_gradients_of_whole_sequences_or_is_refused(family: str) -> None:
    model = tiny(family)
    if family in REFUSED:
        with pytest.raises(HarpeError, match="Leave --mlp-tile out"):
            check_tiles(model, 16)
        return
    check_tiles(model, 16)
    ids = torch.randint(3, 90, (2, 50), generator=torch.Generator().manual_seed(0))
    found = []
    for tile in (0, 16):
        model.zero_grad()
        model.train()
        set_recompute(model, model.supports_gradient_checkpointing)
        with chunked_loss(model), mlp_tiles(model, tile):
            model(input_ids=ids, labels=ids).loss.backward()
        set_recompute(model, False)
        found.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    for whole, tiled in zip(*found, strict=True):
        assert (whole - tiled).norm() <= 1e-5 * whole.norm() + 1e-7
