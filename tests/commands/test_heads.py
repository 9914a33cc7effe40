"""`harpe heads`: what is printed, written and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import harpe
from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.load import load_model, load_tokenizer, save_checkpoint

SMALL: dict[str, Any] = {"length": 384, "documents": 4, "samples": 4, "dtype": "float32"}
FLAGS = "--length 384 --documents 4 --samples 4 --dtype float32"


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a base for every head, untrained, as a checkpoint."""
    folder = tmp_path_factory.mktemp("extended") / "model"
    with pytest.warns(UserWarning, match="not trained with"):
        model = harpe.apply(load_model("embedded"), "harpe", length=512)
    save_checkpoint(model, load_tokenizer("embedded"), folder, 512)
    return folder


def test_heads_of_the_embedded_model_are_told_alike_in_python_as_json_and_on_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = harpe.heads("embedded", "embedded", method="mrrope", out=tmp_path / "heads", **SMALL)
    assert main(f"heads embedded --data embedded --method mrrope --json {FLAGS}".split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == value
    written = read_json(tmp_path / "heads" / "heads.json")
    assert {key: written[key] for key in value} == json.loads(json.dumps(value))
    assert (value["original_length"], value["length"], value["context"]) == (256, 384, 256)
    assert [len(value["gradient"]), len(value["gradient"][0]), len(value["gradient"][0][0])] == [4, 8, 16]
    heads = value["heads"]
    assert [(head["layer"], head["head"]) for head in heads] == [(n, h) for n in range(4) for h in range(8)]
    # it was taught to copy, and copying takes a layer below that tells what came before
    assert max(head["copies"] for head in heads) > 0.8 and not any(head["retrieval"] for head in heads[:8])
    page = (tmp_path / "heads" / "index.html").read_text()
    assert page.count("<svg") >= 6 and "<script" not in page
    assert len(re.findall(r"<th scope=\"row\"", page)) == 4 * 8 + len(value["bands"])
    assert main(f"heads embedded --data embedded --method mrrope --out {tmp_path / 'heads'} {FLAGS}".split()) == 0
    assert "layer 3, 7" in capsys.readouterr().out


def test_an_extended_checkpoint_is_looked_at_as_it_is(extended: Path) -> None:
    value = harpe.heads(extended, "embedded", **SMALL | {"length": None, "samples": 0})
    assert (value["original_length"], value["length"], value["context"]) == (256, 512, 512)
    assert value["heads"][0]["copies"] is None and value["positions"] == "as they are"
    # and so by the method that it was made with
    same = harpe.heads("embedded", "embedded", method="harpe", **SMALL | {"length": 512, "samples": 0})
    torch.testing.assert_close(torch.tensor(value["gradient"]), torch.tensor(same["gradient"]), rtol=1e-3, atol=1e-5)
    assert value["far_loss"] == pytest.approx(same["far_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 256}, "trained with 256 tokens: none lie behind"),
        ({"documents": 3}, "give 4"),
        ({"samples": -1}, "give 0 or more"),
        ({"method": "self-extend"}, "inside the attention"),
        ({"method": "ntk-dynamic"}, "by the length of its text"),
        ({"method": "yarn", "method_options": {"length_scale": 1.0}}, "Queries are scaled by the number of tokens"),
        ({"method": "yarnn"}, "no method yarnn"),
        ({"method": "yarn", "length": None}, "--method needs --length"),
        ({"method_options": {"factor": 4}}, "name it"),
        ({"sliding_window": "off"}, "changes the model"),
        ({"length": 10_000_000}, "no document of more than"),
        ({"out": "FOREIGN"}, "harpe did not write it"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_said_is_refused_before_weights_are_read(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("harpe.commands.heads.load_model", lambda *_: pytest.fail("weights were read"))
    (tmp_path / "index.html").write_text("mine")
    options = {key: tmp_path if value == "FOREIGN" else value for key, value in options.items()}
    with pytest.raises(HarpeError, match=message):
        harpe.heads("embedded", "embedded", **SMALL | options)
    assert (tmp_path / "index.html").read_text() == "mine"


def test_an_extended_checkpoint_takes_no_other_method(extended: Path) -> None:
    with pytest.raises(HarpeError, match="was extended by harpe"):
        harpe.heads(extended, "embedded", method="yarn", **SMALL)


def test_bands_are_those_of_turns_in_the_trained_context() -> None:
    value = harpe.heads("embedded", "embedded", **SMALL | {"samples": 0})
    for band in value["bands"][:3]:
        turns = [256 / value["wavelengths"][i] for i in range(band["first"], band["last"] + 1)]
        low, high = {"fast": (8, 1e9), "middle": (1, 8), "slow": (0, 1)}[band["name"]]
        assert low <= min(turns) and max(turns) <= high
    assert [band["name"] for band in value["bands"]] == ["fast", "middle", "slow", "all"]
