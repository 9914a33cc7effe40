"""What cannot be extended is refused in a sentence, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import harpe
from harpe.data.packing import prepare
from harpe.data.sources import Document
from harpe.errors import HarpeError
from harpe.models.geometry import check_sliding_window, read_geometry
from harpe.models.head_distance import head_distances
from harpe.models.load import load_config, load_model, load_tokenizer, resolve, save_checkpoint
from harpe.models.vocabulary import check_vocabulary

from .tiny_families import tiny

PLACES = torch.arange(40)[None]


@pytest.mark.parametrize(
    "config", [AutoConfig.for_model("gpt2"), AutoConfig.for_model("bloom")], ids=["learned positions", "ALiBi"]
)
def test_a_model_without_rope_is_refused(config: Any) -> None:
    with pytest.raises(HarpeError, match="no rotary position embedding"):
        read_geometry(config, "x")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("deepseek_v3", "latent attention"),
        ("deepseek_v2", "latent attention"),
        ("llama4_text", "does not rotate queries and keys by apply_rotary_pos_emb"),
        ("gemma4_text", "uses cos and sin in another way"),
        ("cohere2", "only its layers with a sliding window have RoPE"),
        ("gptj", "rotary positions whose base stands in its code"),
        ("roformer", "rotary positions whose base stands in its code"),
        ("falcon_h1", "are of type hybrid"),
    ],
)
def test_a_family_that_cannot_have_bases_per_head_is_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(HarpeError, match=reason):
        read_geometry(AutoConfig.for_model(family), "x")


def test_positions_in_several_dimensions_are_refused() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    with pytest.raises(HarpeError, match="positions in several dimensions"):
        read_geometry(AutoConfig.for_model("qwen2_5_vl_text", rope_parameters=rope), "x")


def test_configurations_of_models_inside_are_made_as_without_harpe() -> None:
    harpe.register()
    assert AutoConfig.for_model("phi4_multimodal").audio_config.model_type == "phi4_multimodal_audio"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_is_per_head_already_is_refused(make_tiny: Any) -> None:
    model = harpe.apply(make_tiny("llama"), length=1024)
    with pytest.raises(HarpeError, match="already has one RoPE base per head"):
        harpe.apply(model, length=2048)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ([1e5], "has 1 bases, but the model has 2 key/value heads"),
        ([1e5] * 4, "one base for each"),
        ([1e5, 1.0], "finite number above 1"),
        ([float("nan"), 1e5], "finite number above 1"),
        ([float("inf"), 1e5], "finite number above 1"),
        ([-5.0, 1e5], "finite number above 1"),
    ],
)
def test_bases_that_do_not_fit_are_refused(make_tiny: Any, bases: list[float], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        harpe.apply(make_tiny("llama"), length=1024, bases=bases)


@pytest.mark.parametrize("length", [512, 100])
def test_a_target_that_is_not_longer_is_refused(make_tiny: Any, length: int) -> None:
    with pytest.raises(HarpeError, match="not longer than the model's context of 512"):
        harpe.apply(make_tiny("llama"), length=length)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_window_on_every_layer_is_refused_and_can_be_taken_off(make_tiny: Any) -> None:
    model = make_tiny("mistral", sliding_window=64)
    with pytest.raises(HarpeError, match="--sliding-window off"):
        check_sliding_window(model.config, "x", 1024, "keep")
    with pytest.raises(HarpeError, match="sliding window of 64"):
        harpe.apply(model, length=1024)
    ids = torch.randint(1, 97, (1, 400))
    harpe.apply(model, length=1024, bases=[1e5, 2e5], sliding_window="off")
    free = harpe.apply(make_tiny("mistral"), length=1024, bases=[1e5, 2e5])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, free(ids).logits)


def test_a_window_is_not_taken_off_where_layers_without_one_have_no_rope(make_tiny: Any) -> None:
    """EXAONE 4 rotates all layers where there is no window, and else those with one: they were trained without."""
    read_geometry(
        make_tiny("exaone4", sliding_window=None, layer_types=["full_attention"] * 2).config,
        "of the same family, without windows",
    )
    model = make_tiny("exaone4", layers=4, sliding_window=64, sliding_window_pattern=4)
    ids = torch.randint(1, 97, (1, 300))
    with torch.inference_mode():
        before = model(ids).logits
        with pytest.raises(HarpeError, match="only its layers with a sliding window have RoPE"):
            harpe.apply(model, "abf", length=1024, sliding_window="off")
        assert torch.equal(model(ids).logits, before)


def test_layers_that_lose_positions_of_their_own_with_their_window_are_told(tmp_path: Path) -> None:
    model, other = tiny("gemma3_text"), tiny("gpt_oss").config
    bases = {kind: entry["rope_theta"] for kind, entry in model.config.rope_parameters.items()}
    assert bases == {"full_attention": 1e6, "sliding_attention": 1e4}
    cos = {kind: model.model.rotary_emb(torch.zeros(1), PLACES, kind)[0] for kind in bases}
    with pytest.warns(UserWarning, match=r"own positions \(base 10000.0\): .* other layers \(base 1000000.0\)"):
        harpe.apply(model, "base-kept", length=1024, sliding_window="off")
    seen = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["position_embeddings"][0]), with_kwargs=True
    )
    model(torch.ones(1, 40, dtype=torch.int64))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()  # stock transformers
    ids = torch.randint(1, 97, (1, 40))
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert torch.equal(seen[0], cos["full_attention"]) and not torch.equal(seen[0], cos["sliding_attention"])
    assert "removed from 2 layers" in (note := check_sliding_window(other, "x", 1024, "off") or "")
    assert "base" not in note  # one rotary module: their positions are those of the others


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nothing", "~/nothing-here"])
def test_an_unknown_path_is_told(name: str) -> None:
    with pytest.raises(HarpeError, match="no checkpoint folder"):
        resolve(name)


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="no config.json"):
        load_config(tmp_path)


def test_an_unknown_hub_name_is_told_with_what_to_check() -> None:
    with pytest.raises(HarpeError, match="neither a folder nor a model"):
        load_config("nobody/no-such-model")


def test_pickled_weights_are_not_loaded(make_tiny: Any, tmp_path: Path) -> None:
    model = make_tiny("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(HarpeError):
        load_model(tmp_path)


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(size - 1)} | {"<unk>": size - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def with_more(*tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer of 97 ids and added ones, as many published checkpoints have."""
    tokenizer = tokenizer_of(97)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


