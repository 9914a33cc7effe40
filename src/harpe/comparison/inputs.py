"""What the rows of a comparison have read: pinned in its plan when it begins, seen to by every worker, and before
anything is paired.

Rows are compared document by document and sample by sample. That means nothing where one of them was trained on other
texts, from other weights, or asked other questions; and a folder of texts, or a branch on the hub, may hold other
things on the day that a row is added.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harpe.comparison.suites.base import WAY
from harpe.comparison.suites.registry import SUITES
from harpe.data.packed import PackedDataset
from harpe.data.token_ids import tokenizer_identity
from harpe.errors import HarpeError
from harpe.evaluation.identity import MEASURING
from harpe.evaluation.run import HeldOut
from harpe.files import read_json
from harpe.models.identity import checkpoint_identity
from harpe.options.recipe import ComparisonRecipe
from harpe.report.wording import first_upper, listed
from harpe.runs.source import Source
from harpe.runs.texts import Say, held_out_texts, silent

Inputs = dict[str, Any]
"""model, tokenizer, training (by seed), held_out, corpora (by name), ruler (by length and task), long (by file of
samples), short: by content, as JSON has it."""


def data_folder(run: Path, seed: int, length: int) -> Path:
    """Where the packed training texts of a seed lie."""
    return run / "data" / f"seed-{seed}" / str(length)


def held_out_of(recipe: ComparisonRecipe, source: Source, say: Say = silent) -> HeldOut:
    """The held-out texts of `harpe evaluate`."""
    of = recipe.evaluation
    reading = recipe.reading(of)
    return held_out_texts(of.data, source.tokenizer, recipe.length, of.documents, reading, tuning=of.tuning, say=say)


def inputs_of(recipe: ComparisonRecipe, source: Source, run: Path, seeds: Sequence[int], held_out: HeldOut) -> Inputs:
    """What is at hand now.

    Parameters
    ----------
    seeds
        Those whose packed texts count; none for a row that is not trained.

    Raises
    ------
    HarpeError
        For anything of it that cannot be read.
    """
    asked = recipe.evaluation.suites
    return {
        "model": checkpoint_identity(recipe.model, recipe.revision),
        "tokenizer": tokenizer_identity(source.tokenizer),
        "training": {str(seed): PackedDataset(data_folder(run, seed, recipe.length)).hash for seed in seeds},
        "held_out": held_out.identity(),
        **{
            suite.pinned: suite.inputs(asked[suite.key], recipe, source, run) if asked[suite.key] else suite.nothing
            for suite in SUITES
            if suite.pinned and suite.key in asked
        },
    }


def at_commit(recipe: ComparisonRecipe, inputs: Inputs | None) -> ComparisonRecipe:
    """The recipe with the commit that the model's name on the hub stood for when the comparison began."""
    commit = (inputs or {}).get("model", {}).get("commit")
    return recipe if commit is None else replace(recipe, revision=commit)


def _facts(inputs: Inputs) -> dict[str, str]:
    """Every part by what it is called in a sentence."""
    found = {"base weights": inputs["model"], "tokenizer": inputs["tokenizer"], "held-out texts": inputs["held_out"]}
    found |= {f"training texts of seed {seed}": value for seed, value in inputs["training"].items()}
    for suite in SUITES:
        if inputs.get(suite.pinned) is not None:
            found |= suite.facts(inputs[suite.pinned])
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items()}


def other(pinned: Inputs, found: Inputs) -> list[str]:
    """What of `found` is not what was pinned; seeds whose texts are not pinned yet do not count."""
    known = _facts(pinned)
    new = {name for name in _facts(found) if name.startswith("training texts")} - set(known)
    return [name for name, value in _facts(found).items() if name not in new and known.get(name) != value]


def pinned_inputs(run: Path) -> Inputs | None:
    """What the plan of a comparison holds; None where it did not begin yet, or pinned nothing."""
    path = run / "plan.json"
    return read_json(path).get("inputs") if path.is_file() else None


