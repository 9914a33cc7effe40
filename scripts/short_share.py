"""What a model forgets of short conversations while it trains on long texts, with and without a share of them.

    python scripts/short_share.py CHECKPOINT --long TEXTS --held-out TEXTS --questions FILE --out runs/share --result
    benchmarks/DATE-short-share

The checkpoint answers the questions (JSON lines, field `question`) itself, greedily; its answers to the first ones are
held out, those to the others are the conversations that are mixed in. So that nothing is new to it in them, and what is
measured is what training changes. Every share is trained with every seed on as many tokens. Measured are the loss on
the held-out answers, how long an answer stays the same word for word, and the loss on the beginnings of held-out texts.
Whatever is in --out is not done again.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import harpe
from harpe.data.sources import read_documents
from harpe.files import append_jsonl, read_jsonl, write_json, write_jsonl, write_text
from harpe.models.load import load_model, load_tokenizer

ANSWER, HELD_OUT, BEGINNING, BATCH = 96, 32, 1024, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--long", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--original-length", type=int, help="take the checkpoint for one of a shorter context")
    parser.add_argument("--tokens", type=int, default=49152)
    parser.add_argument("--base", type=float, default=1e6, help="of all heads: larger than the checkpoint's")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chats = answered(args)
    write_jsonl(args.out / "mixed.jsonl", chats[HELD_OUT:])
    texts = [document.text for document in read_documents(args.held_out)]
    rows = read_jsonl(args.out / "rows.jsonl") if (args.out / "rows.jsonl").is_file() else []
    done = {(row["share"], row["seed"]) for row in rows}
    for share, seed in [(None, None), *((share, seed) for seed in args.seeds for share in args.shares)]:
        if (share, seed) not in done:
            model = args.checkpoint if share is None else trained(args, share, seed)
            row = {"share": share, "seed": seed, **measured(model, chats[:HELD_OUT], texts)}
            append_jsonl(args.out / "rows.jsonl", row)
            rows.append(row)
    write_result(args, chats, rows)


def answered(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Conversations of a question and the checkpoint's answer, of those that it answers to the end."""
    file = args.out / "chats.jsonl"
    if file.is_file():
        return read_jsonl(file)
    model, tokenizer = load_model(args.checkpoint), load_tokenizer(args.checkpoint)
    questions = [row["question"] for row in read_jsonl(Path(args.questions))]
    pairs = zip(questions, answer(model, tokenizer, questions), strict=True)
    whole = [(question, text) for question, (text, ended) in pairs if text and ended]
    write_jsonl(file, ({"messages": [_turn("user", q), _turn("assistant", a)]} for q, a in whole))
    return read_jsonl(file)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@torch.no_grad()
