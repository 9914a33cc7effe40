"""Plan memory, time and cost of a training for `harpe plan`."""

from __future__ import annotations

import json
from typing import Any

from rich import box
from rich.table import Table

from harpe.distributed.processes import refuse_several
from harpe.files import SCHEMA_VERSION
from harpe.models.geometry import check_sliding_window, read_geometry
from harpe.models.load import load_config
from harpe.options.planning import PlanOptions
from harpe.planning.devices import GB, read_devices
from harpe.planning.fit import choose_plan, longest_length, smallest_change
from harpe.planning.memory import PARTS
from harpe.planning.settings import Settings, activations
from harpe.planning.time import multiplied_parameters, plan_time
from harpe.planning.trace import Tracer
from harpe.report.wording import duration
from harpe.training.lora import check_lora


def plan(options: PlanOptions) -> dict[str, Any]:
    """The plan as a JSON object: bytes of a device by part, whether they fit, the layout, what would make it fit, the
    longest length, steps, operations, hours and cost.

    Raises HarpeError for options that cannot be, and for models and layouts that training refuses.
    """
    refuse_several("harpe plan", "one process makes the plan.")
    devices = read_devices(options.devices, options.reserve)
    settings = Settings(
        sequence_parallel=options.sequence_parallel,
        replicas=options.replicas,
        mlp_tile=options.mlp_tile,
        activations=activations(options.gradient_checkpointing, options.offload_activations),
        micro_batch=options.micro_batch,
        batch_tokens=options.batch_tokens,
        dtype=options.dtype,
    )
    settings.check(options.length)
    config = load_config(options.model, options.revision)
    check_sliding_window(config, options.model, options.length, "keep")
    read_geometry(config, options.model)  # refuses what cannot be extended
    options.check_adapters()
    check_lora(options.adapters)
    tracer = Tracer(config, options.adapters)
    chosen, memory = choose_plan(tracer, options.length, devices, settings)
    change = None if memory.fits else smallest_change(tracer, options.length, devices, settings)
    tokens = options.tokens or chosen.sequences(options.length) * options.length
    time = plan_time(tracer, options.length, tokens, devices, chosen, options.utilization, options.price)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": options.model,
        "parameters": tracer.parameters,
        "trained_parameters": tracer.trained,
        "multiplied_parameters": multiplied_parameters(tracer),
        "length": options.length,
        "devices": {"count": devices.count, "name": devices.name, "bytes": devices.memory, "usable": devices.usable},
        "sequence_parallel": chosen.sequence_parallel,
        "replicas": chosen.replicas,
        "mlp_tile": chosen.mlp_tile,
        "activations": chosen.activations,
        "parts": memory.parts,
        "bytes": memory.total,
        "moment": memory.moment,
        "fits": memory.fits,
        "change": None if change is None else {"options": change[0], "bytes": change[2].total},
        "longest": longest_length(tracer, devices, chosen),
        "steps": time.steps,
        "tokens": time.tokens,
        "operations": time.operations,
        "utilization": options.utilization,
        "hours": time.hours,
        "cost": time.cost,
    }


def _layout(value: dict[str, Any]) -> str:
    tile = f" --mlp-tile {value['mlp_tile']}" if value["mlp_tile"] else ""
    return f"--sequence-parallel {value['sequence_parallel']}{tile}"


def sentences(value: dict[str, Any]) -> list[str]:
    """What follows from a plan, for people."""
    devices, told = value["devices"], []
    size = f"{value['bytes'] / GB:.1f} of {devices['usable'] / GB:.1f} GB that a plan may fill"
    if value["fits"]:
        told.append(f"It fits: {size}, with {_layout(value)}.")
    elif value["change"]:
        change = value["change"]
        told.append(f"It does not fit: {size}. It does with {change['options']} ({change['bytes'] / GB:.1f} GB).")
    else:
        told.append(f"It does not fit: {size}, nor with any change that training has. Take a shorter --length.")
    if value["longest"]:
        told.append(f"The longest sequence that fits there has {value['longest']:,} tokens.")
    else:
        told.append("No sequence fits there, however short.")
    work = f"{value['steps']:,} steps on {value['tokens']:,} tokens are {value['operations']:.3g} operations"
    if value["hours"] is None:
        return [*told, f"{work}; how fast these devices are is not known."]
    cost = "" if value["cost"] is None else f", for {value['cost']:,.2f}"
    return [*told, f"{work}: {duration(3600 * value['hours'])} at a utilisation of {value['utilization']:g}{cost}."]


def memory_table(value: dict[str, Any]) -> Table:
    """Gigabytes of the fullest device by part, at the moment when most are used."""
    devices = value["devices"]
    table = Table(
        title=f"{value['model']}, {value['parameters'] / 1e9:.3g}B parameters, {value['length']:,} tokens on "
        f"{devices['count']} {devices['name']} of {devices['bytes'] / GB:.3g} GB",
        caption=f"at the moment when most is used: {value['moment']}",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("on the fullest device")
    table.add_column("GB", justify="right")
    for name, what in PARTS.items():
        if value["parts"][name]:
            table.add_row(what, f"{value['parts'][name] / GB:.2f}")
    table.add_row("together", f"{value['bytes'] / GB:.2f}")
    return table


def run(options: PlanOptions, terminal: Any) -> None:
    """Print a plan, as a table and sentences or as JSON."""
    value = plan(options)
    if options.json:
        print(json.dumps(value))
        return
    terminal.table(memory_table(value))
    for sentence in sentences(value):
        terminal.say(sentence)
