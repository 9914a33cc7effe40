"""Rows of the data sets that RULER v2 is made from: made up, or real ones that lie in the data folder."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from string import ascii_lowercase
from typing import Any

Split = list[dict[str, Any]]
Rows = dict[str, dict[str, Split]]
"""Splits by the name of their data set on the hub."""
FOLDERS = {"cais/mmlu": "ruler2/mmlu/all", "hotpotqa/hotpot_qa": "ruler2/hotpot_qa/distractor"}


def _text(rng: random.Random, least: int, most: int) -> str:
    words = ["".join(rng.choices(ascii_lowercase, k=rng.randint(1, 9))) for _ in range(rng.randint(least, most))]
    return " ".join(words).capitalize()


def made() -> Rows:
    """Few rows, so that long contexts need them several times; with white space and letters of every kind."""
    rng = random.Random(0)

    def question() -> dict[str, Any]:
        blank = rng.choice(("\n", "  ", " é "))
        return {
            "question": f"{_text(rng, 3, 30)}{blank}{_text(rng, 2, 20)}?",
            "subject": "",
            "choices": [_text(rng, 1, 6) for _ in range(4)],
            "answer": rng.randrange(4),
        }

    documents = [(_text(rng, 1, 3), [f"{_text(rng, 3, 12)}. " for _ in range(rng.randint(1, 4))]) for _ in range(150)]

    def sourced(first: int, last: int) -> dict[str, Any]:
        held = rng.sample(documents[first:last], 10)
        titles = [title for title, _ in held]
        asked = rng.sample(titles, 2)
        return {
            "question": f"{_text(rng, 4, 15)}?",
            "answer": rng.choice(("yes", "no", "", "", "", "")) or _text(rng, 1, 3),
            "supporting_facts": {"title": [asked[0], *asked], "sent_id": [0, 1, 0]},
            "context": {"title": titles, "sentences": [sentences for _, sentences in held]},
        }

    return {
        "cais/mmlu": {
            "test": [question() for _ in range(40)],
            "auxiliary_train": [question() for _ in range(150)],
        },
        "hotpotqa/hotpot_qa": {
            "train": [sourced(0, 120) for _ in range(30)],
            "validation": [sourced(100, 150) for _ in range(20)],
        },
    }


def real(data: Path) -> Rows:
    """MMLU's test set, every tenth question to be asked; 500 questions of HotpotQA, the first 100 to be asked."""
    questions: dict[str, Split] = {"test": [], "auxiliary_train": []}
    for file in sorted((data / "short_bench/mmlu/test").glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream)):
                choices = [row[f"choice{i}"] for i in range(4)]
                split = "auxiliary_train" if number % 10 else "test"
                questions[split].append({"question": row["question"], "choices": choices, "answer": int(row["answer"])})
    sourced: Split = [
        {
            "question": row["question"],
            "answer": row["answer"],
            "supporting_facts": {"title": [title for title, _ in row["supporting_facts"]]},
            "context": {
                "title": [title for title, _ in row["context"]],
                "sentences": [sentences for _, sentences in row["context"]],
            },
        }
        for row in json.loads((data / "ruler/hotpotqa.json").read_text(encoding="utf-8"))
    ]
    sourced = [row for row in sourced if set(row["supporting_facts"]["title"]) <= set(row["context"]["title"])]
    return {"cais/mmlu": questions, "hotpotqa/hotpot_qa": {"validation": sourced[:100], "train": sourced[100:]}}


def written(rows: Rows, folder: Path) -> Path:
    """A data folder with these rows."""
    for hub, splits in rows.items():
        for split, each in splits.items():
            file = folder / FOLDERS[hub] / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in each))
    return folder