def pin(run: Path, found: Inputs, begun: bool) -> Inputs:
    """What plan.json holds from now on: what the comparison began with, and the texts of new seeds.

    Raises HarpeError where what is at hand is something else; where an earlier version of harpe has begun the
    comparison, and pinned nothing.
    """
    pinned = pinned_inputs(run)
    if pinned is None:
        if begun and any(run.glob("*/seed-*/scores/*")):
            raise HarpeError(
                f"The rows in {run} do not say which weights and texts they are of: an earlier version of harpe has "
                "made them, or plan.json was lost. No more rows can be compared with them. Name another --out; `harpe "
                "report` shows what is there."
            )
        return found
    if wrong := other(pinned, found):
        raise HarpeError(
            f"{first_upper(listed(wrong))}: not what the comparison in {run} began with. Rows of the one and of the "
            "other cannot be compared. Put back what there was, or name another --out for a new comparison."
        )
    return {**pinned, "training": {**pinned["training"], **found["training"]}}


def check_rows(run: Path, plan: dict[str, Any]) -> None:
    """See that all rows have read the same: by the plan, or where an earlier version has pinned nothing, by each other.

    Raises HarpeError naming the first row that has not, in what it differs, and what to do.
    """
    known = _facts(plan["inputs"]) if plan.get("inputs") is not None else {}
    for method in plan["methods"]:
        for seed in plan["seeds"] if method["trained"] else [0]:
            folder = run / method["name"] / f"seed-{seed}"
            for file, facts in _whole(_told(folder, method, seed, plan), folder):
                wrong = [name for name, value in facts.items() if known.setdefault(name, value) != value]
                if wrong:
                    raise HarpeError(
                        f"{method['name']} (seed {seed}) differs from the other methods in this: {listed(wrong)} (see "
                        f"{file}). It was trained or measured on something else, and nothing is compared. Delete "
                        f"{folder} and run the comparison again, which makes this row anew."
                    )


def check_ways(run: Path) -> None:
    """See, before another row is trained, that this version of harpe measures as those did that measured the others.

    Raises HarpeError naming the first file that was measured in another way.
    """
    for scores in sorted(run.glob("*/seed-*/scores")):
        for suite in SUITES:
            now = MEASURING[suite.key or "evaluate"]
            for path, facts in suite.told(scores):
                for was in (value for name, value in facts.items() if name.startswith(WAY)):
                    if was not in (None, now):
                        raise HarpeError(
                            f"{path} was measured by another version of harpe, in a way (number {was}) that is not "
                            f"this one's ({now}): no row that is added could be compared with it. Go on with that "
                            "version, or name another --out; `harpe report` shows what is there."
                        )


def _whole(told: Iterator[tuple[Path, dict[str, str]]], folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    try:
        yield from told
    except (AttributeError, KeyError, TypeError) as error:
        raise HarpeError(
            f"A file in {folder} is damaged ({type(error).__name__}: {error}). Delete {folder} and compare again."
        ) from error


def _told(
    folder: Path, method: dict[str, Any], seed: int, plan: dict[str, Any]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """What each file of a row says that it was made from."""
    inputs, record, protocol = (folder / name for name in ("inputs.json", "record.json", "scores/protocol.json"))
    if plan.get("inputs") is not None and not inputs.is_file() and (record.is_file() or protocol.is_file()):
        raise HarpeError(
            f"{folder} has scores and no inputs.json, which says what they were made from. Delete it and compare again."
        )
    if inputs.is_file():
        yield inputs, _facts(read_json(inputs))
    if record.is_file():
        value = read_json(record)
        if "inputs" in value:
            yield record, _facts(value["inputs"])
        hashes = {stage["data_hash"] for stage in value.get("stages", ()) if stage.get("data_hash")}
        for each in hashes if method["trained"] else ():
            yield record, {f"training texts of seed {seed}": json.dumps(each)}
    for suite in SUITES:
        for path, facts in suite.told(folder / "scores"):
            yield path, _told_facts(facts)
    if (
        protocol.is_file()
        and method.get("method") == "none"
        and isinstance(model := read_json(protocol).get("model"), dict)
    ):
        yield protocol, _told_facts({"base weights": model})


def _told_facts(facts: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, sort_keys=True) for name, value in facts.items() if value is not None}
