"""Tables of frequencies for the study of heads: learned for all heads together, by layer and by head, in one way.

    python scripts/learn_tables.py embedded --length 4096 --out recipes/tables

Starts are MrRoPE's, weights are frozen, texts are training texts, and half of the objective is the answers of needle
samples in such texts. Every file says how it was made. The method `tables` reads them (recipes/head-study-16x.yaml).
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from harpe.attention_heads.copying import copy_prompts
from harpe.attention_heads.learned import learn_tables
from harpe.cli.terminal import Terminal
from harpe.data.special_tokens import reading_tokenizer
from harpe.evaluation.needles.samples import NeedleWriter
from harpe.methods.parts import mrrope
from harpe.methods.tables import write_tables
from harpe.models.dtype import choose_dtype
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model, load_tokenizer
from harpe.runs.texts import training_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = reading_tokenizer(load_tokenizer(args.model), True)
    ids, texts = training_ids(args.data, tokenizer, "text", 400 * args.length)
    long = list(islice((each for each in ids if len(each) >= args.length), args.steps))
    dtype, _ = choose_dtype()
    for level in ("shared", "layer", "head"):
        file = args.out / f"{args.length}-{level}.json"
        if file.exists():
            continue
        model = load_model(args.model)
        geometry = read_geometry(model.config, args.model)
        start = mrrope(geometry, args.length)[-1].encoding
        prompts = copy_prompts(NeedleWriter(tokenizer, long, args.seed + 1000), args.length, args.steps)
        found = learn_tables(
            model,
            long,
            start,
            geometry,
            args.length,
            level=level,
            steps=args.steps,
            factors=True,
            prompts=prompts,
            seed=args.seed,
            dtype=dtype,
            reporter=Terminal(),
        )
        losses = [round(loss, 4) for loss in found.losses]
        made = {"level": level, "start": "mrrope", "steps": args.steps, "texts": texts, "losses": losses}
        write_tables(file, found.encoding, geometry, **made, sequences=len(long), prompts=len(prompts), dtype=dtype)


if __name__ == "__main__":
    main()
