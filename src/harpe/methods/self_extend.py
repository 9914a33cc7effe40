"""Self-Extend: no training; exact positions for neighbours, floor-divided ones beyond (Jin et al. 2024, arXiv
2401.01325)."""

from __future__ import annotations

from dataclasses import replace

from harpe.errors import HarpeError
from harpe.methods.types import DynamicSelfExtend, SelfExtend, Stage, check_unscaled, shared_encoding, untrained
from harpe.positions.geometry import ModelGeometry


def self_extend_length(original_length: int, window: int, group: int) -> int:
    """Longest context in tokens whose positions stay inside the trained one: 1024 / 32 on 4096 reaches 99,328.

    The paper's (L0 - w) G + w (section 3.3) where G divides w; else up to G - 1 less, since w // G is rounded down.
    """
    return (original_length - window) * group + window // group * group


def window_of(geometry: ModelGeometry, window: int | None) -> int:
    """The window of tokens at exact distance, without one a quarter of the trained context; HarpeError outside of
    it."""
    trained = geometry.original_length
    window = max(1, trained // 4) if window is None else window
    if not 1 <= window < trained:
        raise HarpeError(
            f"The window is {window}; it must be at least 1 and less than the trained context of {trained} tokens."
        )
    return window


def groups_of(window: int, context: int, shortest: int, longest: int) -> list[tuple[int, int, int]]:
    """The smallest groups with which texts of `shortest` to `longest` tokens stay inside the trained context: (group,
    lengths above this, up to this), in the order of lengths."""
    group, above, found = 1, 0, []
    while above < longest:
        upto = self_extend_length(context, window, group)
        if upto > above:  # where a group does not divide the window, it may reach less than one below it
            if upto >= shortest:
                found.append((group, above, upto))
            above = upto
        group += 1
    return found


def self_extend_dynamic(geometry: ModelGeometry, length: int, *, window: int | None = None) -> list[Stage]:
    """Self-Extend whose group grows with the text (after Jet-Long, arXiv 2607.07740, of which the abstract was read).

    One stage without training. A query with n tokens up to itself has the smallest group with which n tokens stay
    inside the trained context: texts within that are read exactly as before, and a text of any length is read. It is a
    matter of the query and not of the whole text, so that a text read in pieces, by a cache, is the one read whole.

    Parameters
    ----------
    window
        As of `self_extend`.
    """
    check_unscaled(geometry, "Self-Extend")
    attention = DynamicSelfExtend(window_of(geometry, window), geometry.original_length)
    return untrained(replace(shared_encoding(geometry.base, geometry), attention=attention), length)


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
    window = window_of(geometry, window)
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
