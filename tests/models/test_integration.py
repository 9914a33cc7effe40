"""Per-head RoPE beside what else people do with a model: training aids, dtypes, offloading, other libraries'
patches."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import harpe
from harpe.errors import HarpeError
from harpe.methods.types import per_head_encoding, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import layer_notes, read_geometry
from harpe.models.per_head import build_table

from .test_families import exact_angles, ids_of, logits, module_of, rope_of, rotary_of, rotated_in_numpy, with_bases
from .tiny_families import REPRESENTATIVES, bases_of, heads_of, tiny

BOTH = pytest.mark.parametrize("family", REPRESENTATIVES)


def angles_of(model: PreTrainedModel, x: torch.Tensor, position: int) -> torch.Tensor:
    """cos and sin that a layer gets at a position, float64 [2, H, N], read off a rotation of unit vectors."""
    module, layer_type = module_of(model), rope_of(model)[0]
    pairs = read_geometry(tiny(model.config.model_type).config, "x").rotary_dim // 2
    one = torch.zeros(1, heads_of(model), 1, 2 * pairs)
    one[..., :pairs] = 1
    pair = rotary_of(model)(x, torch.tensor([[position]]), *layer_type)
    turned, _ = module.apply_rotary_pos_emb(one, one, *pair)
    return torch.stack([turned[0, :, 0, :pairs], turned[0, :, 0, pairs:]]).double()


def exact_cos_sin(model: PreTrainedModel, position: int) -> torch.Tensor:
    pairs = read_geometry(tiny(model.config.model_type).config, "x").rotary_dim // 2
    angle = position * torch.tensor(bases_of(model)).double()[:, None] ** (-torch.arange(pairs).double() / pairs)
    return torch.stack([angle.cos(), angle.sin()])


@BOTH
@pytest.mark.parametrize("change", ["bfloat16", "half", "autocast", "double"])
def test_angles_stay_exact_whatever_happens_to_the_models_dtype(family: str, change: str) -> None:
    model = with_bases(tiny(family))
    x, position = torch.zeros(1, 1, 64), 1_048_576
    if change == "bfloat16":
        model, x = model.to(torch.bfloat16), x.bfloat16()
    elif change == "half":
        model, x = model.half(), x.half()
    elif change == "double":
        model = model.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        got = angles_of(model, x, position)
    assert (got - exact_cos_sin(model, position)).abs().max() <= 1e-6


@BOTH
def test_a_model_in_bfloat16_runs_and_keeps_its_dtype(family: str) -> None:
    model, ids = with_bases(tiny(family)), ids_of(1, 40)
    expected = logits(model, ids)
    got = logits(model.to(torch.bfloat16), ids)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().max() <= 0.1 * expected.abs().max()


def gradients(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@BOTH
def test_gradients_are_those_of_the_stock_model_where_bases_are_equal(family: str) -> None:
    model, ids = tiny(family), ids_of(2, 60)
    with exact_angles(model):
        expected = gradients(model, ids)
    base = rope_of(model)[1]["rope_theta"]
    got = gradients(with_bases(model, [base] * heads_of(model)), ids)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert all((got[name] - g).abs().max() <= 1e-5 * largest for name, g in expected.items())


@BOTH
def test_recomputing_activations_gives_the_same_gradients_to_the_bit(family: str) -> None:
    model, ids = with_bases(tiny(family)).train(), ids_of(2, 60)
    expected = gradients(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(torch.equal(g, expected[name]) for name, g in gradients(model, ids).items())


@BOTH
def test_lora_adapters_train_on_a_per_head_model(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model, ids = with_bases(tiny(family)), ids_of(2, 40)
    before = logits(model, ids)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "k_proj"], init_lora_weights="gaussian"))
    torch.testing.assert_close(logits(adapted, ids), before, atol=1e-5, rtol=1e-5)  # B starts at zero
    optimiser = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


@BOTH
def test_a_model_made_on_the_meta_device_and_loaded_later_has_its_bases(family: str, tmp_path: Path) -> None:
    model, ids = with_bases(tiny(family)), ids_of(1, 60)
    model.save_pretrained(tmp_path / "m")
    config = AutoConfig.from_pretrained(tmp_path / "m")
    with init_empty_weights():
        assert AutoModelForCausalLM.from_config(config).lm_head.weight.device.type == "meta"
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    assert next(empty.buffers()).device.type == "meta"
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval(), ids), logits(model, ids))


@BOTH
def test_a_layer_on_disk_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    model, ids = with_bases(tiny(family)), ids_of(1, 60)
    model.save_pretrained(tmp_path / "m")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    layers = range(model.config.num_hidden_layers)
    places |= {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in layers}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", device_map=places, offload_folder=tmp_path / "off"
    ).eval()
    assert next(loaded.model.layers[1].parameters()).device.type == "meta"
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@BOTH
def test_stock_models_are_untouched_before_during_and_after(family: str) -> None:
    ids = ids_of(2, 60)
    code = "import torch, sys; sys.path.insert(0, sys.argv[1]); from tests.models.tiny_families import tiny; "
    code += "from tests.models.test_families import ids_of; m = tiny(sys.argv[2]); "
    code += "print(m(input_ids=ids_of(2, 60), use_cache=False).logits.double().sum().item().hex())"
    root = Path(__file__).parents[2]
    fresh = subprocess.run(
        [sys.executable, "-c", code, str(root), family], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    assert fresh == logits(tiny(family), ids).double().sum().item().hex(), "before"
    model = with_bases(tiny(family))
    stock = tiny(family)
    logits(model, ids)
    assert logits(stock, ids).double().sum().item().hex() == fresh, "beside a per-head model"
    del model
    assert logits(tiny(family), ids).double().sum().item().hex() == fresh, "after"


@pytest.mark.parametrize("when", ["before", "after"])
def test_ligers_rope_is_not_used_for_per_head_models(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel reads one table for all heads: no error, wrong values."""
    liger = pytest.importorskip(
        "liger_kernel.transformers", reason="liger-kernel (which needs triton) is not installed"
    )
    module = module_of(tiny("llama"))
    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    ids = ids_of(2, 40)
    expected = logits(with_bases(tiny("llama")), ids)
    model = with_bases(tiny("llama")) if when == "after" else None
    liger.apply_liger_kernel_to_llama(
        rope=True, rms_norm=False, swiglu=False, cross_entropy=False, fused_linear_cross_entropy=False
    )
    assert "liger" in module.apply_rotary_pos_emb.__module__
    model = model or with_bases(tiny("llama"))
    assert torch.equal(logits(model, ids), expected)


