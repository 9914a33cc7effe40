"""lm-eval's model of transformers (HFLM) with texts, generation and memory of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harpe.data.token_ids import plain_ids, text_ids
from harpe.errors import HarpeError
from harpe.evaluation.greedy import continuations
from harpe.evaluation.short.record import Record

ENDS = {"until", "max_length", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
"""Settings of a task that say where an answer ends."""
DRAWING = {"temperature", "top_p", "top_k", "min_p", "use_cache"}
"""Those that say how one is drawn, where `do_sample` says that it is; and one that changes nothing."""


def check_greedy(requests: Sequence[Any]) -> None:
    """Refuse requests whose answers would not be greedy: sampled, or found in any other way."""
    for settings in {str(request.args[1]): request.args[1] for request in requests}.values():
        odd = {
            key: v for key, v in settings.items() if key not in ENDS | DRAWING and (v is True or v not in (None, 0, 1))
        }
        if settings.get("do_sample") is None and float(settings.get("temperature") or 0):  # lm-eval draws then
            odd["temperature"] = settings["temperature"]
        if odd:
            told = ", ".join(f"{key} {value}" for key, value in odd.items())
            raise HarpeError(
                f"--tasks: one of them asks for generated answers that are not greedy ({told}), and harpe gives no "
                "others."
            )


def short_model(record: Record | None, **options: Any) -> Any:
    """An HFLM made with `options` that

    * begins texts as the tokenizer does, and never ends a prompt with end-of-text (`text_ids`);
    * generates with `continuations`, whatever the checkpoint's generation_config.json says;
    * reads from the record what is there, and adds what is not.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils_hf import stop_sequences_criteria

    class Ours(HFLM):
        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
        ) -> list[int]:
            ids = (plain_ids if add_special_tokens is False else text_ids)(self.tokenizer, string)
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            rows = [text_ids(self.tokenizer, string) for string in strings]
            width = max(map(len, rows))
            ids = torch.tensor([[self.tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            keep = left_truncate_len or width
            return ids[:, -keep:], mask[:, -keep:]

        def _model_generate(
            self, context: torch.Tensor, max_length: int, stop: list[str], *, attention_mask: torch.Tensor, **_: Any
        ) -> torch.Tensor:
            until = stop_sequences_criteria(self.tokenizer, stop, context.shape[1], context.shape[0])
            budget = max_length - context.shape[1]
            return torch.cat(
                [context, continuations(self.model, self.tokenizer, context, attention_mask, budget, until)], dim=1
            )

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._kept("loglikelihood", super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._kept("loglikelihood_rolling", super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            check_greedy(requests)
            return self._kept("generate_until", super().generate_until, requests, disable_tqdm)

        def _kept(self, kind: str, ask: Any, requests: list[Any], disable_tqdm: bool) -> list[Any]:
            return (
                record.complete(kind, ask, requests)
                if record is not None
                else list(ask(requests, disable_tqdm=disable_tqdm))
            )

    model = Ours(**options)
    if record is not None:
        model.set_cache_hook(record)
    return model
