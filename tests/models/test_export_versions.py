"""Exported checkpoints in other versions of transformers, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import harpe

from .exported import NAMES, SHORT, ask, logits, models, prepared
from .tiny_families import FAMILIES

EVERY = tuple(name for name in NAMES if name != "wide")
"""All families and every other kind of checkpoint; a few of each are loaded in the slow group, all by `make families`."""


def some(*names: str) -> list[Any]:
    return [pytest.param(names, marks=pytest.mark.slow, id="representatives"), pytest.param(EVERY, marks=pytest.mark.matrix, id="all")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


@pytest.fixture(scope="module")
def python_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes an interpreter with torch and the rest from this environment; that transformers, and what it needs otherwise, lie before it."""
    made: dict[str, str] = {}

    def python(version: str) -> str:
        if version not in made:
            folder = tmp_path_factory.mktemp("transformers") / version
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
            own = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(folder), "platbase": str(folder)}))
            (own / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
            made[version] = str(folder / "bin" / "python")
            pip = [sys.executable, "-m", "pip", "--python", made[version], "install", "--quiet", "--no-compile"]
            done = subprocess.run([*pip, f"transformers=={version}"], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"transformers {version} could not be installed: {done.stderr.strip().splitlines()[-1]}")
        return made[version]

    return python


@pytest.mark.parametrize("version", ["5.17.0", "5.20.0"])
@pytest.mark.parametrize("names", some("llama", "gemma3_text", "by-layer", "one-base"))
def test_exported_checkpoints_load_with_the_same_logits(root: Path, python_with: Any, version: str, names: tuple[str, ...]) -> None:
    expected, questions = {}, {}
    for name, model in models(names).items():
        if not (root / name).exists():
            harpe.export(model, root / name)
        expected[name] = logits(model, SHORT)["300"]
        questions[name] = {"trust": name != "one-base", "inputs": SHORT, "again": True}
    answers = ask(root, questions, python_with(version))
    assert answers["transformers"] == version
    failed = {name: answers[name]["error"] for name in questions if "error" in answers[name]}
    assert not failed
    for name, wanted in expected.items():
        assert torch.equal(answers[name]["logits"]["300"], wanted), name
        assert torch.equal(answers[name]["again"]["300"], wanted), name
        if name != "one-base":
            assert "harpe" in answers[f"{name}, untrusting"]["error"], name


@pytest.mark.parametrize("names", some("llama", "gemma3_text", "nemotron"))
def test_transformers_4_refuses_instead_of_loading_a_stock_model(root: Path, python_with: Any, names: tuple[str, ...]) -> None:
    """It knows no `rope_parameters`; Nemotron's class there asks for no rope type either."""
    families = [name for name in names if name in FAMILIES]
    for name, model in models(families).items():
        if not (root / name).exists():
            harpe.export(model, root / name)
    answers = ask(root, {name: {"trust": True, "inputs": {}} for name in families}, python_with("4.57.6"))
    assert answers["transformers"] == "4.57.6"
    quiet = [name for name in families if "error" not in answers[name] or "error" not in answers[f"{name}, untrusting"]]
    assert not quiet


CLASSIC: dict[str, dict[str, Any]] = {"abf": {"base": 7e5}, "yarn": {}, "pi": {}, "longrope": {"long_factor": [4.0] * 8}}
STOPS = {"nemotron-yarn", "nemotron-pi", "olmo3-abf"}
"""What the old keys cannot hold: Nemotron's class asked for no rope type, OLMo 3 has one base for layers of both kinds."""
UNKNOWN_TO_4 = ("nanochat", "qwen3_moe", "gpt_oss")
"""Families that 4.57 does not have, or whose weights it reads in another layout; gpt-oss starts no eager attention there."""


@pytest.mark.filterwarnings("ignore:the model has new positions")
@pytest.mark.parametrize("names", some("llama", "gemma3_text", "gpt_neox", "phi3", "olmo2", "olmo3", "nemotron", "glm"))
def test_transformers_4_gives_the_logits_of_the_classic_methods_or_stops(tmp_path: Path, python_with: Any, names: tuple[str, ...]) -> None:
    expected = {}
    for family in (name for name in names if name in FAMILIES and name not in UNKNOWN_TO_4):
        for method, options in CLASSIC.items():
            try:
                model = harpe.apply(prepared(family), method, length=2048, **options)
            except harpe.HarpeError:  # Phi-3 takes no scaling but LongRoPE, and a list for eight pairs does not fit every family
                continue
            name = f"{family}-{method}"
            harpe.export(model, tmp_path / name)
            expected[name] = logits(model, SHORT)["300"]
    answers = ask(tmp_path, {name: {"trust": False, "inputs": SHORT} for name in expected}, python_with("4.57.6"))
    assert answers["transformers"] == "4.57.6"
    for name, wanted in expected.items():
        if name in STOPS:
            assert "error" in answers[name], name
        else:
            got = answers[name]["logits"]["300"] if "error" not in answers[name] else answers[name]["error"]
            assert isinstance(got, torch.Tensor), (name, got)
            assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name
