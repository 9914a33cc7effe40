"""Which method `harpe extend` takes where none is named."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.models.tiny_families import FAMILIES, tiny
from transformers import AutoConfig, AutoModelForCausalLM

import harpe
from harpe.commands.extend import _use, extend
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.families import normalises_rotated
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.models.rotation_check import check_scaled
from harpe.options.extend import ExtendOptions
from harpe.reporter import Reporter

SETTINGS: dict[str, Any] = {
    "length": 256,
    "tokens": 1024,
    "batch_tokens": 512,
    "learning_rate": 1e-3,
    "dtype": "float32",
}


def extended(workspace: Path, out: str = "run", **options: Any) -> Path:
    options = {"model": str(workspace / "model"), "data": str(workspace / "texts"), **SETTINGS, **options}
    return harpe.extend(out=workspace / out, **options)


def last_words(workspace: Path, **options: Any) -> str:
    """What `harpe extend` ends with, of a run that is finished."""
    said: list[str] = []

    class Said(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    places = {name: str(workspace / name) for name in ("model", "run")}
    given = {**SETTINGS, **options, "data": str(workspace / "texts"), "resume": True}
    extend(ExtendOptions(model=places["model"], out=places["run"], **given), Said())
    return said[-1]


def test_the_default_is_told_with_its_reason_and_stock_transformers_loads_it(workspace: Path) -> None:
    model = extended(workspace)
    plan = read_json(workspace / "run" / "plan.json")
    assert any("The method was chosen for you: yarn: " in note for note in plan["reasons"])
    stock = AutoModelForCausalLM.from_pretrained(model)
    assert stock.config.rope_parameters["rope_type"] == "yarn" and stock.config.rope_parameters["factor"] == 4
    serves = f"The extended model is in {model}, a stock checkpoint: `transformers serve {model}` serves it"
    assert last_words(workspace) == f"{serves}."
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert last_words(workspace) == f"{serves}, `transformers chat {model}` talks to it."
    odd = shutil.copytree(model, workspace / "it's a model")
    served, talked = re.findall("`([^`]*)`", _use(workspace / "run", odd))
    assert shlex.split(served) == ["transformers", "serve", str(odd)]
    assert shlex.split(talked) == ["transformers", "chat", str(odd)]
    (model / "chat_template.jinja").unlink()
    extended(workspace, resume=True, method="yarn")
    with pytest.raises(HarpeError, match="another recipe"):
        extended(workspace, resume=True, method="harpe")


def test_a_run_that_named_its_method_is_resumed_without_naming_it(workspace: Path) -> None:
    extended(workspace, method="abf", method_options={"attention_factor": 1.1})
    assert extended(workspace, resume=True) == workspace / "run" / "abf" / "model"
    assert "a stock checkpoint" in last_words(workspace)


@pytest.mark.parametrize("damage", [b"method: [", b"\xff\xfe", b"- 1"])
def test_a_damaged_recipe_is_told_where_a_run_is_resumed_without_naming_its_method(
    workspace: Path, damage: bytes
) -> None:
    (workspace / "run").mkdir()
    (workspace / "run" / "recipe.yaml").write_bytes(damage)
    with pytest.raises(HarpeError, match=r"recipe.yaml (cannot be read|holds no recipe)"):
        extended(workspace, resume=True)


def test_a_checkpoint_with_a_scaling_of_its_own_keeps_it(workspace: Path) -> None:
    model = load_model(workspace / "model")
    tokenizer = load_tokenizer(str(workspace / "model"))
    model.config.rope_parameters = {
        **model.config.rope_parameters,
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    save_checkpoint(model, tokenizer, workspace / "scaled", 64)
    extended(workspace, model=str(workspace / "scaled"))
    plan = read_json(workspace / "run" / "plan.json")
    assert plan["methods"][1]["name"] == "one-base"
    assert any("a scaling of its own" in note for note in plan["reasons"])


def test_options_of_bases_name_harpe_and_others_ask_for_a_name(workspace: Path) -> None:
    assert extended(workspace, assignment="descending") == workspace / "run" / "harpe" / "model"
    with pytest.raises(HarpeError, match="--base belongs to a method"):
        extended(workspace, "other", base=5e4)
    with pytest.raises(HarpeError, match="--method-options belongs to a method"):
        extended(workspace, "other", method_options={"factor": 4})
    for options in ({"min": 2e4}, {"range": "short"}):
        with pytest.raises(HarpeError, match="which --method yarn does not choose"):
            extended(workspace, "other", method="yarn", **options)
    assert not (workspace / "other").exists()


def test_as_published_is_the_search_for_bases_without_a_factor(workspace: Path) -> None:
    extended(workspace, as_published=True)
    extended(workspace, "named", method="harpe", strategy="peak-valley")
    first, second = (read_json(workspace / run / "harpe" / "stages.json")["stages"] for run in ("run", "named"))
    assert first == second and first[0]["encoding"]["attention_factor"] == 1.0
    extended(workspace, as_published=True, resume=True)
    extended(workspace, resume=True)  # as it began, where nothing is named
    for other in ({"method": "yarn"}, {"strategy": "log-uniform"}):
        with pytest.raises(HarpeError, match="--as-published is --method harpe"):
            extended(workspace, "other", as_published=True, **other)


@pytest.mark.parametrize(
    ("family", "method", "words"),
    [
        ("phi3", "one-base", "a phi3 does not take yarn"),
        ("gemma2", "yarn", "layers with a sliding window change their positions as well"),
    ],
)
def test_a_family_gets_what_it_takes_and_is_told_what_it_does_with_it(
    workspace: Path, family: str, method: str, words: str
) -> None:
    folder = shutil.copytree(workspace / "model", workspace / family)
    tiny(family, vocab_size=AutoConfig.from_pretrained(folder).vocab_size).save_pretrained(folder)
    extended(workspace, model=str(folder), original_length=64)
    plan = read_json(workspace / "run" / "plan.json")
    assert plan["methods"][1]["name"] == method and any(words in reason for reason in plan["reasons"])


def test_a_type_that_a_family_does_not_take_is_told_before_texts_are_read(workspace: Path) -> None:
    folder = shutil.copytree(workspace / "model", workspace / "phi3")
    tiny("phi3", vocab_size=AutoConfig.from_pretrained(folder).vocab_size).save_pretrained(folder)
    with pytest.raises(HarpeError, match="A phi3 does not take the rope type yarn"):
        extended(workspace, model=str(folder), original_length=64, method="yarn")
    assert not (workspace / "run").exists()
    extended(workspace, model=str(folder), original_length=64, method="abf")


def test_an_extension_by_a_smaller_factor_counts_as_trained_when_it_is_extended_again(workspace: Path) -> None:
    first = extended(workspace, method="yarn", method_options={"factor": 2.0})
    extended(workspace, "again", model=str(first), length=1024)
    plan = read_json(workspace / "again" / "plan.json")
    assert plan["original_length"] == 256 and plan["methods"][1]["name"] == "one-base"


def test_one_base_with_a_factor_is_no_scaling_when_it_is_extended_again(workspace: Path) -> None:
    first = extended(workspace, method="one-base", method_options={"attention_factor": 1.25})
    second = extended(workspace, "again", model=str(first), length=1024)
    reasons = " ".join(read_json(workspace / "again" / "plan.json")["reasons"])
    assert "one base and an attention factor, 1.25, which is kept" in reasons and "is replaced" not in reasons
    assert "trained with an attention factor of its own" in reasons
    found = AutoConfig.from_pretrained(second).rope_parameters["attention_factor"]
    assert found == pytest.approx(1.25 * (1 + 0.1 * math.log(1024 / 256)))


def test_a_family_that_undoes_yarn_s_factor_is_told_before_texts_are_read(workspace: Path) -> None:
    folder = shutil.copytree(workspace / "model", workspace / "behind")
    tiny("nanochat", vocab_size=AutoConfig.from_pretrained(folder).vocab_size).save_pretrained(folder)
    with pytest.raises(HarpeError, match="Choose a method without, such as harpe or abf"):
        extended(workspace, model=str(folder), original_length=64, method="yarn")
    assert not (workspace / "run").exists()
    extended(workspace, model=str(folder), original_length=64, method="harpe")


@pytest.mark.parametrize("family", ["nanochat", "hunyuan_v1_dense"])
def test_a_family_with_a_norm_behind_the_rotation_gets_a_method_without_a_factor(workspace: Path, family: str) -> None:
    tokenizer = load_tokenizer("embedded")
    shutil.rmtree(workspace / "model")
    model = tiny(family, vocab_size=len(tokenizer), max_position_embeddings=64)
    save_checkpoint(model, tokenizer, workspace / "model", 64)
    config = load_model(extended(workspace)).config
    assert config.rope_parameters["rope_type"] == "default" and config.max_position_embeddings == 256
    plan = read_json(workspace / "run" / "plan.json")
    assert any("has a norm behind the rotation" in note for note in plan["reasons"])


def test_the_families_that_the_default_knows_by_their_source_are_those_that_refuse_a_factor() -> None:
    for family in FAMILIES:
        model = tiny(family)
        try:
            check_scaled(model)
            refused = False
        except HarpeError:
            refused = True
        assert normalises_rotated(model.config) == refused, family
