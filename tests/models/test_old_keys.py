"""Configurations that harpe writes are the same to programs that read the keys of transformers 4, or stop them."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import harpe
from harpe.models.export import export_checkpoint
from harpe.models.fold import fold_attention_factor
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.models.old_keys import add_old_keys

from .tiny_families import FAMILIES, tiny

pytestmark = pytest.mark.filterwarnings("ignore:the model has new positions")
IDS = torch.randint(3, 97, (1, 700), generator=torch.Generator().manual_seed(0))
YARN = {"factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 32.0, "beta_slow": 1.0}
LONG = [1.0 + i for i in range(8)]
LONGROPE = {"factor": 4.0, "original_max_position_embeddings": 512, "long_factor": LONG, "short_factor": [1.0] * 8}
METHODS: dict[str, tuple[dict[str, Any], float, dict[str, Any] | None]] = {
    # options, the base, what stands under rope_scaling
    "abf": ({"base": 7e5}, 7e5, None),
    "ntk": ({}, 1e4 * 4 ** (16 / 14), None),
    "yarn": ({}, 1e4, {"type": "yarn", "rope_type": "yarn", **YARN}),
    "pi": ({}, 1e4, {"type": "linear", "factor": 4.0}),
    "ntk-dynamic": ({}, 1e4, {"type": "dynamic", "factor": 4.0}),
    "longrope": ({"long_factor": LONG}, 1e4, {"type": "longrope", "rope_type": "longrope", **LONGROPE}),
}


def changed(family: str, method: str, **options: Any) -> PreTrainedModel:
    return harpe.apply(tiny(family), method, length=2048, **options)


def saved(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """config.json alone, as an export has it."""
    model.config.save_pretrained(folder)
    add_old_keys(folder, model.config)
    return dict(json.loads((folder / "config.json").read_text()))


def rope_of(folder: Path) -> dict[str, Any]:
    """As transformers of today reads it, without the old name of rope_type."""
    rope = AutoConfig.from_pretrained(folder).rope_parameters
    return {
        k: {n: w for n, w in v.items() if n != "type"} if isinstance(v, dict) else v
        for k, v in rope.items()
        if k != "type"
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_old_keys_of_every_classic_method(tmp_path: Path, method: str) -> None:
    options, base, scaling = METHODS[method]
    model = changed("llama", method, **options)
    config = saved(model, tmp_path)
    assert config["rope_theta"] == pytest.approx(base) and config["rope_scaling"] == scaling
    # dynamic scaling takes this for the trained context; transformers 4 took LongRoPE's from beside the entry
    assert config["max_position_embeddings"] == (512 if method == "ntk-dynamic" else 2048)
    assert config.get("original_max_position_embeddings") == (512 if method == "longrope" else None)
    assert rope_of(tmp_path) == model.config.rope_parameters


def test_families_whose_old_keys_have_other_names(tmp_path: Path) -> None:
    neox = saved(changed("gpt_neox", "abf", base=7e5), tmp_path / "neox")
    assert (neox["rotary_emb_base"], neox["rotary_pct"], neox["rope_scaling"]) == (7e5, 0.25, None)
    gemma = saved(changed("gemma3_text", "yarn"), tmp_path / "gemma")
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"]) == (1e6, 1e4) and gemma["rope_scaling"][
        "type"
    ] == "yarn"
    glm = saved(changed("glm", "abf", base=7e5), tmp_path / "glm")
    assert (glm["rope_theta"], glm["partial_rotary_factor"]) == (7e5, 0.5)


def test_what_the_old_keys_cannot_hold_leaves_no_base_to_go_on_with(tmp_path: Path) -> None:
    """OLMo 3 had one base for layers of both kinds, and only the global ones change; Nemotron's class asked for no rope
    type."""
    olmo = saved(changed("olmo3", "abf", base=7e5), tmp_path / "olmo")
    assert olmo["rope_theta"] is None and "rope_scaling" not in olmo
    nemotron = saved(changed("nemotron", "yarn"), tmp_path / "nemotron")
    assert nemotron["rope_theta"] is None and "rope_scaling" not in nemotron


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_of_today_reads_every_family_the_same_and_warns_of_nothing(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for method in ("abf", "yarn"):
        if (family, method) == ("phi3", "yarn"):
            continue  # takes no scaling but LongRoPE
        undone = {"attention_factor": 1.0} if method == "yarn" and family in ("hunyuan_v1_dense", "nanochat") else {}
        model = changed(family, method, **METHODS[method][0], **undone)
        config = saved(model, tmp_path / method)
        caplog.clear()
        assert rope_of(tmp_path / method) == model.config.rope_parameters
        assert not caplog.messages
        assert any(key in config for key in ("rope_theta", "rotary_emb_base"))


@pytest.mark.parametrize("method", ["abf", "yarn", "longrope"])
def test_an_export_and_what_is_saved_again_from_it_give_the_same_logits(tmp_path: Path, method: str) -> None:
    model = changed("llama", method, **METHODS[method][0])
    with torch.inference_mode():
        wanted = model(input_ids=IDS, use_cache=False).logits
    export_checkpoint(model, tmp_path / "first")
    for source, again in (("first", "second"), ("second", None)):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / source).eval()
        with torch.inference_mode():
            assert torch.equal(loaded(input_ids=IDS, use_cache=False).logits, wanted)
        if again is not None:
            loaded.save_pretrained(tmp_path / again)
    export_checkpoint(AutoModelForCausalLM.from_pretrained(tmp_path / "first"), tmp_path / "third")
    first, third = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "third"))
    assert third == first


def test_numbers_that_json_does_not_have_are_read_as_such(tmp_path: Path) -> None:
    """Of hybrids: the largest step of time is infinite."""
    config = AutoConfig.for_model("granitemoehybrid", layer_types=["attention"] * 2, num_hidden_layers=2)
    config.rope_parameters, config.harpe_original_length = {"rope_type": "default", "rope_theta": 7e5}, 512
    config.save_pretrained(tmp_path)
    add_old_keys(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 7e5
    assert AutoConfig.from_pretrained(tmp_path).time_step_limit[1] == float("inf")


def test_models_of_runs_have_them_as_well_and_stock_checkpoints_are_left_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    save_checkpoint(tiny("llama"), tokenizer, tmp_path / "stock", 512)
    assert not {"rope_theta", "rope_scaling"} & set(json.loads((tmp_path / "stock" / "config.json").read_text()))
    save_checkpoint(changed("llama", "abf", base=7e5), tokenizer, tmp_path / "abf", 2048)
    assert json.loads((tmp_path / "abf" / "config.json").read_text())["rope_theta"] == 7e5
    model = harpe.apply(tiny("llama"), "harpe", length=2048, bases=[5e4, 7e4])
    save_checkpoint(model, tokenizer, tmp_path / "harpe", 2048)
    config = json.loads((tmp_path / "harpe" / "config.json").read_text())
    assert config["rope_theta"] is None and config["rope_scaling"]["rope_type"] == "harpe"


FACTORS: dict[str, dict[str, Any]] = {
    "mrrope": {},
    "by-parts": {"exponent": 2},
    "one-base": {"attention_factor": "yarn"},
}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("method", FACTORS)
def test_vllm_finds_the_attention_factor_of_longrope(method: str, family: str, tmp_path: Path) -> None:
    """vLLM 0.32's own models multiply cos and sin by `long_mscale`, or by sqrt(1 + ln s / ln L0) without it."""
    model = changed(family, method, **FACTORS[method])
    harpe.export(model, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    entry = settings["rope_parameters"] if family == "llama" else settings["rope_parameters"]["full_attention"]
    assert entry["rope_type"] == "longrope"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    rotary, layer = again.model.rotary_emb, () if family == "llama" else ("full_attention",)
    cos, _ = rotary(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long), *layer)
    assert float(cos[0, 0, 0]) == pytest.approx(1 + 0.1 * math.log(4)) == entry["long_mscale"] == entry["short_mscale"]
    if settings.get("rope_scaling"):  # what programs from before transformers 5 read
        assert settings["rope_scaling"]["long_mscale"] == entry["long_mscale"]


