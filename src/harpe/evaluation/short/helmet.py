"""HELMET's recall, RAG and ICL tasks (Yen et al. 2024, arXiv 2410.02694; princeton-nlp/HELMET, commit 4526dfb):
questions, solved examples, prompts, shortening and scores of its program, for models that continue texts.

Read is the `data` folder of its archive: ruler/niah_multikey_2/validation_8192.jsonl, json_kv/test_k105_dep6.jsonl,
kilt/nq-dev-multikilt_1000_k50_dep6.jsonl and others, as its configs name them. In-context learning is read from `icl`
beside them (`helmet_icl`).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.evaluation.short import helmet_icl as icl
from harpe.evaluation.short.offline import Questions

Rows = list[dict[str, Any]]

QUESTIONS, EXAMPLES, SEED = 100, 2, 42
"""Of every task but ICL's, as its configs and arguments have them."""
LENGTHS = {"8k": (8192, 105, 50), "16k": (16384, 220, 105), "32k": (32768, 440, 220)}
LENGTHS |= {"64k": (65536, 900, 440), "128k": (131072, 1800, 1000)}
"""Tokens of prompt and answer at most, pairs of json_kv, and documents of RAG."""
RECALL = {"niah_mk_2": ("multikey_2", 50), "niah_mk_3": ("multikey_3", 100), "niah_mv": ("multivalue", 50)}
"""RULER's tasks: their folders and how many tokens an answer may take."""
RAG = {"nq": 6, "triviaqa": 6, "hotpotqa": 3, "popqa": 6}
"""KILT's tasks: how deep their documents are put."""
SETS = {"recall": (*RECALL, "json_kv"), "rag": tuple(RAG), "icl": tuple(icl.ICL)}
METRIC = "helmet_score"
"""ruler_recall of RULER's tasks, exact_match of ICL's, substring_exact_match of the others."""

_ONE = "A special magic {type_needle_v} is hidden within the following text."
_SOME = "Some special magic {type_needle_v} are hidden within the following text."
_QUIZ = " Make sure to memorize it. I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
_OF = "special magic {type_needle_v} for {query}"
_IN = "mentioned in the provided text"
_NIAH = (f"{_ONE}{_QUIZ}What is the {_OF} {_IN}?", f"The {_OF} {_IN} is")
_NIAH_ALL = (f"{_SOME}{_QUIZ}What are all the {_OF} {_IN}?", f"The {_OF} {_IN} are")
_KV = (
    "{context}\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n{demos}"
    "Key: {question}",
    "Corresponding value:",
)
_QA = (
    "Use the given documents to write a concise and short answer to the question. Write your answer in the following "
    "format:\nAnswer: [answer]\n\n{demos}{context}\n\nQuestion: {question}",
    "Answer:",
)


def is_helmet(name: str) -> bool:
    """Whether a task is asked for by a name of this module: helmet-TASK-LENGTH."""
    return name.startswith("helmet-")


def helmet_names(name: str) -> list[str]:
    """The tasks that helmet-recall-8k, helmet-rag-8k and helmet-icl-8k stand for; a task stands for itself.

    Raises HarpeError for other names.
    """
    _, _, rest = name.partition("-")
    task, _, length = rest.rpartition("-")
    tasks = SETS.get(task, (task,))
    if length not in LENGTHS or not {*tasks} <= {each for several in SETS.values() for each in several}:
        known = "; ".join(f"{several} ({', '.join(of)})" for several, of in SETS.items())
        raise HarpeError(
            f"--tasks {name}: of HELMET there are helmet-TASK-LENGTH with the tasks {known}, at {', '.join(LENGTHS)}."
        )
    return [f"helmet-{each}-{length}" for each in tasks]


def helmet_part(name: str) -> str:
    """The folder below that of HELMET which a task is read from."""
    task = name.split("-")[1]
    if task in icl.ICL:
        return f"icl/{icl.ICL[task].folder}"
    return "kilt" if task in RAG else "json_kv" if task == "json_kv" else f"ruler/niah_{RECALL[task][0]}"


