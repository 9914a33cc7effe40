"""The plan of a run: what will be done and why, printed before the work and kept as plan.json."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from harpe.bases.ranges import BaseRange
from harpe.data.packing import PackedDataset
from harpe.errors import HarpeError
from harpe.evaluation.run import HeldOut
from harpe.models.geometry import text_config
from harpe.options.training import TrainingSettings
from harpe.positions.geometry import ModelGeometry
from harpe.runs.directory import check_disk
from harpe.runs.rows import Row
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute


def check_budget(options: TrainingSettings, data: PackedDataset) -> None:
    """Refuse settings that cannot work, and a budget larger than the data, before anything is trained."""
    options.check(data.length)
    needed = options.steps(data.length) * options.step_tokens(data.length)
    if needed > data.tokens:
        raise HarpeError(
            f"--tokens {options.tokens} asks for more than the data have: {data.tokens} tokens in whole sequences of {data.length}. "
            "Lower --tokens or give more --data: no text is repeated unasked."
        )


def check_space(run: Path, parameters: int, rows: int = 1) -> None:
    """Room for two checkpoints (float32 weights and two moments), one being written, and the model, for every trained row."""
    check_disk(run, rows * parameters * 4 * (3 * 3 + 1) + 50_000_000, "Training with its checkpoints")


def seconds_per_token(model: PreTrainedModel, options: TrainingSettings, length: int) -> tuple[float, float]:
    """Seconds a token of training and of reading, measured on one sequence of random tokens; the model stays as it is."""
    vocabulary = int(text_config(model.config).vocab_size)
    ids = torch.randint(0, vocabulary, (options.micro_batch, length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)

    def timed(training: bool) -> float:
        start = time.perf_counter()
        with chunked_loss(model), torch.set_grad_enabled(training):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
                loss = model(input_ids=ids, labels=ids).loss
            if training:
                loss.backward()
        loss.item()
        return (time.perf_counter() - start) / ids.numel()

    was_training = model.training
    model.train()
    set_recompute(model, options.gradient_checkpointing)
    timed(True)  # the first pass allocates and picks kernels
    train = timed(True)
    set_recompute(model, False)
    model.train(was_training)
    model.zero_grad(set_to_none=True)
    if model.device.type != "cpu":
        timed(False)  # as above: kernels are compiled for a pass without gradients, too
    return train, timed(False)


def describe(
    title: str,
    name: str,
    revision: str | None,
    geometry: ModelGeometry,
    parameters: int,
    length: int,
    bases: BaseRange,
    rows: Sequence[Row],
    options: TrainingSettings,
    dtype_reason: str,
    data: PackedDataset,
    held_out: HeldOut | None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan as plan.json holds it."""
    steps, step_tokens = options.steps(length), options.step_tokens(length)
    scale = length / geometry.original_length
    reasons = [
        f"Target {length} tokens is {scale:g} times the {geometry.original_length} that the model was trained on.",
        f"Bases lie in [{bases.low:,.0f}, {bases.high:,.0f}] ({bases.why}).",
        f"A base belongs to a key/value head: {geometry.key_value_heads} of them"
        + (f" serve {geometry.query_heads} query heads." if geometry.query_heads != geometry.key_value_heads else "."),
        f"{_stages(rows)}: {steps} steps of {step_tokens} tokens, peak learning rate {options.learning_rate:g}, AdamW 0.9/0.95.",
        f"Arithmetic in {dtype_reason}; weights are trained in float32.",
        "The loss is the model's own, of the next token; dropout is off.",
        *notes,
    ]
    return {
        "title": title,
        "model": {"name": name, "revision": revision, "parameters": parameters, **geometry.as_dict()},
        "original_length": geometry.original_length,
        "target_length": length,
        "range": {"low": bases.low, "high": bases.high, "reference": bases.reference, "why": bases.why},
        "reasons": reasons,
        "methods": [row.as_dict() for row in rows],
        "training": {
            "tokens": steps * step_tokens,
            "steps": steps,
            "sequence_length": length,
            "batch_tokens": step_tokens,
            "learning_rate": options.learning_rate,
            "dtype": options.dtype,
            "dtype_reason": dtype_reason,
        },
        "corpus": {
            "hash": data.hash,
            "tokens": data.tokens,
            "documents": data.index["documents"],
            "description": data.index["description"],
            "read": data.index.get("read"),
            "held_out_documents": len(held_out.documents) if held_out else 0,
        },
    }


def _stages(rows: Sequence[Row]) -> str:
    count = max(len(row.stages) for row in rows)
    return "One stage" if count == 1 else f"{count} stages"


def plan_text(plan: dict[str, Any], expected: float) -> str:
    """The plan for the terminal; `expected` in seconds."""
    lines = [plan["title"], "", "Plan"]
    lines += [f"  * {reason}" for reason in plan["reasons"]]
    lines += ["", "Rows"]
    for method in plan["methods"]:
        lines.append(f"  {method['title']}: {method['explanation']}")
        if len(set(method["bases"])) > 1:
            lines.append("    bases " + " ".join(f"{base:,.0f}" for base in method["bases"]))
    corpus = plan["corpus"]
    lines += ["", f"Corpus: {corpus['tokens']} tokens, SHA-256 {corpus['hash']}", f"  {corpus['description']}"]
    lines += ["", f"Expected time: {duration(expected)} (measured on one sequence)."]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 5 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
