"""Training data of random tokens, for what measures memory and time."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset


class Random(Dataset[Any]):
    """Sequences of random tokens."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.count, self.length, self.vocabulary = count, length, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, self.vocabulary, (self.length,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}

    def cut(self, length: int) -> Random:
        return Random(self.count, length, self.vocabulary)
