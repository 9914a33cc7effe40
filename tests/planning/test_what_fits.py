"""docs/what-fits.md is what its script writes, for the shapes of published models."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from harpe.planning.devices import read_devices

from .shapes import SHAPES

ROOT = Path(__file__).parents[2]
PARAMETERS = {
    "SmolLM2-135M": 134_515_008,
    "Qwen3-0.6B": 596_049_920,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-2-7B": 6_738_415_616,
    "Llama-3.1-8B": 8_030_261_248,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Llama-3.1-70B": 70_553_706_496,
}
"""Of the published checkpoints."""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "what_fits.py"))


def table(header: str) -> dict[str, dict[str, str]]:
    """The committed table under a heading: cells by model and column."""
    page = (ROOT / "docs" / "what-fits.md").read_text()
    lines = [line for line in page.split(f"## {header}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


def test_shapes_have_the_parameters_of_the_published_models(script: dict[str, Any]) -> None:
    found = {model: sum(p.numel() for p in script["tracer_of"](model).model.parameters()) for model in SHAPES}
    assert found == PARAMETERS


@pytest.mark.slow
def test_cells_of_the_committed_page_are_what_is_planned(script: dict[str, Any]) -> None:
    """Two of them; the script takes minutes for all."""
    tracer = script["tracer_of"]("Llama-2-7B")
    by_length, by_kind = table("H100-80GB"), table("Other devices, 128k")
    assert list(by_length) == list(by_kind) == list(script["MODELS"])
    assert by_length["Llama-2-7B"]["128k"] == script["fewest"](tracer, 131_072, read_devices("H100-80GB"))
    assert by_length["Llama-2-7B"]["longest on 8, sp 8"] == script["longest"](tracer)
    assert by_kind["Llama-2-7B"]["H200-141GB"] == script["fewest"](tracer, 131_072, read_devices("H200"))
