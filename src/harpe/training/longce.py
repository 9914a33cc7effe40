"""LongCE: tokens that need the long context weigh more in the loss.

Fang et al. 2025, arXiv 2410.23771, section 4: the loss of a token is multiplied by min(e^(loss_short - loss_long), 5),
where loss_short is behind a window of the last tokens alone. Both losses are the model's own of that moment, and no
gradient goes through the weight. Here the sum is divided by the count of targets, as without weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from harpe.distributed.layout import refuse_shared
from harpe.errors import HarpeError
from harpe.methods.types import Stage
from harpe.models.angles import moving_stage
from harpe.models.head import token_nll
from harpe.models.key_tokens import MOST, longce_weights, short_context_nll, step_of
from harpe.options.training import TrainingSettings


def check_longce(options: TrainingSettings, stages: list[Stage], parts: int) -> None:
    """Refuse what does not go with weights from a second reading.

    Raises
    ------
    HarpeError
        Naming the options.
    """
    size = options.longce_context
    if not size:
        return
    refuse_shared(f"--longce-context {size}", parts)
    for name, other in (("--document-mask", options.document_mask), ("--pose-length", options.pose_length)):
        if other not in ("none", 0):
            raise HarpeError(
                f"--longce-context {size} compares a text with its last tokens alone, and {name} {other} changes which "
                "tokens a text has before it. Leave one of them out."
            )
    if moving := moving_stage(stages):
        raise HarpeError(
            f"--longce-context {size}: rope type {moving} rotates short texts otherwise than long ones, so that losses "
            "behind them tell nothing of the context. Leave it out, or take another method."
        )


def longce_notes(size: int) -> list[str]:
    """What there is to say of it, in sentences for the plan."""
    if not size:
        return []
    return [
        f"LongCE (arXiv 2410.23771): the loss of a token is multiplied by how much more likely it is behind the whole "
        f"text than behind {size} tokens and up to {step_of(size) - 1} more, {MOST:g} times at most. The losses that "
        "are logged are these."
    ]


@torch.no_grad()
def token_weights(
    model: PreTrainedModel, ids: torch.Tensor, states: torch.Tensor, targets: torch.Tensor, short_context: int
) -> torch.Tensor:
    """LongCE's weights of the targets, float32 [B, S]; 1 where no window scores.

    Parameters
    ----------
    ids
        int64 [B, S], or [B, S + 1] where the last token is a target only.
    states, targets
        Last hidden states [B, S, W], and int64 [B, S]: the target of a position is the token after it, or -100.
    """
    long = token_nll(model, states.detach(), targets)
    rows = [short_context_nll(model, row, short_context, step_of(short_context)) for row in ids]
    short = torch.stack([F.pad(row, (0, 1), value=float("nan"))[: targets.shape[1]] for row in rows])
    return longce_weights(long, short)
