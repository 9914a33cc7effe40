"""The recipe of a comparison as dataclasses: keys of a YAML file. What is a flag elsewhere has its text there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harpe.bases.ranges import RangeRule
from harpe.options.measuring import LongTasks, NeedleOptions, RulerTasks
from harpe.options.shared import ContextOptions, Dtype, FieldOptions, ModelOptions, TextOptions
from harpe.options.training import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class RulerRecipe(RulerTasks):
    """RULER's tasks (`harpe ruler`)."""

    lengths: list[int]
    """Tokens of a sample."""


@dataclass(frozen=True, kw_only=True)
class LongRecipe(LongTasks):
    """Long-context tasks whose samples are made here (`harpe long`)."""

    lengths: list[int]
    """Tokens of a sample."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe(NeedleOptions, FieldOptions):
    """What is measured of every method."""

    data: str
    """Held-out texts, as of `harpe evaluate`."""
    seed: int = 1
    tuning: bool = False
    """Of the embedded texts, those that settings are tuned on."""
    suites: dict[str, Any] = field(default_factory=dict)
    """What else is measured, by the key of a suite (`harpe.comparison.suites`), which stands beside the other keys in
    YAML."""


@dataclass(frozen=True, kw_only=True)
class RowRecipe:
    """One method of the comparison with its options."""

    name: str
    """Of its folder; unique."""
    method: str
    title: str | None = None
    train: bool | None = None
    """False: the method's last positions put into the model without training."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparisonRecipe(TrainingOptions, ContextOptions, TextOptions, ModelOptions):
    """Everything that decides the result of a comparison."""

    title: str
    model: str
    length: int
    data: str
    """Training texts, or a folder of `harpe prepare`; {seed} in it stands for the seed."""
    tokens: int
    methods: list[RowRecipe]
    evaluation: EvaluationRecipe
    baseline: str
    """Name of the row that the others are compared with."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Of the order of the training texts and of all else that is random in training."""
    published: Literal["llama2-7b-128k"] | None = None
    """Setting of the paper whose figures are shown beside: only where all of it is the same."""
    range: RangeRule = "critical"
    """Of the bases, for every method that takes bases from a range."""
    dtype: Dtype = "auto"

    def recipe(self) -> dict[str, Any]:
        value = asdict(self)
        suites = value["evaluation"].pop("suites")
        return {**value, "evaluation": {**value["evaluation"], **suites}}

    def reading(self, of: FieldOptions) -> TextOptions:
        """How texts of an evaluation are read."""
        return TextOptions(text_field=of.text_field, split_special_tokens=self.split_special_tokens)

    def data_of(self, seed: int) -> str:
        """The training texts of a seed: prepared data have one order, so that several seeds need a folder each
        (`texts/seed-{seed}`)."""
        return self.data.replace("{seed}", str(seed))
