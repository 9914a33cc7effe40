"""Documents in one sequence, in every family: each is read as if it were alone, or the family is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from harpe.methods.types import per_head_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.head import hidden_states
from harpe.training.documents import check_documents, inside_documents

from .tiny_families import FAMILIES, REPRESENTATIVES, bases_of, tiny

IDS = torch.arange(3, 73)[None]
ENDS = (0, 30, 31, 70)


@torch.no_grad()
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.matrix) for name in FAMILIES],
)
def test_a_family_reads_every_document_as_if_it_were_alone(family: str) -> None:
    model = tiny(family).eval()
    geometry = read_geometry(model.config, family)
    apply_encoding(model, per_head_encoding(bases_of(model), geometry), geometry, 128)
    check_documents(model, "restart")
    spans = list(pairwise(ENDS))
    numbers = torch.cat([torch.full((1, end - start), i) for i, (start, end) in enumerate(spans)], dim=1)
    running = torch.arange(IDS.shape[1])[None]
    places = {"run-on": running, "restart": torch.cat([running[:, : end - start] for start, end in spans], dim=1)}
    for mask, positions in places.items():
        with inside_documents(model, mask) as inside:  # type: ignore[arg-type]
            assert inside is not None
            inside.set(numbers)
            got = hidden_states(model, IDS, position_ids=positions)
        for start, end in spans:
            wanted = hidden_states(model, IDS[:, start:end], position_ids=positions[:, start:end])
            torch.testing.assert_close(got[:, start:end], wanted, atol=2e-5, rtol=1e-4)
