"""What an export takes along, and models that are not written because programs would not read them as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import harpe
from harpe.errors import HarpeError
from harpe.models.load import load_model, load_tokenizer, save_checkpoint

from .exported import extended, images_and_text, prepared


@pytest.mark.parametrize("said", [["preprocessor_config.json", "processor_config.json"], []])
def test_what_makes_inputs_of_images_is_kept_by_a_run_and_by_its_export(tmp_path: Path, said: list[str]) -> None:
    images_and_text().save_pretrained(tmp_path / "stock")
    for name in said:
        (tmp_path / "stock" / name).write_text(json.dumps({"image_size": 28, "made by": name}))
    model = extended(load_model(tmp_path / "stock", torch.float32), [5e3, 7e4])
    save_checkpoint(model, load_tokenizer("embedded"), tmp_path / "run", 4096)
    harpe.export(load_model(tmp_path / "run", torch.float32), tmp_path / "out")
    for folder in ("run", "out"):
        assert sorted(path.name for path in (tmp_path / folder).glob("*processor*")) == said
        for name in said:
            assert (tmp_path / folder / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = extended(prepared("llama"), [5e3, 7e4])
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = torch.nan
    with pytest.raises(HarpeError, match=r"up_proj\.weight of the model hold numbers that are not finite"):
        harpe.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_layer_of_its_own_is_written_where_the_configuration_says_so(tmp_path: Path) -> None:
    model = extended(prepared("llama", tie_word_embeddings=True), [5e3, 7e4])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    harpe.export(model, tmp_path / "alike")
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    with pytest.raises(HarpeError, match="says that the output layer has the embedding's weights"):
        harpe.export(model, tmp_path / "out")
    model.config.tie_word_embeddings = False
    assert load_model(harpe.export(model, tmp_path / "own")).lm_head.weight.equal(model.lm_head.weight)


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    model, folder = extended(prepared("llama"), [5e3, 7e4]), tmp_path / os.fsdecode(b"sur\xff")
    with pytest.raises(HarpeError, match="is not UTF-8"):
        harpe.export(model, folder, load_tokenizer("embedded"))
