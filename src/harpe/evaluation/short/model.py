"""lm-eval's model of transformers (HFLM) with texts, generation and memory of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harpe.data.token_ids import plain_ids, text_ids
from harpe.errors import HarpeError
from harpe.evaluation.greedy import continuations, numbers
from harpe.evaluation.short.record import Record

ENDS = {"until", "max_length", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
"""Settings of a task that say where an answer ends."""
DRAWING = {"temperature", "top_p", "top_k", "min_p", "use_cache"}
"""Those that say how one is drawn, where `do_sample` says that it is; and one that changes nothing."""

AT_ONCE = 32768
"""Tokens of prompts that are read together at most; a longer one is read by itself."""


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
    * forms logits for continuations alone: those of 128k tokens would take tens of GB;
    * notes in `cut` the contexts that lm-eval shortens: they lose their beginning where they are longer than the
      model's context;
    * reads from the record what is there, and adds what is not.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.models.utils_hf import stop_sequences_criteria

    class Ours(HFLM):
        cut: frozenset[str] = frozenset()

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

        def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
            lengths = [(min(len(ctx) + len(rest) - 1, self.max_length), len(rest)) for _, ctx, rest in requests]
            self._first = min((whole - rest for whole, rest in lengths), default=0)
            return list(super()._loglikelihood_tokens(requests, *args, **kwargs))

        def _model_call(self, inps: torch.Tensor, **_: Any) -> torch.Tensor:
            """Logits of the last places, from the first one on that is asked for; lm-eval counts them from the end."""
            with torch.no_grad():
                return numbers(self.model(inps, logits_to_keep=inps.shape[1] - self._first).logits)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._kept("loglikelihood", super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._kept("loglikelihood_rolling", super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            check_greedy(requests)
            return self._kept("generate_until", super().generate_until, requests, disable_tqdm)

        def _kept(self, kind: str, ask: Any, requests: list[Any], disable_tqdm: bool) -> list[Any]:
            sizes = self._sizes(kind, requests)

            def few(block: list[Any], disable_tqdm: bool) -> list[Any]:
                longest = max((min(sizes.get(str(r.args[0]), 1), self.max_length) for r in block), default=1)
                self.batch_size_per_gpu = max(1, min(options.get("batch_size", 1), AT_ONCE // longest))
                return list(ask(block, disable_tqdm=disable_tqdm))

            return record.complete(kind, few, requests) if record is not None else few(requests, disable_tqdm)

        def _sizes(self, kind: str, requests: list[Any]) -> dict[str, int]:
            """Tokens of every context, with the longest of its continuations; notes and tells which are cut."""
            if kind == "loglikelihood_rolling":  # in windows
                return {}
            rest: dict[str, Any] = {}
            for context, other in (request.args for request in requests):
                rest[context] = max(rest.get(context, other), other, key=len)
            sizes, cut = dict[str, int](), set[str]()
            for context, other in rest.items():
                if kind == "loglikelihood":
                    sizes[context], room = len(text_ids(self.tokenizer, context + other)), self.max_length + 1
                else:
                    answer = normalize_gen_kwargs(other, self.max_gen_toks)["max_gen_toks"]
                    sizes[context], room = len(text_ids(self.tokenizer, context)), self.max_length - answer
                if sizes[context] > room:
                    cut.add(context)
            self.cut |= cut
            if cut and record is not None:
                record.say(
                    f"{len(cut)} of {len(sizes)} questions are longer than the {self.max_length} tokens of the model's "
                    f"context, answer included (the longest has {max(sizes[each] for each in cut)}). As lm-eval does, "
                    "their beginning is cut off; scores without them are told too."
                )
            return sizes

    model = Ours(**options)
    if record is not None:
        model.set_cache_hook(record)
    return model
