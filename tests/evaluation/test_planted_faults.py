"""The paired interval finds faults that are planted into a model, and finds none in a twin that differs by rounding alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import harpe
from harpe.data.embedded import reported_files
from harpe.evaluation.perplexity import token_losses
from harpe.evaluation.resampling import Draws, Units, paired
from harpe.models.load import load_model, load_tokenizer

from .planted import angles_in_bfloat16

LENGTH, DOCUMENTS, HEADS, BASE = 257, 24, 8, 1e4


@pytest.fixture(scope="module")
def documents() -> torch.Tensor:
    """The first tokens of held-out files, within the context that the model was trained on: int64 [documents, tokens]."""
    tokenizer = load_tokenizer("embedded")
    texts = (file.text[:4000] for file in reported_files() if len(file.text) >= 4000)
    return torch.tensor([tokenizer(next(texts)).input_ids[:LENGTH] for _ in range(DOCUMENTS)])


def losses(documents: torch.Tensor, bases: list[float] | None, **options: Any) -> np.ndarray:
    """Loss of every document under one base per head; None: the stock model."""
    model = load_model("embedded", torch.float32, **options)
    if bases is not None:
        harpe.apply(model, "harpe", length=512, bases=bases)
    return token_losses(model.eval(), documents).sum(1)


def difference(documents: torch.Tensor, faulty: np.ndarray) -> Draws:
    return paired(faulty, losses(documents, [BASE] * HEADS), Units.of([LENGTH - 1.0] * DOCUMENTS))


@pytest.mark.filterwarnings("ignore:.*has new positions")
def test_a_wrong_base_in_one_head_is_found(documents: torch.Tensor) -> None:
    found = difference(documents, losses(documents, [4 * BASE, *[BASE] * (HEADS - 1)]))
    assert found.interval().low > 0 and found.p_value() < 0.001


@pytest.mark.filterwarnings("ignore:.*has new positions")
def test_angles_in_bfloat16_are_found(documents: torch.Tensor) -> None:
    with angles_in_bfloat16():
        faulty = losses(documents, [BASE] * HEADS)
    found = difference(documents, faulty)
    assert found.interval().low > 0 and found.p_value() < 0.001


@pytest.mark.filterwarnings("ignore:.*has new positions")
def test_a_twin_that_differs_by_rounding_is_not_called_different(documents: torch.Tensor) -> None:
    """The stock model with another attention: other kernels, the same function. The losses differ, so the interval has a width."""
    twin = losses(documents, None, attn_implementation="eager")
    found = difference(documents, twin)
    interval = found.interval()
    assert interval.low <= 0 <= interval.high and abs(interval.value) < 1e-5
    assert not np.array_equal(twin, losses(documents, [BASE] * HEADS))
