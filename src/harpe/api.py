"""What `import harpe` offers to Python code."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.commands import data as description
from harpe.commands import extend as extension
from harpe.commands import heads as looking
from harpe.commands import prepare as preparation
from harpe.comparison import run as comparison
from harpe.methods.registry import make_stages, method_named
from harpe.models.apply import apply_encoding
from harpe.models.export import export_checkpoint
from harpe.models.geometry import check_sliding_window, positions_without_windows, read_geometry, remove_window
from harpe.models.install import install
from harpe.options.extend import ExtendOptions, PrepareOptions
from harpe.options.heads import HeadsOptions
from harpe.options.runs import CompareOptions, DataOptions
from harpe.report.heads_page import write_heads_page
from harpe.report.read.prepared import as_json
from harpe.reporter import Reporter


def register() -> None:
    """Teach transformers the rope type "harpe", so that its `from_pretrained` loads extended checkpoints."""
    install()


def extend(
    model: str, length: int, data: str, out: str | Path, *, reporter: Reporter | None = None, **options: Any
) -> Path:
    """Extend a checkpoint's context in one stage of training and save it; returns the folder of the extended model.

    Parameters
    ----------
    model, length, data, out, options
        As `harpe extend` takes them: see `harpe.options.extend.ExtendOptions`.
    reporter
        Receives what the run has to say; silent where None.

    Raises
    ------
    HarpeError
        For bad options or input before any work starts, and for failures later.
    """
    return extension.extend(ExtendOptions(model=model, length=length, data=data, out=str(out), **options), reporter)


def prepare(
    data: str | Path, model: str, length: int, out: str | Path, *, reporter: Reporter | None = None, **options: Any
) -> Path:
    """Tokenise, upsample and pack a corpus once; returns the folder, which `extend` takes as its `data`.

    Parameters
    ----------
    data, model, length, out, options
        As `harpe prepare` takes them: see `harpe.options.extend.PrepareOptions`.
    reporter
        Receives what there is to say; silent where None.

    Raises
    ------
    HarpeError
        For bad options or input before any work starts, and where the texts turn out to be too few.
    """
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return preparation.prepare(
        PrepareOptions(data=str(data), model=model, length=length, out=str(out), **options), reporter
    )


def describe(
    folder: str | Path, out: str | Path | None = None, *, reporter: Reporter | None = None, **options: Any
) -> dict[str, Any]:
    """Say what a folder of prepared training data holds, and write the page of it; returns the figures, those of its
    data.json (docs/data.md).

    Parameters
    ----------
    folder, out, options
        As `harpe data` takes them: see `harpe.options.runs.DataOptions`.
    reporter
        Receives what there is to say; silent where None.

    Raises
    ------
    HarpeError
        For a folder that holds no prepared data or damaged ones, and a place that cannot be written to.
    """
    where = None if out is None else str(out)
    return as_json(description.describe(DataOptions(folder=str(folder), out=where, **options), reporter)[0])


def heads(
    model: str | Path, data: str, out: str | Path | None = None, *, reporter: Reporter | None = None, **options: Any
) -> dict[str, Any]:
    """Look at what every head of a checkpoint does, and at what frequencies it wants in longer texts; returns the JSON
    object of docs/heads.md. Nothing is trained.

    Parameters
    ----------
    model, data, out, options
        As `harpe heads` takes them: see `harpe.options.heads.HeadsOptions`.
    reporter
        Receives what there is to say; silent where None.

    Raises
    ------
    HarpeError
        Before weights are read, for models, methods and texts of which it cannot be said.
    """
    where = None if out is None else str(out)
    value = looking.look(HeadsOptions(model=str(model), data=data, out=where, **options), reporter)
    if out is not None:
        write_heads_page(value, Path(out))
    return value


def compare(
    recipe: str | Path, out: str | Path | None = None, *, reporter: Reporter | None = None, **options: Any
) -> Path:
    """Train and measure the methods of a recipe from one checkpoint; returns the run directory.

    Every method with every seed runs in a process of its own. Called again, an interrupted comparison goes on where it
    was.

    Parameters
    ----------
    recipe, out, options
        As `harpe compare` takes them: see `harpe.options.runs.CompareOptions`.
    reporter
        Receives what the comparison has to say; silent where None.

    Raises
    ------
    HarpeError
        For a bad recipe or input before any work starts, and where no method could be measured. A method that fails is
        recorded in its failed.json and stops no other.
    """
    return comparison.compare(
        CompareOptions(recipe=str(recipe), out=None if out is None else str(out), **options), reporter
    )


def export(
    model: PreTrainedModel,
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    card: str | None = None,
) -> Path:
    """Write a loaded model to a new folder so that transformers loads it without harpe; returns the folder.

    Parameters
    ----------
    model
        Changed by `apply`, or loaded from what `extend` saved. With one base per head it is loaded by
        `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)`; with one base for all it is a stock
        checkpoint.
    tokenizer
        Saved beside it with `model_max_length` set to the model's context; of dynamic NTK it stays as it is.
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
    method: str = "harpe",
    *,
    length: int,
    original_length: int | None = None,
    sliding_window: Literal["keep", "off"] = "keep",
    **options: Any,
) -> PreTrainedModel:
    """Give a loaded model the positions of a method, in place and without training; returns the same object.

    For methods that train, the weights have not learned these positions: without training the model is worse, and a
    warning says so.

    Parameters
    ----------
    method
        `harpe`: a base for every key/value head, `bases` (one row, or a row for every layer, None for those that keep
        their positions), or else uniform in the range of the critical base. `abf`: one `base` for all heads, default
        the top of that range. Any other method of docs/methods.md; one in stages gives the positions of its last.
    length
        New context in tokens, longer than the trained one.
    original_length
        Context that the model was trained with, where its configuration does not say it.
    options
        Of the method.

    Raises
    ------
    HarpeError
        For a model without RoPE or with bases per head already, a length that is not longer, an option that the method
        does not have, or bases that do not fit.
    """
    name = model.config.name_or_path or "the model"
    check_sliding_window(model.config, name, length, sliding_window)
    config = copy.deepcopy(model.config)
    if sliding_window == "off":
        for sentence in positions_without_windows(config):
            warnings.warn(f"The sliding window is removed from layers of {name}. {sentence}", stacklevel=2)
        remove_window(config)
    geometry = read_geometry(config, name, original_length)
    stages = make_stages(method_named(method), geometry, length, options)
    if stages[-1].share:
        warnings.warn(
            f"{name} has new positions that its weights were not trained with: its output is worse until it is trained "
            f"at {length} tokens (harpe.extend).",
            stacklevel=2,
        )
    return apply_encoding(model, stages[-1].encoding, geometry, length, sliding_window)
