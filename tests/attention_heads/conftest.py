"""Needles of the model inside the package."""

from __future__ import annotations

import pytest

from harpe.data.embedded import tuning_files
from harpe.data.token_ids import text_ids
from harpe.evaluation.needles.samples import NeedleWriter
from harpe.models.load import load_tokenizer


@pytest.fixture
def embedded_writer() -> NeedleWriter:
    tokenizer = load_tokenizer("embedded")
    return NeedleWriter(tokenizer, [text_ids(tokenizer, file.text) for file in tuning_files()[:3]], 1)
