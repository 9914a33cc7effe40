"""The recipe of a comparison: a YAML file with the checkpoint, the budget, the methods and what is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from harpe.bases.ranges import RangeRule
from harpe.comparison.names import check_names
from harpe.errors import HarpeError
from harpe.typed import build


@dataclass(frozen=True, kw_only=True)
class RulerRecipe:
    """RULER's tasks (`harpe ruler`)."""

    lengths: list[int]
    """Tokens of a sample."""
    tasks: str = "all"
    """Names with commas between them; niah for the eight needle tasks, all for all 13."""
    samples: int = 500
    seed: int = 42
    template: str = "base"
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class PerplexityRecipe:
    """Perplexity on one corpus (`harpe perplexity`): by prefix length, or in a sliding window."""

    data: str
    lengths: str | None = None
    window: int | None = None
    stride: int = 256
    average: Literal["tokens", "yarn"] = "tokens"
    documents: int = 32
    text_field: str = "text"


@dataclass(frozen=True, kw_only=True)
class ShortRecipe:
    """Short benchmarks through lm-eval (`harpe short`)."""

    tasks: str = "mmlu,hellaswag,arc_challenge,piqa,triviaqa"
    limit: int | None = None
    offline: bool = False
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """What is measured of every method."""

    data: str
    """Held-out texts, as of `harpe evaluate`."""
    text_field: str = "text"
    documents: int = 32
    samples: int = 100
    """Needle samples a task and length."""
    grid_samples: int = 10
    """Needle samples a cell of the grid."""
    seed: int = 1
    tuning: bool = False
    """Of the embedded texts, those that settings are tuned on."""
    ruler: RulerRecipe | None = None
    perplexity: dict[str, PerplexityRecipe] = field(default_factory=dict)
    """By a name of the corpus."""
    short: ShortRecipe | None = None


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
class ComparisonRecipe:
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
    revision: str | None = None
    tokenizer: str | None = None
    text_field: str = "text"
    split_special_tokens: bool = True
    """Special tokens that texts spell, of training and of evaluation, are read as text; false: as the tokens themselves."""
    original_length: int | None = None
    sliding_window: Literal["keep", "off"] = "keep"
    range: RangeRule = "critical"
    """Of the bases, for every method that takes bases from a range."""
    learning_rate: float = 2e-5
    schedule: Literal["restarted", "carried"] = "restarted"
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    batch_tokens: int = 0
    micro_batch: int = 1
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    gradient_checkpointing: bool = True
    save_every: int = 100

    def recipe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def data_of(self, seed: int) -> str:
        """The training texts of a seed: prepared data have one order, so that several seeds need a folder each (`texts/seed-{seed}`)."""
        return self.data.replace("{seed}", str(seed))


def read_recipe(path: str | Path, *, absent: Mapping[str, Any] | None = None, **changes: Any) -> ComparisonRecipe:
    """Read a recipe; `changes` replace what it says, where they are not None, and `absent` stands for keys that it lacks.

    Raises
    ------
    HarpeError
        For a file that is not there or no YAML, unknown or missing keys (with the nearest names), and values of another type.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise HarpeError(f"The recipe {path} could not be read ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise HarpeError(f"The recipe {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise HarpeError(f"The recipe {path} holds no keys; see recipes/ for examples.")
    if any(changes.get(key) is not None for key in ("model", "data", "evaluation_data")):
        value["published"] = None  # the paper's figures stand beside the paper's own setting only
    value = {**(absent or {}), **value}
    value |= {key: change for key, change in changes.items() if change is not None and key != "evaluation_data"}
    if changes.get("evaluation_data") is not None and isinstance(value.get("evaluation"), dict):
        value["evaluation"]["data"] = changes["evaluation_data"]
    return parse(value, f"the recipe {path}")


def parse(value: Mapping[str, Any], where: str) -> ComparisonRecipe:
    """A recipe out of what YAML holds, or out of `ComparisonRecipe.recipe`."""
    rows = value.get("methods")
    if not isinstance(rows, list) or not rows:
        raise HarpeError(f"{where} has no list of methods; name at least one under methods.")
    recipe = build(ComparisonRecipe, {**value, "methods": [_row(row, where) for row in rows]}, where)
    check_names(recipe, where)
    if recipe.baseline not in (names := [row.name for row in recipe.methods]):
        raise HarpeError(f"{where} has the baseline {recipe.baseline}, which is none of its methods: {', '.join(names)}.")
    return recipe


def _row(value: Any, where: str) -> RowRecipe:
    if isinstance(value, str):
        return RowRecipe(name=value, method=value)
    if isinstance(value, RowRecipe):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("method", value.get("name")), str):
        raise HarpeError(f"{where} has the method {value!r}; write its name, or a mapping with name and method.")
    own = {f.name for f in dataclasses.fields(RowRecipe)}
    options = {**value.get("options", {}), **{key: item for key, item in value.items() if key not in own}}
    method = value.get("method", value.get("name"))
    fields = {"name": value.get("name", method), "method": method, "title": value.get("title"), "train": value.get("train")}
    return build(RowRecipe, {**fields, "options": options}, f"a method of {where}")
