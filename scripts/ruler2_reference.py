"""What the published program of RULER v2 writes and scores, for tests/evaluation/test_ruler2.py.

    git clone https://github.com/NVIDIA/NeMo-Skills && git -C NeMo-Skills checkout 991a743
    pip install --target REFERENCE_PACKAGES inflect editdistance tenacity
    PYTHONPATH=REFERENCE_PACKAGES python scripts/ruler2_reference.py NeMo-Skills DATA

DATA is a folder as HARPE_DATA names it, with tokenizers/llama2, short_bench/mmlu and ruler/hotpotqa.json. The program
runs unchanged, with the arguments that its own prepare.py gives it; replaced are its downloads (rows of
tests/evaluation/ruler2_rows.py come in their place) and, in prepare_qa.py, `set`, in whose order it takes texts: that
is another one in every process, and sorted here.
"""

from __future__ import annotations

import argparse
import builtins
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import runpy
import shlex
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import nltk

from harpe.models.load import load_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "evaluation"))
from ruler2_rows import Rows, made, real

PACKAGE = "nemo_skills.dataset.ruler2"
SAMPLES = 5
ANSWERS = [
    ("The magic number is 1234567.", ["1234567"]),
    ("1234567 and 7654321", ["1234567", "7654321", "1111111"]),
    ("<think>It is 5 or Answer: 6</think>\nIt is 7", ["5", "6", "7"]),
    ("It is 5. Answer: 6", ["5", "6"]),
    ("The quick brown fox jumps over a lazy dog", ["the quick brown fox jumps over the lazy dog"]),
    ("Here it is: What is the sum of the first five primes?", ["What is the sum of the first six primes? A. 1 B. 2"]),
    ("one two three\n\nfour five six\n\none two four", ["one two three"]),
    ("one two three\n\nfour five six\n\n", ["four five six"]),
    ("one two three\n\nfour five six\n\n", ["four five six", "one two three"]),
    ("Document 1234567:\nParis\nParis is a city.\n\nThe answer is Rome.", ["Paris", "London"]),
    ("Document 1234567:\nParis\nParis is a city.\n\nDocument 7:\nRome\nRome too.\n\nParis", ["Rome", "Paris France"]),
    ("Document 1234567:\nParis is a city without an empty line behind it\nRome", ["Paris is a town"]),
    ("I do not know.", ["no"]),
    ("", ["no"]),
    ("ΣΊΣΥΦΟΣ", ["σίσυφος", "Sisyphus"]),
    ("a b c d e f g", ["g f e d c b a"]),
]
LETTERS = [
    *("\\boxed{A}", "\\boxed{B} no, \\boxed{A}", "\\boxed{\\text{A}}", "\\boxed{A. Paris}", "\\boxed{A or B}"),
    *("\\boxed{B, A}", "\\boxed{}", "\\boxed{a}", "\\boxed {A}", "\\boxed{A", "\\boxed{{A}}", "\\boxed{Paris}"),
    *("The answer is A.", "Answer: A", "**Answer**: A", "answer:  **A**", "Answer: A. Answer: B", "Answer: Apple"),
    *("answer: a", "Answer: B \\boxed A}", "Answer: A \\boxed{B", "Answer: A1", "A", ""),
]


def stubs() -> None:
    """Modules of the published repository and of others, of which nothing but these names is used here."""

    def module(name: str, **names: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names)

    def nested_dataclass(**options: Any) -> Any:
        return lambda kind: dataclasses.dataclass(**options)(kind)

    module(
        "nemo_skills.utils",
        get_logger_name=str,
        nested_dataclass=nested_dataclass,
        unroll_files=lambda files: files,
    )
    module("latex2sympy2_extended", NormalizationConfig=None, normalize_latex=None)
    module("math_verify", LatexExtractionConfig=None, StringExtractionConfig=None, parse=None, verify=None)


