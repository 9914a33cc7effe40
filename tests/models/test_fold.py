"""Attention factors folded into weights: the logits of the model with the factor, from stock transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import harpe
from harpe.commands.export import export
from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import per_head_encoding, shared_encoding, with_attention_factor, with_length_scale
from harpe.models.apply import apply_encoding
from harpe.models.export import export_checkpoint
from harpe.models.fold import fold_attention_factor
from harpe.models.geometry import changed_layers, read_geometry
from harpe.models.load import load_model
from harpe.options.runs import ExportOptions

from .test_attention_factor import NORM_BEHIND, factors_of
from .test_families import COSTLY, ids_of, logits
from .tiny_families import bases_of, tiny

SHARED_NORM = ("qwen3", "qwen3_moe", "gemma3_text")
"""Families in which all heads share a norm of queries."""


def distinct(model: Any) -> Any:
    """Norms and biases of queries that are not ones and zeros, as training leaves them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("q_" in name and parameter.dim() == 1) or ("query" in name and name.endswith("bias")):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def with_factor(model: Any, factor: Any, base: float | None = None) -> Any:
    geometry = read_geometry(model.config, "x")
    encoding = per_head_encoding(bases_of(model), geometry) if base is None else shared_encoding(base, geometry)
    return apply_encoding(model, with_attention_factor(encoding, factor, geometry, 8.0), geometry, 4096)


@COSTLY
@pytest.mark.parametrize("by_head", [True, False], ids=["by head", "shared"])
def test_a_folded_model_has_the_logits_of_the_model_with_the_factor(family: str, by_head: bool) -> None:
    model, ids = distinct(tiny(family)), ids_of(2, 150)
    if family in NORM_BEHIND:
        with pytest.raises(HarpeError, match="after they are rotated"):
            with_factor(model, 1.2)
        return
    plain = logits(with_factor(copy.deepcopy(model), None), ids)
    model = with_factor(model, factors_of(model) if by_head else 1.3)
    expected = logits(model, ids)
    if by_head and family in SHARED_NORM:
        with pytest.raises(HarpeError, match="all heads share one norm"):
            fold_attention_factor(model)
        return
    sentence = fold_attention_factor(model)
    assert f"{len(changed_layers(model.config))} layers" in sentence
    assert "attention_factor" not in str(model.config.rope_parameters)
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert (plain - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize(
    ("family", "factor"),
    [
        ("llama", [1.1, 1.4]),
        ("llama", 1.2),
        ("qwen2", [1.1, 1.4]),
        ("qwen3", 1.2),
        ("phi", [1.3, 1.2]),
        ("phi3", [1.1, 1.4]),
        ("gpt_neox", [1.1, 1.2, 1.3, 1.4]),
        ("glm", [1.3, 1.2]),
        ("olmo2", [1.1, 1.4]),
        ("cohere", [1.1, 1.4]),
        ("granite", [1.1, 1.4]),
    ],
)
def test_one_base_with_a_factor_becomes_a_stock_checkpoint(family: str, factor: Any, tmp_path: Path) -> None:
    changes = {"use_qk_norm": True} if family == "cohere" else {}  # a norm with a weight for every head
    model, ids = with_factor(distinct(tiny(family, **changes)), factor, 3e5), ids_of(2, 150)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "extended")
    fold_attention_factor(model)
    export_checkpoint(model, tmp_path / "out")
    assert not (tmp_path / "out" / "modeling_harpe.py").exists()
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # no code is allowed
    rope = stock.config.rope_parameters
    assert rope["rope_type"] == "default" and rope["rope_theta"] == 3e5
    torch.testing.assert_close(logits(stock, ids), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    again = read_geometry(stock.config, "x")
    assert again.attention_factor == 1.0 and again.base == pytest.approx(3e5)


def test_layers_with_a_window_and_their_weights_stay() -> None:
    model = with_factor(tiny("gemma3_text"), 1.3, 3e5)
    before = copy.deepcopy(model.state_dict())
    ids, changed = ids_of(2, 150), changed_layers(model.config)
    expected = logits(model, ids)
    fold_attention_factor(model)
    assert model.config.rope_parameters["full_attention"]["rope_type"] == "default"
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"model.layers.{layer}.self_attn.q_norm.weight" for layer in changed}


