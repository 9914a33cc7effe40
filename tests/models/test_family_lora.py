"""Adapters on every family: per-head positions stay, training moves them, and merged they are what they were."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harpe.methods.types import per_head_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.options.training import Adapters
from harpe.training.lora import insert_adapters, merge
from harpe.training.loss import chunked_loss

from .tiny_families import FAMILIES, MOE, REPRESENTATIVES, bases_of, tiny

IDS = torch.arange(3, 63)[None]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "granitemoe"])
def test_experts_have_no_adapters_in_deep_models_either(family: str) -> None:
    """peft takes other ways with more than twenty layers to adapt, and knows the experts of some families."""
    changes = {"shared_expert_intermediate_size": 32, **MOE} if family == "qwen2_moe" else MOE
    config = AutoConfig.for_model(
        family, vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, **changes,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = {name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear) and each is not head}
    assert len(linear) > 20
    names = list(model.state_dict())
    insert_adapters(model, Adapters(4, 8, embeddings=False))
    adapted = {name.partition(".lora_")[0] for name, each in model.named_parameters() if each.requires_grad}
    assert adapted == linear
    merge(model)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.matrix) for name in FAMILIES],
)
def test_an_adapted_family_learns_and_merges(family: str) -> None:
    model = tiny(family)
    geometry = read_geometry(model.config, family)
    apply_encoding(model, per_head_encoding(bases_of(model), geometry), geometry, 128)
    with torch.no_grad():
        before = model.eval()(IDS).logits
        insert_adapters(model, Adapters(4, 8, embeddings=True))
        assert torch.equal(model.eval()(IDS).logits, before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    with chunked_loss(model):
        for _ in range(4):
            loss = model.train()(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad():
        unmerged = model.eval()(IDS).logits
        merge(model)
        scale = max(1.0, float(unmerged.abs().max()))
        assert (model.eval()(IDS).logits - unmerged).abs().max() < 1e-5 * scale
    assert not [name for name in model.state_dict() if "lora" in name]
