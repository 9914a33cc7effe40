"""Small files in the layout of HELMET's archive and of the hub's conversion to Parquet, and answers to them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value


def write_helmet(folder: Path) -> None:
    """For 8k tokens: more rows than are asked, questions at several depths, and contexts that are too long."""
    rng = random.Random(7)

    def save(path: str, rows: list[dict[str, Any]]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def needles(count: int) -> list[dict[str, Any]]:
        return [
            {
                "index": i,
                "query": f"key-{i}",
                "type_needle_v": "numbers" if count > 1 else "number",
                "context": " ".join(f"Word {n} of {i}." for n in range(2000 if i % 40 == 3 else 5)),
                "outputs": [str(rng.randrange(10**6)) for _ in range(count)],
            }
            for i in range(130)
        ]

    for kind, count in (("multikey_2", 1), ("multikey_3", 1), ("multivalue", 4)):
        save(f"ruler/niah_{kind}/validation_8192.jsonl", needles(count))
    pairs = [
        {
            "context": "JSON data:\n" + json.dumps({f"k{n}": f"v{i}-{n}" for n in range(4)}),
            "question": "k2",
            "answer": f"v{i}-2",
            "num_kvs": 4,
            "demos": [[f"k{n}", f"v{i}-{n}"] for n in (0, 1, 3)],
        }
        for i in range(120)
    ]
    save("json_kv/test_k105_dep6.jsonl", pairs)
    for task, depths in (("nq", 2), ("triviaqa", 2), ("hotpotqa", 1), ("popqa", 2)):

        def questions(count: int, passages: int, task: str = task, depths: int = depths) -> list[dict[str, Any]]:
            return [
                {
                    **({"id": f"{task}-{i}"} if task != "nq" else {}),
                    **({"s_pop": 10 if i % 3 else 5000} if task == "popqa" else {}),
                    "question": f"Who is number {i} of {task}?",
                    "answers": [f"The Person {i}", f"Mr. {i}th"],
                    "ctxs": [{"id": str(n), "title": f"T{n}", "text": f"{i}, {d}: {n}."} for n in range(passages)],
                }
                for i in range(count)
                for d in range(depths)
            ]

        dev, train = (
            ("popqa_test", "popqa_test") if task == "popqa" else (f"{task}-{p}-multikilt" for p in ("dev", "train"))
        )
        depth = 3 if task == "hotpotqa" else 6
        save(f"kilt/{dev}_1000_k50_dep{depth}.jsonl", questions(160, 4))
        save(f"kilt/{train}_1000_k3_dep{depth}.jsonl", questions(160, 2))


def write_icl(folder: Path) -> None:
    """Labels with few and with many rows, more questions than are asked (banking77), and a text that is too long for
    the prompts that it is drawn for."""
    rng = random.Random(11)

    def save(split: str, count: int, labels: dict[str, int]) -> None:
        rows = [
            {
                "text": f"Of {rng.randrange(10**4)}?",
                **{label: min(rng.randrange(many + 3), many - 1) for label, many in labels.items()},
            }
            for _ in range(count)
        ]
        rows[count // 2] = {"text": "So" + " and so" * 3500, **{label: many - 1 for label, many in labels.items()}}
        named = {label: ClassLabel(names=[f"{label}-{n}" for n in range(many)]) for label, many in labels.items()}
        (folder / split).mkdir(parents=True)
        features = Features({"text": Value("string"), **named})
        Dataset.from_list(rows, features=features).to_parquet(folder / split / "0000.parquet")

    for split, count in (("train", 700), ("test", 40)):
        save(f"trec/default/{split}", count, {"coarse_label": 6, "fine_label": 50})
    for split, count in (("train", 400), ("test", 520)):
        save(f"banking77/default/{split}", count, {"label": 77})
    for split, count in (("train", 900), ("validation", 60)):
        save(f"clinc_oos/plus/{split}", count, {"intent": 151})
    save("nlu/default/train", 600, {"label": 68})


def said(number: int, answers: list[str]) -> str:
    """What a model says behind the beginning of its answer, by the number of the question."""
    first = answers[0]
    kinds = (
        f" {first}.",
        f" no idea\nAnswer: {first}\n",
        f" {first.upper()} and more",
        " nothing of that",
        f" {first.replace('The ', 'a ')}!",
        f" {first[:-1]}",
        "",
        "\n".join(answers[: len(answers) // 2 + 1]),
    )
    return kinds[number % len(kinds)]
