"""Exporting tiny models and asking a process without harpe about them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

import harpe
from harpe.positions import rotation

from .tiny_families import FAMILIES, bases_of, tiny, tiny_config

HERE = Path(__file__).parent


def extended(model: PreTrainedModel, bases: list[float] | None, length: int = 4096, **options: Any) -> PreTrainedModel:
    """The model with bases per head, or with one base where `bases` is None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if bases is None:
            return harpe.apply(model, "abf", length=length, base=5e5, **options)
        return harpe.apply(model, "harpe", length=length, bases=bases, **options)


def environment(home: Path) -> dict[str, str]:
    """An own cache of remote code, no network, no path to harpe."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    return {**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def ask(root: Path, questions: dict[str, dict[str, Any]], python: str = sys.executable) -> dict[str, Any]:
    """What a stranger's process answers about the checkpoints in `root`."""
    torch.save(questions, root / "questions.pt")
    command = [python, "-I", str(HERE / "stranger.py"), str(root), str(torch.get_num_threads())]
    done = subprocess.run(command, env=environment(root / "home"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(torch.load(root / "answers.pt", weights_only=True))


GENERATING = ("llama", "gemma2", "gemma3_text", "gpt_neox", "cohere")
SHORT = {
    name: torch.randint(3, 97, (1, n), generator=torch.Generator().manual_seed(n))
    for name, n in (("1", 1), ("7", 7), ("300", 300))
}
PADDED = {
    "input_ids": torch.tensor([[0, 0, 0, 5, 17, 33, 60, 8], [9, 4, 70, 71, 72, 11, 12, 13]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8]),
}
WIDE = 32 * 64
"""Angles a position of the model `wide`: 32 heads of 64 pairs."""
TILE = 2 * rotation.TILE // (2 * WIDE * 2)
"""Tokens of it in a tile of two threads; there are two dimensions in a pair, and as many keys as queries."""
LONG = {
    str(n): torch.randint(3, 97, (1, n), generator=torch.Generator().manual_seed(n))
    for n in (TILE - 1, TILE + 1, rotation.HELD_ANGLES // WIDE, rotation.HELD_ANGLES // WIDE + 1)
}
"""Lengths around one tile, and around the greatest that is held as cos and sin (above it: positions and steps)."""


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return {name: model(input_ids=ids, use_cache=False).logits for name, ids in inputs.items()}


def prepared(family: str, **changes: Any) -> PreTrainedModel:
    model = tiny(family, **changes)
    model.set_attn_implementation("eager")
    model.generation_config.pad_token_id = 0
    return model


def models(names: Iterable[str] | None = None) -> dict[str, PreTrainedModel]:
    """All families, a second base set of one of them, bases by layer, one base for all heads, a wide model, another
    dtype; or some."""
    return {name: make(name) for name in (NAMES if names is None else names)}


def make(name: str) -> PreTrainedModel:
    """One of `NAMES`."""
    if name in FAMILIES:
        return extended(model := prepared(name), bases_of(model))
    if name == "wide":
        wide = prepared(
            "llama", seed=4, num_hidden_layers=1, num_attention_heads=32, num_key_value_heads=32, head_dim=128
        )
        return extended(wide, bases_of(wide))
    others: dict[str, Callable[[], PreTrainedModel]] = {
        "llama-other": lambda: extended(prepared("llama", seed=1), [9e4, 2e6]),
        "by-layer": lambda: extended(prepared("llama", seed=2), [[5e3, 7e4], [8e5, 2e4]]),  # type: ignore[list-item]
        "one-base": lambda: extended(prepared("llama", seed=3), None),
        "bfloat16": lambda: extended(prepared("llama", seed=5).to(torch.bfloat16), [5e3, 7e4]),
        "gemma3": lambda: extended(images_and_text(), [5e3, 7e4]),
    }
    return others[name]()


def images_and_text() -> PreTrainedModel:
    """A model with a text decoder inside."""
    torch.manual_seed(6)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=tiny_config("gemma3_text").to_dict(), vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    return model


NAMES = [*FAMILIES, "llama-other", "by-layer", "one-base", "wide", "bfloat16", "gemma3"]
"""What `models` makes."""
RARE = {*FAMILIES} - {*GENERATING, "qwen3", "glm4", "phi3", "gpt_oss", "nanochat", "nemotron", "stablelm"}
"""Families that are exported in `make slow` alone; the others have something that is new in each."""


def named(names: Iterable[str]) -> list[Any]:
    """Parameters of a test; rare families are slow ones."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in names]
