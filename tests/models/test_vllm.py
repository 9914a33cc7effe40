"""vLLM itself, on exported checkpoints of every family: its log-probabilities and tokens are those of transformers with
harpe.

Needs an environment with vLLM, which is not among harpe's: HARPE_VLLM_PYTHON names its Python. `scripts/vllm_check.py`
says how to make one for a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import harpe
from harpe.models.load import load_model

from .exported import environment, extended
from .tiny_families import FAMILIES, REPRESENTATIVES, bases_of, heads_of, tiny

PYTHON = os.environ.get("HARPE_VLLM_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="HARPE_VLLM_PYTHON does not name a Python with vLLM"),
]
SIZES = {"vocab_size": 128, "hidden_size": 128, "head_dim": 32, "intermediate_size": 128}
"""Heads of 32 are the smallest that vLLM's attention has for a CPU."""
ONE_SIZE = ("mixtral", "granitemoe", "olmoe")
"""Families without a size of experts of its own, which vLLM would read nevertheless."""
TOKENS = 12
PROMPTS = [torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 70, 400)]
"""Of unequal lengths: vLLM runs them behind one another, each with positions of its own."""
TWO_DEVICES = (*REPRESENTATIVES, "gemma2", "gpt_neox", "cohere", "qwen3_moe")
"""Split over two processes as well: layers of one and of two kinds, q, k and v in one weight, interleaved, experts.
(Not Phi-3: vLLM 0.32 fails on its stock model in the same way.)"""

ONE_TABLE = {"yarn": {}, "mrrope": {}, "by-parts": {"exponent": 2.0}, "abf": {"base": 3e5}}
"""Methods whose exports are stock checkpoints, which vLLM's own models read, with its own RoPE."""


def small(family: str) -> PreTrainedModel:
    """A random model of heads large enough for vLLM."""
    sizes = {**SIZES, "moe_intermediate_size": None} if family in ONE_SIZE else SIZES
    model = tiny(family, **sizes)
    model.set_attn_implementation("eager")
    return model


def expected(model: PreTrainedModel) -> dict[str, Any]:
    """Log-probabilities of the prompts' tokens, and the tokens that follow, by transformers, one forward pass a
    token."""
    prompts, ids = [], []
    with torch.inference_mode():
        for prompt in PROMPTS:
            tokens = torch.tensor([prompt])
            for _ in range(TOKENS):
                logits = model(input_ids=tokens, use_cache=False).logits.float()
                tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), 1)
            scores = logits.log_softmax(-1)[0, : len(prompt) - 1]
            prompts.append(scores.gather(1, tokens[0, 1 : len(prompt), None])[:, 0])
            ids.append(tokens[0, len(prompt) :].tolist())
    return {"prompts": prompts, "ids": ids}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What vLLM answered and what is expected, for every family, for some on two devices, and for the trained model."""
    root = tmp_path_factory.mktemp("vllm")
    models: dict[str, dict[str, Any]] = {}
    truth: dict[str, Any] = {}

    def add(name: str, model: PreTrainedModel, stock: PreTrainedModel) -> None:
        truth[name] = {"harpe": expected(model), "stock": expected(stock)}
        harpe.export(model, root / name)
        models[name] = {"trust_remote_code": True, "max_model_len": 512, "enforce_eager": True}

    for family in FAMILIES:
        add(family, extended(model := small(family), bases_of(model)), small(family))
    trained = load_model("embedded")
    spread = [2e4 + 3e5 * head for head in range(heads_of(trained))]
    add("trained", extended(trained, spread, 2048).float(), load_model("embedded").float())
    for method, settings in ONE_TABLE.items():
        add(
            method, harpe.apply(load_model("embedded"), method, length=2048, **settings).float(), load_model("embedded")
        )
        models[method] |= {"model_impl": "vllm", "trust_remote_code": False}
    models["compiled"] = {**models["llama"], "folder": "llama", "enforce_eager": False}
    for family in TWO_DEVICES:
        models[f"{family}-2"] = {
            **models[family],
            "folder": family,
            "tensor_parallel_size": 2,
            "distributed_executor_backend": "mp",
        }
    (root / "questions.json").write_text(json.dumps({"prompts": PROMPTS, "tokens": TOKENS, "models": models}))
    command = [str(PYTHON), str(Path(__file__).with_name("ask_vllm.py")), str(root)]
    done = subprocess.run(command, env=environment(root / "home"), capture_output=True, text=True, check=False)
    if "HARPE_VLLM_LOG" in os.environ:
        Path(os.environ["HARPE_VLLM_LOG"]).write_text(done.stdout + done.stderr)
    assert (root / "answers.json").exists(), done.stderr[-3000:]
    answers = json.loads((root / "answers.json").read_text())
    if "HARPE_VLLM_ANSWERS" in os.environ:
        Path(os.environ["HARPE_VLLM_ANSWERS"]).write_text(json.dumps(answers))
    return answers, truth


def furthest(answer: dict[str, Any], truth: dict[str, Any]) -> float:
    """The largest difference of a prompt token's log-probability."""
    return max(
        float((torch.tensor(a) - b).abs().max()) for a, b in zip(answer["prompts"], truth["prompts"], strict=True)
    )


@pytest.mark.parametrize(
    "name", [*FAMILIES, "trained", "compiled", *ONE_TABLE, *(f"{family}-2" for family in TWO_DEVICES)]
)
def test_vllm_gives_the_log_probabilities_and_tokens_of_transformers(
    told: Any, name: str, record_property: Any
) -> None:
    answers, truth = told
    answer, own = answers[name], truth["llama" if name == "compiled" else name.removesuffix("-2")]
    assert "error" not in answer, answer["error"]
    apart, power = furthest(answer, own["harpe"]), furthest(answer, own["stock"])
    record_property("apart", apart)
    record_property("power", power)
    assert apart <= 2e-3
    assert power >= 20 * apart, "bases that were left out would not have been noticed"
    assert answer["ids"] == own["harpe"]["ids"]
