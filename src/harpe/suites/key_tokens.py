"""`harpe perplexity --key-tokens`: who judges, and what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.data.special_tokens import reading_tokenizer
from harpe.data.token_ids import begin_ids
from harpe.errors import HarpeError
from harpe.evaluation.identity import identity_of
from harpe.evaluation.perplexity.key_tokens import JudgeText, judge_text, judged, keys_by_characters
from harpe.models.head import check_head
from harpe.models.key_tokens import ALPHA, BETA, step_of
from harpe.models.load import load_config, load_model, load_tokenizer, to_accelerator
from harpe.models.vocabulary import check_vocabulary
from harpe.options.measuring import PerplexityOptions


@dataclass(frozen=True)
class Judge:
    """Says which tokens need the long context. Plain values, which the first process tells the others."""

    name: str | None
    """Of a checkpoint; None: the model itself."""
    short_context: int
    begin: int
    """Ids that the model reads in front of a text."""
    longest: int
    """Tokens that documents are cut to."""
    identity: dict[str, Any]
    """What it is by content, and what it is asked."""
    texts: list[JudgeText] | None
    """Of every document, where the judge's tokenizer is another one."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the file."""
        published = {"alpha": ALPHA, "beta": BETA, "step": step_of(self.short_context)}
        return {
            "judge": Path(self.name).name if self.name else "the model itself",
            "short_context": self.short_context,
            **published,
        }

    def found(self, value: dict[str, Any]) -> str:
        """What was measured, in a sentence."""
        last = value["points"][-1]
        behind = f"of the tokens behind the first {self.short_context:,}"
        if last["perplexity"] is None:
            return f"None {behind} needs the long context: there is no LongPPL."
        shown = f"{last['perplexity']:.4g} ({last['low']:.4g} to {last['high']:.4g})"
        return (
            f"LongPPL at {self.longest:,} tokens: {shown}, on {last['count']:,} key tokens, {value['share']:.2%} "
            f"{behind}."
        )

    def load(self, model: PreTrainedModel) -> PreTrainedModel:
        """The judge, ready to read."""
        if self.name is None:
            return model
        return to_accelerator(check_head(load_model(self.name, torch.float32), self.name)).eval()

    def keys(self, judge: PreTrainedModel, number: int, row: Sequence[int], losses: np.ndarray) -> np.ndarray:
        """Which tokens of a document need the long context: bool [longest - 1], entry p for token p + 1 of `row`.

        `losses` are the model's own, of the document cut to the longest length.
        """
        if self.texts is None:
            return judged(judge, row[: self.longest], self.short_context, losses if self.name is None else None)
        text = self.texts[number]
        return keys_by_characters(text, judged(judge, text.ids, self.short_context), self.begin)


def check_key_tokens(options: PerplexityOptions, lengths: list[int]) -> None:
    """HarpeError for options that do not go together, and for a short context that is none."""
    if not options.key_tokens:
        if options.judge is not None:
            raise HarpeError("--judge says which tokens --key-tokens measures; give both, or neither.")
        return
    if not lengths:
        raise HarpeError(
            "--key-tokens goes with --lengths: documents are read from their start, and not in a --window."
        )
    if options.average != "tokens":
        raise HarpeError("--key-tokens averages over tokens, as published; leave --average yarn out.")
    if not 1 <= options.short_context < lengths[-1]:
        raise HarpeError(
            f"--short-context {options.short_context}: key tokens have more than that before them, and --lengths ends "
            f"at {lengths[-1]}. Give a longer length, or a shorter context."
        )


def planned_judge(
    options: PerplexityOptions,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Sequence[int]],
    longest: int,
    begin: Sequence[int],
) -> Judge | None:
    """The judge that `options` ask for; None where key tokens are not. `documents` are without `begin`."""
    if not options.key_tokens:
        return None
    asked = {"short_context": options.short_context, "step": step_of(options.short_context)}
    if options.judge is None:
        return Judge(None, options.short_context, len(begin), longest, asked, None)
    own = load_tokenizer(options.judge)
    check_vocabulary(load_config(options.judge), own, options.judge)
    identity, model = identity_of(options.judge, None, own), identity_of(options.judge, None, tokenizer)
    texts = None
    if identity["tokenizer"] != model["tokenizer"]:
        readers = [reading_tokenizer(each, options.split_special_tokens) for each in (tokenizer, own)]
        size = longest - len(begin)
        texts = [judge_text(readers[0], ids, size, readers[1], begin_ids(own)) for ids in documents]
    by_content = {key: value for key, value in identity.items() if key != "name"}
    return Judge(options.judge, options.short_context, len(begin), longest, asked | by_content, texts)
