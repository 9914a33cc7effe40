"""A tokenizer that is another one beside the model is refused before anything is trained or written; stock transformers
says which those are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.models.gguf_files import tiny
from tests.models.gguf_files import tokenizer as made
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import harpe
from harpe.errors import HarpeError
from harpe.models import kept_tokenizer
from harpe.models.kept_tokenizer import TEXT, check_kept
from harpe.runs.source import open_source

RULES = ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken")


def saved(folder: Path, rule: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made(rule, TEXT * 3), eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("rule", RULES)
def test_those_are_refused_that_stock_transformers_loads_as_another(tmp_path: Path, family: str, rule: str) -> None:
    config = tiny(family).config
    tokenizer, folder = saved(tmp_path / "t", rule), tmp_path / "beside"
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    texts = [TEXT, "12345 67", "don't", "a\n\n b", "e\u0301"]
    stock = AutoTokenizer.from_pretrained(folder)
    changed = [stock(text).input_ids for text in texts] != [tokenizer(text).input_ids for text in texts]
    if not changed:
        check_kept(tokenizer, config, "x")
        return
    with pytest.raises(
        HarpeError, match=f"The tokenizer of x makes other tokens .* loads it as {type(stock).__name__}"
    ):
        check_kept(tokenizer, config, "x")


def test_an_export_with_another_tokenizer_leaves_nothing_behind(tmp_path: Path) -> None:
    model = harpe.apply(tiny("qwen2"), "abf", length=2048)
    with pytest.raises(HarpeError, match="makes other tokens"):
        harpe.export(model, tmp_path / "out", saved(tmp_path / "other", "smollm"))
    assert not (tmp_path / "out").exists()


def test_one_that_cannot_be_loaded_again_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a class of transformers wants a file that another one does not save."""
    tokenizer, config = saved(tmp_path, "gpt-2"), tiny("llama").config

    def refuse(*given: Any, **options: Any) -> None:
        raise TypeError("vocab_file\nis missing")

    monkeypatch.setattr(kept_tokenizer.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(HarpeError, match=r"cannot be loaded again .* llama \(TypeError: vocab_file is missing\)"):
        check_kept(tokenizer, config, "x")


def test_one_of_them_at_least_is_another_beside_qwen2_and_extending_refuses_it(tmp_path: Path) -> None:
    tiny("qwen2").save_pretrained(tmp_path / "model")
    saved(tmp_path / "own", "qwen2").save_pretrained(tmp_path / "model")
    saved(tmp_path / "other", "smollm")
    place: Any = str(tmp_path / "model")
    assert open_source(place, 4096, None, None, None, "keep").tokenizer("12").input_ids
    with pytest.raises(HarpeError, match="without --tokenizer"):
        open_source(place, 4096, None, str(tmp_path / "other"), None, "keep")
