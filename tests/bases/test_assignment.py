"""Which head gets which base: every member is given out once, and rows are what their names say."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harpe.bases.assignment import assign, members
from harpe.errors import HarpeError


def bases_of(count: int) -> list[float]:
    return [1e5 + 1e3 * i for i in range(count)]


def test_ascending_and_descending_rows_are_the_same_in_every_layer() -> None:
    bases = bases_of(4)
    assert assign(bases[::-1], "ascending", heads=4, layers=3) == (tuple(bases),) * 3
    assert assign(bases, "descending", heads=4, layers=3) == (tuple(bases[::-1]),) * 3


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 16),
    layers=st.integers(1, 12),
    assignment=st.sampled_from(["ascending", "descending", "random", "adaptive"]),
    layer_bases=st.sampled_from(["same", "permuted", "own"]),
    seed=st.integers(0, 99),
)
def test_every_member_is_given_out_and_none_twice(
    heads: int, layers: int, assignment: Any, layer_bases: Any, seed: int
) -> None:
    if layer_bases == "permuted" and assignment not in ("random", "adaptive"):
        return
    bases = bases_of(members(heads, layers, layer_bases))
    head_distances = np.random.default_rng(seed).random((layers, heads)).tolist()
    options: dict[str, Any] = {
        "heads": heads,
        "layers": layers,
        "layer_bases": layer_bases,
        "seed": seed,
        "head_distances": head_distances,
    }
    rows = assign(bases, assignment, **options)
    assert len(rows) == layers and {len(row) for row in rows} == {heads}
    if layer_bases == "own":
        assert sorted(chain(*rows)) == bases
        if assignment != "adaptive":  # each row spans the set: one of each neighbourhood of `layers` bases
            assert all([int((b - 1e5) / 1e3) // layers for b in sorted(row)] == list(range(heads)) for row in rows)
    else:
        assert all(sorted(row) == bases for row in rows)
        assert layer_bases == "permuted" or len(set(rows)) == 1
    assert assign(bases[::-1], assignment, **options) == rows


def test_random_orders_are_fixed_by_the_seed_on_every_machine() -> None:
    # pinned: a change of library or platform must not change who gets which base
    assert assign(bases_of(6), "random", heads=6, layers=1)[0] == tuple(1e5 + 1e3 * i for i in PINNED)
    different = {assign(bases_of(6), "random", heads=6, layers=1, seed=seed) for seed in range(5)}
    assert len(different) > 3


PINNED = (0, 3, 4, 5, 1, 2)


def test_permuted_layers_differ() -> None:
    rows = assign(bases_of(8), "random", heads=8, layers=6, layer_bases="permuted")
    assert len(set(rows)) == 6


def test_heads_that_look_farther_get_larger_bases() -> None:
    bases, head_distances = bases_of(3), [[30.0, 10.0, 20.0], [5.0, 7.0, 6.0]]
    assert assign(bases, "adaptive", heads=3, layers=2, layer_bases="permuted", head_distances=head_distances) == (
        (bases[2], bases[0], bases[1]),
        (bases[0], bases[2], bases[1]),
    )
    # over both layers the heads look 17.5, 8.5 and 13 tokens back
    assert (
        assign(bases, "adaptive", heads=3, layers=2, head_distances=head_distances)
        == ((bases[2], bases[0], bases[1]),) * 2
    )
    six = bases_of(6)
    assert assign(six, "adaptive", heads=3, layers=2, layer_bases="own", head_distances=head_distances) == (
        (six[5], six[3], six[4]),
        (six[0], six[2], six[1]),
    )


def test_heads_of_equal_reach_keep_their_order() -> None:
    assert assign(bases_of(3), "adaptive", heads=3, layers=1, head_distances=[[1.0, 1.0, 1.0]]) == (tuple(bases_of(3)),)


@pytest.mark.parametrize(
    ("count", "assignment", "options", "says"),
    [
        (3, "ascending", {}, "needs 4"),
        (4, "ascending", {"layer_bases": "own"}, "needs 8"),
        (4, "ascending", {"layer_bases": "permuted"}, "needs --assignment random or adaptive"),
        (4, "adaptive", {}, "give --model and --data"),
        (4, "adaptive", {"head_distances": [[1.0] * 4]}, "needed are 2 x 4"),
        (4, "adaptive", {"head_distances": [[float("nan")] * 4] * 2}, "holds no numbers"),
    ],
)
def test_what_has_no_meaning_is_refused(count: int, assignment: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(HarpeError, match=says):
        assign(bases_of(count), assignment, heads=4, layers=2, **options)