def factor_of_vllm(folder: Path) -> float:
    """By what vLLM 0.32's own Llama multiplies cos and sin beyond the trained context, as its source has it
    (`Phi3LongRoPEScaledRotaryEmbedding`)."""
    settings = json.loads((folder / "config.json").read_text())
    entry = settings["rope_parameters"]
    before = entry["original_max_position_embeddings"]
    scale = settings["max_position_embeddings"] / before
    return float(entry.get("long_mscale") or (math.sqrt(1 + math.log(scale) / math.log(before)) if scale > 1 else 1.0))


def factor_of_transformers(folder: Path) -> float:
    rotary = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb
    return float(rotary(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long))[0].flatten()[0])


def test_vllm_finds_the_factor_in_models_of_runs_and_beyond_another_scale_than_that_of_the_contexts(
    tmp_path: Path,
) -> None:
    tokenizer = load_tokenizer("embedded")
    options: dict[str, dict[str, Any]] = {**FACTORS, "longrope": {"long_factor": LONG, "factor": 6.0}}
    for method, given in options.items():
        model = changed("llama", method, **given)
        save_checkpoint(model, tokenizer, tmp_path / method, 2048)
        harpe.export(model, tmp_path / f"{method}-exported")
        for folder in (tmp_path / method, tmp_path / f"{method}-exported"):
            assert factor_of_vllm(folder) == pytest.approx(factor_of_transformers(folder), abs=1e-6), folder


def test_vllm_finds_no_factor_where_an_exported_one_was_folded_into_the_weights(tmp_path: Path) -> None:
    harpe.export(changed("llama", "by-parts"), tmp_path / "exported")
    folded = load_model(tmp_path / "exported")
    fold_attention_factor(folded)
    harpe.export(folded, tmp_path / "folded")
    assert factor_of_vllm(tmp_path / "folded") == factor_of_transformers(tmp_path / "folded") == 1.0
