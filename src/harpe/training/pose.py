"""A long range of positions in short sequences: a gap in the positions of each.

After PoSE (Zhu et al. 2024, arXiv 2309.10400; program: dwzhu-pku/PoSE at 43b43b3): a sequence of n tokens is two
chunks, the first of 1 to n / 2 tokens from position 0 on, the second farther by 0 to T - n, both drawn evenly, so that
all distances below T occur. The published program also leaves out a part of the text between the chunks; here the
second goes on where the first ends, so that all methods read the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from harpe.distributed.layout import refuse_shared
from harpe.errors import HarpeError
from harpe.methods.types import Stage
from harpe.models.angles import moving_rope, moving_stage
from harpe.models.geometry import GLOBAL, sliding_layers, text_config
from harpe.models.head import hidden_states, within
from harpe.options.training import TrainingSettings
from harpe.training.documents import not_taken_for_packed

FIRST, TOKENS = 10, 24
"""Of the sequence in the check: tokens of the first chunk, and of both."""
GAP = 40
"""And the positions between them."""
TOLERANCE = 1e-4
"""How far states have to move, relative to the largest, when the text or the positions before them change."""


class SkippedPositions(Dataset[dict[str, torch.Tensor]]):
    """Sequences with `position_ids`, int64 [S], that reach up to `length`. Which ones depends on the seed and the
    sequence's number alone.

    Parameters
    ----------
    sequences
        Items with `input_ids`, int64 [S].
    length
        T, at least S.
    """

    def __init__(self, sequences: Any, length: int, seed: int) -> None:
        self.sequences, self.length, self.seed = sequences, length, seed

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        item = self.sequences[i]
        size = len(item["input_ids"])
        draw = np.random.default_rng((self.seed, i))
        first = int(draw.integers(1, (size + 1) // 2, endpoint=True))
        skipped = int(draw.integers(0, self.length - size, endpoint=True))
        places = torch.arange(size)
        places[first:] += skipped
        return {**item, "position_ids": places}


def check_pose_length(options: TrainingSettings, stages: list[Stage], parts: int) -> None:
    """Refuse what does not go with positions that are skipped.

    Raises
    ------
    HarpeError
        Naming the options.
    """
    size = options.pose_length
    if not size:
        return
    refuse_shared(f"--pose-length {size}", parts)
    if options.document_mask != "none":
        raise HarpeError(
            f"--pose-length {size} trains distances between two parts of a sequence, which --document-mask "
            f"{options.document_mask} keeps apart. Leave one of them out."
        )
    if any(stage.encoding.attention is not None for stage in stages):
        raise HarpeError(
            f"--pose-length {size} does not go with methods that have an attention of their own (Self-Extend, "
            "ReRoPE, dual chunk attention)."
        )
    if moving := moving_stage(stages):
        raise HarpeError(_moving(size, moving))


def pose_notes(size: int, length: int) -> list[str]:
    """What there is to say of it, in sentences for the plan."""
    if not size:
        return []
    return [
        f"Trained in sequences of {size} tokens: the positions of each are skipped once, at a random place, so that "
        f"they reach up to {length} (after PoSE, arXiv 2309.10400). No token sees more than {size} others."
    ]


def check_pose_family(config: PreTrainedConfig, size: int, length: int) -> None:
    """Refuse families whose layers see tokens by their number and not by their position.

    Raises
    ------
    HarpeError
        Naming the layers.
    """
    config = text_config(config)
    window = (sliding_layers(config) and getattr(config, "sliding_window", None)) or 0
    if size and 0 < window < length:
        raise HarpeError(
            f"--pose-length {size}: layers of a {config.model_type} see a window of {window} tokens, in which skipped "
            "positions would be farther apart than they ever are. Leave it out, or give --sliding-window off."
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - set(GLOBAL)
    if size and (others := sorted(kind for kind in kinds if "sliding" not in kind)):
        raise HarpeError(
            f"--pose-length {size}: a {config.model_type} has layers ({', '.join(others)}) that take positions from "
            "the order of tokens. Leave it out."
        )


@contextmanager
def skipped_positions(model: PreTrainedModel, size: int, length: int) -> Iterator[None]:
    """Within the context sequences of `size` tokens may have positions up to `length`; 0 changes nothing.

    Raises
    ------
    HarpeError
        For what `check_pose_family` refuses, and an attention that takes skipped positions for several texts.
    """
    if not size:
        yield
        return
    config = cast(Any, text_config(model.config))
    check_pose_family(config, size, length)
    if moving := moving_rope(config):
        raise HarpeError(_moving(size, moving))
    if config._attn_implementation not in ("sdpa", "eager"):
        raise HarpeError(
            f"--pose-length {size}: the attention {config._attn_implementation} takes skipped positions for several "
            "texts. Leave it out, or load the model with sdpa."
        )
    with not_taken_for_packed():
        yield


def _moving(size: int, rope_type: str) -> str:
    return (
        f"--pose-length {size}: rope type {rope_type} rotates by how far a text reaches, which skipped positions "
        "change from sequence to sequence. Leave it out, or take another method."
    )


@torch.no_grad()
def check_skips(model: PreTrainedModel, size: int) -> None:
    """Look across a gap in the positions of a few tokens, within `skipped_positions`; the model stays as it is.

    Raises
    ------
    HarpeError
        Where tokens behind the gap do not depend on those before it, or not on how wide it is.
    """
    if not size:
        return
    ids = torch.arange(1, TOKENS + 1, device=model.device)[None] % text_config(model.config).vocab_size
    other, training = ids.clone(), model.training
    other[:, :FIRST] = ids[:, :FIRST].flip(1)
    near = torch.arange(TOKENS, device=model.device)[None]
    far = near + GAP * (near >= FIRST)
    model.eval()
    states, changed, nearer = (
        within(model, lambda ids=text, at=at: hidden_states(model, ids, position_ids=at)).float()  # type: ignore[misc]
        for text, at in ((ids, far), (other, far), (ids, near))
    )
    model.train(training)
    seen, placed = (float((states - each)[:, FIRST:].abs().max() / states.abs().max()) for each in (changed, nearer))
    if not (seen > TOLERANCE and placed > TOLERANCE):
        what = "the tokens before a gap" if not seen > TOLERANCE else "how wide a gap in the positions is"
        raise HarpeError(
            f"--pose-length {size}: in a {model.config.model_type} states do not depend on {what}. Leave it out."
        )