def test_a_family_patched_before_harpe_saw_it_is_read_from_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    from harpe.models import families
    from harpe.models.per_head import register_family

    model = tiny("cohere")
    module = module_of(model)

    def foreign(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a kernel for one table was called")

    monkeypatch.setattr(module, "apply_rotary_pos_emb", foreign)
    register_family(type(model.config), None)
    assert families.find_family(model.config).layout.interleaved
    logits(with_bases(model), ids_of(1, 20))


def test_a_rotation_that_is_exchanged_later_does_not_reach_per_head_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the hub themselves: test_hub_kernels.py."""
    model, ids = with_bases(tiny("qwen3")), ids_of(1, 30)
    expected = logits(model, ids)
    called = []
    kernel = lambda q, k, cos, sin, unsqueeze_dim=1: called.append(1) or (q, k)  # noqa: E731
    monkeypatch.setattr(module_of(model), "apply_rotary_pos_emb", kernel)
    assert torch.equal(logits(model, ids), expected) and not called
    logits(tiny("qwen3"), ids)
    assert called, "a stock model uses the kernel"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "smollm3"])
def test_bases_by_layer_reach_each_layer_and_survive_saving(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.models.test_families as t

    stock = tiny(family, attn_implementation="eager")
    geometry, count = read_geometry(stock.config, "x"), stock.config.num_hidden_layers
    rows = [[4e3 + 3e3 * layer + 1e3 * head for head in range(2)] for layer in range(count)]
    model = apply_encoding(stock, per_head_encoding(rows, geometry), geometry, 4096)
    names = {"gemma3_text": {"q": "q_norm"}}.get(family, {"q": "q_proj"})
    recorder = t.Recorder(model, monkeypatch, names)
    expected = logits(model, ids_of(1, 50))
    pairs = geometry.rotary_dim // 2
    changed = {"llama": [0, 1], "gemma2": [1, 3], "gemma3_text": [1, 3], "smollm3": [0]}[family]
    for layer in range(count):
        q = recorder.projected["q"][layer][0].double()
        q = (q if family == "gemma3_text" else q.view(50, 4, 16).transpose(0, 1)).numpy()
        got = recorder.rotated[layer][0][0].double().numpy()
        for head in range(4):
            base = rows[layer][head // 2] if layer in changed else (None if family == "smollm3" else 10_000.0)
            want = (
                q[head]
                if base is None
                else rotated_in_numpy(q[head], base, torch.arange(50).double().numpy(), pairs, False)
            )
            assert abs(got[head] - want).max() <= 1e-5 * abs(want).max(), (layer, head)
    model.save_pretrained(tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    assert torch.equal(logits(again, ids_of(1, 50)), expected)


def test_windowed_layers_that_share_the_rotary_module_keep_their_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt_oss: YaRN stays in the layers with a sliding window and is replaced in the others, which the plan says."""
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    }
    yarn["original_max_position_embeddings"] = 64
    stock = tiny("gpt_oss", rope_parameters=yarn)
    cos, sin = rotary_of(stock)(torch.zeros(1, 1, 64), torch.tensor([[7]]))
    model = with_bases(tiny("gpt_oss", rope_parameters=dict(yarn)))
    table = build_table(model.config)
    notes = " ".join(layer_notes(stock.config, read_geometry(stock.config, "x")))
    assert "Positions change in 2 of 4 layers: 1, 3" in notes and "yarn (factor 8.0" in notes and "is replaced" in notes
    one = torch.zeros(1, 2, 1, 16)
    one[..., :8] = 1
    turned, _ = module_of(model).apply_rotary_pos_emb(one, one, torch.tensor([[7]]), table[0])
    torch.testing.assert_close(turned[0, 0, 0], torch.cat([cos[0, 0], sin[0, 0]]), atol=1e-5, rtol=1e-5)
    turned, _ = module_of(model).apply_rotary_pos_emb(one, one, torch.tensor([[7]]), table[1])
    angle = 7 * torch.tensor(bases_of(model)).double()[:, None] ** (-torch.arange(8).double() / 8)
    kept = 0.1 * math.log(8) + 1  # YaRN's attention factor, which the weights have adapted to
    torch.testing.assert_close(
        turned[0, :, 0].double(), kept * torch.cat([angle.cos(), angle.sin()], -1), atol=1e-5, rtol=1e-5
    )


