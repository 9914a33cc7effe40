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
from harpe.models.geometry import read_geometry

from .exported import NAMES, SHORT, ask, logits, models, prepared
from .tiny_families import FAMILIES

EVERY = tuple(name for name in NAMES if name != "wide")
"""All families and every other kind of checkpoint; a few of each are loaded in the slow group, all by `make
families`."""


def some(*names: str) -> list[Any]:
    return [
        pytest.param(names, marks=pytest.mark.slow, id="representatives"),
        pytest.param(EVERY, marks=pytest.mark.matrix, id="all"),
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


@pytest.fixture(scope="module")
def python_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes an interpreter with torch and the rest from this environment; that transformers, and what it needs
    otherwise, lie before it."""
    made: dict[str, str] = {}

    def python(version: str) -> str:
        if version not in made:
            folder = tmp_path_factory.mktemp("transformers") / version
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
            own = Path(
                sysconfig.get_path("purelib", scheme="venv", vars={"base": str(folder), "platbase": str(folder)})
            )
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
def test_exported_checkpoints_load_with_the_same_logits(
    root: Path, python_with: Any, version: str, names: tuple[str, ...]
) -> None:
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
def test_transformers_4_refuses_instead_of_loading_a_stock_model(
    root: Path, python_with: Any, names: tuple[str, ...]
) -> None:
    """It knows no `rope_parameters`; Nemotron's class there asks for no rope type either."""
    families = [name for name in names if name in FAMILIES]
    for name, model in models(families).items():
        if not (root / name).exists():
            harpe.export(model, root / name)
    answers = ask(root, {name: {"trust": True, "inputs": {}} for name in families}, python_with("4.57.6"))
    assert answers["transformers"] == "4.57.6"
    quiet = [name for name in families if "error" not in answers[name] or "error" not in answers[f"{name}, untrusting"]]
    assert not quiet


CLASSIC = ("abf", "ntk", "yarn", "pi", "ntk-dynamic", "longrope")
BEYOND = {"700": torch.randint(3, 97, (1, 700), generator=torch.Generator().manual_seed(7))}
"""A text longer than the trained context of 512, where dynamic NTK and LongRoPE change."""
GIVEN_BY_4 = {"llama", "gemma3_text", "gpt_neox", "glm"}
"""Of the representatives, those whose ABF and YaRN exports 4.57 runs; OLMo's classes stop at YaRN, Nemotron's asked for
no rope type."""


@pytest.mark.filterwarnings("ignore:the model has new positions")
@pytest.mark.parametrize("names", some("llama", "gemma3_text", "gpt_neox", "glm", "olmo3", "nemotron"))
def test_transformers_4_runs_classic_methods_right_or_stops(
    tmp_path: Path, python_with: Any, names: tuple[str, ...]
) -> None:
    expected = {}
    for family in (name for name in names if name in FAMILIES):
        pairs = read_geometry(prepared(family).config, family).rotary_dim // 2
        options: dict[str, Any] = {"abf": {"base": 7e5}, "longrope": {"long_factor": [1.0 + i for i in range(pairs)]}}
        for method in CLASSIC:
            try:
                model = harpe.apply(prepared(family), method, length=2048, **options.get(method, {}))
            except harpe.HarpeError:  # Phi-3 takes no scaling but LongRoPE
                continue
            name = f"{family}-{method}"
            harpe.export(model, tmp_path / name)
            expected[name] = logits(model, BEYOND)["700"]
    answers = ask(tmp_path, {name: {"trust": False, "inputs": BEYOND} for name in expected}, python_with("4.57.6"))
    assert answers["transformers"] == "4.57.6"
    for name, wanted in expected.items():
        family, method = name.split("-", 1)
        if "error" in answers[name]:
            assert family not in GIVEN_BY_4 or method not in ("abf", "yarn"), (name, answers[name]["error"])
        else:
            assert (answers[name]["logits"]["700"] - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name