@pytest.mark.parametrize(
    "encode",
    [
        lambda tokenizer, text: tokenizer(text),
        lambda tokenizer, text: tokenizer(["w3", text]),
        lambda tokenizer, text: tokenizer(text, add_special_tokens=False, return_tensors="pt"),
        lambda tokenizer, text: tokenizer.encode(text),
        lambda tokenizer, text: tokenizer.tokenize(text) and tokenizer("w3", text_pair=text),
    ],
)
def test_a_token_without_an_embedding_is_refused_where_it_occurs(make_tiny: Any, encode: Any) -> None:
    model, tokenizer = make_tiny("llama"), with_more("<image>")
    check_vocabulary(model.config, tokenizer, "x")
    assert tokenizer("w1 w2").input_ids == [1, 2] and tokenizer(["w1", "w2 w3"]).input_ids == [[1], [2, 3]]
    assert tokenizer("").input_ids == []
    with pytest.raises(HarpeError, match=r"'<image>' .id 97. is in a text, but x has 97 embeddings"):
        encode(tokenizer, "w1 <image> w2")


def test_a_model_refuses_an_id_without_an_embedding_wherever_it_comes_from(make_tiny: Any) -> None:
    model = make_tiny("llama")
    check_vocabulary(model, with_more("<image>"), "x")
    assert model(torch.tensor([[1, 96]])).logits.shape == (1, 2, 97)
    with pytest.raises(HarpeError, match="'<image>' .id 97."):
        model(torch.tensor([[1, 97]]))


def test_packed_texts_refuse_it_and_the_checkpoint_is_saved_with_its_tokenizer(make_tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = make_tiny("llama"), with_more("<image>")
    check_vocabulary(model, tokenizer, "x")
    with pytest.raises(HarpeError, match="'<image>'"):
        prepare([Document("a", "w1 w2 <image> w3 " * 20)], tokenizer, 8, tmp_path / "bad")
    assert prepare([Document("a", "w1 w2 w3 " * 20)], tokenizer, 8, tmp_path / "good").tokens == 56
    save_checkpoint(model, tokenizer, tmp_path / "model", 512)
    assert load_tokenizer(tmp_path / "model").get_vocab() == tokenizer.get_vocab()


def test_an_end_of_text_without_an_embedding_is_refused_at_once(make_tiny: Any) -> None:
    tokenizer = with_more("<end>")
    tokenizer.eos_token = "<end>"
    with pytest.raises(HarpeError, match="'<end>'"):
        check_vocabulary(make_tiny("llama"), tokenizer, "x")


def test_embeddings_beyond_the_tokenizer_and_tokenizers_that_fit_change_nothing(make_tiny: Any) -> None:
    for tokenizer in (tokenizer_of(97), tokenizer_of(50)):
        check_vocabulary(make_tiny("llama"), tokenizer, "x")
        assert "_encode_plus" not in vars(tokenizer)


def test_a_saved_checkpoint_is_never_overwritten(make_tiny: Any, tmp_path: Path) -> None:
    save_checkpoint(make_tiny("llama"), tokenizer_of(97), tmp_path / "model", 512)
    with pytest.raises(HarpeError, match="not overwritten"):
        save_checkpoint(make_tiny("llama"), tokenizer_of(97), tmp_path / "model", 512)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_by_head_are_refused_where_neighbours_share_no_key_head() -> None:
    """JetMoE gives query head h the key head h mod H: with bases by head its scores would depend on absolute positions.
    One table for all heads is as good there as elsewhere."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16}

    def made() -> Any:
        torch.manual_seed(0)
        sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
        more = {"num_key_value_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.1}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("jetmoe", **sizes, **more, **experts)).eval()

    for method in ("harpe", "harpe-parts"):
        with pytest.raises(HarpeError, match="jetmoe, which cannot have .*: its query heads do not share a key head"):
            harpe.apply(made(), method, length=128)
    with pytest.raises(HarpeError, match="its query heads do not share a key head"):
        head_distances(made(), [list(range(3, 40))], 64)
    ids, places = torch.arange(3, 51)[None], torch.arange(48)[None]
    for method in ("one-base", "yarn"):
        model = harpe.apply(made(), method, length=128).eval()
        with torch.no_grad():
            here, there = (model(ids, position_ids=places + n, use_cache=False).logits for n in (0, 10))
        assert (here - there).abs().max() < 1e-5 * here.abs().max(), method
