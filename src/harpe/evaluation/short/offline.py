"""Short benchmarks from files: lm-eval's own definitions, with nothing changed but where the rows come from.

MMLU and PIQA are complete, and so are their prompts: scores are those of lm-eval. Of HellaSwag, ARC-Challenge and
TriviaQA there are parts in files of other projects. Their tasks end in `_local`, the solved examples come from rows
that are not scored, and their scores are not comparable with published ones.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harpe.errors import HarpeError, optional_module
from harpe.files import sha256_json

Rows = list[dict[str, Any]]
Splits = dict[str, Rows]

NOT_COMPARABLE = "not comparable with published figures (part of the questions, other solved examples)"
TRIVIA_EXAMPLES = 100
"""Questions at the start of TriviaQA's file that solved examples are drawn from."""


class _Loader(yaml.SafeLoader):
    """Reads `!function module.name` as its text: what a definition wants to run is not run here."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _tasks_folder() -> Path:
    lm_eval = optional_module("lm_eval", "lm-eval", "The short benchmarks need")
    return Path(str(lm_eval.__file__)).parent / "tasks"


def _definition(path: Path) -> dict[str, Any]:
    """A task of lm-eval's as plain values, with the file that it includes."""
    value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    included = value.pop("include", None)
    return {**(_definition(path.parent / included) if included else {}), **value}


def _from_rows(definition: dict[str, Any], splits: Splits) -> dict[str, Any]:
    """The definition with rows of ours in place of the hub's."""
    kept = {
        key: value
        for key, value in definition.items()
        if key not in ("dataset_path", "dataset_name", "tag", "task_alias")
    }
    return {**kept, "custom_dataset": Questions(splits)}


