"""From options to the bases of every layer: choose a set, then give its members to the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harpe.bases.assignment import Assignment, LayerBases, assign, members
from harpe.bases.base_sets import BaseSet, Rule, Strategy, choose_bases
from harpe.errors import HarpeError


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How bases are chosen from a range and given to the heads: options of `harpe bases`, of `harpe extend`, and of the
    method harpe."""

    strategy: Strategy = "uniform"
    """How bases are chosen from the range. uniform: evenly spaced, ascending over the heads; uniform-descending: the
    other way round; log-uniform: in equal ratios; peak-valley: bases whose waveforms complement each other. searched
    (harpe bases only): no bases but tables, by forward passes over --data."""
    stride: float | None = None
    """Distance between candidates of --strategy peak-valley (published: 3e4); default: as its rule has it."""
    rule: Rule | None = None
    """Selection rule of --strategy peak-valley. published: gives Table 2 of the paper. printed: its Algorithm 1 as
    printed, which does not. general: any geometry. Default: published in the paper's own setting, else general."""
    force: bool = False
    """Let --rule published run outside the setting it was tuned for (head size 128, 128k tokens)."""
    assignment: Assignment | None = None
    """Which head gets which base: ascending (default), descending, random (--seed), or adaptive (heads that look
    farther on a few texts of --data get larger bases; reads the weights)."""
    layer_bases: LayerBases = "same"
    """same: all layers alike. permuted: the same set in another order in every layer (random or adaptive). own: layers
    x heads bases."""
    seed: int = 0
    """Of what is random in it."""

    @property
    def assigned(self) -> Assignment:
        """The assignment, with the strategy's own where none is given."""
        own: Assignment = "descending" if self.strategy == "uniform-descending" else "ascending"
        if self.assignment not in (None, own) and self.strategy == "uniform-descending":
            raise HarpeError(
                f"--strategy uniform-descending is --assignment descending; with --assignment {self.assignment} use "
                "uniform."
            )
        return self.assignment or own


@dataclass(frozen=True)
class Choice:
    """A set and its rows."""

    chosen: BaseSet
    rows: tuple[tuple[float, ...] | None, ...]
    """One row of bases for every layer, head h at index h; where layers differ, None for those that keep their
    positions."""
    assignment: Assignment
    layer_bases: LayerBases

    @property
    def first(self) -> tuple[float, ...]:
        """The row of the first layer that changes."""
        return next(row for row in self.rows if row is not None)

    def describe(self) -> str:
        """Strategy, assignment and rule in words."""
        layers = {"same": "", "permuted": ", permuted by layer", "own": ", each layer its own"}[self.layer_bases]
        return f"{self.chosen.strategy}, {self.assignment} over the heads{layers}"


def choose_rows(
    search: SearchOptions,
    *,
    heads: int,
    layers: int,
    head_dim: int,
    length: int,
    low: float,
    high: float,
    head_distances: Sequence[Sequence[float]] | None = None,
    changed: Sequence[int] | None = None,
) -> Choice:
    """Choose and assign.

    Parameters
    ----------
    head_distances
        How far each head of each layer looks, [layers, heads]; needed for the adaptive assignment.
    changed
        Layers whose positions change (None: all). The others get no member of the set, and their heads are not asked
        how far they look.

    Raises
    ------
    HarpeError
        For options that do not go together, or cannot work.
    """
    assignment, places = search.assigned, range(layers) if changed is None else changed
    chosen = choose_bases(
        search.strategy,
        heads=members(heads, len(places), search.layer_bases),
        head_dim=head_dim,
        length=length,
        low=low,
        high=high,
        stride=search.stride,
        rule=search.rule,
        force=search.force,
    )
    if head_distances is not None and len(head_distances) == layers:
        head_distances = [head_distances[layer] for layer in places]
    found = assign(
        chosen.bases,
        assignment,
        heads=heads,
        layers=len(places),
        layer_bases=search.layer_bases,
        seed=search.seed,
        head_distances=head_distances,
    )
    if search.layer_bases == "same":
        return Choice(chosen, (found[0],) * layers, assignment, search.layer_bases)
    rows = dict(zip(places, found, strict=True))
    return Choice(chosen, tuple(rows.get(layer) for layer in range(layers)), assignment, search.layer_bases)
