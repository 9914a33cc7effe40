"""Scores are of one model, tokenizer, texts and options by content: others are refused with what differs, copies are
the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.measurement import check_scores
from harpe.models.identity import checkpoint_identity
from harpe.models.load import load_tokenizer, save_checkpoint
from harpe.runs.scored import check_models

MODELS = ("a", "b")


@pytest.fixture(scope="module")
def place(make_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/model and b/model, alike but for their weights; texts.txt; questions as PIQA has them."""
    folder, tokenizer = tmp_path_factory.mktemp("place"), load_tokenizer("embedded")
    for seed, name in enumerate(MODELS):
        save_checkpoint(
            make_tiny("llama", vocab_size=len(tokenizer), seed=seed), tokenizer, folder / name / "model", 512
        )
    (folder / "texts.txt").write_text(" ".join(f"value {i % 7} is {i}," for i in range(300)))
    questions = folder / "data" / "short_bench" / "piqa"
    questions.mkdir(parents=True)
    rows = [{"goal": f"open box {i}", "sol1": "lift the lid", "sol2": "sing to it"} for i in range(4)]
    (questions / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (questions / "valid-labels.lst").write_text("0\n1\n0\n1\n")
    return folder


def command(verb: str, place: Path, model: Path, out: Path, *more: str) -> list[str]:
    texts, plain = f"--data={place / 'texts.txt'}", ["--dtype=float32", *more]
    return {
        "evaluate": [
            "evaluate",
            str(model),
            texts,
            "--length=64",
            "--samples=0",
            "--grid-samples=1",
            f"--out={out}",
            *plain,
        ],
        "perplexity": ["perplexity", str(model), texts, "--lengths=16,64", f"--out={out / 'p.json'}", *plain],
        "ruler": ["ruler", f"--model={model}", "--length=256", "--tasks=fwe", "--samples=2", f"--out={out}", *plain],
        "short": ["short", str(model), "--tasks=piqa", "--offline", f"--data={place / 'data'}", f"--out={out}", *plain],
    }[verb]


@pytest.fixture(params=["evaluate", "perplexity", "ruler", "short"])
def scored(request: pytest.FixtureRequest, place: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A verb whose scores of a/model lie in tmp_path / s, as a function of what is asked next."""
    package = {"ruler": "wonderwords", "short": "lm_eval"}.get(request.param)
    if package:
        pytest.importorskip(package, reason="comes with pip install 'harpe[eval]'")

    def ask(model: Path = place / "a" / "model", *more: str) -> list[str]:
        return command(request.param, place, model, tmp_path / "s", *more)

    assert main(ask()) == 0
    return ask


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_scores_of_one_model_are_not_taken_for_anothers_and_a_copy_is_the_same_model(
    scored: Callable[..., list[str]],
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = content(tmp_path / "s")
    weights = [checkpoint_identity(place / name / "model")["weights"][:12] for name in MODELS]
    assert main(scored(place / "b" / "model")) == 2
    assert f"of another model (weights: {weights[0]} there, {weights[1]} now)" in capsys.readouterr().err
    assert content(tmp_path / "s") == there
    copy = shutil.copytree(place / "a" / "model", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    for same in (copy, Path("copy")):
        assert main(scored(same)) == 0
        assert content(tmp_path / "s") == there
    weight = load_file(copy / "model.safetensors")  # trained on where it lies
    save_file({name: value + 1e-3 for name, value in weight.items()}, copy / "model.safetensors", {"format": "pt"})
    assert main(scored(copy)) == 2
    # the same model, and a tokenizer whose texts end in another token
    shutil.copytree(place / "a" / "model", tmp_path / "other")
    entries = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps({**entries, "eos_token": " tower"}))
    capsys.readouterr()
    assert main(scored(tmp_path / "other")) == 2
    assert "with another tokenizer (" in capsys.readouterr().err
    assert content(tmp_path / "s") == there


def test_what_belongs_to_another_measurement_is_not_read_back(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / name for name in MODELS]
    for name, folder in zip(MODELS, folders, strict=True):
        assert main(command("evaluate", place, place / name / "model", folder)) == 0
    there = content(folders[0])
    for name in ("perplexity.json", "perplexity.jsonl", "grid.jsonl"):
        (folders[0] / name).write_bytes((folders[1] / name).read_bytes())
        with pytest.raises(HarpeError, match=f"{name} is of another measurement"):
            check_scores(folders[0])
        assert main(command("evaluate", place, place / "a" / "model", folders[0])) == 2
        (folders[0] / name).write_bytes(there[name])
    shutil.copy(folders[1] / "grid.jsonl", folders[0] / "grid.jsonl.1")  # what a killed process left
    assert main(command("evaluate", place, place / "a" / "model", folders[0])) == 2
    assert "grid.jsonl.1 is of another measurement" in capsys.readouterr().err
    (folders[0] / "grid.jsonl.1").unlink()
    (folders[0] / "protocol.json").unlink()  # scores without what says what they are of
    with pytest.raises(HarpeError, match="is of another measurement"):
        check_scores(folders[0])
    (folders[0] / "protocol.json").write_bytes(there["protocol.json"])
    (folders[0] / "perplexity.jsonl").unlink()  # a summary without its records is made again
    assert main(command("evaluate", place, place / "a" / "model", folders[0])) == 0
    assert content(folders[0]) == there


def test_a_model_that_was_exchanged_after_it_was_measured_is_told(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run" / "harpe"
    shutil.copytree(place / "a" / "model", run / "model")
    assert main(command("evaluate", place, run / "model", run / "scores")) == 0
    check_models(tmp_path / "run")
    shutil.copy(place / "b" / "model" / "model.safetensors", run / "model" / "model.safetensors")
    with pytest.raises(
        HarpeError,
        match=r"scores/protocol\.json holds results of another model \(weights: .* measure .*harpe/model again",
    ):
        check_models(tmp_path / "run")
    shutil.rmtree(run / "model")  # a run without its models may be read
    check_models(tmp_path / "run")


def test_before_and_after_are_told_apart_by_name_and_are_of_the_same_samples(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )
    before, after = tmp_path / "before", tmp_path / "after"
    assert main(command("ruler", place, place / "a" / "model", before)) == 0
    compare = command("ruler", place, place / "b" / "model", after, f"--against={before}")
    assert main(compare) == 0
    value = read_json(after / "against.json")
    assert "a/model (" in value["before"] and "b/model (" in value["after"]
    text = (before / "fwe.jsonl").read_text()
    (before / "fwe.jsonl").write_text(text.replace("the", "tho", 1))
    assert main(compare) == 2
    assert "the samples of fwe there are others" in capsys.readouterr().err
    assert main(command("ruler", place, place / "a" / "model", before)) == 2
    assert "fwe.jsonl was changed after harpe had written it" in capsys.readouterr().err
    (before / "fwe.jsonl").unlink()  # samples that are gone are made again, and are the same
    assert main(command("ruler", place, place / "a" / "model", before)) == 0
    assert (before / "fwe.jsonl").read_text() == text


def test_questions_that_changed_in_their_file_are_other_questions(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the short benchmarks need lm-eval (pip install 'harpe[eval]')")
    shutil.copytree(place / "data", tmp_path / "data")
    ask = command("short", tmp_path, place / "a" / "model", tmp_path / "s")
    assert main(ask) == 0
    (tmp_path / "data" / "short_bench" / "piqa" / "valid-labels.lst").write_text("1\n1\n0\n1\n")
    assert main(ask) == 2
    assert "of other questions" in capsys.readouterr().err
    assert main([*command("short", place, place / "a" / "model", tmp_path / "s"), "--shots=1"]) == 2
    assert "shots: nothing there, 1 now" in capsys.readouterr().err
