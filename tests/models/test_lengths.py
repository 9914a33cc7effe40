"""An extended checkpoint says its new context wherever the original said the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import harpe
from harpe.models.load import load_tokenizer, save_checkpoint

from .tiny_families import tiny

pytestmark = pytest.mark.filterwarnings("ignore:the model has new positions")
VLLM = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Of `derive_max_model_len_and_key` in vLLM 0.32, which takes the smallest."""


def original(**generation: Any) -> PreTrainedModel:
    """With what Vicuna's and Command-R's files hold."""
    model = tiny("llama", max_sequence_length=512, model_max_length=512, seq_length=256, max_seq_len=131_072)
    model.generation_config.update(**generation)
    return model


@pytest.mark.parametrize(("method", "context"), [("abf", 2048), ("yarn", 2048), ("harpe", 2048), ("ntk-dynamic", 512)])
def test_servers_that_take_the_smallest_of_all_names_find_the_new_context(
    method: str, context: int, tmp_path: Path
) -> None:
    """Under dynamic NTK `max_position_embeddings` is the trained context, which vLLM multiplies by the factor."""
    model = harpe.apply(original(), method, length=2048)
    save_checkpoint(model, load_tokenizer("embedded"), tmp_path / "run", 2048)
    harpe.export(model, tmp_path / "exported")
    for folder in ("run", "exported"):
        settings = json.loads((tmp_path / folder / "config.json").read_text())
        found = {name: settings[name] for name in VLLM if name in settings}
        assert len(found) == 5 and set(found.values()) == {context}


def test_generate_goes_on_beyond_the_old_context(tmp_path: Path) -> None:
    ids = torch.randint(3, 97, (1, 500), generator=torch.Generator().manual_seed(0))
    harpe.export(harpe.apply(original(max_length=512), "abf", length=520), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model.generation_config.eos_token_id = None
    assert model.generate(ids, do_sample=False).shape == (1, 520)


@pytest.mark.parametrize(("given", "kept"), [(512, 2048), (1024, 2048), (100, 100), (4096, 4096), (None, None)])
def test_a_limit_that_is_no_context_stays(given: int | None, kept: int | None) -> None:
    model = original(max_length=given)
    assert harpe.apply(model, "abf", length=2048).generation_config.max_length == kept


def test_every_stage_of_a_method_says_its_own_length() -> None:
    model = original(max_length=512)
    for length in (1024, 2048):
        harpe.apply(model, "abf", length=length, original_length=512)
        assert model.generation_config.max_length == model.config.seq_length == length


def test_exports_of_models_that_were_extended_before_say_it_too(tmp_path: Path) -> None:
    model = harpe.apply(original(max_length=512), "abf", length=2048)
    model.config.seq_length, model.generation_config.max_length = 512, 512
    harpe.export(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["seq_length"] == 2048
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_length"] == 2048
