"""What an earlier version has written is still resumed, trained on, measured, reported, compared and loaded.

Each archive of tests/fixtures was made by scripts/make_fixtures.py in the version of its date. It is never made again:
a reader that no longer reads it is a reader that no longer reads what users have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harpe.cli.main import main
from harpe.comparison.recipe import begun_recipe, parse, read_recipe
from harpe.models.load import load_model

ARCHIVES = sorted((Path(__file__).parent / "fixtures").glob("*.tar.xz"))
RUN = [
    "extend",
    "model",
    "--length=64",
    "--data=texts",
    "--tokens=1024",
    "--batch-tokens=256",
    "--learning-rate=1e-3",
    "--save-every=2",
]
RUN += ["--dtype=float32", "--method=harpe"]
MEASURED = ["--data=texts", "--documents=2", "--samples=0", "--grid-samples=0", "--dtype=float32"]


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with what an earlier version left in it."""
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 400, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def test_an_interrupted_run_goes_on_to_the_model_of_one_that_nobody_interrupted(earlier: Path) -> None:
    assert not (earlier / "interrupted/harpe/model").exists()
    assert main([*RUN, "--out=interrupted", "--resume"]) == 0
    log = [
        json.loads(line)["tokens"]
        for line in (earlier / "interrupted/harpe/stage-1/log.jsonl").read_text().splitlines()
    ]
    assert log == [256, 512, 768, 1024]
    torch.testing.assert_close(
        logits(load_model("interrupted/harpe/model")), logits(load_model("ended/harpe/model")), atol=1e-5, rtol=1e-5
    )


