"""Tables learned with frozen weights: they lower the loss, are shared as asked, and are the same from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import harpe
from harpe.attention_heads.copying import copy_prompts
from harpe.attention_heads.gradients import loss_of
from harpe.attention_heads.learned import Level, learn_tables
from harpe.data.embedded import training_files
from harpe.data.token_ids import text_ids
from harpe.errors import HarpeError
from harpe.methods.parts import mrrope
from harpe.methods.registry import make_stages, method_named
from harpe.methods.tables import write_tables
from harpe.methods.types import Stage, shared_encoding
from harpe.models.apply import apply_encoding
from harpe.models.float_tables import model_tables
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model, load_tokenizer

LENGTH = 512


@pytest.fixture(scope="module")
def text() -> list[int]:
    return text_ids(load_tokenizer("embedded"), training_files()[0].text)[:LENGTH]


def opened() -> tuple[Any, Any]:
    model = load_model("embedded")
    return model, read_geometry(model.config, "embedded")


@pytest.mark.parametrize("level", ["shared", "layer", "head"])
def test_three_steps_lower_the_loss_and_share_what_they_should(level: Level, text: list[int]) -> None:
    model, geometry = opened()
    start = mrrope(geometry, LENGTH)[-1].encoding
    weights = {name: weight.clone() for name, weight in model.state_dict().items() if "inv_freq" not in name}
    found = learn_tables(model, [text], start, geometry, LENGTH, level=level, steps=3, factors=True)
    with torch.no_grad():
        after = float(loss_of(model, text, 1))
    assert after < found.losses[0] and len(found.losses) == 3
    apply_encoding(model, start, geometry, LENGTH)
    with torch.no_grad():
        assert float(loss_of(model, text, 1)) == pytest.approx(found.losses[0], rel=1e-5)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in weights.items())
    assert all(weight.requires_grad for weight in model.parameters())
    tables = found.encoding.tables
    assert tables is not None and len(tables) == (1 if level == "shared" else 4)
    heads = {row for table in tables if table is not None for row in table}
    assert len(heads) == {"shared": 1, "layer": 4, "head": 32}[level]
    factor = found.encoding.attention_factor
    assert isinstance(factor, tuple) == (level == "head")
    # three steps of about 1 %
    begun, _ = model_tables(model.config)
    moved = torch.tensor(tables * (4 // len(tables)), dtype=torch.float64).div(begun).log().abs()
    assert moved.max() < 0.035 and moved.median() > 0.005


def test_the_seed_decides_and_prompts_are_learned(text: list[int], embedded_writer: Any) -> None:
    prompts = copy_prompts(embedded_writer, LENGTH, 2)
    texts = [text[:200], text[200:450], text[100:300]]

    def learned(seed: int, **more: Any) -> Any:
        model, geometry = opened()
        start = mrrope(geometry, LENGTH)[-1].encoding
        return learn_tables(model, texts, start, geometry, LENGTH, steps=2, seed=seed, **more)

    assert learned(0) == learned(0)
    assert learned(0).encoding != learned(1).encoding
    model, geometry = opened()
    apply_encoding(model, mrrope(geometry, LENGTH)[-1].encoding, geometry, LENGTH)
    with torch.no_grad():
        losses = [float(loss_of(model, prompt.ids, prompt.answer)) for prompt in prompts]
    more = learned(0, prompts=prompts, answer_weight=3.0).losses[0] - learned(0).losses[0]
    assert any(more == pytest.approx(3 * loss, rel=1e-4, abs=1e-6) for loss in losses)


def test_learned_tables_are_the_same_saved_loaded_and_applied(text: list[int], tmp_path: Path) -> None:
    model, geometry = opened()
    start = mrrope(geometry, LENGTH)[-1].encoding
    found = learn_tables(model, [text], start, geometry, LENGTH, steps=1, rate=0.05, factors=True)
    path = write_tables(tmp_path / "tables.json", found.encoding, geometry, steps=1)
    (stage,) = make_stages(method_named("tables"), geometry, LENGTH, {"file": str(path)})
    assert stage.encoding == found.encoding and Stage.from_dict(stage.as_dict()).encoding == found.encoding
    with pytest.warns(UserWarning, match="not trained with"):
        other = harpe.apply(load_model("embedded"), "tables", length=LENGTH, file=str(path))
    with torch.no_grad():
        assert torch.equal(loss_of(other, text, 1), loss_of(model, text, 1))


def test_a_file_of_another_checkpoint_or_without_tables_is_refused(tmp_path: Path) -> None:
    _, geometry = opened()
    row = [0.5] * 16
    good: dict[str, Any] = {"frequencies": [row] * 8}
    by_layer = {"frequencies": [[row] * 8] * 4, "attention_factor": 1.1}

    def read(value: Any) -> Stage:
        path = tmp_path / "given.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return make_stages(method_named("tables"), geometry, LENGTH, {"file": str(path)})[0]

    assert read(good).encoding.tables == ((tuple(row),) * 8,)
    assert read(by_layer).encoding.attention_factor == 1.1 and len(read(by_layer).encoding.tables or ()) == 4
    for value, message in (
        ("no", "no JSON file"),
        ([1], "has no tables"),
        ({"bases": [1]}, "has no tables"),
        ({"frequencies": []}, "does not fit"),
        ({"frequencies": [row] * 7}, "does not fit.*8 heads of 16 pairs"),
        ({"frequencies": [row[:15]] * 8}, "does not fit"),
        ({"frequencies": [[row] * 8] * 3}, "does not fit.*3 layers"),
        ({"frequencies": [[row] * 8, None] * 2}, "no table for layer 1"),
        ({"frequencies": [["a"] * 16] * 8}, "something else than rows of numbers"),
        ({"frequencies": [[[row]] * 8] * 4}, "something else than rows of numbers"),
        ({"frequencies": [[-1.0] * 16] * 8}, "0 or above"),
        ('{"frequencies": [[NaN]]}', "does not fit"),
        ({**good, "attention_factor": "yarn"}, "hold numbers"),
        ({**good, "attention_factor": [1.0] * 3}, "does not fit"),
        ({**good, "attention_factor": 0}, "does not fit"),
        ({**good, "made_for": {"base": 5e5}}, "made for base 500000.0, and this checkpoint has 10000"),
        ({**good, "made_for": {"original_length": 4096}}, "made for original_length 4096"),
        ({**good, "made_for": {"as_dict": 1}}, "takes base and original_length"),
        ({**good, "frequncies": []}, "has frequncies"),
    ):
        with pytest.raises(HarpeError, match=message):
            read(value)
    with pytest.raises(HarpeError, match="cannot be read"):
        make_stages(method_named("tables"), geometry, LENGTH, {"file": str(tmp_path / "none.json")})
    with pytest.raises(HarpeError, match="are no tables"):
        write_tables(tmp_path / "mine.json", shared_encoding(1e4, geometry), geometry)
    more: list[tuple[str, dict[str, Any]]] = [
        ("harpe-parts", {"length_scale": 1.0}),
        ("rerope-parts", {"distances": [[1.0, 2.0] * 4] * 4}),
    ]
    for name, options in more:
        (stage,) = make_stages(method_named(name), geometry, LENGTH, options)
        with pytest.raises(HarpeError, match="are more than tables"):
            write_tables(tmp_path / "mine.json", stage.encoding, geometry)
    (tmp_path / "mine.json").write_text("mine")
    tables = read(good).encoding
    with pytest.raises(HarpeError, match="harpe did not write it"):
        write_tables(tmp_path / "mine.json", tables, geometry)


def test_numbers_that_make_no_sense_are_refused(text: list[int]) -> None:
    model, geometry = opened()
    start = mrrope(geometry, LENGTH)[-1].encoding
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"level": "row"}, "choose shared"),
        ({"steps": 0}, "are above 0"),
        ({"rate": -1.0}, "are above 0"),
        ({"answer_weight": -1.0}, "not below it"),
    ]
    for options, message in wrong:
        with pytest.raises(HarpeError, match=message):
            learn_tables(model, [text], start, geometry, LENGTH, **options)
    with pytest.raises(HarpeError, match="two tokens or more"):
        learn_tables(model, [], start, geometry, LENGTH)