def test_an_attention_factor_multiplies_cos_and_sin() -> None:
    model, ids = with_bases(tiny("llama")), ids_of(1, 30)
    config = copy.deepcopy(model.config)
    config.rope_parameters["attention_factor"] = 1.25
    config.rope_parameters["partial_rotary_factor"] = 1.0
    scaled = AutoModelForCausalLM.from_config(config).eval()
    scaled.load_state_dict(model.state_dict())
    got = angles_of(scaled, torch.zeros(1, 1, 64), 1234)
    torch.testing.assert_close(got, 1.25 * angles_of(model, torch.zeros(1, 1, 64), 1234), atol=1e-6, rtol=1e-6)
    assert not torch.equal(logits(scaled, ids), logits(model, ids))


def test_one_base_for_all_heads_leaves_a_stock_configuration_in_layered_models_too() -> None:
    for family, where in (("gemma3_text", ("full_attention",)), ("llama", ())):
        model = tiny(family)
        geometry = read_geometry(model.config, "x")
        apply_encoding(model, shared_encoding(9e5, geometry), geometry, 2048)
        rope = model.config.rope_parameters
        for key in where:
            assert rope["sliding_attention"]["rope_theta"] != 9e5
            rope = rope[key]
        assert rope == {"rope_type": "default", "rope_theta": 9e5}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_text_decoder_of_a_model_with_vision_is_extended() -> None:
    text = tiny("gemma3_text").config.to_dict()
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = ids_of(1, 50)
    before = logits(model, ids)
    harpe.apply(model, length=2048, bases=[1e6, 2e6])
    rope = model.config.text_config.rope_parameters
    assert rope["full_attention"]["bases"] == [1e6, 2e6] and rope["sliding_attention"]["rope_type"] == "default"
    assert model.config.text_config.max_position_embeddings == 2048
    assert not torch.equal(logits(model, ids), before)


def test_a_head_count_that_does_not_fit_is_told_at_the_layer() -> None:
    model = with_bases(tiny("llama"))
    pair = rotary_of(model)(torch.zeros(1, 5, 64), torch.arange(5)[None])
    q, k = torch.zeros(1, 3, 5, 16), torch.zeros(1, 1, 5, 16)
    with pytest.raises(ValueError, match="bases for 2 key/value heads, but this layer has 1"):
        module_of(model).apply_rotary_pos_emb(q, k, *pair)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ([1e5], "1 bases, but the model has 2"),
        ([1e5, 0.5], "above 1"),
        ([[1e5, 2e5]], "rows for 1 layers; the model has 2"),
    ],
)
def test_a_configuration_with_bases_that_do_not_fit_is_refused(bases: Any, message: str) -> None:
    config = with_bases(tiny("llama")).config.to_dict()
    config["rope_parameters"]["bases"] = bases
    with pytest.raises(Exception, match=message):
        AutoConfig.for_model(**config)


def test_bases_for_the_wrong_number_of_layers_are_refused() -> None:
    geometry = read_geometry(tiny("llama").config, "x")
    with pytest.raises(HarpeError, match="rows for 1 layers, but the model has 2"):
        per_head_encoding([[1e5, 2e5]], geometry)