def helmet_tasks(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The definition for lm-eval of one task.

    Parameters
    ----------
    folder
        The `data` folder of HELMET's archive; ICL's tasks want its `icl` alone.
    tokenizer
        In whose tokens prompts are shortened to the length, as the program does: the end of the context is left out.

    Raises
    ------
    HarpeError
        For missing and unreadable files; where a context is to be shortened and the tokenizer tells no characters.
    """
    task, length = name.split("-")[1:]
    size, pairs, documents = LENGTHS[length]
    learned = task in icl.ICL
    try:
        if learned:
            shots = icl.ICL[task].shots[list(LENGTHS).index(length)]
            rows, templates, answer = icl.labelled(folder / "icl", task, shots, SEED), icl.TEMPLATES, icl.ANSWER
        elif task in RAG:
            rows, templates, answer = _questions(folder / "kilt", task, documents), _QA, 20
        elif task == "json_kv":
            rows, templates, answer = _pairs(folder / "json_kv" / f"test_k{pairs}_dep6.jsonl"), _KV, 100
        else:
            kind, answer = RECALL[task]
            rows = _needles(folder / "ruler" / f"niah_{kind}" / f"validation_{size}.jsonl")
            templates = _NIAH_ALL if task == "niah_mv" else _NIAH
        asked = [_asked(row, templates, tokenizer, size - answer) for row in rows]
    except HarpeError:
        raise
    except OSError as error:
        raise HarpeError(
            f"{error.filename} is missing: {name} is read from the data folder of HELMET's archive "
            "(https://huggingface.co/datasets/princeton-nlp/HELMET), as helmet in --data or HARPE_DATA."
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        told = f"{type(error).__name__}: {error}"
        raise HarpeError(f"The files of {name} in {folder} could not be read ({told}).") from error
    settings = {"do_sample": False, "temperature": 0.0, "max_gen_toks": answer, "until": ["\n"] if learned else []}
    score = recall if task in RECALL else (exact_match if learned else substring_match)(templates[1])
    return [
        {
            "task": name,
            "custom_dataset": Questions({"test": asked}),
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "target",
            "process_results": _scored(score),
            "generation_kwargs": settings,
            "num_fewshot": 0,
            "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        }
    ]


def _asked(
    row: dict[str, Any], templates: tuple[str, str], tokenizer: PreTrainedTokenizerBase, room: int
) -> dict[str, Any]:
    """A row for lm-eval: its prompt within `room` tokens, the beginning of the answer in it, and the right ones."""
    template = "\n".join(templates)
    over = len(tokenizer(template.format(**row))["input_ids"]) - room
    if over > 0:
        if not tokenizer.is_fast:
            raise HarpeError(
                f"HELMET's contexts are shortened at a token, and a {type(tokenizer).__name__} does not say which "
                "characters its tokens stand for. Name a fast tokenizer (--tokenizer)."
            )
        places: Any = tokenizer(row["context"], return_offsets_mapping=True)["offset_mapping"]
        row = {**row, "context": row["context"][: places[-over][0]]}
    answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
    begun = templates[1].format(**row)
    return {"prompt": template.format(**row), "begun": begun, "answers": answers, "target": str(answers[0])}


def _jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


def _shuffled(rows: Rows, seed: int) -> Rows:
    """In the order of `Dataset.shuffle`."""
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def _needles(path: Path) -> Rows:
    rows = [row | {"answer": row["answer"] if "answer" in row else row["outputs"]} for row in _jsonl(path)]
    return _shuffled(rows, SEED)[:QUESTIONS]


def _pairs(path: Path) -> Rows:
    rows = []
    for row in _jsonl(path):
        shown = [f"Key: {key}\nCorresponding value: {value}" for key, value in row["demos"][:EXAMPLES]]
        rows.append(row | {"demos": "\n\n".join(shown) + "\n\n"})
    return _shuffled(rows, SEED)[:QUESTIONS]


def _questions(folder: Path, task: str, documents: int) -> Rows:
    """Questions of KILT with their documents, behind two solved ones that the question's own hash draws."""
    depth, popular = RAG[task], task == "popqa"
    files = ("popqa_test", "popqa_test") if popular else (f"{task}-dev-multikilt", f"{task}-train-multikilt")
    ends = (f"_1000_k{documents}_dep{depth}.jsonl", f"_1000_k3_dep{depth}.jsonl")
    rows, solved = (_jsonl(folder / f"{file}{end}") for file, end in zip(files, ends, strict=True))
    if popular:
        rows, solved = ([row for row in each if math.log10(row["s_pop"]) < 3] for each in (rows, solved))
    key = "id" if any("id" in row for row in rows) else "question"
    keys = sorted({row[key] for row in rows})
    chosen = set(random.Random(SEED).sample(keys, min(QUESTIONS, len(keys))))
    found = []
    for row in (row for row in rows if row[key] in chosen):
        others = [each for each in solved if each[key] != row[key]] if popular else solved
        seed = int(hashlib.sha256(str(row[key]).encode()).hexdigest(), 16) % 2**31
        first: dict[Any, dict[str, Any]] = {}
        for each in _shuffled(others, seed):
            first.setdefault(each[key], each)
        shown = [
            f"{_documents(each)}\n\nQuestion: {each['question']}\nAnswer: {each['answers'][0]}"
            for each in list(first.values())[:EXAMPLES]
        ]
        demos = "\n\n".join(shown) + "\n\n"
        found.append({**row, "demos": demos, "context": _documents(row), "answer": row["answers"]})
    return found


def _documents(row: dict[str, Any]) -> str:
    return "\n\n".join(f"Document (Title: {each['title']}): {each['text']}" for each in row["ctxs"])


def recall(output: str, answers: list[str]) -> float:
    """ruler_recall: the share of answers that the output holds."""
    return sum(answer.lower() in output.lower() for answer in answers) / len(answers)


def substring_match(prefix: str) -> Callable[[str, list[str]], float]:
    """substring_exact_match: whether an answer stands in the output or in the line that `prefix` begins, articles,
    punctuation and case left out."""

    def score(output: str, answers: list[str]) -> float:
        said = [_normal(output), _normal(_parsed(output, prefix))]
        return float(any(_normal(answer) in each for answer in answers for each in said))

    return score


def exact_match(prefix: str) -> Callable[[str, list[str]], float]:
    """exact_match: whether the line that `prefix` begins is an answer, articles, punctuation and case left out."""
    return lambda output, answers: float(_normal(_parsed(output, prefix)) in map(_normal, answers))


def _parsed(output: str, prefix: str) -> str:
    for pattern in (f"(?:{prefix})(.*)(?:\n|$)", r"(?:^)(.*)(?:\n|$)"):
        if found := re.search(pattern, output, re.IGNORECASE):
            return re.sub(f"^{re.escape(prefix)}", "", found[1].strip(), flags=re.IGNORECASE).strip()
    return ""


def _normal(text: str) -> str:
    plain = "".join(each for each in text.lower() if each not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _scored(score: Callable[[str, list[str]], float]) -> Callable[[dict[str, Any], list[str]], dict[str, float]]:
    """What lm-eval calls for the score of an answer: the prompt began it, and what it began counts as said."""
    return lambda doc, results: {METRIC: score(doc["begun"] + results[0], doc["answers"])}