@pytest.mark.parametrize("name", ["yarn", "mrrope", "harpe-parts"])
def test_other_frequencies_stay_and_lose_their_factor(name: str, tmp_path: Path) -> None:
    model, ids = tiny("llama"), ids_of(2, 150)
    geometry = read_geometry(model.config, "x")
    (stage,) = make_stages(method_named(name), geometry, 4096, {})
    apply_encoding(model, stage.encoding, geometry, 4096)
    expected, before = logits(model, ids), copy.deepcopy(model.config.rope_parameters)
    fold_attention_factor(model)
    after = model.config.rope_parameters
    assert after["rope_type"] == before["rope_type"] and after.get("attention_factor", 1.0) == 1.0
    assert after.get("frequencies") == before.get("frequencies") and after.get("long_factor") == before.get(
        "long_factor"
    )
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    export_checkpoint(model, tmp_path / "out")
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=name == "harpe-parts")
    torch.testing.assert_close(logits(stranger, ids), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_scale_by_length_stays_beside_it() -> None:
    model, ids = tiny("llama", max_position_embeddings=64), ids_of(2, 150)
    geometry = read_geometry(model.config, "x")
    encoding = with_attention_factor(shared_encoding(3e5, geometry), [1.1, 1.4], geometry, 8.0)
    apply_encoding(model, with_length_scale(encoding, 1.0, geometry), geometry, 4096)
    expected = logits(model, ids)
    fold_attention_factor(model)
    assert model.config.rope_parameters["length_scale"] == 1.0
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_in_bfloat16_weights_are_rounded_once() -> None:
    model = with_factor(distinct(tiny("qwen2")).to(torch.bfloat16), [1.1, 1.4], 3e5)
    before = copy.deepcopy(model.state_dict())
    fold_attention_factor(model)
    squares = torch.tensor([1.1, 1.1, 1.4, 1.4], dtype=torch.float64).square().repeat_interleave(16)
    for kind in ("weight", "bias"):
        name = f"model.layers.0.self_attn.q_proj.{kind}"
        by = squares[:, None] if kind == "weight" else squares
        assert torch.equal(model.state_dict()[name], (before[name].double() * by).to(torch.bfloat16))


def test_queries_that_are_formed_otherwise_are_refused_and_never_written_wrong() -> None:
    """An attention that is not what its names say: rows in another order, one projection for all layers, a norm that
    takes out the size of a query."""
    model = with_factor(tiny("llama"), [1.1, 1.4], 3e5)
    model.model.layers[1].self_attn.q_proj = model.model.layers[0].self_attn.q_proj
    with pytest.raises(HarpeError, match="in an unknown way"):
        fold_attention_factor(model)
    model = with_factor(tiny("llama"), [1.1, 1.4], 3e5)
    projection = model.model.layers[0].self_attn.q_proj
    order = torch.arange(63, -1, -1)
    projection.register_forward_hook(lambda module, args, output: output[..., order])
    with pytest.raises(HarpeError, match="in an unknown way"):
        fold_attention_factor(model)
    model = with_factor(tiny("llama"), 1.3, 3e5)
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, args, output: output / output.norm())
    with pytest.raises(HarpeError, match="in an unknown way"):
        fold_attention_factor(model)


def test_what_only_shows_for_some_texts_is_refused_by_the_configuration() -> None:
    model = with_factor(tiny("olmo", clip_qkv=100.0), 1.3, 3e5)  # which the two words of a trial do not reach
    with pytest.raises(HarpeError, match="clip_qkv"):
        fold_attention_factor(model)


def test_without_a_factor_there_is_nothing_to_fold() -> None:
    with pytest.raises(HarpeError, match="no attention factor"):
        fold_attention_factor(with_factor(tiny("llama"), None))


def test_harpe_export_fold_writes_a_stock_checkpoint_and_says_so(workspace: Path) -> None:
    options: dict[str, Any] = {"tokens": 2048, "batch_tokens": 512, "learning_rate": 1e-3, "dtype": "float32"}
    extended = harpe.extend(
        str(workspace / "model"),
        512,
        str(workspace / "texts"),
        workspace / "run",
        method="one-base",
        method_options={"attention_factor": "yarn"},
        **options,
    )
    ids = ids_of(1, 200)
    expected = logits(load_model(extended), ids)
    for source, out in ((str(workspace / "run"), "out"), (str(extended), "again")):
        folder = export(ExportOptions(source=source, out=str(workspace / out), fold=True))
        stock = AutoModelForCausalLM.from_pretrained(folder)
        assert stock.config.rope_parameters["rope_type"] == "default"
        torch.testing.assert_close(logits(stock, ids), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        card = (folder / "README.md").read_text()
        assert "has been folded into the query weights" in card and "type `default`" in card
    with pytest.raises(HarpeError, match="no attention factor"):
        export(ExportOptions(source=str(workspace / "out"), out=str(workspace / "third"), fold=True))
    assert not (workspace / "third").exists()
