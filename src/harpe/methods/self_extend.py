"""Self-Extend: no training; exact positions for neighbours, floor-divided ones beyond (Jin et al. 2024, arXiv
2401.01325)."""

from __future__ import annotations

from dataclasses import replace

from harpe.errors import HarpeError
from harpe.methods.types import SelfExtend, Stage, check_unscaled, shared_encoding, untrained
from harpe.positions.geometry import ModelGeometry


def self_extend_length(original_length: int, window: int, group: int) -> int:
    """Longest context in tokens whose positions stay inside the trained one: 1024 / 32 on 4096 reaches 99,328.

    The paper's (L0 - w) G + w (section 3.3) where G divides w; else up to G - 1 less, since w // G is rounded down.
    """
    return (original_length - window) * group + window // group * group


def self_extend(
    geometry: ModelGeometry, length: int, *, window: int | None = None, group: int | None = None
) -> list[Stage]:
    """One stage without training at `length`, with the model's own base.

    Parameters
    ----------
    window
        Tokens at exact distance. Default: a quarter of the trained context, the paper's 1024 of 4096.
    group
        Tokens that share a position beyond. Default: the smallest that reaches `length`, as the authors advise, since
        larger ones are coarser.

    Raises
    ------
    HarpeError
        For a window outside the trained context, a group below 1, or a longest text shorter than `length`, with the
        group that would do.
    """
    check_unscaled(geometry, "Self-Extend")
    trained = geometry.original_length
    window = max(1, trained // 4) if window is None else window
    if not 1 <= window < trained:
        raise HarpeError(
            f"The window is {window}; it must be at least 1 and less than the trained context of {trained} tokens."
        )
    needed = max(1, -(-(length - window) // (trained - window)))
    while self_extend_length(trained, window, needed) < length:
        needed += 1
    group = needed if group is None else group
    if group < 1:
        raise HarpeError(f"The group is {group}; it must be at least 1.")
    longest = self_extend_length(trained, window, group)
    if longest < length:
        raise HarpeError(
            f"Self-Extend with window {window} and group {group} reaches {longest:,} tokens, not {length:,}. "
            f"Give a group of {needed} or more."
        )
    return untrained(replace(shared_encoding(geometry.base, geometry), attention=SelfExtend(window, group)), length)
