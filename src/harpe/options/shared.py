"""Options that several verbs and the recipe of a comparison have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from harpe.bases.ranges import RangeRule

UNDECIDED = ("out", "resume", "sequence_parallel", "replicas", "mlp_tile", "offload_activations", "ignore_memory")
"""Options that do not decide the result."""
Dtype = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Options that a run directory keeps, to be resumed with the same only."""

    def recipe(self) -> dict[str, Any]:
        """What decides the result: all but where it is written, whether it is resumed, and how processes share it."""
        return {key: value for key, value in asdict(self).items() if key not in UNDECIDED}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which state of a model, and whose tokens."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: the model's own."""

    def tokenizer_of(self, model: str) -> tuple[str, str | None]:
        """Name and revision of the tokenizer; `revision` is the model's."""
        return self.tokenizer or model, self.revision if self.tokenizer is None else None


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """Where in a row its text stands."""

    text_field: str = "text"
    """Field of JSON objects, Parquet rows or data sets that holds the text, with dots into nested ones."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(FieldOptions):
    """How texts are read."""

    split_special_tokens: bool = True
    """Special tokens that a text spells (<|endoftext|>) are read as the text that they are; false: as the tokens
    themselves."""


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """What a checkpoint was trained on, and what may hide a longer context."""

    original_length: int | None = None
    """Context that the model was trained with, where config.json does not say it."""
    sliding_window: Literal["keep", "off"] = "keep"
    """off: remove sliding windows, which hide the longer context."""


@dataclass(frozen=True, kw_only=True)
class RangeOptions:
    """The range that bases are chosen from."""

    range: RangeRule = "critical"
    """The range of bases, around the critical base b*. critical: the paper's, 0.73 b* to 3.6 b*. short: 0.2 b* to b*,
    for trainings of some dozens of steps. ntk: 3 to 15 times the NTK-aware base. None goes below the trained base."""
    min: float | None = None
    """Low end of the range of bases, in place of the rule's; may lie below the trained base."""
    max: float | None = None
    """High end of the range of bases, in place of the rule's."""