def commands(tokenizer: Path, length: int) -> dict[str, list[str]]:
    """The module and arguments of every task, as prepare.py has them."""
    prepare: Any = importlib.import_module(f"{PACKAGE}.prepare")
    found: dict[str, list[str]] = {}
    with patch.object(subprocess, "run") as run:
        for name in [each for each in vars(prepare) if each.startswith(("prepare_mk", "prepare_mv", "prepare_qa"))]:
            vars(prepare)[name]("FOLDER", "hf", str(tokenizer), length, SAMPLES)
            found[name.removeprefix("prepare_")] = shlex.split(run.call_args.args[0])[2:]
    return found


def ran(command: list[str], rows: Rows) -> bytes:
    """The file that a task's program writes."""

    def load_dataset(hub: str, config: str) -> Any:
        return rows[hub]

    module, *arguments = command
    own = {"set": lambda texts: sorted(builtins.set(texts))} if module.endswith("qa") else {}
    with tempfile.TemporaryDirectory() as folder:
        argv = [module, *[folder if each == "FOLDER" else each for each in arguments]]
        with (
            patch.object(sys, "argv", argv),
            patch.object(datasets, "load_dataset", load_dataset),
            patch.object(nltk, "download"),
        ):
            runpy.run_module(module, init_globals=own, run_name="__main__")
        return (Path(folder) / "test.jsonl").read_bytes()


def scores(checkout: Path, task: str) -> list[float]:
    """What the published evaluator gives for the answers above."""
    prepare: Any = importlib.import_module(f"{PACKAGE}.prepare")
    letters = task in ("mk_niah_medium", "mk_niah_hard")
    with tempfile.TemporaryDirectory() as folder:
        prepare.prepare_task_for_ns(folder, task)
        words = runpy.run_path(f"{folder}/{task}/__init__.py")["EVAL_ARGS"].split()
        given = dict(word.removeprefix("++").split("=") for word in words)
        name, function = ("mcq", "eval_mcq") if letters else ("ruler", "eval_ruler2")
        assert given["eval_type"] == ("multichoice" if letters else "ruler2")
        spec = importlib.util.spec_from_file_location(name, checkout / f"nemo_skills/evaluation/evaluator/{name}.py")
        assert spec is not None and spec.loader is not None
        evaluator = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(evaluator)
        asked: list[tuple[str, Any]] = [(each, "A") for each in LETTERS] if letters else list(ANSWERS)
        path = Path(folder) / "answers.jsonl"
        path.write_text("".join(json.dumps({"generation": a, "expected_answer": e}) + "\n" for a, e in asked))
        config = {"match_type": given["eval_config.match_type"]} if not letters else {}
        vars(evaluator)[function](types.SimpleNamespace(eval_config=config, input_files=[str(path)]))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [float(row["symbolic_correct" if letters else "is_correct"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(given.checkout))
    stubs()
    files = []
    with tempfile.TemporaryDirectory() as folder:
        load_tokenizer("embedded").save_pretrained(folder)
        llama = given.data / "tokenizers/llama2"
        for name, tokenizer, kind, rows, lengths in (
            ("embedded", Path(folder), "made", made(), (4096, 32768)),
            ("llama2", llama, "real", real(given.data), (4096, 16384)),
        ):
            for length in lengths:
                for task, command in commands(tokenizer, length).items():
                    digest = hashlib.sha256(ran(command, rows)).hexdigest()
                    print(name, length, task, digest, flush=True)
                    files.append({"tokenizer": name, "rows": kind, "length": length, "task": task, "sha256": digest})
    ordinal = importlib.import_module("inflect").engine().ordinal
    tasks = list(commands(Path(), 1))
    value = {
        "about": "What nemo_skills/dataset/ruler2 (NVIDIA/NeMo-Skills, branch chsieh/ruler2 at commit 991a743) wrote, "
        "by scripts/ruler2_reference.py: SHA-256 of files of 5 samples, scores of answers, and inflect's ordinals.",
        "files": files,
        "ordinals": [ordinal(number) for number in range(1, 131)],
        "answers": ANSWERS,
        "letters": LETTERS,
        "scores": {task: scores(given.checkout, task) for task in tasks},
    }
    path = Path(__file__).parent.parent / "tests/evaluation/ruler2_reference.json"
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
