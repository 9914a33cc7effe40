"""Tokens that need the long context: how much worse a model predicts them behind a short one.

LongPPL and LongCE (Fang et al. 2025, arXiv 2410.23771, sections 3 and 4; program: PKU-ML/LongPPL at 1decd2a). With
loss_long of a token behind the whole text before it and loss_short of the same token behind a window of it, the
long-short difference LSD = loss_short - loss_long says what the long context tells, and the long-context likelihood
LCL = -loss_long whether it is told then.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from harpe.models.angles import start_anew
from harpe.models.head import hidden_states, token_nll

SHORT_CONTEXT = 4096
"""K: tokens of the short context, at least."""
ALPHA = 2.0
"""The LSD of a key token is above it, in nats."""
BETA = -2.0
"""And its LCL above this one."""
MOST = 5.0
"""LongCE's largest weight."""


def step_of(short_context: int) -> int:
    """Tokens that share a short context: a quarter of it, 1,024 of 4,096 as published."""
    return max(1, short_context // 4)


@torch.no_grad()
def short_context_nll(model: PreTrainedModel, ids: torch.Tensor, short_context: int, step: int) -> torch.Tensor:
    """-log p of every next token behind a short context: float32 [S - 1] in nats, for ids int64 [S].

    Windows begin at 0, `step`, 2 `step`, … tokens, each read as a text of its own; a window scores the `step` tokens
    behind its first `short_context`, the last one those that are left. So a token has from `short_context` to
    `short_context` + `step` - 1 tokens before it. As in the published program no window but the first begins with BOS.

    Entry p is of token p + 1; nan for the first `short_context` - 1, which no window scores.
    """
    row = ids.to(model.device)[None]
    size = row.shape[1]
    losses = torch.full((size - 1,), float("nan"), device=row.device)
    for start in range(0, size - short_context, step):
        window = row[:, start : start + short_context + step]
        start_anew(model)
        states = hidden_states(model, window)[:, short_context - 1 : -1]
        scored = token_nll(model, states, window[:, short_context:])[0]
        first = start + short_context - 1
        losses[first : first + len(scored)] = scored
    return losses


def key_tokens(long: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
    """Which tokens need the long context: bool, of losses in nats behind the long and the short context (nan: none)."""
    return (short - long > ALPHA) & (long < -BETA)


def longce_weights(long: torch.Tensor, short: torch.Tensor) -> torch.Tensor:
    """LongCE's weights of tokens in a training loss: min(e^LSD, 5), and 1 where there is no short context.

    The weights are constants: no gradient goes through them.
    """
    return torch.nan_to_num((short - long).detach().exp(), nan=1.0, posinf=MOST).clamp(max=MOST)
