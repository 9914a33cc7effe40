"""Make the embedded base model from nothing: tokenizer, training, evaluation, model card.

    python scripts/make_base_model.py --out build/base-model

The text is the standard library of the interpreter that runs the script (files that are not held out, see
`harpe.data.embedded`), the rest are generated drills (`base_model_drills.py`). With the same interpreter, package
versions, seed and thread count the result is the same. A killed run goes on from its last checkpoint when started
again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from base_model_drills import KINDS, DrillWriter, Mixture
from harpe.data.embedded import corpus_hash, training_files, tuning_files
from harpe.evaluation.needles.answers import answer_samples
from harpe.evaluation.needles.samples import KEYS, NEEDLE_TASKS, NeedleWriter

CONTEXT, BASE, VOCABULARY = 256, 10_000.0, 2048
# (until this step, tokens a document, shares of the drills). Copying in short documents comes first: key look-up is
# built from it. With learning rates above 0.005 (Muon) attention saturates in the first hundreds of steps, and neither
# is ever learned.
PHASES = (
    (312, CONTEXT // 4, Mixture(pool=0.5)),
    (728, CONTEXT // 2, Mixture(pool=0.3, lookup=0.2, mention=0.2)),
    (750, CONTEXT, Mixture(pool=0.15, lookup=0.25, listing=0.1, mention=0.15)),
    (1150, CONTEXT // 2, Mixture(copy=0.3, lookup=0.25, mention=0.2)),
    (1500, CONTEXT, Mixture(copy=0.15, lookup=0.3, listing=0.1, mention=0.15)),
    (2800, CONTEXT, Mixture(copy=0.05, lookup=0.25, listing=0.25, mention=0.1)),
)
STEPS = PHASES[-1][0]
END_OF_TEXT = "<|endoftext|>"
PACKAGES = ("stdlib",)


def make_tokenizer(texts: list[str], seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1920 pieces learned on the texts, plus one token for each needle key; numbers in pairs of
    digits."""
    tokenizer = Tokenizer(models.BPE())
    pairs = pre_tokenizers.Split(Regex(r" ?\d{1,2}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pairs, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(seed)
    numbers = "".join(f"\n# magic number: {value:04d}\n" for value in rng.integers(0, 10_000, 80_000))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(KEYS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, numbers], trainer)
    tokenizer.add_tokens([AddedToken(f" {key}", normalized=False) for key in KEYS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(seed: int) -> LlamaForCausalLM:
    """3.6M parameters: width 256, 4 layers, 8 heads of 32, tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=672,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attention_dropout=0.0,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * config.num_hidden_layers) ** 0.5
            torch.nn.init.normal_(parameter, 0, std)
    return model


def retrieval(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, hay: list[list[int]], count: int, length: int
) -> dict[str, float]:
    """Mean score of each needle task at a length."""
    writer = NeedleWriter(tokenizer, hay, seed=1)
    samples = [s for task in NEEDLE_TASKS.values() for s in writer.samples(task, length, count)]
    records = [record for batch in answer_samples(model, tokenizer, samples) for record in batch]
    return {name: float(np.mean([r["score"] for r in records if r["task"] == name])) for name in NEEDLE_TASKS}


def optimizers(model: LlamaForCausalLM, muon_lr: float, adam_lr: float) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)


def one_step(
    model: LlamaForCausalLM,
    of: Sequence[torch.optim.Optimizer],
    rates: Sequence[float],
    ids: np.ndarray,
    weights: np.ndarray,
) -> list[float]:
    """One step on documents of n + 1 tokens; the mean loss of each document, in nats, weighted."""
    x, target, weight = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]), torch.from_numpy(weights[:, 1:])
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x, use_cache=False).logits
    losses = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    losses = losses * weight
    (losses.sum() / weight.sum()).backward()
    for optimizer, rate in zip(of, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return (losses.sum(1) / weight.sum(1)).tolist()


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    files = training_files(PACKAGES)
    tokenizer = make_tokenizer([f.text for f in files], args.seed)
    tokenizer.save_pretrained(args.out)
    texts = [np.array(tokenizer(f.text).input_ids, np.int64) for f in files]
    hay = [tokenizer(f.text, add_special_tokens=False).input_ids for f in tuning_files(PACKAGES)]
    drills = DrillWriter(tokenizer, texts)
    model = make_model(args.seed)
    muon, adam = optimizers(model, args.muon_lr, args.adam_lr)
    first, state = 0, args.out / "training-state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        first = saved["step"]
    print(
        f"{sum(map(len, texts))} tokens in {len(files)} files, corpus {corpus_hash(files)[:16]}; steps "
        f"{first}..{STEPS}",
        flush=True,
    )
    began = time.time()
    recent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in range(first, STEPS):
        share = step / STEPS
        _, length, mixture = next(phase for phase in PHASES if step < phase[0])
        rate = min(1, (step + 1) / 50) * (1 if share < 0.5 else max(0.02, (1 - share) / 0.5))
        ids, weights, kinds = drills.batch(
            np.random.default_rng([args.seed, step]), args.tokens // length, length + 1, mixture
        )
        rates = (args.muon_lr * rate, args.adam_lr * rate)
        losses = one_step(model, (muon, adam), rates, ids, weights)
        for i, kind in enumerate(kinds):
            recent[kind].append(losses[i])
        if (step + 1) % 50 == 0:
            means = " ".join(f"{kind} {np.mean(values):.3f}" for kind, values in recent.items() if values)
            speed = args.tokens * (step + 1 - first) / (time.time() - began)
            print(f"step {step + 1} {means}; {speed:.0f} tokens/s", flush=True)
            recent = {kind: [] for kind in KINDS}
        if (step + 1) % args.save_every == 0 or step + 1 == STEPS:
            torch.save(
                {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "step": step + 1},
                f"{state}.new",
            )
            Path(f"{state}.new").replace(state)
            with torch.autocast("cpu", torch.bfloat16):
                scores = retrieval(model, tokenizer, hay, 48, CONTEXT)
            print(f"step {step + 1} " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
    model.bfloat16().save_pretrained(args.out)
    facts = {
        "steps": STEPS,
        "tokens": STEPS * args.tokens,
        "tokens_per_step": args.tokens,
        "seed": args.seed,
        "threads": args.threads,
        "learning_rates": {"muon": args.muon_lr, "adamw": args.adam_lr},
        "corpus": corpus_hash(files),
        "corpus_files": len(files),
        "corpus_tokens": int(sum(map(len, texts))),
        "phases": [
            {"until_step": end, "tokens_per_document": length, **vars(mixture)} for end, length, mixture in PHASES
        ],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "needles": {
            str(n): retrieval(model.float(), tokenizer, hay, count, n)
            for n, count in ((CONTEXT, 200), (2 * CONTEXT, 100), (2048, 50))
        },
    }
    (args.out / "making.json").write_text(json.dumps(facts, indent=2) + "\n")
    (args.out / "README.md").write_text(card(facts))
    print(card(facts))


def card(facts: dict[str, Any]) -> str:
    """The model card."""
    rows = "\n".join(
        f"| {length} | " + " | ".join(f"{100 * scores[name]:.1f}%" for name in NEEDLE_TASKS) + " |"
        for length, scores in facts["needles"].items()
    )
    return f"""# harpe's embedded base model

A Llama-architecture model of 3.6M parameters (width 256, 4 layers, 8 heads of 32, tied embeddings,
byte-level BPE of {VOCABULARY}),
trained with a context of {CONTEXT} tokens and RoPE base {BASE:,.0f}. It exists to show context extension
in minutes on a CPU: it continues
Python text a little and retrieves numbers by key within its context. It is of no other use.

* Made by `scripts/make_base_model.py` (`make base-model`): {facts["steps"]} steps of {facts["tokens_per_step"]} tokens,
  {facts["tokens"]:,} in all, seed {facts["seed"]}; Muon for the matrices, AdamW for the rest.
  `making.json` has every setting.
* Data: the standard library of CPython {facts["versions"]["python"]} ({facts["corpus_files"]} files,
  {facts["corpus_tokens"]:,} tokens;
  none whose SHA-256 begins with 0 or 1) and generated drills (`scripts/base_model_drills.py`).
* Licence: Apache-2.0. The text it was trained on is under the PSF licence.

Needles, answers generated, haystacks from standard-library files that it was not trained on (200, 100 and
50 samples a task):

| tokens | {" | ".join(NEEDLE_TASKS)} |
|---|{"---|" * len(NEEDLE_TASKS)}
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--muon-lr", type=float, default=0.004)
    parser.add_argument("--adam-lr", type=float, default=0.002)
    parser.add_argument("--save-every", type=int, default=250)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
