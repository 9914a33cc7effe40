"""What the rows of a comparison have read: pinned in its plan when it begins, seen to by every worker, and before anything is paired.

Rows are compared document by document and sample by sample. That means nothing where one of them was trained on other texts, from other
weights, or asked other questions; and a folder of texts, or a branch on the hub, may hold other things on the day that a row is added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harpe.comparison.recipe import ComparisonRecipe, PerplexityRecipe
from harpe.data.packing import PackedDataset, tokenizer_identity
from harpe.errors import HarpeError
from harpe.evaluation.run import HeldOut
from harpe.evaluation.short.offline import FOLDERS, LOCAL
from harpe.files import read_json, sha256_file, sha256_json
from harpe.models.identity import checkpoint_identity
from harpe.report.wording import listed
from harpe.runs.source import Source
from harpe.runs.texts import Say, held_out_texts, silent
from harpe.suites.perplexity import parse_lengths

Inputs = dict[str, Any]
"""model, tokenizer, training (by seed), held_out, corpora (by name), ruler (by length and task), short: by content, as JSON has it."""


def data_folder(run: Path, seed: int, length: int) -> Path:
    """Where the packed training texts of a seed lie."""
    return run / "data" / f"seed-{seed}" / str(length)


def sample_folder(run: Path, length: int) -> Path:
    """Where the RULER samples lie that all rows are asked."""
    return run / "samples" / f"ruler-{length}"


def held_out_of(recipe: ComparisonRecipe, source: Source, say: Say = silent) -> HeldOut:
    """The held-out texts of `harpe evaluate`."""
    of = recipe.evaluation
    return held_out_texts(
        of.data,
        source.tokenizer,
        recipe.length,
        of.documents,
        text_field=of.text_field,
        tuning=of.tuning,
        split_special_tokens=recipe.split_special_tokens,
        say=say,
    )


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
    return {
        "model": checkpoint_identity(recipe.model, recipe.revision),
        "tokenizer": tokenizer_identity(source.tokenizer),
        "training": {str(seed): PackedDataset(data_folder(run, seed, recipe.length)).hash for seed in seeds},
        "held_out": held_out.identity(),
        "corpora": {name: _corpus(each, source, recipe.split_special_tokens) for name, each in recipe.evaluation.perplexity.items()},
        "ruler": {
            str(length): {path.stem: _hashed(path) for path in sorted(sample_folder(run, length).glob("*.jsonl"))}
            for length in (recipe.evaluation.ruler.lengths if recipe.evaluation.ruler is not None else ())
        },
        "short": _questions(recipe),
    }


def _corpus(of: PerplexityRecipe, source: Source, split: bool) -> str:
    longest = parse_lengths(of.lengths)[-1] if of.lengths else int(of.window or 0)
    texts = held_out_texts(of.data, source.tokenizer, longest, of.documents, text_field=of.text_field, split_special_tokens=split)
    return texts.identity()


def _questions(recipe: ComparisonRecipe) -> str | None:
    """SHA-256 of the files that short benchmarks are read from; None where all of them come from the hub."""
    of = recipe.evaluation.short
    tasks = [name for name in of.tasks.replace(",", " ").split() if of.offline or name in LOCAL] if of is not None else []
    named = (of.data if of is not None else None) or os.environ.get("HARPE_DATA")
    if not tasks or not named:
        return None
    folders = [Path(named) / "short_bench" / part for part in sorted({part for name in tasks for part in FOLDERS.get(name, ())})]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return sha256_json([[str(file.relative_to(Path(named))), _hashed(file)] for file in files])


def _hashed(path: Path) -> str:
    there = path.stat()
    return _content(str(path), there.st_ino, there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=4096)
def _content(path: str, *state: int) -> str:
    return sha256_file(Path(path))


def at_commit(recipe: ComparisonRecipe, inputs: Inputs | None) -> ComparisonRecipe:
    """The recipe with the commit that the model's name on the hub stood for when the comparison began."""
    commit = (inputs or {}).get("model", {}).get("commit")
    return recipe if commit is None else replace(recipe, revision=commit)


def _facts(inputs: Inputs) -> dict[str, str]:
    """Every part by what it is called in a sentence."""
    found = {"base weights": inputs["model"], "tokenizer": inputs["tokenizer"], "held-out texts": inputs["held_out"]}
    found |= {f"training texts of seed {seed}": value for seed, value in inputs["training"].items()}
    found |= {f"texts of {name}": value for name, value in inputs["corpora"].items()}
    found |= {f"RULER samples of {task} at {n} tokens": value for n, tasks in inputs["ruler"].items() for task, value in tasks.items()}
    found |= {"questions of the short benchmarks": inputs["short"]} if inputs["short"] is not None else {}
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items()}


