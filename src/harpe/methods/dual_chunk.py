"""Dual chunk attention: no training; no position passes the trained context (An et al. 2024, arXiv 2402.17463)."""

from __future__ import annotations

from dataclasses import replace

from harpe.errors import HarpeError
from harpe.methods.types import DualChunk, Stage, check_unscaled, shared_encoding, untrained
from harpe.positions.geometry import ModelGeometry


def dca(geometry: ModelGeometry, length: int, *, chunk: int | None = None, local: int | None = None) -> list[Stage]:
    """One stage without training at `length`, with the model's own base. Any length is reached.

    Parameters
    ----------
    chunk
        Tokens of a chunk, s. Default: three quarters of the trained context c (the paper's 3072 of 4096).
    local
        Tokens behind a chunk that see it at exact distances, w. Default: the rest, c - s. (The authors' program sets
        aside c / 8 inside 3 c / 4, so that its chunks are 5 c / 8: `chunk` 2560 and `local` 512 for 4096.)

    Raises
    ------
    HarpeError
        For values below 1, a local window longer than a chunk, or positions past the trained context.
    """
    check_unscaled(geometry, "Dual chunk attention")
    trained = geometry.original_length
    chunk = trained * 3 // 4 if chunk is None else chunk
    local = trained - chunk if local is None else local
    if chunk < 1 or local < 1 or chunk + local > trained:
        raise HarpeError(
            f"Dual chunk attention with chunk {chunk} and local {local}: both must be at least 1, and together at most "
            f"the trained context of {trained} tokens. Without both options they are {trained * 3 // 4} and "
            f"{trained - trained * 3 // 4}."
        )
    if local > chunk:
        raise HarpeError(
            f"Dual chunk attention with local {local} and chunk {chunk}: the local window reaches into the chunk "
            "before only."
        )
    return untrained(replace(shared_encoding(geometry.base, geometry), attention=DualChunk(chunk, local)), length)
