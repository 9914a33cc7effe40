"""Sequences cut into pieces for several processes, with targets that are shifted before the cut."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset


class Pieces(Dataset[dict[str, torch.Tensor]]):
    """Pieces of sequences in the order in which accelerate deals batches out: batch t goes to process t % world.

    A block has `micro_batch` sequences; all first pieces come first, then all second ones … So process r always gets
    piece r % parts, the processes of a group are neighbours and have the same sequences, and all layouts read the
    sequences in the same order.

    Parameters
    ----------
    sequences
        Items with `input_ids` and `labels`, int64 [S]; labels of -100 are no targets. `documents` and `position_ids`
        are cut as they are.
    parts
        Pieces of a sequence; must divide S.
    """

    def __init__(self, sequences: Dataset[Any], parts: int = 1, micro_batch: int = 1) -> None:
        self.sequences, self.parts, self.micro_batch = sequences, parts, micro_batch

    def __len__(self) -> int:
        return len(cast(Any, self.sequences)) * self.parts

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Piece `i`, int64 [S / parts] each: `input_ids`, `shift_labels` (the token after each), `labels` (the same,
        which the Trainer looks for), and `position_ids` where there are several pieces."""
        block, within = divmod(i, self.micro_batch * self.parts)
        part, row = divmod(within, self.micro_batch)
        item = self.sequences[block * self.micro_batch + row]
        ids, size = item["input_ids"], len(item["input_ids"]) // self.parts
        cut = slice(part * size, (part + 1) * size)
        targets = F.pad(item["labels"][1:], (0, 1), value=-100)[cut]
        piece = {"input_ids": ids[cut], "labels": targets, "shift_labels": targets}
        piece |= {key: value[cut] for key, value in item.items() if key in ("documents", "position_ids")}
        return {"position_ids": torch.arange(len(ids))[cut], **piece} if self.parts > 1 else piece
