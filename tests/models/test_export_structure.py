"""What is exported is what its configuration makes: nothing of it would be loaded as random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import harpe
from harpe.errors import HarpeError

from .tiny_families import FAMILIES, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*new positions that its weights were not trained with")
IDS = torch.arange(3, 90)[None]


def adapted(model: Any) -> Any:
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1)
    return wrapped


def with_adapter(model: Any) -> Any:
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"]))
    return model


def compiled_inside(model: Any) -> Any:
    model.model = torch.compile(model.model, backend="eager")
    return model


def with_bias(model: Any) -> Any:
    model.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(64))
    return model


def cut(model: Any) -> Any:
    model.model.layers = model.model.layers[:1]
    return model


def wider(model: Any) -> Any:
    model.lm_head = torch.nn.Linear(64, 120, bias=False)
    return model


@pytest.mark.parametrize("method", ["harpe", "abf"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: adapted(model).get_base_model(), r"adapter: merge it into the model \(peft: merge_and_unload\)"),
        (with_adapter, "adapter: merge it into the model"),
        (compiled_inside, "compiled"),
        (with_bias, "Make the configuration say what was changed"),
        (cut, "lacks the weights model.layers.1.input_layernorm.weight"),
        (wider, r"lm_head.weight of the model is \[120, 64\]"),
    ],
)
def test_a_model_that_is_not_its_configurations_is_refused_before_anything_is_written(
    tmp_path: Path, method: str, change: Callable[[Any], Any], words: str
) -> None:
    model = change(harpe.apply(tiny("llama"), method, length=2048))
    with pytest.raises(HarpeError, match=words):
        harpe.export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_merged_adapter_is_exported_with_its_effect(tmp_path: Path) -> None:
    wrapped = adapted(harpe.apply(tiny("llama"), "harpe", length=2048))
    with torch.no_grad():
        wanted = wrapped.eval()(input_ids=IDS).logits
        harpe.export(wrapped.merge_and_unload(), tmp_path / "out")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
        assert (again(input_ids=IDS).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(tmp_path: Path, family: str) -> None:
    for method in ("harpe", "abf"):
        harpe.export(harpe.apply(tiny(family), method, length=2048), tmp_path / method)


@pytest.mark.parametrize("family", ["llama", "apertus"])
def test_a_model_is_exported_twice(tmp_path: Path, family: str) -> None:
    """Saving turns the configuration's dtype into a text, by which Apertus cannot be made."""
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    model = harpe.apply(tiny(family, **plain), "yarn", length=1024)
    for name in ("first", "second"):
        harpe.export(model, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("method", ["yarn", "mrrope", "by-parts", "pi", "abf"])
def test_a_share_of_dimensions_that_a_family_passes_over_reaches_no_scaling(tmp_path: Path, method: str) -> None:
    """Llama turns all dimensions whatever config.json says, while transformers' scaled rope types obey it."""
    model = harpe.apply(tiny("llama", partial_rotary_factor=0.5), method, length=1024).eval()
    plain = harpe.apply(tiny("llama"), method, length=1024).eval()
    harpe.export(model, tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        wanted = plain(IDS).logits
        assert torch.equal(model(IDS).logits, wanted) and torch.equal(stock(IDS).logits, wanted)
