"""The plan of a comparison: every row with its stages, tokens and steps, what is measured, and how long it will
take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from harpe.bases.ranges import base_range
from harpe.comparison.suites.registry import asked_suites
from harpe.comparison.suites.standard import protocol_of
from harpe.comparison.worker import training_options
from harpe.methods.measured import MeasureHeads
from harpe.methods.registry import defaults
from harpe.models.load import load_config
from harpe.options.recipe import ComparisonRecipe
from harpe.options.training import TrainingSettings
from harpe.report.titles import Titled, distinct_titles
from harpe.runs.plan import Plan
from harpe.runs.preflight import reading_seconds
from harpe.runs.rows import Row, make_row
from harpe.runs.source import Source
from harpe.training.documents import document_notes
from harpe.training.longce import longce_notes
from harpe.training.pose import check_pose_family, pose_notes
from harpe.training.stages import check_stages

TRAINING_BYTES = 16
"""A parameter in training: float32 weight, gradient and AdamW's two moments. Activations come on top."""


def count_parameters(recipe: ComparisonRecipe) -> int:
    """From the configuration alone."""
    config = load_config(recipe.model, recipe.revision)
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters())


def make_rows(recipe: ComparisonRecipe, source: Source, measure: MeasureHeads | None) -> list[Row]:
    """All rows, with titles that tell them apart; each refused where its options or the budget do not allow it."""
    rows = [
        make_row(
            wanted.method,
            source.geometry,
            recipe.length,
            wanted.options,
            name=wanted.name,
            title=wanted.title,
            range_rule=recipe.range,
            measure=measure,
            train=wanted.train,
        )
        for wanted in recipe.methods
    ]
    titles = distinct_titles(
        [Titled(a.name, a.title, a.method, a.trained, {**defaults(a.method), **a.options}) for a in rows]
    )
    rows = [replace(row, title=title) for row, title in zip(rows, titles, strict=True)]
    options = training_options(recipe, 0, "float32")
    for row in rows:
        if row.trained:
            check_stages(row.stages, options)
            check_pose_family(source.config(), options.pose_length, recipe.length)
    return rows


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan(Plan):
    """The plan of all rows and seeds."""

    recipe: ComparisonRecipe

    def reasons(self) -> list[str]:
        recipe, trained = self.recipe, sum(row.trained for row in self.rows)
        return [
            self.target(),
            f"Bases that are chosen from a range lie in [{self.bases.low:,.0f}, {self.bases.high:,.0f}] "
            f"({self.bases.why}).",
            f"{trained} methods are trained with each of {len(recipe.seeds)} seeds, {len(self.rows) - trained} need no "
            "training.",
            f"Every trained method sees the same {self.steps * self.step_tokens} tokens of a seed in the same order: "
            f"{self.steps} steps of {self.step_tokens} tokens, peak learning rate {recipe.learning_rate:g}, AdamW "
            f"0.9/0.95, weight decay {recipe.weight_decay:g}, schedule {recipe.schedule}.",
            f"Arithmetic in {self.dtype_reason}; weights are trained in float32: about "
            f"{TRAINING_BYTES * self.parameters / 1e9:.3g} GB for weights, gradients and moments, and activations "
            "beside them. The loss is the model's own, of the next token; dropout is off.",
            *pose_notes(self.training.pose_length, self.length),
            *longce_notes(self.training.longce_context),
        ]

    def as_dict(self) -> dict[str, Any]:
        """plan.json but for what is known of the data only when they are read."""
        recipe, plan = self.recipe, super().as_dict()
        schedule = {key: getattr(recipe, key) for key in ("schedule", "warmup_share", "weight_decay")}
        return {
            "kind": "comparison",
            **plan,
            "seeds": recipe.seeds,
            "baseline": recipe.baseline,
            "published": recipe.published,
            "methods": [{**row.as_dict(), "stages": _stages(row, self.training)} for row in self.rows],
            "training": plan["training"] | schedule,
            "evaluation": recipe.recipe()["evaluation"],
        }


def make_plan(
    recipe: ComparisonRecipe,
    source: Source,
    rows: Sequence[Row],
    parameters: int,
    dtype: tuple[str, str],
    notes: Sequence[str] = (),
) -> ComparisonPlan:
    """The plan of a recipe; `dtype` comes with the reason for it, and `notes` are added to those of the checkpoint."""
    return ComparisonPlan(
        title=recipe.title,
        model=recipe.model,
        revision=recipe.revision,
        geometry=source.geometry,
        parameters=parameters,
        length=recipe.length,
        bases=base_range(source.geometry, recipe.length, rule=recipe.range),
        rows=rows,
        training=training_options(recipe, 0, dtype[0]),
        dtype_reason=dtype[1],
        notes=[*source.notes, *document_notes(recipe.document_mask), *notes],
        recipe=recipe,
    )


def _stages(row: Row, options: TrainingSettings) -> list[dict[str, Any]]:
    target, shares = row.stages[-1].length, [stage.share for stage in row.stages]
    steps = options.stage_steps(target, shares) if row.trained else [0]
    size = options.step_tokens(target)
    return [
        {"length": stage.length, "tokens": n * size, "steps": n, "encoding": stage.encoding.describe()}
        for stage, n in zip(row.stages, steps, strict=True)
    ]


def plan_text(plan: dict[str, Any]) -> str:
    """For the terminal."""
    lines = [plan["title"], "", "Plan", *(f"  * {reason}" for reason in plan["reasons"]), "", "Rows"]
    for method in plan["methods"]:
        holds = {"control": method["control"], "baseline": method["name"] == plan["baseline"]}
        marks = [name for name, is_so in holds.items() if is_so]
        lines.append(f"  {method['name']}{' (' + ', '.join(marks) + ')' if marks else ''}: {method['explanation']}")
        if method["trained"] and len(method["stages"]) > 1:
            line = "    {steps} steps, {tokens:,} tokens in sequences of {length}"
            lines += [line.format(**stage) for stage in method["stages"]]
    return "\n".join(lines)


def expected_seconds(
    recipe: ComparisonRecipe, source: Source, rows: Sequence[Row], per_trained: float, per_read: float
) -> dict[str, float]:
    """Of every row and one seed, alone: training and reading. Short benchmarks, corpora that a window slides over, and
    what is generated come on top."""
    options = training_options(recipe, 0, "float32")
    tokens = options.steps(recipe.length) * options.step_tokens(recipe.length)
    reads = [suite.reads(settings) for suite, settings in asked_suites(recipe.evaluation)]
    reads.append(protocol_of(recipe, source.geometry.original_length).reads())
    reading = reading_seconds(source.config(), recipe.length, per_read, *reads)
    return {row.name: row.trained * tokens * per_trained + reading for row in rows}
