"""`harpe perplexity` writes what separate forwards give, and says which kind of figure it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.load import load_model, load_tokenizer
from harpe.options.measuring import PerplexityOptions
from harpe.reporter import Reporter
from harpe.suites import perplexity
from harpe.suites.perplexity import measure_perplexity, parse_lengths


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
    assert measure(texts, tmp_path / "yarn", window=128, stride=100, average="yarn")["average"] == "yarn"


@pytest.mark.parametrize("what", [{"lengths": "32,100,200"}, {"window": 128, "stride": 50}])
def test_a_killed_measurement_goes_on_behind_its_documents(texts: Path, tmp_path: Path, what: dict[str, Any]) -> None:
    class Told(Reporter):
        def __init__(self) -> None:
            self.sentences: list[str] = []

        def say(self, text: str) -> None:
            self.sentences.append(text)

    whole = measure(texts, tmp_path, **what)
    figures = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    records = tmp_path / "p.records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    changed = lines[1].replace('"nll": [', '"nll": [1000.0, ', 1).replace('"tokens": [', '"tokens": [1, ', 1)
    records.write_text(lines[0] + lines[1] + lines[2][:-9])  # killed in the middle of a line
    (tmp_path / "p.json").unlink()
    told = Told()
    given = PerplexityOptions(model="embedded", data=str(texts), out=str(tmp_path / "p.json"), documents=2, **what)
    assert read_json(measure_perplexity(given, told)) == whole
    assert any("cut short" in sentence for sentence in told.sentences)
    assert records.read_text() == "".join(lines)
    assert {path.name: path.read_text() for path in tmp_path.glob("*.svg")} == figures
    if "window" in what:  # what is there is not measured again
        records.write_text(lines[0] + changed + lines[2])
        assert measure(texts, tmp_path, **what)["tokens"] == whole["tokens"] + 1


def test_records_of_another_measurement_are_not_mixed(texts: Path, tmp_path: Path) -> None:
    measure(texts, tmp_path, lengths="32,100")
    for changes, sentence in (
        ({"lengths": "32,101"}, r"lengths: \[32, 100\] there, \[32, 101\] now"),
        ({"window": 64, "stride": 9}, "window: nothing there, 64 now; stride: nothing there, 9 now"),
        ({"lengths": "32,100", "documents": 1}, "of other texts"),
        ({"lengths": "32,100", "dtype": "bfloat16"}, "dtype: float32 there, bfloat16 now"),
        ({"lengths": "32,100", "average": "yarn"}, "average: tokens there, yarn now"),
    ):
        with pytest.raises(HarpeError, match=sentence):
            measure(texts, tmp_path, **changes)
    with pytest.raises(HarpeError, match=r"must end in \.json"):
        measure_perplexity(PerplexityOptions(model="embedded", data=str(texts), out=str(tmp_path / "p"), lengths="32"))


def test_loss_by_position_is_that_of_single_tokens(texts: Path, tmp_path: Path) -> None:
    """Against the model's logits at every position, averaged one by one."""
    prefixes, windows = (
        measure(texts, tmp_path, lengths="32,200"),
        measure(texts, tmp_path / "w", window=300, stride=77),
    )
    model, tokenizer = load_model("embedded", torch.float32).eval(), load_tokenizer("embedded")
    documents = [tokenizer(path.read_text(), verbose=False).input_ids for path in sorted(texts.iterdir())]

    def losses(ids: list[int]) -> list[float]:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return [-float(logits[i, ids[i + 1]]) for i in range(len(ids) - 1)]

    single = [losses(ids[:200]) for ids in documents]
    assert [(b["start"], b["end"]) for b in prefixes["positions"]] == [
        (0, 16),
        (16, 32),
        (32, 64),
        (64, 128),
        (128, 199),
    ]
    for b in prefixes["positions"]:
        here = [loss for of in single for loss in of[b["start"] : b["end"]]]
        assert b["nll"] == pytest.approx(sum(here) / len(here), rel=1e-5) and b["tokens"] == len(here)
    first, second = windows["positions"][:2]
    here = [loss for ids in documents for loss in losses(ids[:300])]
    assert (first["start"], first["end"], first["tokens"]) == (0, 299, len(here))
    assert first["nll"] == pytest.approx(sum(here) / len(here), rel=1e-5)
    # every window begins as a text does
    here = [loss for ids in documents for loss in losses([ids[0], *ids[78:377]])[222:]]
    assert (second["start"], second["end"], second["tokens"]) == (299, 376, len(here))
    assert second["nll"] == pytest.approx(sum(here) / len(here), rel=1e-5)
    assert prefixes["overlap"]["share"] is None and "not known" in prefixes["overlap"]["reason"]


def test_every_figure_says_which_kind_it_shows(texts: Path, tmp_path: Path) -> None:
    measure(texts, tmp_path / "a", lengths="32,100,200")
    measure(texts, tmp_path / "b", window=128, stride=100)
    assert sorted(path.name for path in (tmp_path / "a").glob("*.svg")) == ["p-positions.svg", "p.svg"]
    assert [path.name for path in (tmp_path / "b").glob("*.svg")] == ["p-positions.svg"]
    for path in tmp_path.glob("*/*.svg"):
        figure = path.read_text()
        ElementTree.fromstring(figure)
        assert ("sliding window of 128 tokens, stride 100" in figure) == (path.parent.name == "b")
        assert ("documents from their start" in figure) == (path.parent.name == "a")


def test_the_summary_is_there_only_when_its_figures_are(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that goes on passes over what has its summary."""
    there: list[set[str]] = []
    write = perplexity.write_json

    def watched(path: Path, value: dict[str, Any]) -> None:
        there.append({each.name for each in tmp_path.glob("*.svg")})
        write(path, value)

    monkeypatch.setattr(perplexity, "write_json", watched)
    measure(texts, tmp_path, lengths="32,64")
    assert there == [{"p.svg", "p-positions.svg"}]


def test_lengths_are_ranges_or_lists() -> None:
    assert parse_lengths("2048:8192:2048") == [2048, 4096, 6144, 8192]
    assert parse_lengths("512, 64") == [64, 512]
    for wrong in ("a", "1:2", "1,5", "", "512:128:-64", "128:512:0"):
        with pytest.raises(HarpeError, match="--lengths"):
            parse_lengths(wrong)
    with pytest.raises(HarpeError, match="does not reach 8000 in steps of 2048; give 2048:6144:2048 or 2048:8192:2048"):
        parse_lengths("2048:8000:2048")  # it would end below what was asked for


def test_one_kind_has_to_be_chosen(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="either --lengths"):
        measure(texts, tmp_path)
