"""Options of `harpe bases`. The text under each field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harpe.bases.choice import SearchOptions
from harpe.options.shared import RangeOptions


@dataclass(frozen=True, kw_only=True)
class BasesOptions(SearchOptions, RangeOptions):
    """Choose a base for every key/value head.

    Give --model to read heads, head size and trained context from a checkpoint, or --heads and --head-dim with --min
    and --max.
    """

    length: int
    """Target context in tokens; 128k is 131072."""
    model: str | None = None
    """Checkpoint whose geometry is used: a folder, a GGUF file, a hub name, or embedded. Weights are read for
    --strategy searched and --assignment adaptive only."""
    heads: int | None = None
    """Key/value heads, one base each."""
    head_dim: int | None = None
    """Rotary dimensions of a head."""
    layers: int | None = None
    """Layers, where there is no --model and --layer-bases is not same."""
    data: str | None = None
    """Texts for --assignment adaptive and --strategy searched: a file, a folder, a hub data set, or embedded."""
    level: Literal["shared", "exponent", "layer", "head"] | None = None
    """Of --strategy searched: one table or one exponent for all heads, or an exponent for every layer or every head
    (default)."""
    passes: int | None = None
    """Of --strategy searched: tables that are tried, each on all texts of the search; default 60."""
    seed: int = 0
    """Of --assignment random and --strategy searched."""
    out: str | None = None
    """Folder to write bases.json and figures (.svg) into: waveforms, coverage, number line; or tables.json of
    --strategy searched."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    original_length: int | None = None
    """Context that the model was trained with, where config.json does not say it."""
    sliding_window: Literal["keep", "off"] = "keep"
    """off, of --strategy searched: search without sliding windows, as harpe extend would train."""
    json: bool = False
    """Print one JSON object and nothing else."""
