"""`harpe export --gguf`. llama.cpp's converter is no dependency (docs/serving.md says with which it was run); here the
writer of these tests stands in its place, as a command of its own."""

from __future__ import annotations

import copy
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import harpe
from harpe.commands.export import export
from harpe.errors import HarpeError
from harpe.models.export_gguf import check_file
from harpe.models.gguf_header import llama3_divisors, read_header
from harpe.models.load import load_model, save_checkpoint
from harpe.options.runs import ExportOptions

from .gguf_files import tensors, tiny, tokenizer, write

CONVERTER = """
import argparse, importlib.util, pathlib, sys
sys.path.insert(0, {tests!r})
import gguf_files as files
from transformers import AutoModelForCausalLM
options = argparse.ArgumentParser()
options.add_argument("folder"); options.add_argument("--outtype"); options.add_argument("--outfile", type=pathlib.Path)
given = options.parse_args()
model = AutoModelForCausalLM.from_pretrained(given.folder)
text = pathlib.Path({text!r}).read_text()
files.write(given.outfile, model, files.tokenizer("gpt-2", text), given.outtype.upper(), states={states!r})
"""
README = Path(__file__).parents[2] / "README.md"
HERE = str(Path(__file__).parent)


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer("gpt-2", README.read_text()), eos_token="<|im_end|>")


def extended(folder: Path, words: Any, method: str, **options: Any) -> Path:
    model = tiny("llama", len(words), max_position_embeddings=128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is untrained
        harpe.apply(model, method, length=512, **options)
    save_checkpoint(model, words, folder, 512)
    return folder


def converter(folder: Path, **states: Any) -> str:
    path = folder / "convert_hf_to_gguf.py"
    path.write_text(CONVERTER.format(tests=HERE, text=str(README), states=states))
    return str(path)


def test_one_table_is_written_by_the_converter_beside_the_checkpoint(tmp_path: Path, words: Any) -> None:
    model, scaling = extended(tmp_path / "pi", words, "pi"), {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    out = tmp_path / "out"
    export(ExportOptions(source=str(model), out=str(out), gguf=converter(tmp_path, **scaling)))
    header = read_header(out / "model.gguf")
    assert header.types == {"F32": 21} and not list(out.glob(".*"))
    stored = tensors(load_model(out))
    assert all(torch.equal(torch.tensor(header.tensors[k].data), torch.tensor(v)) for k, v in stored.items())


@pytest.mark.slow
def test_a_file_of_another_base_or_scaling_is_not_kept(tmp_path: Path, words: Any) -> None:
    model = extended(tmp_path / "abf", words, "abf")
    for name, states in {"base": {"rope.freq_base": 10_000.0}, "context": {"context_length": 128}}.items():
        out = tmp_path / name
        with pytest.raises(HarpeError, match="The file is not kept"):
            export(ExportOptions(source=str(model), out=str(out), gguf=converter(tmp_path, **states)))
        assert (out / "model.safetensors").is_file() and not list(out.glob("*gguf*")) and not list(out.glob(".*"))


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}


@pytest.mark.parametrize(
    ("options", "states", "kept"),
    [
        ({}, YARN, True),
        ({}, YARN | {"rope.scaling.original_context_length": 512}, False),
        ({}, {key: YARN[key] for key in list(YARN)[:2]}, False),
        ({"beta_fast": 8.0}, YARN, False),
        ({"beta_fast": 8.0}, YARN | {"rope.scaling.yarn_beta_fast": 8.0}, True),
        ({}, YARN | {"rope.scaling.yarn_beta_slow": 2.0}, False),
    ],
)
def test_a_file_with_another_ramp_of_yarn_is_not_kept(
    tmp_path: Path, words: Any, options: dict[str, float], states: dict[str, Any], kept: bool
) -> None:
    model = tiny("llama", len(words), max_position_embeddings=128)
    harpe.apply(model, "yarn", length=512, **options)
    file = tmp_path / "model.gguf"
    write(file, model, tokenizer("gpt-2", README.read_text()), "F32", states=states)
    with nullcontext() if kept else pytest.raises(HarpeError, match="The file is not kept"):
        check_file(file, model.config)


@pytest.mark.parametrize(("factor", "kept"), [(None, False), (8.0, True), (4.0, False)])
def test_a_file_without_the_frequencies_of_llama_3_is_not_kept(
    tmp_path: Path, words: Any, factor: float | None, kept: bool
) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = tiny("llama", len(words), rope_parameters={**scaling, "original_max_position_embeddings": 64})
    config, file = copy.deepcopy(model.config), tmp_path / "model.gguf"
    config.rope_parameters["factor"] = factor
    added = {} if factor is None else {"rope_freqs.weight": llama3_divisors(config, config.head_dim).numpy()}
    write(file, model, tokenizer("gpt-2", README.read_text()), "F32", holds=added)
    with nullcontext() if kept else pytest.raises(HarpeError, match="The file is not kept"):
        check_file(file, model.config)


def test_a_converter_that_fails_is_quoted(tmp_path: Path, words: Any) -> None:
    (tmp_path / "own").write_text(f"#!{sys.executable}\nraise SystemExit('Can not map it')\n")
    (tmp_path / "own").chmod(0o755)
    model = extended(tmp_path / "abf", words, "abf")
    with pytest.raises(HarpeError, match="Can not map it. The checkpoint itself is whole"):
        export(ExportOptions(source=str(model), out=str(tmp_path / "out"), gguf=str(tmp_path / "own")))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("harpe", {}, "one table of RoPE frequencies for all heads"),
        ("longrope", {"long_factor": [2.0] * 16}, "the rope type longrope"),
        ("abf", {"attention_factor": 1.2}, "the rope type longrope"),  # which is how one base keeps a factor
        ("yarn", {}, "is not there. Name llama.cpp's"),
    ],
)
def test_what_a_gguf_file_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, words: Any, method: str, options: dict[str, Any], message: str
) -> None:
    model = extended(tmp_path / "model", words, method, **options)
    with pytest.raises(HarpeError, match=message):
        export(ExportOptions(source=str(model), out=str(tmp_path / "out"), gguf=str(tmp_path / "none.py")))
    assert not (tmp_path / "out").exists()
