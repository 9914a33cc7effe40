"""Queries scaled by the length that they see: against a rotation and an attention written out in float64, token by
token, saved, exported, trained, and where it is refused."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import harpe
from harpe.commands.export import export
from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import SelfExtend, Stage, per_head_encoding, shared_encoding, with_length_scale
from harpe.models.apply import apply_encoding, check_encoding
from harpe.models.export import export_checkpoint
from harpe.models.geometry import changed_layers, read_geometry
from harpe.models.load import load_model
from harpe.options.runs import ExportOptions
from harpe.positions import rotation
from harpe.positions.rotation import Layout

from .test_attention_factor import NORM_BEHIND
from .test_families import COSTLY, ids_of, logits, module_of, rope_of, rotary_of
from .tiny_families import REPRESENTATIVES, bases_of, heads_of, tiny, tiny_config

TRAINED = 64
APART = ("phi", "stablelm")
"""Families whose attention hands on only the dimensions that turn to be rotated."""


def short(family: str, **changes: Any) -> Any:
    """A tiny model that was trained on 64 tokens."""
    return tiny(family, max_position_embeddings=TRAINED, **changes)


def scales_of(model: Any) -> list[float]:
    return [0.5 + 0.75 * head for head in range(heads_of(model))]


def with_scales(model: Any, scales: Any = None, length: int = 4096) -> Any:
    geometry = read_geometry(model.config, "tiny")
    encoding = per_head_encoding(tuple(bases_of(model)), geometry)
    given = with_length_scale(encoding, scales_of(model) if scales is None else scales, geometry)
    return apply_encoding(model, given, geometry, length)


def wanted_scale(position: float, scale: float) -> float:
    return max(1.0, 1.0 + scale * (math.log(position + 1) / math.log(TRAINED) - 1.0))


@COSTLY
def test_queries_and_no_keys_are_those_of_the_model_without_it_times_the_formula(family: str) -> None:
    model = short(family)
    if family in NORM_BEHIND:
        with pytest.raises(HarpeError, match="after they are rotated"):
            with_scales(model)
        pytest.skip("refused, as it should be")
    if family in APART:
        with pytest.raises(HarpeError, match="takes the dimensions that turn apart"):
            with_scales(model)
        pytest.skip("refused, as it should be")
    geometry, heads, layer_type = read_geometry(model.config, family), heads_of(model), rope_of(model)[0]
    generator, group = torch.Generator().manual_seed(4), model.config.num_attention_heads // heads_of(model)
    q = torch.randn(2, model.config.num_attention_heads, 33, geometry.head_dim, generator=generator)
    k = torch.randn(2, heads, 33, geometry.head_dim, generator=generator)
    positions = torch.randint(0, 3000, (2, 33), generator=generator)
    positions[0, :3] = torch.tensor([0, TRAINED - 1, TRAINED])

    def turned(owner: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pair = rotary_of(owner)(k, positions, *layer_type)
        if pair[1].dim() == 4 and pair[0].dtype == torch.int64:
            pair = (pair[0], pair[1][changed_layers(owner.config)[0]])
        return module_of(owner).apply_rotary_pos_emb(q, k, *pair)

    got_q, got_k = turned(with_scales(copy.deepcopy(model)))
    plain_q, plain_k = turned(
        apply_encoding(model, per_head_encoding(tuple(bases_of(model)), geometry), geometry, 4096)
    )
    table = [[[wanted_scale(int(m), c) for m in row] for c in scales_of(model)] for row in positions]
    scale = torch.tensor(table, dtype=torch.float64).repeat_interleave(group, 1)[..., None]
    assert scale.max() > 1.2
    torch.testing.assert_close(got_q.double(), plain_q.double() * scale, atol=1e-6, rtol=2e-6)
    assert torch.equal(got_q[0, :, :2], plain_q[0, :, :2])  # up to the trained context nothing changes
    torch.testing.assert_close(got_k, plain_k, atol=2e-6, rtol=0)


def rotate(x: torch.Tensor, base: float, pairs: int, layout: Layout) -> torch.Tensor:
    """x [S, D] at positions 0 to S - 1, in float64."""
    angle = torch.arange(x.shape[0]).double()[:, None] * base ** (-torch.arange(pairs).double() / pairs)
    a, b = (x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2]) if layout.interleaved else x[:, : 2 * pairs].chunk(2, 1)
    out = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    whole = torch.stack(out, -1).flatten(1) if layout.interleaved else torch.cat(out, 1)
    return torch.cat([whole, x[:, 2 * pairs :]], 1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "glm", "cohere"])
def test_an_attention_gives_what_one_written_out_in_float64_gives(family: str) -> None:
    """Grouped heads, norms of queries, and rotations of a part of a head, in one layer of a model."""
    model = with_scales(short(family, num_hidden_layers=1)).double()
    heads, config = heads_of(model), model.config
    attention = next(m for m in model.modules() if type(m).__name__.endswith("Attention"))
    seen: dict[str, torch.Tensor] = {}

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["in"] = args[0] if args else kwargs["hidden_states"]
        seen["out"] = output[0]

    attention.register_forward_hook(keep, with_kwargs=True)
    length = 200
    logits(model, ids_of(1, length))
    count, width = config.num_attention_heads, (config.hidden_size // config.num_attention_heads)
    width = getattr(config, "head_dim", None) or width
    with torch.no_grad():
        if family == "gpt_neox":
            q, k, v = attention.query_key_value(seen["in"]).view(length, count, 3, width).unbind(2)
        else:
            q, k, v = (
                getattr(attention, f"{name}_proj")(seen["in"]).view(length, -1, width) for name in ("q", "k", "v")
            )
        if family == "qwen3":
            q, k = attention.q_norm(q), attention.k_norm(k)
        pairs = round(width * config.rope_parameters.get("partial_rotary_factor", 1.0)) // 2
        assert (pairs < width // 2) == (family in ("glm", "gpt_neox"))
        layout = Layout(interleaved=family in ("cohere", "glm"))
        outputs = []
        for head in range(count):
            of = head // (count // heads)
            base, scale = bases_of(model)[of], scales_of(model)[of]
            one, other = rotate(q[:, head], base, pairs, layout), rotate(k[:, of], base, pairs, layout)
            one = one * torch.tensor([wanted_scale(m, scale) for m in range(length)])[:, None]
            scores = (one @ other.T) * width**-0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            outputs.append(scores.softmax(-1) @ v[:, of])
        mixed = torch.cat(outputs, 1)
        project = next(getattr(attention, name) for name in ("o_proj", "dense") if hasattr(attention, name))
        wanted = project(mixed)
    # the rotation is float32's
    torch.testing.assert_close(seen["out"][0], wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "glm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [rotation.HELD_ANGLES, 0], ids=["cos and sin", "positions"])
def test_a_token_alone_is_rotated_to_the_bits_of_the_long_pass(
    family: str, dtype: torch.dtype, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "HELD_ANGLES", held)
    model = with_scales(short(family))
    heads, layer_type = heads_of(model), rope_of(model)[0]
    generator = torch.Generator().manual_seed(4)
    width = read_geometry(short(family).config, family).head_dim
    q = torch.randn(1, model.config.num_attention_heads, 700, width, generator=generator).to(dtype)
    k = torch.randn(1, heads, 700, width, generator=generator).to(dtype)

    def turned(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        pair = rotary_of(model)(k, torch.arange(700)[None, part], *layer_type)
        pair = (pair[0], pair[1][1]) if pair[1].dim() == 4 else pair
        with torch.inference_mode():
            return module_of(model).apply_rotary_pos_emb(q[:, :, part], k[:, :, part], *pair)

    whole_q, whole_k = turned(slice(None))
    for at in (0, 63, 64, 127, 128, 400, 699):
        one_q, one_k = turned(slice(at, at + 1))
        assert torch.equal(one_q[:, :, 0], whole_q[:, :, at]) and torch.equal(one_k[:, :, 0], whole_k[:, :, at])
        assert one_q.dtype == dtype
    for pieces in ((0, 300, 700), (0, 1, 130, 131, 700)):
        for start, end in itertools.pairwise(pieces):
            assert torch.equal(turned(slice(start, end))[0], whole_q[:, :, start:end])


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_decoding_with_a_cache_and_padding_gives_the_logits_of_one_pass(family: str) -> None:
    model, ids = with_scales(short(family)), ids_of(1, 150)
    expected = logits(model, ids)
    with torch.inference_mode():
        found = model(input_ids=ids[:, :140], use_cache=True)
        cache, last = found.past_key_values, []
        for at in range(140, 150):
            found = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            last.append(found.logits[:, 0])
    torch.testing.assert_close(torch.stack(last, 1), expected[:, 140:], atol=2e-4, rtol=1e-4)
    padding, other = torch.zeros(1, 150, dtype=torch.int64), ids_of(1, 300, seed=2)
    batch = torch.cat([torch.cat([padding, ids], 1), other])
    mask = torch.ones_like(batch)
    mask[0, :150] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    got = logits(model, batch, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(got[:1, 150:], expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(got[1:], logits(model, other), atol=2e-4, rtol=1e-4)


def test_gradients_are_those_of_the_formula_and_recomputing_them_changes_no_bit() -> None:
    model, ids = with_scales(short("llama")), ids_of(1, 150)
    reference = copy.deepcopy(model)

    def gradients(owner: Any) -> list[torch.Tensor]:
        owner.zero_grad()
        owner(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [parameter.grad.clone() for parameter in owner.parameters()]

    found = gradients(model)
    model.train()
    model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), found, strict=True))
    index = [name for name, _ in model.named_parameters()].index("model.layers.0.self_attn.q_proj.weight")
    weight, losses = reference.double().model.layers[0].self_attn.q_proj.weight, []
    direction = found[index].double() / found[index].norm()
    with torch.no_grad():
        for step in (0.01, -0.02):
            weight += step * direction
            scores = logits(reference, ids)[0, :-1].log_softmax(-1)
            losses.append(-scores.gather(1, ids[0, 1:, None]).mean().item())
    assert (losses[0] - losses[1]) / 0.02 == pytest.approx(float(found[index].norm()), rel=0.01)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "gpt_neox"])
@pytest.mark.parametrize("by_head", [True, False])
def test_a_saved_and_an_exported_model_has_it(family: str, by_head: bool, tmp_path: Path) -> None:
    model, ids = short(family), ids_of(1, 150)
    plain = logits(with_scales(copy.deepcopy(model), 0.0), ids)
    model = with_scales(model, None if by_head else 1.0)
    expected = logits(model, ids)
    assert torch.equal(expected[:, :TRAINED], plain[:, :TRAINED])
    assert not torch.allclose(expected[:, -20:], plain[:, -20:], atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved"), ids), expected)
    export_checkpoint(load_model(tmp_path / "saved"), tmp_path / "exported")
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    assert torch.equal(logits(stranger, ids), expected)
    assert "ln n / ln 64" in (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.parametrize("name", ["yarn", "mrrope", "by-parts", "ntk", "abf", "one-base", "harpe-parts"])
def test_a_method_with_it_is_that_method_with_queries_scaled(name: str) -> None:
    model, ids = short("llama"), ids_of(1, 300)
    stages = [
        make_stages(method_named(name), read_geometry(model.config, "x"), 512, {"length_scale": scale} if scale else {})
        for scale in (None, 1.0)
    ]
    geometry = read_geometry(model.config, "x")
    plain, scaled = (apply_encoding(copy.deepcopy(model), stage.encoding, geometry, 512) for (stage,) in stages)
    assert scaled.config.rope_parameters["rope_type"] == "harpe"
    assert Stage.from_dict(stages[1][0].as_dict()) == stages[1][0]
    assert "length scale 1" in stages[1][0].encoding.describe()
    torch.testing.assert_close(logits(scaled, ids[:, :TRAINED]), logits(plain, ids[:, :TRAINED]), atol=2e-4, rtol=1e-4)

    def attend(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        growth = torch.tensor([wanted_scale(m, 1.0) for m in range(query.shape[2])])
        return sdpa_attention_forward(module, query * growth[:, None], *args, **kwargs)

    AttentionInterface.register("scaled_in_test", attend)
    plain.config._attn_implementation_internal = "scaled_in_test"
    torch.testing.assert_close(logits(scaled, ids), logits(plain, ids), atol=5e-4, rtol=1e-3)


def test_c_of_1_is_entropy_abf_s_formula_and_scalable_softmax_s() -> None:
    """Of the authors' program (PKU-ML/LongPPL, finetune/patch/EABF.py, 1decd2a): log(position + 1) / log(L0), 1 at
    least."""
    model = with_scales(short("llama"), 1.0)
    q = torch.ones(1, 4, 5000, 16)
    pair = rotary_of(model)(q, torch.arange(5000)[None])
    got, _ = module_of(model).apply_rotary_pos_emb(q, q[:, :2], *pair)
    theirs = ((torch.arange(5000) + 1).log() / math.log(TRAINED)).clamp(min=1)
    torch.testing.assert_close(got.norm(dim=-1)[0, 0] / 4, theirs, atol=0, rtol=1e-5)


def test_methods_take_a_number_and_numbers_by_head_and_refuse_others() -> None:
    geometry = read_geometry(tiny_config("llama"), "x")
    for name in ("harpe", "abf", "one-base", "ntk", "yarn", "mrrope", "by-parts", "harpe-parts"):
        for given, wanted in ((None, 0.0), (1, 1.0), ([0.5, 1.5], (0.5, 1.5)), ([1.0, 1.0], 1.0), (0.0, 0.0)):
            (stage,) = make_stages(method_named(name), geometry, 4096, {"length_scale": given})
            assert stage.encoding.length_scale == wanted
            assert Stage.from_dict(stage.as_dict()) == stage
        for wrong, words in (([1.0], "has 1 numbers"), (-0.1, "none is below"), ("log", "length_scale of")):
            with pytest.raises(HarpeError, match=words):
                make_stages(method_named(name), geometry, 4096, {"length_scale": wrong})


def test_what_cannot_have_it_is_refused() -> None:
    model = short("llama")
    geometry = read_geometry(model.config, "x")
    shared = with_length_scale(shared_encoding(3e5, geometry), 1.0, geometry)
    with pytest.raises(HarpeError, match="Self-Extend"):
        apply_encoding(model, replace(shared, attention=SelfExtend(16, 8)), geometry, 256)
    for moving in ({"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "longrope", "short_factor": [1.0]}):
        with pytest.raises(HarpeError, match="do not change with the length"):
            apply_encoding(model, replace(shared, stock={**moving, "long_factor": [2.0]}), geometry, 256)
    assert model.config.rope_parameters["rope_type"] == "default"
    model = with_scales(model, [0.5, 1.0])
    with pytest.raises(HarpeError, match="already has"):
        read_geometry(model.config, "x")
    for key, wrong in (("length_scale", [1.0]), ("length_scale", -1.0), ("length_scale", ["a", 1.0])):
        config = copy.deepcopy(model.config)
        config.rope_parameters[key] = wrong
        with pytest.raises(ValueError, match="length_scale"):
            config.validate_rope()
    config = copy.deepcopy(model.config)
    del config.rope_parameters["original_max_position_embeddings"]
    with pytest.raises(ValueError, match="needs original_max_position_embeddings"):
        config.validate_rope()


def test_a_run_with_it_trains_and_exports_it(workspace: Path) -> None:
    texts, model = str(workspace / "texts"), str(workspace / "model")
    options: dict[str, Any] = {"tokens": 2048, "batch_tokens": 512, "learning_rate": 1e-3, "dtype": "float32"}
    extended = harpe.extend(
        model, 512, texts, workspace / "run", method="harpe", method_options={"length_scale": 1.0}, **options
    )
    exported = export(ExportOptions(source=str(workspace / "run"), out=str(workspace / "out")))
    first = load_model(extended)
    assert first.config.rope_parameters["length_scale"] == 1.0
    assert first.config.rope_parameters["original_max_position_embeddings"] == 64
    second = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    ids = ids_of(1, 200)
    assert torch.equal(logits(first, ids), logits(second, ids))


def test_a_family_that_would_undo_it_is_refused_before_texts_are_read(workspace: Path) -> None:
    folder = shutil.copytree(workspace / "model", workspace / "behind")
    short("nanochat", vocab_size=AutoConfig.from_pretrained(folder).vocab_size).save_pretrained(folder)
    options: dict[str, Any] = {
        "method": "harpe",
        "method_options": {"length_scale": 1.0},
        "tokens": 2048,
        "batch_tokens": 512,
    }
    with pytest.raises(HarpeError, match="after they are rotated"):
        harpe.extend(str(folder), 512, str(workspace / "texts"), workspace / "run", **options)
    assert not (workspace / "run" / "data").exists()


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_frequencies_of_a_stock_type_become_a_table_with_its_factor(family: str) -> None:
    """Also where the configuration has another trained context beside its rope parameters, of 4,096 tokens in Phi-3,
    which transformers prefers."""
    model = short(family)
    geometry = read_geometry(model.config, "x")
    (stage,) = make_stages(method_named("yarn"), geometry, 512, {"length_scale": 1.0})
    (kept,) = make_stages(method_named("longrope"), geometry, 512, {"long_factor": [2.0] * 8})  # stays a stock type
    check_encoding(model.config, kept.encoding, geometry, 512)
    apply_encoding(model, stage.encoding, geometry, 512)
    rope = model.config.rope_parameters
    assert len(rope["frequencies"]) == 2 and rope["attention_factor"] == pytest.approx(1 + 0.1 * math.log(8))
    fresh = short("llama").config
    fresh.rope_parameters = stage.encoding.stock
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](fresh)
    for row in rope["frequencies"]:
        assert row == pytest.approx(theirs.tolist(), rel=1e-6)


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3_text"])
def test_a_traced_model_gives_the_same_logits(family: str) -> None:
    """Both forms of the pair: cos and sin, traced through, and positions by layer, for the operator."""
    model, ids = with_scales(short(family)), ids_of(1, 150)
    expected = logits(model, ids)
    torch._dynamo.reset()
    got = logits(torch.compile(model, fullgraph=True, backend="aot_eager"), ids)
    torch.testing.assert_close(got, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
