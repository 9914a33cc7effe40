"""Checkpoints that are exported once and asked about in one process, for all tests of exported checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harpe
from harpe.models.load import load_model

from .exported import GENERATING, LONG, NAMES, PADDED, RARE, SHORT, ask, logits, models
from .tiny_families import FAMILIES


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="session")
def told(root: Path, request: pytest.FixtureRequest) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By checkpoint: what harpe's own model gives, and what the stranger's process gave; all of them in one process.

    Of the quick ones alone where no slow test was chosen.
    """
    expected, questions = {}, {}
    slow = any(item.get_closest_marker("slow") for item in request.session.items)
    for name, model in models(name for name in NAMES if slow or name not in RARE).items():
        harpe.export(model, root / name)
        inputs = LONG if name == "wide" else SHORT
        question: dict[str, Any] = {"trust": name != "one-base", "inputs": inputs, "again": name != "wide"}
        # loaded as well: so that weights lie aligned alike
        own = load_model(root / name, model.dtype, attn_implementation="eager").eval()
        expected[name] = {"logits": logits(own, inputs), "before": logits(model, inputs), "class": type(model).__name__}
        if name in GENERATING:
            question["batch"] = PADDED
            expected[name]["generated"] = model.generate(**PADDED, max_new_tokens=12, do_sample=False)
        if name in FAMILIES:
            question["serving"] = SHORT["7"]
        questions[name] = question
    answers = ask(root, questions)
    return {
        name: (expected[name], {**answers[name], "untrusting": answers[f"{name}, untrusting"]}) for name in questions
    }
