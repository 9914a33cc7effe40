"""CONTRIBUTING's worked example: what stands there is applied to a copy of the package, and runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from harpe.files import read_json

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"`(src/harpe/[\w/]+\.py)`:\n\n```(python|diff)\n(.*?)```", re.DOTALL)


def patch(path: Path, lines: Sequence[str]) -> None:
    """Apply a diff without line numbers: behind a line of context, or in place of one that goes."""
    there = path.read_text().splitlines()
    at = 0
    for line in lines:
        kind, text = line[:1], line[1:]
        if kind == "+":
            there.insert(at, text)
            at += 1
            continue
        assert there.count(text) == 1, f"{path.name} has not one line {text!r}"
        at = there.index(text)
        if kind == "-":
            del there[at]
        else:
            at += 1
    path.write_text("\n".join(there) + "\n")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the package as CONTRIBUTING has it in the end."""
    folder = tmp_path_factory.mktemp("contributing")
    shutil.copytree(ROOT / "src" / "harpe", folder / "harpe", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert [kind for _, kind, _ in blocks] == ["python", "diff", "python", "diff", "diff", "diff", "python", "diff"]
    for name, kind, text in blocks:
        path = folder / Path(name).relative_to("src")
        if kind == "python":
            assert not path.exists()
            path.write_text(text)
        else:
            patch(path, text.splitlines())
    return folder


def run(package: Path, *arguments: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_method_a_suite_and_a_training_option_run_in_a_comparison(package: Path, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"the quick fox number {n % (7 + i)} jumps." for n in range(700)))
    evaluation = {"data": ".", "documents": 2, "samples": 0, "grid_samples": 0, "copying": {"samples": 4}}
    recipe = {
        "title": "Example",
        "model": "embedded",
        "length": 512,
        "data": ".",
        "tokens": 2048,
        "seeds": [0],
        "dtype": "float32",
    }
    recipe |= {
        "adam_beta2": 0.9,
        "methods": ["none", {"name": "doubled", "times": 3.0}],
        "baseline": "none",
        "evaluation": evaluation,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(package, "-m", "harpe", "compare", "recipe.yaml", "--out", "run", cwd=tmp_path)
    summary = read_json(tmp_path / "run" / "summary.json")
    (copying,) = (measure for measure in summary["measures"] if measure["id"] == "copying")
    assert copying["values"].keys() == {"none", "doubled"} and copying["differences"].keys() == {"doubled"}
    assert 0 < copying["values"]["none"]["value"] < 20
    assert "loss on tokens read before" in (tmp_path / "run" / "report" / "index.html").read_text()
    stages = read_json(tmp_path / "run" / "doubled" / "stages.json")["stages"]
    base = read_json(ROOT / "src/harpe/assets/base-model/config.json")["rope_parameters"]["rope_theta"]
    assert stages[0]["encoding"]["bases"] == [3.0 * base] * len(stages[0]["encoding"]["bases"])
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["adam_beta2"] == 0.9


@pytest.mark.slow
def test_a_training_option_is_a_flag_and_reaches_the_optimiser(package: Path) -> None:
    assert "--adam-beta2" in run(package, "-m", "harpe", "extend", "--help")
    code = (
        "from pathlib import Path; from harpe.distributed.layout import ONE_PROCESS; "
        "from harpe.training.trainer import arguments; from harpe.options.training import "
        "TrainingSettings\n"
    )
    code += (
        "settings = TrainingSettings(tokens=512, adam_beta2=0.9, dtype='float32'); "
        "print(arguments(Path('out'), settings, ONE_PROCESS, 1, 1).adam_beta2)"
    )
    assert run(package, "-c", code).strip() == "0.9"


@pytest.mark.slow
def test_a_verb_has_help_and_runs(package: Path) -> None:
    assert "Count the parameters of a checkpoint." in run(package, "-m", "harpe", "--help")
    assert re.fullmatch(r"[\d,]+ parameters", run(package, "-m", "harpe", "count", "embedded").strip())
