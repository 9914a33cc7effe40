"""The time that is told before a training."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from harpe.models.load import load_model
from harpe.options.training import TrainingSettings
from harpe.runs import preflight
from harpe.runs.preflight import PIECE, seconds_per_token

LENGTH = 8 * PIECE


def test_a_long_sequence_is_measured_by_a_piece_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass takes a second by this clock, and the operations of a Llama are written out here."""
    clock = itertools.count()
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: float(next(clock)))
    model, read = load_model("embedded"), list[int]()
    model.model.embed_tokens.register_forward_hook(lambda _, ids, __: read.append(ids[0].shape[-1]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = TrainingSettings(tokens=LENGTH, learning_rate=1e-3, dtype="float32")
    train, untrained = seconds_per_token(model, settings, LENGTH)
    assert set(read) == {PIECE}
    config: Any = model.config
    width, layers = config.num_attention_heads * config.head_dim, config.num_hidden_layers
    matrices = sum(value.numel() for value in model.model.layers.parameters() if value.dim() > 1)
    matrices += config.vocab_size * config.hidden_size

    def operations(length: int) -> float:
        """A token's, forward and backward."""
        return 6 * matrices + 12 * width * layers * length / 2

    expected = operations(LENGTH) / operations(PIECE) / PIECE
    assert train == pytest.approx(expected) and untrained == pytest.approx(expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    short, _ = seconds_per_token(model, settings, PIECE // 2)
    assert short == pytest.approx(2 / PIECE) and read[-1] == PIECE // 2
