"""Tables searched without training: the objective is what it says, the budget is kept, and a file holds the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from harpe.attention_heads.copying import CopyPrompt, copy_prompts
from harpe.attention_heads.searched import SearchedTables, SearchLevel, search_tables
from harpe.data.embedded import training_files
from harpe.data.token_ids import text_ids
from harpe.errors import HarpeError
from harpe.methods.parts import by_parts
from harpe.methods.registry import make_stages, method_named
from harpe.methods.tables import write_tables
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.load import load_model, load_tokenizer

LENGTH = 512


@pytest.fixture(scope="module")
def text() -> list[int]:
    return text_ids(load_tokenizer("embedded"), training_files()[0].text)[:LENGTH]


@pytest.fixture
def prompts(embedded_writer: Any) -> list[CopyPrompt]:
    return copy_prompts(embedded_writer, LENGTH, 2)


def opened() -> tuple[Any, Any]:
    model = load_model("embedded")
    return model, read_geometry(model.config, "embedded")


def plain_loss(model: Any, ids: Any, first: int) -> float:
    """From the logits of a plain forward pass, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)])).logits[0].double()
    return float(cross_entropy(logits[first - 1 : -1], torch.tensor(list(ids))[first:]))


def by_hand(encoding: Any, text: list[int], prompts: list[CopyPrompt]) -> float:
    model, geometry = opened()
    near = text[: geometry.original_length]
    before = plain_loss(model, near, 1)
    apply_encoding(model, encoding, geometry, LENGTH)
    needle = sum(plain_loss(model, prompt.ids, prompt.answer) for prompt in prompts) / len(prompts)
    return needle + plain_loss(model, text, LENGTH // 2) + 0.5 * max(0.0, plain_loss(model, near, 1) - before)


def searched(text: list[int], prompts: list[CopyPrompt], **options: Any) -> SearchedTables:
    model, geometry = opened()
    return search_tables(model, [text], geometry, LENGTH, prompts=prompts, **options)


@pytest.mark.parametrize("level", ["shared", "exponent", "layer", "head"])
def test_objective_is_that_of_plain_models_and_no_worse_than_the_start(
    level: SearchLevel, text: list[int], prompts: list[CopyPrompt]
) -> None:
    found = searched(text, prompts, level=level, passes=8)
    start = by_parts(opened()[1], LENGTH, exponent=2.0)[-1].encoding
    assert len(found.history) == 8
    assert found.history[0] == pytest.approx(by_hand(start, text, prompts), rel=1e-5)
    assert found.objective == pytest.approx(by_hand(found.encoding, text, prompts), rel=1e-5)
    assert found.objective < found.history[0]
    tables = found.encoding.tables
    assert tables is not None
    rows = {row for table in tables if table is not None for row in table}
    if level == "shared":
        assert len(rows) == 1 and found.exponents is None
        plain = 10000.0 ** -(torch.arange(16, dtype=torch.float64) / 16)
        slowed = (plain / torch.tensor(next(iter(rows)), dtype=torch.float64)).log()
        assert (slowed.diff() > -1e-6).all()  # the stock start is computed in float32
    elif level == "exponent":
        assert found.exponents is not None
        ((p,),) = {tuple(set(row)) for row in found.exponents}
        alike = by_parts(opened()[1], LENGTH, exponent=p)[-1].encoding
        assert p != 2.0 and len(rows) == 1 and by_hand(alike, text, prompts) == pytest.approx(found.objective, rel=1e-5)
    elif level == "layer":
        assert all(table is not None and len(set(table)) == 1 for table in tables) and len(rows) > 1
    else:
        assert any(table is not None and len(set(table)) > 1 for table in tables)


def test_without_windows_the_objective_is_that_of_a_model_without_beside_the_untouched_one_with(make_tiny: Any) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    model, plain = (make_tiny("qwen2", max_position_embeddings=64, **each) for each in (windows, {}))
    ids = torch.randint(3, 97, (128,), generator=torch.Generator().manual_seed(0)).tolist()
    geometry, before = read_geometry(plain.config, "tiny"), plain_loss(model, ids[:64], 1)
    apply_encoding(plain, by_parts(geometry, 128)[-1].encoding, geometry, 128)
    wanted = plain_loss(plain, ids, 64) + 0.5 * max(0.0, plain_loss(plain, ids[:64], 1) - before)
    found = search_tables(model, [ids], geometry, 128, level="head", passes=5, sliding_window="off")
    assert found.history[0] == pytest.approx(wanted, rel=1e-5)
    assert found.encoding.tables is not None and None not in found.encoding.tables
    apply_encoding(plain, found.encoding, geometry, 128)
    ids_2 = torch.tensor([ids])
    torch.testing.assert_close(model(ids_2).logits, plain(ids_2).logits, atol=1e-4, rtol=0)


def test_the_seed_decides_and_weights_stay(text: list[int], prompts: list[CopyPrompt]) -> None:
    assert searched(text, prompts, passes=3, seed=1) == searched(text, prompts, passes=3, seed=1)
    assert searched(text, prompts, passes=3, seed=1).history != searched(text, prompts, passes=3, seed=2).history
    model, geometry = opened()
    weights = {name: weight.clone() for name, weight in model.state_dict().items() if "inv_freq" not in name}
    search_tables(model, [text], geometry, LENGTH, passes=2, level="shared")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in weights.items())


def test_one_pass_is_the_start_and_the_file_holds_the_tables(text: list[int], tmp_path: Path) -> None:
    model, geometry = opened()
    assert len(search_tables(model, [text], geometry, LENGTH, passes=1).history) == 1
    found = searched(text, [], passes=3)
    path = write_tables(tmp_path / "tables.json", found.encoding, geometry, level="head")
    (stage,) = make_stages(method_named("tables"), geometry, LENGTH, {"file": str(path)})
    assert stage.encoding == found.encoding


def test_what_makes_no_sense_is_refused(text: list[int]) -> None:
    model, geometry = opened()
    wrong: list[tuple[list[list[int]], int, dict[str, Any], str]] = [
        ([text], LENGTH, {"level": "row"}, "choose shared"),
        ([text], LENGTH, {"passes": 0}, "at least one"),
        ([text], LENGTH, {"exponent": 0.0}, "above 0"),
        ([text], 256, {}, "nothing to search"),
        ([], LENGTH, {}, "512 tokens or more"),
        ([text[:500]], LENGTH, {}, "512 tokens or more"),
    ]
    for sequences, length, options, message in wrong:
        with pytest.raises(HarpeError, match=message):
            search_tables(model, sequences, geometry, length, **options)
