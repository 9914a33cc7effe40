"""The overlap between the texts of an evaluation and what the evaluated model was trained on, where a run directory
knows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from harpe.data.overlap import NGRAM, count_overlap, unknown_overlap
from harpe.data.packed import PackedDataset
from harpe.data.token_ids import plain_ids, tokenizer_identity
from harpe.files import read_json, sha256_json, write_json
from harpe.ownership import is_ours, may_write
from harpe.reporter import Reporter

MOST_CHARACTERS = 2**26
"""Of prompts that are looked for: about 16M tokens, each of which takes about 70 bytes. All of RULER at 128k has fifty
times as many."""


class Texts(Protocol):
    """What is looked for in the training data; `harpe.evaluation.run.HeldOut` is one."""

    @property
    def haystacks(self) -> Sequence[Sequence[int]]:
        """Token ids without special tokens."""

    def identity(self) -> str:
        """SHA-256 that names the texts."""


class Prompts:
    """Prompts as they are asked, of several tasks in turn: the first of each, then the second of each, until there are
    enough of them.

    Parameters
    ----------
    tasks
        The prompts of every task; read no further than they are taken, and only where they are looked for.
    most
        Characters; behind them no further prompt is taken.
    """

    def __init__(
        self, tasks: Iterable[Iterable[str]], tokenizer: PreTrainedTokenizerBase, most: int = MOST_CHARACTERS
    ) -> None:
        self._tasks, self._tokenizer, self._most = tasks, tokenizer, most

    @cached_property
    def _texts(self) -> list[str]:
        taken: list[str] = []
        characters = 0
        for prompt in chain.from_iterable(zip_longest(*self._tasks)):
            if prompt is None:
                continue
            characters += len(prompt)
            if taken and characters > self._most:
                break
            taken.append(prompt)
        return taken

    @property
    def haystacks(self) -> list[list[int]]:
        special = set(self._tokenizer.all_special_ids)
        found = (plain_ids(self._tokenizer, text) for text in self._texts)
        return [[i for i in ids if i not in special] for ids in found]

    def identity(self) -> str:
        return sha256_json(self._texts)


def trained_on(model: str | Path) -> tuple[Path, list[Path]] | None:
    """The data folder of the run that trained a model, and the packed sets in it that this model read; None for any
    other checkpoint.

    A model lies in RUN/METHOD/model, or in RUN/METHOD/seed-S/model in a comparison, whose data are kept by seed.
    """
    path = Path(model).absolute()
    if path.name != "model" or not (path.parent / "stage-1").is_dir():
        return None
    for run, of in ((path.parent.parent, "*"), (path.parent.parent.parent, f"{path.parent.name}/*")):
        if (run / "plan.json").is_file():
            return run / "data", sorted(index.parent for index in (run / "data").glob(f"{of}/index.json"))
    return None


def training_overlap(
    model: str | Path, tokenizer: PreTrainedTokenizerBase, texts: Texts, reporter: Reporter
) -> dict[str, Any]:
    """For score files: the share of the texts' 13-grams of tokens that occur in the training stream of the model's run.

    `texts` in the result is the number of texts that were looked for. What the checkpoint had been trained on before
    the run is unknown, and not counted. The count is kept beside the data, in overlap.json.
    """
    found_in = trained_on(model)
    if found_in is None:
        return unknown_overlap("The texts that this checkpoint was trained on are not known.")
    kept, folders = found_in
    if not folders:
        return unknown_overlap(f"The training data are no longer in {kept}.")
    sets = [PackedDataset(folder) for folder in folders]
    identity = tokenizer_identity(tokenizer)
    if any(data.index["tokenizer"] != identity for data in sets):
        return unknown_overlap("The training data were tokenised by another tokenizer.")
    hashes = [data.hash for data in sets]
    path, key = folders[0].parent / "overlap.json", sha256_json([NGRAM, hashes, texts.identity()])
    counts: dict[str, Any] = read_json(path)["counts"] if is_ours(path) else {}
    if key not in counts:
        reporter.say(f"Looking for the texts in {sum(data.tokens for data in sets):,} tokens of training data.")
        haystacks = texts.haystacks
        found = count_overlap(haystacks, chain.from_iterable(data.blocks(before=NGRAM - 1) for data in sets))
        if found is None:
            return unknown_overlap(f"No text has {NGRAM} tokens.")
        counts[key] = {
            "ngram": NGRAM,
            "share": found.share,
            "grams": sum(found.grams),
            "texts": len(haystacks),
            "largest_share_of_a_text": max(n / of for n, of in zip(found.found, found.grams, strict=True) if of),
            "training_tokens": sum(data.tokens for data in sets),
            "training_hash": hashes[0] if len(hashes) == 1 else sha256_json(hashes),
        }
        if may_write(path):
            write_json(path, {"counts": counts})
    reporter.say(f"{counts[key]['share']:.2%} of the texts' {NGRAM}-grams occur in the training data of this run.")
    return dict(counts[key])
