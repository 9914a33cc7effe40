"""Which layout a training fits with, what would make it fit where it does not, and how long a sequence may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from harpe.distributed.layout import MLP_TILE, Layout, check_layout
from harpe.errors import HarpeError
from harpe.models.geometry import sliding_layers, text_config
from harpe.planning.devices import Devices
from harpe.planning.memory import MemoryPlan, plan_memory
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer
from harpe.training.sequence_parallel import check_sequence_parallel

STEP = 1024
"""Lengths that are tried are multiples of it."""
LONGEST = 2**24
MOST_DEVICES = 1024


def check_plan(tracer: Tracer, length: int, devices: Devices, settings: Settings) -> None:
    """Refuse a layout as training does: what does not divide, and families whose sequences cannot be shared.

    Raises
    ------
    HarpeError
        Naming the options.
    """
    settings.check(length)
    if tracer.adapters and devices.count > 1:
        raise HarpeError(f"--lora-rank trains by one process: plan it for one device, not {devices.count} (--devices).")
    layout = Layout(devices.count, settings.sequence_parallel, settings.replicas, settings.mlp_tile)
    check_layout(layout, [settings.sequences(length)], settings.micro_batch)
    check_sequence_parallel(tracer.model, layout.sequence_parallel, length)


def choose_plan(tracer: Tracer, length: int, devices: Devices, settings: Settings) -> tuple[Settings, MemoryPlan]:
    """The plan of these settings, with what they leave to us (by 0) as `harpe.distributed.layout.choose_layout` has it:
    the first that fits, or, where none does, that which needs least.

    Raises
    ------
    HarpeError
        Where the settings do not go with the devices or the model.
    """
    settings.check(length)
    parts = settings.sequence_parallel
    every = [parts] if parts else [number for number in range(1, devices.count + 1) if devices.count % number == 0]
    refused: HarpeError | None = None
    found: list[tuple[Settings, MemoryPlan]] = []
    for tile in [settings.mlp_tile] if settings.mlp_tile else [0, MLP_TILE]:
        for number in every:
            tried = replace(settings, sequence_parallel=number, mlp_tile=tile)
            try:
                check_plan(tracer, length, devices, tried)
                found.append((tried, plan_memory(tracer, length, devices, tried)))
            except HarpeError as error:
                refused = error
                continue
            if found[-1][1].fits:
                return found[-1]
    if not found:
        assert refused is not None  # something is always tried
        raise refused
    return min(found, key=lambda pair: pair[1].total)


def _changes(
    tracer: Tracer, length: int, devices: Devices, settings: Settings
) -> Iterator[tuple[list[str], Devices, Settings]]:
    """From the smallest: options that cost nothing, then time, then devices."""
    said: list[str] = []
    if settings.sequence_parallel:
        settings = replace(settings, sequence_parallel=0)
        yield said, devices, settings
    if settings.replicas > 1:
        said, settings = [*said, "--replicas 1"], replace(settings, replicas=1)
        yield said, devices, settings
    if settings.micro_batch > 1:
        said, settings = [*said, "--micro-batch 1"], replace(settings, micro_batch=1)
        yield said, devices, settings
    if settings.activations == "kept":
        said = [*said, "--gradient-checkpointing true"]
        settings = replace(settings, activations="recomputed")
        yield said, devices, settings
    if settings.activations == "recomputed" and not devices.cpu:
        offloaded = replace(settings, activations="offloaded")
        yield [*said, "--offload-activations"], devices, offloaded
    while devices.count * 2 <= MOST_DEVICES:
        devices = devices.times(2)
        yield [*said, f"--devices {devices}"], devices, settings
        for groups in (2, 4, 8, 16, 32):  # sequences of a step, where no more processes can share one
            if devices.count % groups == 0 and settings.sequences(length) < groups:
                tokens = groups * length
                more = [*said, f"--devices {devices}", f"--batch-tokens {tokens}"]
                yield more, devices, replace(settings, batch_tokens=tokens)


def smallest_change(
    tracer: Tracer, length: int, devices: Devices, settings: Settings
) -> tuple[str, Settings, MemoryPlan] | None:
    """The first change with which a training fits, as options, with its settings and plan; None where none does.

    More processes a sequence come first, then fewer replicas, smaller micro-batches and recompute, each on top of those
    before, then twice as many devices and so on. Devices that share one machine's memory (CPU) are not multiplied.
    """
    for said, more, changed in _changes(tracer, length, devices, settings):
        if devices.cpu and more.count > devices.count:
            return None
        try:
            chosen, plan = choose_plan(tracer, length, more, changed)
        except HarpeError:
            continue
        if plan.fits:
            if chosen.sequence_parallel != settings.sequence_parallel:
                said = [*said, f"--sequence-parallel {chosen.sequence_parallel}"]
            if chosen.mlp_tile != settings.mlp_tile:
                said = [*said, f"--mlp-tile {chosen.mlp_tile}"]
            return " ".join(said), chosen, plan
    return None


def longest_length(tracer: Tracer, devices: Devices, settings: Settings) -> int:
    """Tokens of the longest sequence that fits, within some hundredths, a multiple of 1024; 0: none does.

    Memory grows in straight pieces that get steeper, so that the point where a chord reaches the limit always fits.

    Parameters
    ----------
    settings
        With `sequence_parallel` decided; a step has as many sequences as processes need. `mlp_tile` 0: with tiles where
        they help.
    """
    found = _longest(tracer, devices, settings)
    if settings.mlp_tile:
        return found
    with suppress(HarpeError):  # families whose feed-forward layers cannot work in tiles
        found = max(found, _longest(tracer, devices, replace(settings, mlp_tile=MLP_TILE), found))
    return found


def _longest(tracer: Tracer, devices: Devices, settings: Settings, known: int = 0) -> int:
    """`known`: tokens that fit, or 0."""
    parts = settings.sequence_parallel
    unit = STEP * parts
    groups = devices.count // parts * settings.micro_batch

    def needed(length: int) -> int:
        return plan_memory(tracer, length, devices, replace(settings, batch_tokens=groups * length)).total

    limit, low = devices.usable, max(unit, known // unit * unit)
    if (below := needed(low)) > limit:
        return 0
    high = 8 * low
    while (above := needed(high)) <= limit:
        if high >= LONGEST:
            return LONGEST // unit * unit
        # as memory gets steeper, the line through both reaches the limit behind the point that is looked for
        more = (limit - above) * (high - low) // max(1, above - below)
        low, below, high = high, above, min(max(high + more, 2 * high) // unit + 1, -(-LONGEST // unit)) * unit
    for _ in range(8):
        guess = low + int((limit - below) / (above - below) * (high - low)) // unit * unit
        guess = min(max(guess, low + unit), high)
        if guess - low <= low // 64 or guess == high:
            break
        if (found := needed(guess)) > limit:
            high, above = guess, found
        else:
            low, below = guess, found
    window = _longest_without_masks(tracer, parts)
    return min(low, window) if window else low


def _longest_without_masks(tracer: Tracer, parts: int) -> int:
    """Where sequences are shared and attention has windows, the longest that needs no mask; 0: any."""
    config = text_config(tracer.model.config)
    if parts == 1 or not sliding_layers(config) or config._attn_implementation != "sdpa":
        return 0
    return int(getattr(config, "sliding_window", None) or 0) // (STEP * parts) * STEP * parts
