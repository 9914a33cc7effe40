"""Plan the training of models of 1B to 70B parameters at 32k to 1M tokens, and write docs/what-fits.md.

    python scripts/what_fits.py        (two minutes)

Every cell is what `harpe plan MODEL --length N --devices 1xKIND` answers, computed from the shapes in
scripts/shapes.json: no weights, no downloads.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig

from harpe.files import write_text
from harpe.planning.devices import GB, RESERVE, Devices, read_devices
from harpe.planning.fit import choose_plan, longest_length, smallest_change
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer

ROOT = Path(__file__).parent.parent
MODELS = ("Llama-3.2-1B", "Llama-2-7B", "Llama-3.1-8B", "Qwen3-32B", "Llama-3.1-70B")
LENGTHS = {32_768: "32k", 131_072: "128k", 524_288: "512k", 1_048_576: "1M"}
KINDS = ("A100-40GB", "H200-141GB", "B200-180GB")
NODE, MAIN, MIDDLE = 8, "H100-80GB", 131_072


def tracer_of(model: str) -> Tracer:
    """For a model of scripts/shapes.json."""
    return Tracer(AutoConfig.for_model(**json.loads((ROOT / "scripts" / "shapes.json").read_text())[model]))


def fewest(tracer: Tracer, length: int, devices: Devices) -> str:
    """The fewest devices of 1, 2, 4 … that a training fits on, with activations there: their number, the processes that
    share a sequence, the sequences of a step where they are several, and the gigabytes of the fullest."""
    settings = Settings()
    chosen, plan = choose_plan(tracer, length, devices, settings)
    if not plan.fits:
        change = smallest_change(tracer, length, devices, settings)
        if change is None:
            return "none"
        _, chosen, plan = change
    if chosen.activations == "offloaded":
        return fewest(tracer, length, devices.times(2))
    sequences = chosen.sequences(length)
    more = [f"sp {chosen.sequence_parallel}"]
    more += [f"{sequences} sequences"] if sequences > 1 else []
    more += ["tiles"] if chosen.mlp_tile else []
    return f"{plan.devices.count}, {', '.join(more)}, {plan.total / GB:.1f} GB"


def longest(tracer: Tracer) -> str:
    """Tokens of the longest sequence that a node's processes can share."""
    found = longest_length(tracer, read_devices(f"{NODE}x{MAIN}"), Settings(sequence_parallel=NODE))
    return f"{found:,}" if found else "none"


def rows() -> tuple[list[str], list[str]]:
    """Of both tables."""
    by_length, by_kind = [], []
    for model in MODELS:
        tracer = tracer_of(model)
        cells = [fewest(tracer, length, read_devices(MAIN)) for length in LENGTHS]
        by_length.append(f"| {model} | {' | '.join([*cells, longest(tracer)])} |")
        by_kind.append(f"| {model} | {' | '.join(fewest(tracer, MIDDLE, read_devices(kind)) for kind in KINDS)} |")
        print(by_length[-1], by_kind[-1], sep="\n", flush=True)
    return by_length, by_kind


def page(by_length: list[str], by_kind: list[str]) -> str:
    """With the rows of its tables."""
    return f"""# What fits where

The fewest GPUs that a training fits on: planned, not measured. What stands behind the plans:

* Measured: small trainings on CPUs, by one, two and four processes, [within 8% of their
  plans](../benchmarks/2026-11-26-plan.md); steps of 1.2 billion parameters at 32k and 128k tokens, and of LLaMA-2-7B at
  128k, on one H200, whole, in tiles and offloaded: [0.89 to 1.00 times their
  plans](../benchmarks/2026-11-26-steps-ways-gpu.md).
* Published by others: four peaks on eight H100 (ALST at 1.1M tokens, three of TRL) lie within 20%. Of ALST's other
  figures the plans are 1.2 to 1.6 times: its fused layers keep less.
* Not measured: anything on several GPUs. All cells with more than one device are such plans.

Counted are float32 weights and moments of AdamW, bfloat16 arithmetic, activations recomputed, and one sequence a step,
or one for every group of processes where more cannot share one. {RESERVE:.0%} of a device are left free for what is not
counted (`--reserve`). A cell is what `harpe plan MODEL --length N --devices 1x{MAIN}` answers without offloading: of
1, 2, 4 … devices how many, how many of them share a sequence (`--sequence-parallel`, sp), sequences a step where they
are several (`--batch-tokens`), whether feed-forward layers work in tiles (`--mlp-tile 4096`), and gigabytes on the
fullest device. Above sp {NODE} attention's exchanges cross nodes, which takes time and no memory. Fewer may do with
`--offload-activations`.

## {MAIN}

| model | {" | ".join(LENGTHS.values())} | longest on {NODE}, sp {NODE} |
|---|{"---|" * (len(LENGTHS) + 1)}
{chr(10).join(by_length)}

None: weights, gradients and moments alone are more than a plan may fill of {NODE} devices.

## Other devices, {LENGTHS[MIDDLE]}

| model | {" | ".join(KINDS)} |
|---|{"---|" * len(KINDS)}
{chr(10).join(by_kind)}

Written by `scripts/what_fits.py`; shapes of the models: `scripts/shapes.json`.
"""


if __name__ == "__main__":
    write_text(ROOT / "docs" / "what-fits.md", page(*rows()))
