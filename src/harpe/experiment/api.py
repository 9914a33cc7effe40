"""What `import harpe` offers to Python code."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.experiment import extend as extension
from harpe.experiment.options import ExtendOptions
from harpe.experiment.reporter import Reporter
from harpe.methods.ranges import base_range
from harpe.methods.types import per_head_encoding, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.export import export_checkpoint
from harpe.models.families import install
from harpe.models.geometry import check_sliding_window, read_geometry, remove_window
from harpe.positions.base_sets import choose_bases


def register() -> None:
    """Teach transformers the rope type "harpe", so that its `from_pretrained` loads extended checkpoints."""
    install()


def extend(model: str, length: int, data: str, out: str | Path, *, reporter: Reporter | None = None, **options: Any) -> Path:
    """Extend a checkpoint's context in one stage of training and save it; returns the folder of the extended model.

    Parameters
    ----------
    model, length, data, out, options
        As `harpe extend` takes them: see `harpe.experiment.options.ExtendOptions`.
    reporter
        Receives what the run has to say; silent where None.

    Raises
    ------
    HarpeError
        For bad options or input before any work starts, and for failures later.
    """
    return extension.extend(ExtendOptions(model=model, length=length, data=data, out=str(out), **options), reporter)


def export(model: PreTrainedModel, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, *, card: str | None = None) -> Path:
    """Write a loaded model to a new folder so that transformers loads it without harpe; returns the folder.

    Parameters
    ----------
    model
        Changed by `apply`, or loaded from what `extend` saved. With one base per head it is loaded by
        `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)`; with one base for all it is a stock checkpoint.
    tokenizer
        Saved beside it with `model_max_length` set to the model's context.
    card
        Text of README.md; default: what the model is and how it is loaded.

    Raises
    ------
    HarpeError
        For a folder that exists, and for a model that was not extended by harpe.
    """
    return export_checkpoint(model, Path(path), tokenizer, card)


def apply(
    model: PreTrainedModel,
    method: Literal["harpe", "abf"] = "harpe",
    *,
    length: int,
    bases: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
    base: float | None = None,
    original_length: int | None = None,
    sliding_window: Literal["keep", "off"] = "keep",
) -> PreTrainedModel:
    """Give a loaded model the positions of a method, in place and without training; returns the same object.

    The weights have not learned these positions: without training the model is worse, and a warning says so.

    Parameters
    ----------
    method
        `harpe`: a base for every key/value head, `bases` (one row, or a row for every layer, None for those that keep their positions), or
        else uniform in the range of the critical base. `abf`: one `base` for all heads, default the top of that range.
    length
        New context in tokens, longer than the trained one.
    original_length
        Context that the model was trained with, where its configuration does not say it.

    Raises
    ------
    HarpeError
        For a model without RoPE or with bases per head already, a length that is not longer, or bases that do not fit.
    """
    name = model.config.name_or_path or "the model"
    check_sliding_window(model.config, name, length, sliding_window)
    config = copy.deepcopy(model.config)
    if sliding_window == "off":
        remove_window(config)
    geometry = read_geometry(config, name, original_length)
    chosen = base_range(geometry, length)
    if method == "harpe":
        if base is not None:
            raise HarpeError('base belongs to method="abf"; give bases, one for each key/value head.')
        if bases is None:
            found = choose_bases(
                "uniform",
                heads=geometry.key_value_heads,
                head_dim=geometry.rotary_dim,
                length=length,
                low=chosen.low,
                high=chosen.high,
            )
            bases = found.bases
        encoding = per_head_encoding(bases, geometry)
    elif method == "abf":
        if bases is not None:
            raise HarpeError('bases belong to method="harpe"; give base, one for all heads.')
        encoding = shared_encoding(chosen.high if base is None else base, geometry)
    else:
        raise HarpeError(f"method is {method!r}; choose harpe or abf.")
    warnings.warn(
        f"{name} has new positions that its weights were not trained with: its output is worse until it is trained at {length} tokens "
        "(harpe.extend).",
        stacklevel=2,
    )
    return apply_encoding(model, encoding, geometry, length, sliding_window)
