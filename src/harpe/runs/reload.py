"""Load a checkpoint in a process of its own (`harpe.distributed.child`) and answer one needle question.

Proof that what was saved is whole: nothing is shared with the process that trained it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from harpe.distributed.child import lifeline
from harpe.errors import HarpeError
from harpe.evaluation.needles.answers import answer_batch
from harpe.evaluation.needles.samples import NEEDLE_TASKS, NeedleWriter
from harpe.models.load import load_model, load_tokenizer
from harpe.runs.texts import EMBEDDED, held_out_texts


def main() -> None:
    path, length = sys.argv[1], int(sys.argv[2])
    tokenizer = load_tokenizer(path)
    held_out = held_out_texts(EMBEDDED, tokenizer, length, 8)
    sample = NeedleWriter(tokenizer, held_out.haystacks, seed=3).sample(NEEDLE_TASKS["single"], length, 0, 0.5)
    model = load_model(path, torch.float32).eval()
    text = answer_batch(model, tokenizer, [sample])[0][0]
    ids = [*sample.context, *sample.turns[0].question]
    asked = {"prompt": tokenizer.decode(ids[-96:]), "tokens": len(ids), "expected": sample.turns[0].answers[0]}
    print(json.dumps({**asked, "text": text}))


def reload_and_generate(path: str, length: int) -> dict[str, Any]:
    """What `main` prints, from a fresh process: prompt (its end), tokens, expected, text.

    Raises HarpeError when the process fails; its last line says why.
    """
    command = [sys.executable, "-m", "harpe.distributed.child", "harpe.runs.reload", path, str(length)]
    with lifeline() as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarpeError(f"{path} was saved but could not be loaded in a fresh process: {last}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))
