"""The overlap between the texts of an evaluation and what the evaluated model was trained on, where a run directory knows it."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.overlap import NGRAM, count_overlap, unknown_overlap
from harpe.data.packing import PackedDataset, tokenizer_identity
from harpe.evaluation.run import HeldOut
from harpe.experiment.reporter import Reporter
from harpe.files import read_json, sha256_json, write_json


def trained_on(model: str | Path) -> tuple[Path, list[Path]] | None:
    """The data folder of the run that trained a model, and the packed sets in it that this model read; None for any other checkpoint.

    A model lies in RUN/METHOD/model, or in RUN/METHOD/seed-S/model in a comparison, whose data are kept by seed.
    """
    path = Path(model).absolute()
    if path.name != "model" or not (path.parent / "stage-1").is_dir():
        return None
    for run, of in ((path.parent.parent, "*"), (path.parent.parent.parent, f"{path.parent.name}/*")):
        if (run / "plan.json").is_file():
            return run / "data", sorted(index.parent for index in (run / "data").glob(f"{of}/index.json"))
    return None


def training_overlap(model: str | Path, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, reporter: Reporter) -> dict[str, Any]:
    """For score files: the share of the texts' 13-grams of tokens that occur in the training stream of the model's run.

    What the checkpoint had been trained on before the run is unknown, and not counted. The count is kept beside the
    data, in overlap.json.
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
    path, key = folders[0].parent / "overlap.json", sha256_json([NGRAM, hashes, held_out.identity()])
    counts: dict[str, Any] = read_json(path)["counts"] if path.is_file() else {}
    if key not in counts:
        reporter.say(f"Looking for the texts in {sum(data.tokens for data in sets):,} tokens of training data.")
        found = count_overlap(held_out.haystacks, chain.from_iterable(data.blocks(before=NGRAM - 1) for data in sets))
        if found is None:
            return unknown_overlap(f"No text has {NGRAM} tokens.")
        counts[key] = {
            "ngram": NGRAM,
            "share": found.share,
            "grams": sum(found.grams),
            "largest_share_of_a_text": max(n / of for n, of in zip(found.found, found.grams, strict=True) if of),
            "training_tokens": sum(data.tokens for data in sets),
            "training_hash": hashes[0] if len(hashes) == 1 else sha256_json(hashes),
        }
        write_json(path, {"counts": counts})
    reporter.say(f"{counts[key]['share']:.2%} of the texts' {NGRAM}-grams occur in the training data of this run.")
    return dict(counts[key])
