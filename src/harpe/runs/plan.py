"""The plan of a run: what will be done and why, printed before the work and kept as plan.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harpe.bases.ranges import BaseRange
from harpe.data.packed import PackedDataset
from harpe.evaluation.run import HeldOut
from harpe.methods.registry import method_named, takes_range
from harpe.options.training import TrainingSettings
from harpe.positions.geometry import ModelGeometry
from harpe.runs.rows import Row
from harpe.training.longce import longce_notes
from harpe.training.pose import pose_notes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do and why."""

    title: str
    model: str
    revision: str | None
    geometry: ModelGeometry
    parameters: int
    length: int
    """Target context in tokens."""
    bases: BaseRange
    rows: Sequence[Row]
    training: TrainingSettings
    dtype_reason: str
    data: PackedDataset | None = None
    held_out: HeldOut | None = None
    notes: Sequence[str] = ()
    extended: str | None = None
    """Name of the row whose model is the outcome of the run."""

    @property
    def steps(self) -> int:
        """Optimiser steps of every trained row."""
        return self.training.steps(self.length)

    @property
    def step_tokens(self) -> int:
        return self.training.step_tokens(self.length)

    def reasons(self) -> list[str]:
        """Sentences, before the notes."""
        geometry, stages = self.geometry, max(len(row.stages) for row in self.rows)
        shared = geometry.query_heads != geometry.key_value_heads
        ranged = any(takes_range(method_named(row.method)) for row in self.rows)
        of_heads = any(row.stages[-1].encoding.per_head for row in self.rows)
        return [
            self.target(),
            *[f"Bases lie in [{self.bases.low:,.0f}, {self.bases.high:,.0f}] ({self.bases.why})."] * ranged,
            *[
                f"A base belongs to a key/value head: {geometry.key_value_heads} of them"
                + (f" serve {geometry.query_heads} query heads." if shared else ".")
            ]
            * of_heads,
            f"{'One stage' if stages == 1 else f'{stages} stages'}: {self.steps} steps of {self.step_tokens} tokens, "
            f"peak learning rate {self.training.learning_rate:g}, AdamW 0.9/0.95.",
            f"Arithmetic in {self.dtype_reason}; weights are trained in float32.",
            "The loss is the model's own, of the next token; dropout is off.",
            *pose_notes(self.training.pose_length, self.length),
            *longce_notes(self.training.longce_context),
        ]

    def target(self) -> str:
        """How much longer the context gets."""
        times = self.length / self.geometry.original_length
        return (
            f"Target {self.length} tokens is {times:g} times the {self.geometry.original_length} that the model was "
            "trained on."
        )

    def corpus(self, data: PackedDataset) -> dict[str, Any]:
        """The texts, as plan.json holds them."""
        return {
            "hash": data.hash,
            "tokens": data.tokens,
            "documents": data.index["documents"],
            "description": data.index["description"],
            "read": data.index.get("read"),
            "held_out_documents": len(self.held_out.documents) if self.held_out else 0,
        }

    def as_dict(self) -> dict[str, Any]:
        """The plan as plan.json holds it."""
        bases, identity = self.bases, {"name": self.model, "revision": self.revision, "parameters": self.parameters}
        return {
            "title": self.title,
            "model": {**identity, **self.geometry.as_dict()},
            "original_length": self.geometry.original_length,
            "target_length": self.length,
            "range": {"low": bases.low, "high": bases.high, "reference": bases.reference, "why": bases.why},
            "reasons": [*self.reasons(), *self.notes],
            "methods": [row.as_dict() for row in self.rows],
            **({"extended": self.extended} if self.extended is not None else {}),
            "training": {
                "tokens": self.steps * self.step_tokens,
                "steps": self.steps,
                "sequence_length": self.training.sequence(self.length),
                "batch_tokens": self.step_tokens,
                "learning_rate": self.training.learning_rate,
                "dtype": self.training.dtype,
                "dtype_reason": self.dtype_reason,
            },
            **({"corpus": self.corpus(self.data)} if self.data is not None else {}),
        }


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
    lines += ["", f"Expected time: {duration(expected)} (from a short measurement)."]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 5 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
