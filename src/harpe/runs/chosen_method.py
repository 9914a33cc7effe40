"""The method of `harpe extend` where none is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harpe.errors import HarpeError
from harpe.methods.registry import default_method, make_stages, method_named
from harpe.models.apply import check_encoding
from harpe.models.families import normalises_rotated
from harpe.models.geometry import read_geometry, remove_window
from harpe.models.load import load_config
from harpe.options.extend import ExtendOptions
from harpe.runs.directory import read_recipe

OF_HARPE = ("strategy", "stride", "rule", "force", "assignment", "layer_bases", "min", "max", "range")
"""Options that choose bases: given, they name the method."""


def with_method(options: ExtendOptions, run: Path) -> tuple[ExtendOptions, str]:
    """The options with a method, and why it was chosen; "" where it was named, or a run has it that is resumed.

    Raises HarpeError for options that go against each other, and for a checkpoint that cannot be extended.
    """
    if options.as_published:
        if (
            options.method not in (None, "harpe")
            or options.method_options
            or options.strategy != ExtendOptions.strategy
        ):
            raise HarpeError(
                "--as-published is --method harpe --strategy peak-valley. Leave it out, or --method, --method-options "
                "and --strategy."
            )
        return replace(options, as_published=False, method="harpe", strategy="peak-valley"), ""
    if options.method is not None:
        return options, ""
    if any(getattr(options, name) != getattr(ExtendOptions, name) for name in OF_HARPE):
        return replace(options, method="harpe"), ""
    if options.base is not None or options.method_options:
        what = "--base" if options.base is not None else "--method-options"
        raise HarpeError(f"{what} belongs to a method. Name it: --method abf, harpe … (docs/methods.md).")
    recipe = run / "recipe.yaml"
    if recipe.is_file():
        there = read_recipe(recipe)
        if isinstance(there.get("method"), str):
            known = {key: there[key] for key in OF_HARPE if key in there}  # as of --as-published; none was given
            return replace(options, method=there["method"], method_options=there.get("method_options"), **known), ""
    config = load_config(options.model, options.revision)
    if options.sliding_window == "off":
        remove_window(config)
    geometry = read_geometry(config, options.model, options.original_length)
    method, own, why = default_method(geometry)
    kind = config.model_type
    if normalises_rotated(config):
        why = f"one base in the middle of HARPE's range: a {kind} has a norm behind the rotation, which takes out "
        why += "any attention factor."
        return replace(options, method="one-base"), why
    (stage,) = make_stages(method_named(method), geometry, options.length, own)
    try:
        check_encoding(config, stage.encoding, geometry, options.length)
    except HarpeError:
        method, own = "one-base", {"attention_factor": "yarn"}
        why = f"one base in the middle of HARPE's range, with YaRN's attention factor: a {kind} does not take yarn."
    return replace(options, method=method, method_options=own or None), why
