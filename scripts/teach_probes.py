"""Teach the embedded model, inside its context of 256 tokens, what the probes of order and content ask.

    python scripts/teach_probes.py --out build/probe-model

It can look numbers up by key and list them, and was never asked for the last or the j-th of several values, nor for
one of keys that differ in a letter. Lessons are samples of `harpe long` (order-last-4, order-nth-4, content-4) by other
seeds than the probes', in RULER's noise and in lines of training files; the old drills and texts go on beside them, so
that nothing else is forgotten. `recipes/head-study-16x-probes.yaml` extends the result. A killed run starts anew.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from base_model_drills import ANSWER_WEIGHT, Document, DrillWriter, Mixture
from harpe.data.embedded import training_files
from harpe.evaluation.long.filler import Filler, noise
from harpe.evaluation.long.generate import samples
from harpe.evaluation.long.registry import LONG_TASKS
from harpe.evaluation.long.task import AtLength
from harpe.files import write_json
from harpe.models.load import load_model, load_tokenizer
from make_base_model import CONTEXT, PACKAGES, one_step, optimizers

TASKS = ("order-last-4", "order-nth-4", "content-4")
SHORTEST = 200
"""Tokens of a lesson at least."""
SHARE = 0.6
OTHERS = Mixture(copy=0.05, lookup=0.3, listing=0.25, mention=0.1)
"""Of what is not a lesson; the rest is text."""


class Lessons:
    """Samples of the probes as documents."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str], seed: int) -> None:
        self.tokenizer, self.seed, self.drawn = tokenizer, seed, 0
        self.fillers = (noise(), Filler([line for text in texts for line in text.splitlines()]))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def lesson(self, rng: np.random.Generator, n: int, behind: Document) -> Document:
        """A sample with its answer, and text behind it; n tokens."""
        task = LONG_TASKS[TASKS[int(rng.integers(len(TASKS)))]]
        length = int(rng.integers(SHORTEST, n))
        self.drawn += 1
        # The probes are drawn by "SEED TASK INDEX" with a number for SEED
        (sample,) = samples(
            AtLength(task, length),
            1,
            f"lesson {self.seed} {self.drawn}",  # type: ignore[arg-type]
            lambda text: len(self.ids(text)),
            self.fillers[int(rng.integers(2))],
            begin=1,
        )
        asked = self.tokenizer(sample["input"] + sample["answer_prefix"]).input_ids
        answer = self.ids(sample["answer"])
        ids = [*asked, *answer, *self.ids(".\n"), *behind[0]][:n]
        weights = [1.0] * len(asked) + [ANSWER_WEIGHT] * len(answer)
        return np.array(ids, np.int64), np.array(weights + [1.0] * (n - len(weights)), np.float32)


def teach(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    tokenizer, model = load_tokenizer("embedded"), load_model("embedded").float()
    texts = [file.text for file in training_files(PACKAGES)]
    drills = DrillWriter(tokenizer, [np.array(tokenizer(text).input_ids, np.int64) for text in texts])
    lessons = Lessons(tokenizer, texts, args.seed)
    muon_adam = optimizers(model, args.muon_lr, args.adam_lr)
    began, n = time.time(), CONTEXT + 1
    recent: dict[str, list[float]] = {"lessons": [], "others": []}
    for step in range(args.steps):
        rng = np.random.default_rng([args.seed, step])
        ids, weights, _ = drills.batch(rng, args.tokens // CONTEXT, n, OTHERS)
        count = round(SHARE * len(ids))
        for row in range(count):
            ids[row], weights[row] = lessons.lesson(rng, n, drills.text(rng, n))
        rate = min(1, (step + 1) / 50, max(0.02, (1 - step / args.steps) / 0.5))
        losses = one_step(model, muon_adam, (args.muon_lr * rate, args.adam_lr * rate), ids, weights)
        recent["lessons"].append(float(np.mean(losses[:count])))
        recent["others"].append(float(np.mean(losses[count:])))
        if (step + 1) % 50 == 0:
            said = " ".join(f"{name} {np.mean(values[-50:]):.3f}" for name, values in recent.items())
            scores = "" if (step + 1) % 250 else " " + str(known(model, tokenizer, args.seed))
            print(f"step {step + 1}: {said}{scores}; {time.time() - began:.0f} s", flush=True)
    model.bfloat16().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    facts = {"steps": args.steps, "tokens": args.steps * args.tokens, "seed": args.seed, "share": SHARE}
    write_json(args.out / "making.json", {**facts, "known": known(model.float(), tokenizer, args.seed + 1)})


@torch.no_grad()
def known(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, seed: int, count: int = 64) -> dict[str, float]:
    """The share of answers whose every token is the likeliest, by task, in noise of the model's context."""
    model.eval()
    found = {}
    for name in TASKS:
        of = AtLength(LONG_TASKS[name], CONTEXT)
        right = []
        counted = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
        for sample in samples(of, count, seed, counted, noise(), begin=1):
            asked = tokenizer(sample["input"] + sample["answer_prefix"]).input_ids
            answer = tokenizer(sample["answer"], add_special_tokens=False).input_ids
            logits = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
            right.append(logits.argmax(-1).tolist() == answer)
        found[name] = float(np.mean(right))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--muon-lr", type=float, default=0.002)
    parser.add_argument("--adam-lr", type=float, default=0.001)
    teach(parser.parse_args())


if __name__ == "__main__":
    main()
