"""Training by low-rank adapters: what moves and what does not, and the merged model."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from harpe.distributed.layout import Layout
from harpe.errors import HarpeError
from harpe.methods.types import Stage, shared_encoding
from harpe.models.geometry import read_geometry
from harpe.options.training import Adapters
from harpe.training import lora, stages
from harpe.training.checkpoints import last_complete
from harpe.training.lora import insert_adapters, merge
from harpe.training.loss import chunked_loss
from harpe.training.stages import check_stages

from .test_stages import Breaking, Stop, options, train, weights

FAMILIES = ["llama", "qwen3", "gemma3_text", "phi3", "gpt_neox", "mixtral", "glm4"]
IDS = torch.randint(1, 90, (2, 40), generator=torch.Generator().manual_seed(0))
LORA: dict[str, Any] = {"lora_rank": 3, "learning_rate": 3e-3}


def moved(model: Any) -> Any:
    """The model with adapters that are not zero any more, and norms that have changed."""
    insert_adapters(model, Adapters(4, 8, embeddings=True))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_merged_model_gives_the_logits_of_the_unmerged_one_and_has_its_names_again(
    make_tiny: Any, family: str
) -> None:
    model = make_tiny(family).eval()
    names = list(model.state_dict())
    before = model(IDS).logits
    expected = moved(model)(IDS).logits
    merge(model)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (expected - before).abs().max() > 1e-2
    assert list(model.state_dict()) == names and not hasattr(model, "peft_config")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_losses_and_gradients_are_those_of_peft_s_own_model(make_tiny: Any, family: str) -> None:
    """With the loss in one piece, and all linear layers by name."""
    ours = make_tiny(family, tie_word_embeddings=False)
    names = {name.rpartition(".")[2] for name, each in ours.named_modules() if isinstance(each, torch.nn.Linear)}
    theirs = get_peft_model(
        copy.deepcopy(ours), LoraConfig(r=4, lora_alpha=8, target_modules=sorted(names - {"lm_head"}))
    )
    moved(ours)
    theirs.base_model.model.load_state_dict(ours.state_dict())
    with chunked_loss(ours):
        ours.train()(input_ids=IDS, labels=IDS).loss.backward()
    theirs(input_ids=IDS, labels=IDS).loss.backward()
    wanted = {n.removeprefix("base_model.model."): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    got = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    assert wanted.keys() == {name for name in got if "lora" in name}
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("whole", [True, False], ids=["with norms and embeddings", "adapters alone"])
def test_linear_layers_move_by_matrices_of_low_rank_and_the_rest_by_option(
    make_tiny: Any, tmp_path: Path, family: str, whole: bool
) -> None:
    before = make_tiny(family, max_position_embeddings=32)
    linear = {f"{name}.weight" for name, each in before.named_modules() if isinstance(each, torch.nn.Linear)}
    output = next(n for n, each in before.named_modules() if each is before.get_output_embeddings()) + ".weight"
    tied = before.get_output_embeddings().weight is before.get_input_embeddings().weight
    after = weights(train(make_tiny, tmp_path, family=family, lora_embeddings=whole, **LORA))
    for name, value in weights(before).items():
        change = after[name] - value
        if name in linear - {output}:
            assert 1 <= torch.linalg.matrix_rank(change, rtol=1e-3) <= 3, name
        elif "norm" in name or "embed" in name or (name == output and tied):
            assert bool(change.abs().max() > 0) == whole, name
        else:
            assert not change.any(), name


@pytest.mark.parametrize("whole", [True, False], ids=["with norms and embeddings", "adapters alone"])
def test_a_resumed_run_ends_in_the_same_weights_bit_for_bit_and_its_checkpoints_hold_what_is_trained(
    make_tiny: Any, tmp_path: Path, whole: bool
) -> None:
    trained = {**LORA, "lora_embeddings": whole}
    expected = weights(train(make_tiny, tmp_path / "whole", **trained))
    with pytest.raises(Stop):
        train(make_tiny, tmp_path / "broken", Breaking(200), **trained)
    place = last_complete(tmp_path / "broken" / "stage-1")
    assert place is not None
    held = [name for file in (place / "model").glob("*.safetensors") for name in load_file(file)]
    assert held and all("lora" in name or (whole and ("norm" in name or "embed" in name)) for name in held)
    for _ in range(2):  # goes on, and finds it done
        got = weights(train(make_tiny, tmp_path / "broken", **trained))
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_stages_share_their_adapters(make_tiny: Any, tmp_path: Path) -> None:
    geometry = read_geometry(make_tiny("llama", max_position_embeddings=32).config, "tiny")
    two = [Stage(shared_encoding(2e4, geometry), 64, 0.5), Stage(shared_encoding(5e4, geometry), 128, 0.5)]
    after = weights(train(make_tiny, tmp_path, stages=two, lora_embeddings=False, **LORA))
    before = weights(make_tiny("llama", max_position_embeddings=32))
    change = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert 1 <= torch.linalg.matrix_rank(change, rtol=1e-3) <= 3


def test_matrices_that_wait_in_bfloat16_change_no_bit_of_what_is_trained(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint in bfloat16, trained by autocast; frozen matrices are halved, and none that is looked up."""

    def halved(family: str, **changes: Any) -> Any:
        return make_tiny(family, **changes).bfloat16().float()

    halves: list[set[torch.dtype]] = []

    @contextmanager
    def seen(model: Any, options: Any) -> Iterator[None]:
        with lora.frozen_in_bfloat16(model, options):
            halves.append({layer.weight.dtype for layer in lora.frozen_linear_layers(model)})
            assert model.get_input_embeddings().weight.dtype == torch.float32
            yield

    monkeypatch.setattr(stages, "frozen_in_bfloat16", seen)
    found = weights(train(halved, tmp_path / "a", dtype="bfloat16", lora_embeddings=False, **LORA))
    monkeypatch.setattr(stages, "frozen_in_bfloat16", lambda model, options: nullcontext())
    expected = weights(train(halved, tmp_path / "b", dtype="bfloat16", lora_embeddings=False, **LORA))
    assert halves == [{torch.bfloat16}]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_matrices_that_bfloat16_would_round_stay_as_they_are(make_tiny: Any) -> None:
    model, settings = make_tiny("llama"), options(lora_rank=2, dtype="bfloat16")
    lora.adapt(model, settings)
    with lora.frozen_in_bfloat16(model, settings):
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_what_cannot_be_trained_by_adapters_is_refused(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = read_geometry(make_tiny("llama").config, "tiny")
    one = [Stage(shared_encoding(2e4, geometry), 64, 1.0)]
    for changes, layout, words in (
        ({"lora_rank": -1}, Layout(), "--lora-rank is -1"),
        ({"lora_alpha": 8}, Layout(), "give --lora-rank"),
        ({"lora_rank": 2}, Layout(2), "one process"),
    ):
        with pytest.raises(HarpeError, match=words):
            check_stages(one, options(**changes), layout)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HarpeError, match=r"pip install 'harpe\[lora\]'"):
        check_stages(one, options(lora_rank=2))