def test_a_run_that_ended_is_left_alone_and_its_report_and_scores_are_read(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (earlier / "ended").rglob("scores/*")}
    assert {path.name for path in before} >= {"perplexity.json", "perplexity.jsonl"}
    assert main(["evaluate", "ended", *MEASURED]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # nothing was measured again
    (earlier / "ended/report/index.html").unlink()
    assert main(["report", "ended"]) == 0
    assert "HARPE" in (earlier / "ended/report/index.html").read_text()


def test_a_score_of_other_texts_than_an_earlier_version_measured_is_still_told_apart(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (earlier / "texts").glob("*.txt"):
        path.write_text(path.read_text().replace("fox", "dog"))
    assert main(["evaluate", "ended", *MEASURED]) == 2
    assert "texts" in capsys.readouterr().err


def paths(value: Any, at: str = "") -> set[str]:
    """Every key in nested objects, with the keys above it; lists count as what they hold."""
    if isinstance(value, dict):
        return {here for key, item in value.items() for here in {f"{at}/{key}", *paths(item, f"{at}/{key}")}}
    return {here for item in value for here in paths(item, at)} if isinstance(value, list) else set()


def files(folder: Path) -> dict[str, set[str]]:
    """The keys of every file of JSON, lines of JSON or YAML under a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".yaml") and "tokenizer" not in path.name and "checkpoint-" not in str(path):
            found[str(path.relative_to(folder))] = paths(yaml.safe_load(path.read_text()))
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(path.relative_to(folder))] = paths(lines)
    return found


LATER = {"as_published", "max_grad_norm", "lora_rank", "lora_alpha", "lora_embeddings", "document_mask"}
LATER |= {"pose_length", "longce_context"}
ENCODING = {f"/stages/encoding/{key}" for key in ("tables", "attention_factor", "length_scale")}
NEW = {"/extended", "/warmup_share", "/weight_decay", "/too_short_left_out", *ENCODING, *(f"/{key}" for key in LATER)}
"""Keys that have come since 2026-11-26."""


@pytest.mark.slow
def test_what_is_written_now_has_the_files_and_the_keys_that_it_had(earlier: Path) -> None:
    assert main([*RUN, "--out=now"]) == 0
    assert main(["evaluate", "now", *MEASURED]) == 0
    assert main(["export", "now", "--out=exported-now"]) == 0
    assert main(["compare", "recipe.yaml", "--out=compared-now"]) == 0
    assert main(["compare", "recipe.yaml", "--out=comparison"]) == 0
    for now, then in (("now", "ended"), ("exported-now", "exported"), ("compared-now", "comparison")):
        new, old = files(earlier / now), files(earlier / then)
        old = {name: keys for name, keys in old.items() if not name.startswith("environment-")}
        assert new.keys() == old.keys()
        for name, keys in old.items():
            assert keys - new[name] == set() and new[name] - keys <= NEW, name
    plans = [json.loads((earlier / name / "plan.json").read_text()) for name in ("compared-now", "comparison")]
    with tarfile.open(ARCHIVES[-1]) as tar:
        plans.append(json.load(tar.extractfile("./comparison/plan.json")))  # type: ignore[arg-type]
    assert paths(plans[0]) == paths(plans[1]) and paths(plans[0]) == paths(plans[2])


def test_packed_texts_are_trained_on(earlier: Path) -> None:
    run = ["--data=packed" if given.startswith("--data=") else given for given in RUN]
    assert main([*run, "--out=from-packed"]) == 0
    logs = [(earlier / name / "harpe/stage-1/log.jsonl").read_text().splitlines() for name in ("from-packed", "ended")]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
def test_a_comparison_goes_on_with_the_row_that_was_interrupted_and_leaves_the_other(earlier: Path) -> None:
    done = earlier / "comparison/abf/seed-0/record.json"
    record = done.read_bytes()
    assert not (earlier / "comparison/harpe/seed-0/record.json").exists()
    assert main(["compare", "recipe.yaml", "--out=comparison"]) == 0
    assert done.read_bytes() == record
    assert (earlier / "comparison/harpe/seed-0/record.json").is_file()
    page = (earlier / "comparison/report/index.html").read_text()
    assert "ABF" in page and "HARPE" in page


def test_a_recipe_is_kept_under_the_keys_that_earlier_versions_kept_it_under(earlier: Path) -> None:
    begun = yaml.safe_load((earlier / "comparison/recipe.yaml").read_text())
    kept = yaml.safe_load(yaml.safe_dump(read_recipe("recipe.yaml").recipe()))
    assert kept["evaluation"] == begun["evaluation"]
    assert {key: kept[key] for key in begun} == begun and kept.keys() - begun.keys() <= LATER
    assert parse(kept, "what is kept").recipe() == kept


def test_a_comparison_from_before_an_option_existed_goes_on_as_it_began(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts that spell special tokens gave the tokens themselves then, in the workers too."""
    there = earlier / "comparison/recipe.yaml"
    asked, begun = (yaml.safe_load(path.read_text()) for path in (earlier / "recipe.yaml", there))
    del begun["split_special_tokens"]
    there.write_text(yaml.safe_dump(begun))
    assert main(["compare", "recipe.yaml", "--out=comparison"]) == 2
    assert "split_special_tokens: False there, True now" in capsys.readouterr().err
    (earlier / "recipe.yaml").write_text(yaml.safe_dump({**asked, "split_special_tokens": False}))
    assert begun_recipe(earlier / "comparison").split_special_tokens is False  # what a worker reads


@pytest.mark.parametrize("loader", ["harpe", "transformers"])
def test_an_exported_checkpoint_loads_with_and_without_harpe_and_gives_the_run_s_logits(
    earlier: Path, loader: str
) -> None:
    expected = logits(load_model("ended/harpe/model"))
    if loader == "harpe":
        assert main(["export", "ended", "--out=again"]) == 0
        assert json.loads(Path("again/config.json").read_text()) == json.loads(Path("exported/config.json").read_text())
    code = "import sys, torch; from transformers import AutoModelForCausalLM; sys.modules['harpe'] = None\n"
    code += "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)\n"
    code += "ids = torch.randint(3, 400, (1, 60), generator=torch.Generator().manual_seed(0))\n"
    code += "with torch.inference_mode(): torch.save(model(input_ids=ids, use_cache=False).logits, 'logits.pt')\n"
    folder = "again" if loader == "harpe" else "exported"
    subprocess.run([sys.executable, "-c", code, folder], check=True)
    torch.testing.assert_close(torch.load("logits.pt"), expected, atol=1e-5, rtol=1e-5)
