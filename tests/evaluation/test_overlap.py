"""ruler.json tells how much of what is asked was trained on: a planted overlap, counted by sets of tuples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harpe.files import read_json, read_jsonl, write_json
from harpe.models.load import load_tokenizer
from harpe.options.measuring import RulerOptions
from harpe.reporter import Reporter
from harpe.runs.overlap import Prompts, training_overlap
from harpe.suites.ruler import run_ruler

from .trained_run import check, trained_run

OTHER = "A page about other things, which nobody asks for. " * 40


def ruler(out: Path, **changes: Any) -> Path:
    given = {
        "length": 512,
        "samples": 2,
        "tasks": "fwe,niah_multikey_2",
        "tokenizer": "embedded",
        "beyond_context": True,
    }
    return run_ruler(RulerOptions(**{**given, "out": str(out), "dtype": "float32", **changes}))


@pytest.mark.parametrize("seed", [None, 1])
def test_ruler_counts_what_of_its_samples_the_models_run_has_trained_on(tmp_path: Path, seed: int | None) -> None:
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )
    samples = [
        row for name in ("niah_multikey_2", "fwe") for row in read_jsonl(ruler(tmp_path / "samples") / f"{name}.jsonl")
    ]
    prompts = [row["input"] + row["answer_prefix"] for row in samples]
    run = tmp_path / "run"
    model, data = trained_run(run, [OTHER, prompts[0][: len(prompts[0]) // 2], prompts[3][-200:]], seed)
    if seed is not None:
        trained_run(run, [OTHER, *prompts], seed=2)  # another seed's model, trained on all of it
    out = ruler(tmp_path / "scores", model=str(model))
    check(read_json(out / "ruler.json")["overlap"], prompts, data)
    kept = run / "data" / ("" if seed is None else f"seed-{seed}") / "overlap.json"
    (key, counted), *others = read_json(kept)["counts"].items()
    assert not others
    write_json(kept, {"counts": {key: {**counted, "share": 0.125}}})  # what was counted is not counted again
    (out / "ruler.json").unlink()
    ruler(out, model=str(model))
    assert read_json(out / "ruler.json")["overlap"]["share"] == 0.125


def test_of_a_checkpoint_whose_training_is_not_known_it_says_so(tmp_path: Path) -> None:
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )
    found = read_json(ruler(tmp_path, model="embedded", tasks="fwe", samples=1) / "ruler.json")["overlap"]
    assert found["share"] is None and "not known" in found["reason"]


def test_prompts_are_taken_in_turn_until_there_are_enough(tmp_path: Path) -> None:
    read: list[str] = []

    def task(name: str, count: int) -> Iterator[str]:
        for i in range(count):
            read.append(f"{name}{i}")
            yield f"{name}{i} " + "token " * 20

    tokenizer = load_tokenizer("embedded")
    length = len("a0 " + "token " * 20)
    model, data = trained_run(tmp_path, ["a0 " + "token " * 20, OTHER])
    prompts = Prompts([task("a", 1), task("b", 9), task("c", 9)], tokenizer, most=5 * length)
    found = training_overlap(model, tokenizer, prompts, Reporter())
    assert [tokenizer.decode(ids)[:2] for ids in prompts.haystacks] == ["a0", "b0", "c0", "b1", "c1"]
    assert read == ["a0", "b0", "c0", "b1", "c1", "b2", "c2"] and found["texts"] == 5
    assert found["share"] is not None and found["training_hash"] == data.hash
    longest = Prompts([["x " * 1000]], tokenizer, most=5)
    assert len(longest.haystacks) == 1 and longest.identity() != prompts.identity()