def other(pinned: Inputs, found: Inputs) -> list[str]:
    """What of `found` is not what was pinned; seeds whose texts are not pinned yet do not count."""
    known = _facts(pinned)
    new = {name for name in _facts(found) if name.startswith("training texts")} - set(known)
    return [name for name, value in _facts(found).items() if name not in new and known.get(name) != value]


def pin(run: Path, found: Inputs, begun: bool) -> Inputs:
    """What plan.json holds from now on: what the comparison began with, and the texts of new seeds.

    Raises
    ------
    HarpeError
        Where what is at hand is something else; where an earlier version of harpe has begun the comparison, and pinned nothing.
    """
    path = run / "plan.json"
    pinned: Inputs | None = read_json(path).get("inputs") if path.is_file() else None
    if pinned is None:
        if begun and any(run.glob("*/seed-*/scores/*")):
            raise HarpeError(
                f"The rows in {run} do not say which weights and texts they are of: an earlier version of harpe has made them, or "
                "plan.json was lost. No more rows can be compared with them. Name another --out; `harpe report` shows what is there."
            )
        return found
    if wrong := other(pinned, found):
        raise HarpeError(
            f"{_first_upper(listed(wrong))}: not what the comparison in {run} began with. Rows of the one and of the other cannot be "
            "compared. Put back what there was, or name another --out for a new comparison."
        )
    return {**pinned, "training": {**pinned["training"], **found["training"]}}


def check_rows(run: Path, plan: dict[str, Any]) -> None:
    """See that all rows have read the same: by the plan, or where an earlier version has pinned nothing, by each other.

    Raises
    ------
    HarpeError
        Naming the first row that has not, in what it differs, and what to do.
    """
    known = _facts(plan["inputs"]) if plan.get("inputs") is not None else {}
    for method in plan["methods"]:
        for seed in plan["seeds"] if method["trained"] else [0]:
            folder = run / method["name"] / f"seed-{seed}"
            for file, facts in _whole(_told(folder, method, seed, plan), folder):
                wrong = [name for name, value in facts.items() if known.setdefault(name, value) != value]
                if wrong:
                    raise HarpeError(
                        f"{method['name']} (seed {seed}) differs from the other methods in this: {listed(wrong)} (see {file}). It was "
                        f"trained or measured on something else, and nothing is compared. Delete {folder} and run the comparison again, "
                        "which makes this row anew."
                    )


def _whole(told: Iterator[tuple[Path, dict[str, str]]], folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    try:
        yield from told
    except (AttributeError, KeyError, TypeError) as error:
        raise HarpeError(f"A file in {folder} is damaged ({type(error).__name__}: {error}). Delete {folder} and compare again.") from error


def _told(folder: Path, method: dict[str, Any], seed: int, plan: dict[str, Any]) -> Iterator[tuple[Path, dict[str, str]]]:
    """What each file of a row says that it was made from."""
    inputs, record, protocol = (folder / name for name in ("inputs.json", "record.json", "scores/protocol.json"))
    if plan.get("inputs") is not None and not inputs.is_file() and (record.is_file() or protocol.is_file()):
        raise HarpeError(f"{folder} has scores and no inputs.json, which says what they were made from. Delete it and compare again.")
    if inputs.is_file():
        yield inputs, _facts(read_json(inputs))
    if record.is_file():
        value = read_json(record)
        if "inputs" in value:
            yield record, _facts(value["inputs"])
        hashes = {stage["data_hash"] for stage in value.get("stages", ()) if stage.get("data_hash")}
        for each in hashes if method["trained"] else ():
            yield record, {f"training texts of seed {seed}": json.dumps(each)}
    if protocol.is_file():
        value = read_json(protocol)
        facts = {"held-out texts": value.get("held_out"), "protocol": value.get("protocol"), "dtype": value.get("dtype")}
        facts |= {"settings of the tokenizer": value.get("tokenizer"), "way of measuring": value.get("measuring")}
        if method.get("method") == "none" and isinstance(value.get("model"), dict):
            facts["base weights"] = value["model"]
        yield protocol, _told_facts(facts)
    for path in sorted((folder / "scores").glob("curve-*.json")):
        yield path, _told_facts({f"texts of {path.stem.removeprefix('curve-')}": texts_of_curve(read_json(path))})
    for path in sorted((folder / "scores").glob("ruler-*/*.jsonl")):
        if path.name != "answers.jsonl":
            yield path, {f"RULER samples of {path.stem} at {path.parent.name.removeprefix('ruler-')} tokens": json.dumps(_hashed(path))}


def _told_facts(facts: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, sort_keys=True) for name, value in facts.items() if value is not None}


def texts_of_curve(value: dict[str, Any]) -> str | None:
    """SHA-256 of the texts that a file of `harpe perplexity` is of, where it says so."""
    return value["measurement"].get("held_out") if isinstance(value.get("measurement"), dict) else None


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
