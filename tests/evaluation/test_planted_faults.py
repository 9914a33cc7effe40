"""The paired interval finds faults that are planted into a model; a twin that differs by rounding stays a thousand
times nearer.

The interval of a twin that holds zero stands in benchmarks/ (scripts/planted_faults.py), from an extended model and
more documents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import harpe
from harpe.data.embedded import reported_files
from harpe.evaluation.perplexity.by_position import token_losses
from harpe.evaluation.statistics.resampling import Draws, Units, paired
from harpe.models.load import load_model, load_tokenizer

from .planted import angles_in_bfloat16

LENGTH, DOCUMENTS, HEADS = 769, 12, 8
BASE = 1e4 * 3 ** (32 / 30)
"""NTK-aware for three times the context: the model reads so far without training."""


@pytest.fixture(scope="module")
def documents() -> torch.Tensor:
    """The first tokens of held-out files: int64 [documents, tokens]."""
    tokenizer = load_tokenizer("embedded")
    texts = (file.text[:12000] for file in reported_files() if len(file.text) > 12000)
    return torch.tensor([tokenizer(next(texts)).input_ids[:LENGTH] for _ in range(DOCUMENTS)])


def losses(documents: torch.Tensor, bases: list[float] | None, **options: Any) -> np.ndarray:
    """Loss of every document under one base per head; None: one base, as a stock model."""
    model = load_model("embedded", torch.float32, **options)
    harpe.apply(model, "abf", length=1024, base=BASE) if bases is None else harpe.apply(
        model, "harpe", length=1024, bases=bases
    )
    return np.concatenate([token_losses(model.eval(), part).sum(1) for part in documents.split(4)])


def difference(documents: torch.Tensor, faulty: np.ndarray) -> Draws:
    return paired(faulty, losses(documents, [BASE] * HEADS), Units.of([LENGTH - 1.0] * DOCUMENTS))


@pytest.mark.filterwarnings("ignore:.*has new positions")
def test_a_wrong_base_in_one_head_is_found(documents: torch.Tensor) -> None:
    found = difference(documents, losses(documents, [*[BASE] * 5, BASE / 100, *[BASE] * 2]))
    assert found.interval().low > 0.01 and found.p_value() < 0.001


@pytest.mark.filterwarnings("ignore:.*has new positions")
def test_angles_in_bfloat16_are_found(documents: torch.Tensor) -> None:
    with angles_in_bfloat16():
        faulty = losses(documents, [BASE] * HEADS)
    found = difference(documents, faulty)
    assert found.interval().low > 0.01 and found.p_value() < 0.001


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has new positions")
def test_a_twin_that_differs_by_rounding_stays_near(documents: torch.Tensor) -> None:
    """A stock model with another attention: other kernels, the same function. The losses differ, so the interval has a
    width."""
    twin = losses(documents, None, attn_implementation="eager")
    found = difference(documents, twin)
    interval = found.interval()
    assert interval.low > -1e-5 and interval.high < 1e-5
    assert not np.array_equal(twin, losses(documents, [BASE] * HEADS))
