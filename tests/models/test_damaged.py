"""A damaged checkpoint ends in a sentence that says what is wrong, and never in a model with random numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.models.load import load_config, load_model, load_tokenizer

from .damages import CONFIGURATION, TOKENIZER, WEIGHTS, also, config, damaged, rope, shards, whole
from .tiny_families import FAMILIES, tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("whole") / "model")


@pytest.mark.parametrize("name", CONFIGURATION)
def test_a_damaged_configuration_is_told_before_weights_are_read(checkpoint: Path, tmp_path: Path, name: str) -> None:
    damage, sentence = CONFIGURATION[name]
    folder = damaged(checkpoint, tmp_path / "m", damage)
    (folder / "model.safetensors").unlink()
    for load in (load_config, load_model):
        with pytest.raises(HarpeError, match=sentence) as error:
            load(folder)
        assert "hub" not in str(error.value)


def test_a_tokenizer_is_read_where_the_model_is_not(checkpoint: Path, tmp_path: Path) -> None:
    """A server may run what harpe does not load."""
    folder = damaged(checkpoint, tmp_path / "m", CONFIGURATION["quantised by fp8"][0])
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(checkpoint).get_vocab()


def test_a_folder_may_hold_a_tokenizer_alone(checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(
        checkpoint,
        tmp_path / "m",
        lambda folder: [path.unlink() for path in folder.iterdir() if "token" not in path.name],
    )
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(checkpoint).get_vocab()


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_the_models_own_are_refused_with_their_names(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    damage, sentence = WEIGHTS[name]
    folder = damaged(checkpoint, tmp_path / "m", damage)
    load_config(folder)
    with pytest.raises(HarpeError, match=sentence):
        load_model(folder)


@pytest.mark.parametrize("name", TOKENIZER)
def test_a_damaged_tokenizer_is_told(checkpoint: Path, tmp_path: Path, name: str) -> None:
    damage, sentence = TOKENIZER[name]
    folder = damaged(checkpoint, tmp_path / "m", damage)
    load_config(folder)
    with pytest.raises(HarpeError, match=sentence):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "harmless",
    [
        config(attn_implementation="flash_attention_2"),
        config(_attn_implementation="flash_attention_3"),
        config(attn_implementation="someone/attention-kernel"),
        config(attn_implementation={"": "flash_attention_2"}),
        config(experts_implementation="deepgemm"),
        config(dtype="torch.float32"),
        config(dtype="auto"),
        config(dtype=None),
        config(architectures=None),
        config(architectures=["SomebodysForCausalLM"]),
        config(quantization_config=None),
        rope(None),
        config(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}),
        also(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8)),
        shards(lambda folder, places: places),
    ],
    ids=lambda value: "",
)
def test_what_only_depends_on_the_machine_or_is_old_loads_as_it_was(
    checkpoint: Path, tmp_path: Path, harmless: Any
) -> None:
    folder = damaged(checkpoint, tmp_path / "m", harmless)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.equal(load_model(folder)(ids).logits, load_model(checkpoint)(ids).logits)
    assert len(load_tokenizer(folder)) == len(load_tokenizer(checkpoint))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_checkpoints_of_every_family_are_not_refused(tmp_path: Path, family: str, tied: bool) -> None:
    model = tiny(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "m")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m")(ids).logits, model(ids).logits)


def test_buffers_that_old_checkpoints_hold_are_not_refused(tmp_path: Path) -> None:
    """Pythia's: a mask, its value and the inverse frequencies in every layer."""
    model = tiny("gpt_neox")
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    for layer in (f"gpt_neox.layers.{number}.attention" for number in range(2)):
        found |= {
            f"{layer}.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
            f"{layer}.masked_bias": torch.tensor(-1e9),
        }
        found[f"{layer}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(found, tmp_path / "model.safetensors", {"format": "pt"})
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids).logits, model(ids).logits)


VERBS = {
    "bases": "--model MODEL --length 1024",
    "heads": "MODEL --data embedded --length 1024 --documents 4 --out OUT/heads",
    "plan": "MODEL --length 1024",
    "prepare": "--model MODEL --data embedded --length 64 --out OUT/data",
    "extend": "MODEL --data embedded --length 1024 --tokens 4096 --out OUT/run",
    "evaluate": "MODEL --data embedded --length 512 --out OUT/scores",
    "export": "MODEL --out OUT/exported",
    "perplexity": "MODEL --data embedded --lengths 64 --out OUT/perplexity.json",
    "ruler": "--model MODEL --length 512 --samples 1 --tasks niah_single_1 --out OUT/ruler",
    "short": "MODEL --tasks piqa_local --out OUT/short",
}


def told(verb: str, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a verb says of a checkpoint that it refuses; it must leave nothing behind."""
    options = VERBS[verb].replace("MODEL", str(folder)).replace("OUT", str(out))
    assert main([verb, *options.split()]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"harpe {verb}: " in message and str(folder) in message and "Traceback" not in message
    assert not [path for path in out.rglob("*") if path.is_file()]
    return message


@pytest.mark.parametrize(
    "name", ["no JSON", "quantised by gptq", "length as a float", "scaling by a text", "unknown dtype"]
)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_a_damaged_configuration(
    checkpoint: Path, tmp_path: Path, verb: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, sentence = CONFIGURATION[name]
    message = told(verb, damaged(checkpoint, tmp_path / "m", damage), tmp_path / "out", capsys)
    assert re.search(sentence, message)