def answer(model: Any, tokenizer: PreTrainedTokenizerBase, questions: list[str]) -> list[tuple[str, bool]]:
    """Greedy answers, and whether each came to its end."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    answers = []
    for i in range(0, len(questions), BATCH):
        turns = [[_turn("user", question)] for question in questions[i : i + BATCH]]
        prompts = [tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in turns]
        batch: Any = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        made: Any = model.generate(**batch, max_new_tokens=ANSWER, do_sample=False)
        for ids in made[:, batch["input_ids"].shape[1] :]:
            text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
            answers.append((text, tokenizer.eos_token_id in ids.tolist()))
    return answers


def trained(args: argparse.Namespace, share: float, seed: int) -> str:
    """The model of a share and a seed."""
    data, run = args.out / f"data-{share:g}-{seed}", args.out / f"run-{share:g}-{seed}"
    mixed: dict[str, Any] = {
        "short_data": str(args.out / "mixed.jsonl"),
        "short_share": share,
        "short_chat": "messages",
        "max_copies": 4,
    }
    if not (data / "index.json").is_file():
        options: dict[str, Any] = mixed if share else {}
        harpe.prepare(
            args.long,
            args.checkpoint,
            args.length,
            data,
            tokens=args.tokens,
            seed=seed,
            **options,
        )
    if not (run / "abf" / "model").is_dir():
        harpe.extend(
            args.checkpoint,
            args.length,
            str(data),
            run,
            method="abf",
            base=args.base,
            tokens=args.tokens,
            seed=seed,
            learning_rate=args.learning_rate,
            original_length=args.original_length,
            resume=(run / "abf").exists(),
        )
    return str(run / "abf" / "model")


@torch.no_grad()
def measured(name: str, chats: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """The three figures of a model, and its answers."""
    model, tokenizer = load_model(name), load_tokenizer(name)
    losses, same = [], []
    questions = [chat["messages"][0]["content"] for chat in chats]
    answers = [text for text, _ in answer(model, tokenizer, questions)]
    for chat, text in zip(chats, answers, strict=True):
        prompt = tokenizer.apply_chat_template(chat["messages"][:1], tokenize=False, add_generation_prompt=True)
        whole = str(tokenizer.apply_chat_template(chat["messages"], tokenize=False)).rstrip("\n")
        begin = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        losses.append(_loss(model, tokenizer(whole, add_special_tokens=False)["input_ids"], begin))
        theirs, ours = chat["messages"][1]["content"].split(), text.split()
        equal = [a == b for a, b in zip(theirs, ours, strict=False)]
        same.append((equal.index(False) if False in equal else len(equal)) / len(theirs))
    beginnings = [tokenizer(text[: 8 * BEGINNING], add_special_tokens=False)["input_ids"][:BEGINNING] for text in texts]
    text_loss = float(np.mean([_loss(model, ids, 1) for ids in beginnings]))
    return {
        "answer_loss": float(np.mean(losses)),
        "same": float(np.mean(same)),
        "text_loss": text_loss,
        "answers": answers[:4],
    }


def _loss(model: PreTrainedModel, ids: list[int], begin: int) -> float:
    """Mean loss of the tokens from `begin` on, in nats."""
    tokens = torch.tensor([ids])
    return float(F.cross_entropy(model(tokens).logits[0, begin - 1 : -1].float(), tokens[0, begin:]))


def write_result(args: argparse.Namespace, chats: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    ways = [None, *args.shares]
    lines = [
        f"# A share of short conversations in the long stream ({datetime.date.today()})",
        "",
        f"{Path(args.checkpoint).name}, {args.tokens:,} tokens in sequences of {args.length:,} at a learning rate of "
        f"{args.learning_rate:g}, base {args.base:g} for all heads, {len(args.seeds)} seeds: mean (lowest to highest).",
        f"Conversations: the checkpoint's own greedy answers to {len(chats) - HELD_OUT} questions. Measured on those",
        f"to {HELD_OUT} others: the loss on them, the share of their words that come before an answer differs, and the",
        f"loss on the first {BEGINNING:,} tokens of held-out texts.",
        "",
        "| share | loss, answers | the same | loss, texts |",
        "|---|---|---|---|",
    ]
    for share in ways:
        of = [row for row in rows if row["share"] == share]
        cells = []
        for key in ("answer_loss", "same", "text_loss"):
            values = [row[key] for row in of]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append(f"| {'untouched' if share is None else f'{share:.0%}'} | {' | '.join(cells)} |")
    lines += ["", "The beginning of answers, of the first seed:", ""]
    for n in range(4):
        lines += [f"* {chats[n]['messages'][0]['content']}"]
        for share in ways:
            text = next(row for row in rows if row["share"] == share)["answers"][n]
            lines.append(f"  * {'untouched' if share is None else f'{share:.0%}'}: {' '.join(text.split())[:200]}")
    write_text(args.result.with_suffix(".md"), "\n".join([*lines, "", "Made by `scripts/short_share.py`.", ""]))
    write_json(
        args.result.with_suffix(".json"), {"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows}
    )


if __name__ == "__main__":
    main()
