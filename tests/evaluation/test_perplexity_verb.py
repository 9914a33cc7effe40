"""`harpe perplexity` writes what separate forwards give, and says which kind of figure it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harpe.errors import HarpeError
from harpe.experiment.evaluation_options import PerplexityOptions
from harpe.experiment.perplexity import measure_perplexity, parse_lengths
from harpe.files import read_json
from harpe.models.load import load_model, load_tokenizer


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for n in (3, 4):
        (folder / f"{n}.txt").write_text("\n".join(f"value_{i} = compute({i % n}, name='{i * 7}')" for i in range(30)))
    return folder


def measure(texts: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = {"model": "embedded", "data": str(texts), "out": str(out / "p.json"), "dtype": "float32", "documents": 2}
    return read_json(measure_perplexity(PerplexityOptions(**{**given, **changes})))


def test_the_curve_is_that_of_separate_forwards_and_carries_its_kind(texts: Path, tmp_path: Path) -> None:
    value = measure(texts, tmp_path, lengths="32,100,200")
    model, tokenizer = load_model("embedded", torch.float32).eval(), load_tokenizer("embedded")
    ids = [tokenizer(path.read_text(), verbose=False).input_ids for path in sorted(texts.iterdir())]
    assert value["kind"] == "prefixes"
    for point in value["points"]:
        losses = []
        for document in ids:
            part = torch.tensor([document[: point["length"]]])
            with torch.inference_mode():
                losses.append(float(model(input_ids=part, labels=part).loss))
        assert point["perplexity"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-5)
        assert point["low"] <= point["perplexity"] <= point["high"]


def test_windows_and_the_way_of_yarn_are_named(texts: Path, tmp_path: Path) -> None:
    value = measure(texts, tmp_path, window=128, stride=100)
    assert (value["kind"], value["window"], value["stride"], value["average"]) == ("windows", 128, 100, "tokens")
    ids = [load_tokenizer("embedded")(path.read_text(), verbose=False).input_ids for path in texts.iterdir()]
    assert value["tokens"] == sum(map(len, ids)) - 2
    assert measure(texts, tmp_path, window=128, stride=100, average="yarn")["average"] == "yarn"


def test_lengths_are_ranges_or_lists() -> None:
    assert parse_lengths("2048:8192:2048") == [2048, 4096, 6144, 8192]
    assert parse_lengths("512, 64") == [64, 512]
    for wrong in ("a", "1:2", "1,5", ""):
        with pytest.raises(HarpeError, match="--lengths"):
            parse_lengths(wrong)


def test_one_kind_has_to_be_chosen(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="either --lengths"):
        measure(texts, tmp_path)
