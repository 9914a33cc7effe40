"""Exported checkpoints in other versions of transformers, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import harpe

from .exported import SHORT, ask, logits, models
from .tiny_families import FAMILIES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


def python_with(version: str, folder: Path) -> str:
    """An interpreter with torch and the rest from this environment; that transformers, and what it needs otherwise, lie before it."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    own = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(folder), "platbase": str(folder)}))
    (own / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"transformers=={version}"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"transformers {version} could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.parametrize("version", ["5.17.0", "5.20.0"])
def test_exported_checkpoints_load_with_the_same_logits(root: Path, tmp_path: Path, version: str) -> None:
    python = python_with(version, tmp_path)
    expected, questions = {}, {}
    for name, model in models().items():
        if name == "wide":
            continue
        if not (root / name).exists():
            harpe.export(model, root / name)
        expected[name] = logits(model, SHORT)["300"]
        questions[name] = {"trust": name != "one-base", "inputs": SHORT, "again": True}
    answers = ask(root, questions, python)
    assert answers["transformers"] == version
    failed = {name: answers[name]["error"] for name in questions if "error" in answers[name]}
    assert not failed
    for name, wanted in expected.items():
        assert torch.equal(answers[name]["logits"]["300"], wanted), name
        assert torch.equal(answers[name]["again"]["300"], wanted), name
        if name != "one-base":
            assert "harpe" in answers[f"{name}, untrusting"]["error"], name


def test_transformers_4_refuses_instead_of_loading_a_stock_model(root: Path, tmp_path: Path) -> None:
    """It knows no `rope_parameters`; Nemotron's configuration there knows no `rope_scaling` either, which the documentation says."""
    python = python_with("4.57.6", tmp_path)
    families = {name: model for name, model in models().items() if name in FAMILIES and name != "nemotron"}
    for name, model in families.items():
        if not (root / name).exists():
            harpe.export(model, root / name)
    answers = ask(root, {name: {"trust": True, "inputs": {}} for name in families}, python)
    assert answers["transformers"] == "4.57.6"
    quiet = [name for name in families if "error" not in answers[name] or "error" not in answers[f"{name}, untrusting"]]
    assert not quiet
