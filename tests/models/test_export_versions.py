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

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


@pytest.mark.parametrize("version", ["5.17.0", "5.20.0"])
def test_exported_checkpoints_load_with_the_same_logits(root: Path, tmp_path: Path, version: str) -> None:
    """torch and the rest come from this environment; transformers and what it needs otherwise lie before it."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    python = str(tmp_path / "bin" / "python")
    paths = {"base": str(tmp_path), "platbase": str(tmp_path)}
    own = Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))
    (own / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"transformers=={version}"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"transformers {version} could not be installed: {done.stderr.strip().splitlines()[-1]}")
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