@dataclass(frozen=True)
class Questions:
    """What lm-eval calls for the rows of a task."""

    splits: Splits

    def __call__(self, **_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {name: Dataset.from_list(rows) for name, rows in self.splits.items()}


def _jsonl(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _mmlu_rows(path: Path) -> Rows:
    """Rows of a CSV file with a header: question, four choices, the number of the right one."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {"question": q, "choices": choices, "answer": int(answer)}
            for q, *choices, answer in list(csv.reader(stream))[1:]
        ]


def _mmlu(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((folder / "mmlu" / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        splits = {"test": _mmlu_rows(path), "dev": _mmlu_rows(folder / "mmlu" / "dev" / f"{subject}_dev.csv")}
        found.append(_from_rows(_definition(_tasks_folder() / "mmlu" / "default" / f"mmlu_{subject}.yaml"), splits))
    return found


def _piqa(folder: Path) -> list[dict[str, Any]]:
    labels = (folder / "piqa" / "valid-labels.lst").read_text(encoding="utf-8").split()
    rows = [
        {**row, "label": int(label)} for row, label in zip(_jsonl(folder / "piqa" / "valid.jsonl"), labels, strict=True)
    ]
    definition = {**_definition(_tasks_folder() / "piqa" / "piqa.yaml"), "training_split": None}
    return [_from_rows(definition, {"validation": rows})]


def _local(name: str, source: str, examples: Rows, scored: Rows, **changes: Any) -> list[dict[str, Any]]:
    """A task under another name, with examples of its own: those that are scored rows too are left out."""
    asked = {row.get("query") or row["question"] for row in scored}
    examples = [row for row in examples if (row.get("query") or row["question"]) not in asked]
    splits = {"training_split": None, "validation_split": None, "test_split": "scored", "fewshot_split": "examples"}
    definition = {**_definition(_tasks_folder() / source), **splits, **changes, "task": name}
    return [
        _from_rows({k: v for k, v in definition.items() if v is not None}, {"examples": examples, "scored": scored})
    ]


def _hellaswag(folder: Path) -> list[dict[str, Any]]:
    """{"dev": [...], "test": [...]} of question, choices A to D and the answer's letter; the activity in front of a
    question is missing."""
    from lm_eval.tasks.hellaswag.utils import preprocess

    def rows(split: Rows) -> Rows:
        return [
            {
                "query": preprocess(row["question"]).strip(),  # behind the activity, there would be no space in front
                "choices": [preprocess(row["choices"][letter]) for letter in "ABCD"],
                "label": "ABCD".index(row["answer"]),
            }
            for row in split
        ]

    whole = json.loads((folder / "hellaswag_subset" / "hellaswag_1000dev_1000test.json").read_text(encoding="utf-8"))
    return _local(
        "hellaswag_local", "hellaswag/hellaswag.yaml", rows(whole["dev"]), rows(whole["test"]), process_docs=None
    )


def _arc(folder: Path) -> list[dict[str, Any]]:
    """Examples in the form that ARC is published in (stem, choices, answerKey), scored rows of query, choices and the
    answer's number."""

    def row(question: str, choices: list[str], right: int) -> dict[str, Any]:
        letters = "ABCDEFGH"[: len(choices)]
        return {"question": question, "choices": {"text": choices, "label": list(letters)}, "answerKey": letters[right]}

    examples = []
    for entry in _jsonl(folder / "arc_challenge" / "ARC-Challenge-Dev.jsonl"):
        stem, choices = entry["question"]["stem"], entry["question"]["choices"]
        right = [choice["label"] for choice in choices].index(entry["answerKey"])
        examples.append(row(stem, [choice["text"] for choice in choices], right))
    scored = [
        row(entry["query"].removeprefix("Question: "), entry["choices"], entry["gold"])
        for entry in _jsonl(folder / "llm-foundry" / "arc_challenge.jsonl")
    ]
    return _local("arc_challenge_local", "arc/arc_challenge.yaml", examples, scored)


def _triviaqa(folder: Path) -> list[dict[str, Any]]:
    """Rows of context ("Question: ...\\nAnswer:"), answer and aliases. The first `TRIVIA_EXAMPLES` are not scored."""
    rows = [
        {
            "question": entry["context"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "answer": {"aliases": entry["aliases"]},
        }
        for entry in _jsonl(folder / "llm-foundry" / "triviaqa_sm_sub.jsonl")
    ]
    return _local("triviaqa_local", "triviaqa/default.yaml", rows[:TRIVIA_EXAMPLES], rows[TRIVIA_EXAMPLES:])


LOCAL: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "hellaswag_local": _hellaswag,
    "arc_challenge_local": _arc,
    "triviaqa_local": _triviaqa,
}
OFFLINE: dict[str, Callable[[Path], list[dict[str, Any]]]] = {"mmlu": _mmlu, "piqa": _piqa, **LOCAL}
FOLDERS = {
    "mmlu": ("mmlu",),
    "piqa": ("piqa",),
    "hellaswag_local": ("hellaswag_subset",),
    "arc_challenge_local": ("arc_challenge", "llm-foundry"),
    "triviaqa_local": ("llm-foundry",),
}
"""Which folders of short_bench a task is read from."""


def offline_tasks(name: str, folder: Path) -> list[dict[str, Any]]:
    """Definitions of a task of `OFFLINE` with the rows in a folder: `mmlu` (57 subjects), `piqa`, the `_local` ones.

    Parameters
    ----------
    folder
        Holds mmlu/dev/SUBJECT_dev.csv and mmlu/test/SUBJECT_test.csv; piqa/valid.jsonl and piqa/valid-labels.lst;
        hellaswag_subset/hellaswag_1000dev_1000test.json; arc_challenge/ARC-Challenge-Dev.jsonl and
        llm-foundry/arc_challenge.jsonl; llm-foundry/triviaqa_sm_sub.jsonl. Only what `name` needs.

    Raises
    ------
    HarpeError
        For missing files.
    """
    for part in FOLDERS[name]:
        if not (folder / part).is_dir():
            raise HarpeError(
                f"{folder / part} is missing: {name} is read from there. Name the folder with --data or HARPE_DATA."
            )
    try:
        return OFFLINE[name](folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarpeError(
            f"The files of {name} in {folder} could not be read ({type(error).__name__}: {error})."
        ) from error


def questions_hash(definitions: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of the rows of `offline_tasks`, scored ones and examples."""
    return sha256_json([definition["custom_dataset"].splits for definition in definitions])
