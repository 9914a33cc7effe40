"""Comparisons: recipes, equal budgets, failures that stop nobody, resuming, and statistics from the files."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig

from harpe.comparison import jobs, worker
from harpe.comparison.plan import make_rows
from harpe.comparison.recipe import parse, read_recipe
from harpe.comparison.run import compare
from harpe.comparison.summary import collect, summarise
from harpe.comparison.worker import source_of
from harpe.data.packed import PackedDataset
from harpe.errors import HarpeError
from harpe.evaluation.statistics.resampling import resample
from harpe.files import read_json, read_jsonl, write_json, write_jsonl
from harpe.models.load import load_tokenizer
from harpe.options.runs import CompareOptions
from harpe.reporter import Reporter

RECIPES = Path(__file__).parents[2] / "recipes"
COMPARISONS = ("paper-llama2-7b-128k", "llama3-8b-512k", "qwen3-0.6b-256k", "smollm2-135m-32k")


class Listening(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def small(workspace: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for the tiny model: four times its context, two steps."""
    value = {
        "title": "tiny",
        "model": str(workspace / "model"),
        "length": 256,
        "data": str(workspace / "texts"),
        "tokens": 4096,
        "batch_tokens": 1024,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "dtype": "float32",
        "seeds": [0],
        "baseline": "abf",
        "evaluation": {"data": str(workspace / "texts"), "documents": 3, "samples": 0, "grid_samples": 0},
        "methods": ["none", "abf"],
    }
    return value | changes


def write(workspace: Path, **changes: Any) -> str:
    path = workspace / "recipe.yaml"
    path.write_text(yaml.safe_dump(small(workspace, **changes)))
    return str(path)


def run(
    workspace: Path, out: str = "run", reporter: Reporter | None = None, jobs: int = 1, ranks: int = 1, **changes: Any
) -> Path:
    options = CompareOptions(
        recipe=write(workspace, **changes), out=str(workspace / out), jobs=jobs, processes_per_row=ranks
    )
    return compare(options, reporter)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The rows that a comparison starts a process for, none at first. The work of the others is done in the test's own
    process, which has imported everything."""
    rows: set[str] = set()
    start = jobs._Workers.process

    def process(self: Any, job: jobs.Job, slot: int, log: Path) -> int | None:
        if job[0].name in rows:
            return start(self, job, slot, log)
        log.touch()
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["", str(self._run), job[0].name, str(job[1]), self._processes.text()])
            return worker.main()

    monkeypatch.setattr(jobs._Workers, "process", process)
    return rows


# -- recipes


SHAPES = {
    "paper-llama2-7b-128k": ("llama", 4096, 11008, 32, 32, 32, 128, 32000, 4096, 1e4, 6_738_415_616, False),
    "llama3-8b-512k": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, 8192, 5e5, 8_030_261_248, False),
    "qwen3-0.6b-256k": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 32768, 1e6, 596_049_920, True),
    "smollm2-135m-32k": ("llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, 1e5, 134_515_008, True),
}
"""Published configurations: type, width, inner width, layers, heads, key/value heads, head size, vocabulary, context,
base, parameters, and whether input and output embeddings are one."""


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_recipe_can_be_planned_for_its_model_from_the_configuration_alone(name: str, tmp_path: Path) -> None:
    family, width, inner, layers, heads, shared, size, words, context, base, parameters, tied = SHAPES[name]
    config = AutoConfig.for_model(
        family,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=size,
        vocab_size=words,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        tie_word_embeddings=tied,
    )
    config.save_pretrained(tmp_path)
    load_tokenizer("embedded").save_pretrained(tmp_path)
    listening = Listening()
    compare(
        CompareOptions(recipe=str(RECIPES / f"{name}.yaml"), plan=True, model=str(tmp_path), out=str(tmp_path / "run")),
        listening,
    )
    (text,) = listening.said
    assert f"{16 * parameters / 1e9:.3g} GB" in text
    assert not (tmp_path / "run").exists()
    for row in read_recipe(RECIPES / f"{name}.yaml").methods:
        assert f"  {row.name}" in text


def test_the_papers_recipe_has_its_settings_and_rows() -> None:
    recipe = read_recipe(RECIPES / "paper-llama2-7b-128k.yaml")
    assert (recipe.length, recipe.tokens, recipe.learning_rate, recipe.published) == (
        131_072,
        6_000_000_000,
        2e-5,
        "llama2-7b-128k",
    )
    names = [row.name for row in recipe.methods]
    assert {"none", "pi", "abf", "abf-staged", "yarn", "self-extend-43", "harpe"} <= set(names)
    assert [row.options["stride"] for row in recipe.methods if row.options.get("strategy") == "peak-valley"] == [
        3e4,
        1e4,
        2e4,
        4e4,
        5e4,
    ]
    assert recipe.evaluation.suites["ruler"].lengths == [4096 * 2**i for i in range(6)]
    (proof, report) = recipe.evaluation.suites["perplexity"].values()
    assert proof.lengths == "2048:131072:2048" and (report.window, report.stride) == (32768, 256)


def test_published_figures_are_not_shown_beside_another_model_or_other_texts() -> None:
    for key in ("model", "data", "evaluation_data"):
        assert read_recipe(RECIPES / "paper-llama2-7b-128k.yaml", **{key: "other"}).published is None
    assert read_recipe(RECIPES / "paper-llama2-7b-128k.yaml", seeds=[0, 1, 2]).published == "llama2-7b-128k"


def test_the_small_recipe_has_every_method_that_needs_no_factors_of_its_own() -> None:
    recipe = read_recipe(RECIPES / "tiny-compare.yaml")
    assert {row.method for row in recipe.methods} == {
        *(
            "none",
            "base-kept",
            "pi",
            "ntk",
            "ntk-dynamic",
            "abf",
            "abf-staged",
            "yarn",
            "self-extend",
            "dca",
            "harpe",
            "one-base",
        )
    }
    assert len(recipe.seeds) == 3


WINDOW = {"data": "x", "window": 64, "stride": 8}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {"data": "x", "documents": 3, "samples": 0, "grid_samples": 0} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lenght": 3}, "lenght, which is not known. Did you mean length"),
        ({"length": "long"}, "length of .* is 'long' and should be of type int"),
        ({"tokens": True}, "should be of type int"),
        ({"methods": []}, "no list of methods"),
        ({"methods": ["abf", "abf"]}, "names abf twice"),
        ({"methods": [{"name": "../x", "method": "abf"}]}, "letters, digits"),
        ({"methods": [{"name": "data", "method": "abf"}], "baseline": "data"}, "folder or file of the run"),
        ({"methods": [{"title": "x"}]}, "write its name"),
        ({"baseline": "pi"}, "baseline pi, which is none of its methods"),
        ({"seeds": []}, "different numbers"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"schedule": "sometimes"}, "choose restarted, carried"),
        ({"evaluation": {"documents": 3}}, "lacks data"),
        ({"evaluation": {"data": "x", "ruler": {"lengths": [1, "2"]}}}, "should be of type int"),
        (
            {"methods": ["abf", {"name": "ABF", "method": "abf", "base": 9e5}]},
            "abf and ABF, which are one name on many disks",
        ),
        ({"methods": ["abf", {"name": "..", "method": "abf"}]}, "letters, digits"),
        ({"methods": ["abf", {"name": "a" * 65, "method": "abf"}]}, "64 are allowed"),
        *(
            ({"methods": ["abf", {"name": name, "method": "abf"}]}, "folder or file of the run")
            for name in ("Report", "samples", "recipe.yaml", "seed-0", "stage-1", "environment-2.json", "summary.json")
        ),
        ({"methods": [{"name": "abf", "title": "  "}]}, "title of abf"),
        ({"methods": [{"name": "abf", "title": "a\nb"}]}, "title of abf"),
        ({"seeds": [2**32]}, "different numbers"),
        *(
            ({"evaluation": evaluation(perplexity={name: WINDOW})}, "letters, digits")
            for name in ("pg19/test", "x/../../escaped", ".", "")
        ),
        ({"evaluation": evaluation(perplexity={2024: WINDOW})}, "write it in quotes"),
        (
            {"evaluation": evaluation(perplexity={"Books": WINDOW, "books": WINDOW})},
            "Books and books, which are one name",
        ),
        ({"evaluation": evaluation(perplexity={"a": WINDOW, "a-positions": WINDOW})}, "whose figures have one name"),
        ({"evaluation": evaluation(perplexity={"a": {"data": "x"}})}, "either lengths or a window"),
        ({"evaluation": evaluation(perplexity={"a": {"data": "x", "lengths": "long"}})}, "FIRST:LAST:STEP"),
        (
            {"evaluation": evaluation(perplexity={"a": {"data": "x", "window": 64, "stride": 64}})},
            "less than the window",
        ),
        ({"evaluation": evaluation(ruler={"lengths": [64, 64]})}, "RULER lengths"),
        ({"evaluation": evaluation(ruler={"lengths": [-64]})}, "RULER lengths"),
        ({"evaluation": evaluation(ruler={"lengths": [64], "tasks": "niha"})}, "RULER in the recipe: .* niha .*niah"),
        ({"evaluation": evaluation(short={"tasks": "piqa,../x"})}, "letters, digits"),
        ({"evaluation": evaluation(short={"tasks": "mean"})}, "what their mean is called"),
        ({"evaluation": evaluation(documents=-1)}, "-1 documents; the least is 1"),
        ({"evaluation": evaluation(samples=-1)}, "-1 samples; the least is 0"),
        ({"methods": [{"name": "abf", "options": [1]}]}, r"options of abf are \[1\]; write a mapping"),
        ({"methods": [{"name": "abf", 3: 4}]}, "3 is no name of an option of abf"),
    ],
)
def test_a_wrong_recipe_gets_a_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        parse(small(tmp_path, **changes), "the recipe")


def test_options_whose_lines_are_all_left_out_are_none(tmp_path: Path) -> None:
    (row,) = parse(small(tmp_path, methods=[{"name": "abf", "options": None}], baseline="abf"), "the recipe").methods
    assert row.options == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"data": "x", "rulr": {"lengths": [128]}}},
            "has the key rulr, which is not known. Did you mean ruler",
        ),
        ({"evaluation": {"data": "x", "suites": {"ruler": {}}}}, "has the key suites, which is not known"),
        ({"methods": ["abf", "yarm"]}, "Did you mean yarn"),
        ({"methods": ["abf", {"name": "pi", "fcator": 3}]}, "Did you mean factor"),
        ({"tokens": 1024, "methods": ["abf", "abf-staged"]}, "less than one step"),
        ({"tokens": 10**9}, "more than the data have"),
        (
            {
                "methods": [
                    "abf",
                    {"name": "abf-staged", "stages": [{"base": 3e4, "length": 96}, {"base": 5e4, "length": 256}]},
                ]
            },
            "divide",
        ),
        ({"evaluation": {"data": "/nowhere"}}, "no such file"),
        pytest.param(
            {"evaluation": {"data": "x", "short": {"tasks": "arc_easyy"}}},
            "arc_easyy is no task of lm-eval's",
            marks=pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
        ),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_trained(
    workspace: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARPE_DATA", raising=False)
    with pytest.raises(HarpeError, match=message):
        run(workspace, **changes)
    assert not (workspace / "run").exists()


def test_the_memory_of_the_measured_pass_is_let_go_before_rows_begin(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def measured(*_: Any) -> tuple[float, float]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # from here on: no model is to be moved to it
        return 1.0, 1.0

    def emptied() -> None:
        done.append("emptied")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def started(*_: Any) -> dict[str, str]:
        done.append("rows")
        return {}

    monkeypatch.setattr(torch.cuda, "empty_cache", emptied)
    monkeypatch.setattr("harpe.comparison.run.seconds_per_token", measured)
    monkeypatch.setattr("harpe.comparison.run.run_jobs", started)
    with pytest.raises(HarpeError, match="No method could be measured"):
        run(workspace, methods=["none"], baseline="none")
    assert done == ["emptied", "rows"]


def test_rows_are_told_apart_by_the_options_in_which_they_differ(tmp_path: Path, make_tiny: Any) -> None:
    make_tiny("qwen3", vocab_size=len(tokenizer := load_tokenizer("embedded"))).config.save_pretrained(
        tmp_path / "model"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"name": f"yarn-{n}", "method": "yarn", "beta_fast": n} for n in (4, 8)]
    recipe = parse(
        small(tmp_path, length=1024, methods=["abf", "yarn", *rows, {"name": "abf-9", "method": "abf", "base": 9e5}]),
        "x",
    )
    titles = [arm.title for arm in make_rows(recipe, source_of(recipe), None)]
    assert titles == [
        "ABF (default base)",
        "YaRN (beta_fast 32)",
        "YaRN (beta_fast 4)",
        "YaRN (beta_fast 8)",
        "ABF (base 900,000)",
    ]


def test_a_recipe_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(HarpeError, match="is no YAML"):
        read_recipe(tmp_path / "broken.yaml")
    with pytest.raises(HarpeError, match="could not be read"):
        read_recipe(tmp_path / "absent.yaml")


# -- runs


@pytest.mark.slow
def test_stages_and_one_stage_train_on_the_same_tokens_in_the_same_order(workspace: Path) -> None:
    folder = run(workspace, methods=["none", "abf", "abf-staged"], jobs=2)
    one, staged = (read_json(folder / name / "seed-0" / "record.json") for name in ("abf", "abf-staged"))
    assert one["tokens"] == staged["tokens"] == 4096
    assert [stage["length"] for stage in staged["stages"]] == [128, 256]
    assert {stage["data_hash"] for stage in (*one["stages"], *staged["stages"])} == {
        PackedDataset(folder / "data/seed-0/256").hash
    }
    whole = PackedDataset(folder / "data/seed-0/256")
    parts = whole.cut(64)
    assert np.array_equal(
        np.concatenate([whole[i]["input_ids"] for i in range(3)]),
        np.concatenate([parts[i]["input_ids"] for i in range(12)]),
    )
    logs = [read_jsonl(folder / "abf-staged" / "seed-0" / f"stage-{n}" / "log.jsonl") for n in (1, 2)]
    assert [len(rows) for rows in logs] == [2, 2]
    summary = read_json(folder / "summary.json")
    assert summary["interval"] == "documents only" and {m["id"] for m in summary["measures"]} == {
        "loss-short",
        "loss-long",
    }
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("processes")
def test_one_method_that_diverges_is_recorded_and_the_others_go_on(workspace: Path) -> None:
    listening = Listening()
    folder = run(
        workspace,
        reporter=listening,
        methods=["none", "abf", {"name": "wild", "method": "abf", "base": 1.5}],
        learning_rate=1e30,
    )
    assert (folder / "none" / "seed-0" / "record.json").is_file()
    for name in ("abf", "wild"):
        assert "diverged" in read_json(folder / name / "seed-0" / "failed.json")["reason"]
    assert sum("failed: " in said and "diverged" in said for said in listening.said) == 2
    values = read_json(folder / "summary.json")["measures"][0]["values"]
    assert list(values) == ["none"]


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_next_start_goes_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, processes: set[str]
) -> None:
    real = jobs.subprocess.Popen

    def killed(command: list[str], **options: Any) -> Any:
        return real(["sh", "-c", "kill -9 $$"], **options)

    processes.add("abf")
    monkeypatch.setattr(jobs.subprocess, "Popen", killed)
    folder = run(workspace)
    assert "signal 9" in read_json(folder / "abf" / "seed-0" / "failed.json")["reason"]
    before = (folder / "none" / "seed-0" / "record.json").stat().st_mtime_ns
    processes.clear()
    listening = Listening()
    run(workspace, reporter=listening, methods=["none", "abf", {"name": "ntk", "train": False}])
    assert any("It has the new methods ntk." in said for said in listening.said)
    assert (folder / "none" / "seed-0" / "record.json").stat().st_mtime_ns == before
    assert not (folder / "abf" / "seed-0" / "failed.json").exists()
    assert list(read_json(folder / "summary.json")["measures"][0]["values"]) == ["none", "abf", "ntk"]
    assert not list(folder.glob("*/seed-*/stage-*/checkpoint-*"))
    with pytest.raises(HarpeError, match="another recipe"):
        run(workspace, methods=["none", {"name": "abf", "base": 9e5}])


@pytest.mark.slow
def test_a_row_killed_in_its_second_stage_goes_on_at_the_step_and_ends_in_the_same_weights(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, processes: set[str]
) -> None:
    recipe: dict[str, Any] = {"methods": ["abf-staged"], "baseline": "abf-staged", "tokens": 8192, "save_every": 1}
    whole = load_file(run(workspace, "whole", **recipe) / "abf-staged" / "seed-0" / "model" / "model.safetensors")
    real, folder = jobs.subprocess.Popen, workspace / "broken" / "abf-staged" / "seed-0"

    def killed(command: list[str], **options: Any) -> Any:
        child = real(command, **options)
        while not (folder / "stage-2" / "checkpoint-2" / "complete.json").exists():
            assert child.poll() is None
            time.sleep(0.005)
        child.kill()
        return child

    processes.add("abf-staged")
    monkeypatch.setattr(jobs.subprocess, "Popen", killed)
    with pytest.raises(HarpeError, match="No method could be measured"):
        run(workspace, "broken", **recipe)
    assert not (folder / "model").exists() and "signal 9" in read_json(folder / "failed.json")["reason"]
    first = (folder / "stage-1" / "log.jsonl").read_bytes()
    processes.clear()
    again = load_file(run(workspace, "broken", **recipe) / "abf-staged" / "seed-0" / "model" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert (folder / "stage-1" / "log.jsonl").read_bytes() == first
    assert [row["step"] for row in read_jsonl(folder / "stage-2" / "log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_cut_of_the_small_comparison_runs_to_its_page(tmp_path: Path) -> None:
    """Three rows, two steps, a sample a task, at half the length, of the model inside the package."""
    value = yaml.safe_load((RECIPES / "tiny-compare.yaml").read_text())
    kept = ("none", "control-middle", "harpe-uniform")
    value["methods"] = [row for row in value["methods"] if (row if isinstance(row, str) else row["name"]) in kept]
    value |= {"length": 1024, "tokens": 4096, "batch_tokens": 2048, "seeds": [0]}
    value["evaluation"] |= {"documents": 3, "samples": 1, "grid_samples": 1}
    (tmp_path / "cut.yaml").write_text(yaml.safe_dump(value))
    folder = compare(CompareOptions(recipe=str(tmp_path / "cut.yaml"), out=str(tmp_path / "run"), jobs=2))
    measures = {m["id"]: m for m in read_json(folder / "summary.json")["measures"]}
    assert {"loss-short", "loss-long", "needles-mean-1024", "grid-mean"} <= set(measures)
    long = measures["loss-long"]["values"]
    assert set(long) == set(kept) and long["none"]["value"] > long["harpe-uniform"]["value"] + 0.5
    assert measures["loss-long"]["differences"]["none"]["low"] > 0
    page = (folder / "report" / "index.html").read_text()
    assert all(title in page for title in ("untouched", "one base, middle of the range", "HARPE, uniform ascending"))
    assert (folder / "report" / "tables.csv").is_file() and (folder / "report" / "tables.md").is_file()


# -- statistics from files


def fake(tmp_path: Path, losses: dict[str, list[list[float]]], trained: set[str], baseline: str) -> Path:
    """A run with nothing but losses: by method, a list of seeds, each a list of documents of 10 tokens."""
    for method, seeds in losses.items():
        for seed, values in enumerate(seeds):
            folder = tmp_path / method / f"seed-{seed}" / "scores"
            rows = [
                {"document": i, "nll": [1.0, 10 * v], "tokens": [5, 10], "short_nll": v, "short_tokens": 1}
                for i, v in enumerate(values)
            ]
            folder.mkdir(parents=True)
            write_jsonl(folder / "perplexity.jsonl", rows)
            bins = [{"start": 0, "end": 128}, {"start": 128, "end": 256}]
            write_json(
                folder / "perplexity.json", {"bins": bins, "short": {"length": 64}, "long": {"start": 128, "end": 256}}
            )
    methods = [{"name": name, "title": name.upper(), "trained": name in trained} for name in losses]
    plan = {
        "methods": methods,
        "seeds": list(range(max(map(len, losses.values())))),
        "baseline": baseline,
        "original_length": 64,
        "target_length": 256,
    }
    write_json(tmp_path / "plan.json", plan)
    return tmp_path


def test_differences_are_paired_and_only_the_real_ones_are_claimed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = 3 + rng.random(40)
    losses = {
        "none": [(documents + 2).tolist()],
        "base": [(documents + 0.01 * rng.standard_normal(40)).tolist() for _ in range(3)],
        "same": [(documents + 0.01 * rng.standard_normal(40)).tolist() for _ in range(3)],
        "better": [(documents - 0.1 + 0.01 * rng.standard_normal(40)).tolist() for _ in range(3)],
    }
    value = summarise(fake(tmp_path, losses, {"base", "same", "better"}, "base"), resamples=2000)
    assert value["interval"] == "seeds and documents"
    (long,) = [m for m in value["measures"] if m["id"] == "loss-long"]
    assert long["values"]["better"]["value"] == pytest.approx(np.mean(losses["better"]))
    assert long["values"]["none"]["seeds"] == 1 and long["values"]["base"]["seeds"] == 3
    found = long["differences"]
    assert set(found) == {"none", "same", "better"}
    assert found["better"]["value"] == pytest.approx(np.mean(losses["better"]) - np.mean(losses["base"]))
    assert (found["none"]["real"], found["same"]["real"], found["better"]["real"]) == (True, False, True)
    assert found["better"]["high"] < 0 < found["none"]["low"]
    at_the_end = {
        name: {key: d[key][-1] for key in ("value", "low", "high")}
        for name, d in value["positions"]["differences"].items()
    }
    assert at_the_end == {name: {key: d[key] for key in ("value", "low", "high")} for name, d in found.items()}
    (sentence,) = [s for s in value["reading"] if "positions 128 to 256" in s]
    assert (
        sentence
        == "Loss at positions 128 to 256, against BASE. Better: BETTER. Worse: NONE. No difference shown: SAME."
    )


def test_methods_measured_on_different_documents_are_not_compared(tmp_path: Path) -> None:
    folder = fake(tmp_path, {"a": [[1.0, 2.0, 3.0]], "b": [[1.0, 2.0]]}, {"a", "b"}, "a")
    with pytest.raises(HarpeError, match="measured on other documents"):
        summarise(folder)


def test_what_was_asked_for_and_has_no_value_is_told(tmp_path: Path) -> None:
    folder = fake(tmp_path, {"a": [[1.0, 2.0, 3.0]], "b": [[1.0, 2.0, 3.0]]}, set(), "a")
    asked = {
        "data": "texts",
        "perplexity": {"pg19/test": {"data": "texts", "lengths": "128"}},
        "ruler": {"lengths": [128]},
        "long": {"lengths": [64]},
    }
    asked |= {"short": {"tasks": "piqa, gsm8k"}, "samples": 2, "grid_samples": 0}
    write_json(folder / "plan.json", {**read_json(folder / "plan.json"), "evaluation": asked})
    write_json(
        folder / "a/seed-0/scores/short/short.json", {"tasks": {"piqa": {"score": 0.5, "metric": "acc"}, "gsm8k": {}}}
    )
    write_jsonl(folder / "a/seed-0/scores/short/piqa.jsonl", [{"task": "piqa", "doc_id": 0, "acc": 1.0}])
    (told,) = [sentence for sentence in summarise(folder, resamples=10)["reading"] if sentence.startswith("Asked for")]
    assert "needles; perplexity on pg19/test; RULER at 128 tokens; long-context tasks at 64 tokens; gsm8k." in told


def test_a_corpus_without_a_value_is_told_beside_one_whose_name_begins_alike(tmp_path: Path) -> None:
    folder = fake(tmp_path, {"a": [[1.0, 2.0]], "b": [[1.0, 2.0]]}, set(), "a")
    texts = {"data": "texts", "lengths": "1024,2048"}
    window = {"data": "texts", "window": 64, "stride": 8}
    corpora = {"books": texts, "books-long": texts, "slid": window, "slid-2": window}
    asked = {"data": "texts", "samples": 0, "grid_samples": 0, "perplexity": corpora}
    write_json(folder / "plan.json", {**read_json(folder / "plan.json"), "evaluation": asked})
    points = [{"length": n, "nll": [1.0, 2.0], "tokens": [1, 1]} for n in (1024, 2048)]
    documents = [{"document": i, "nll": [1.0], "tokens": [1]} for i in range(2)]
    write_json(folder / "a/seed-0/scores/curve-books-long.json", {"kind": "prefixes", "points": points})
    value = {"kind": "windows", "window": 64, "stride": 8, "documents": documents}
    write_json(folder / "a/seed-0/scores/curve-slid-2.json", value)
    (told,) = [sentence for sentence in summarise(folder, resamples=10)["reading"] if sentence.startswith("Asked for")]
    assert "in any method: perplexity on books; perplexity on slid." in told


def test_a_row_that_failed_within_a_suite_has_no_mean_and_leaves_the_page_to_the_others(tmp_path: Path) -> None:
    folder = fake(tmp_path, {"a": [[1.0, 2.0]], "b": [[1.0, 2.0]], "c": [[1.0, 2.0]]}, set(), "a")
    lengths, tasks = [64, 128, 256], ["piqa", "boolq", "sciq"]
    asked = {"data": "texts", "ruler": {"lengths": lengths}, "short": {"tasks": ",".join(tasks)}}
    write_json(folder / "plan.json", {**read_json(folder / "plan.json"), "evaluation": asked})
    for name, done in (("a", 3), ("b", 2), ("c", 3)):
        scores = folder / name / "seed-0" / "scores"
        for length in lengths[:done]:
            answers = [{"task": "vt", "sample": i, "score": 1.0} for i in range(2)]
            write_jsonl(scores / f"ruler-{length}" / "answers.jsonl", answers)
            write_json(scores / f"ruler-{length}" / "ruler.json", {})
        for task in tasks[:done]:
            write_jsonl(scores / "short" / f"{task}.jsonl", [{"task": task, "doc_id": i, "acc": 1.0} for i in range(2)])
        found = {task: {"score": 100.0, "metric": "acc"} for task in tasks[:done]}
        write_json(scores / "short" / "short.json", {"tasks": found})
    values = {m["id"]: set(m["values"]) for m in summarise(folder, resamples=10)["measures"]}
    assert values["ruler-vt-mean"] == values["short-mean"] == {"a", "c"}
    assert values["ruler-vt-256"] == values["short-sciq"] == {"a", "c"}
    assert values["ruler-vt-128"] == values["short-boolq"] == {"a", "b", "c"}


def test_means_over_windows_are_those_that_were_asked_for(tmp_path: Path) -> None:
    """YaRN's way: every window counts the same, however many tokens it scores."""
    windows = [{"document": 0, "nll": [10.0, 1.0], "tokens": [10, 1]}, {"document": 1, "nll": [20.0], "tokens": [10]}]
    for average, expected in (("tokens", 31 / 21), ("yarn", (1 + 1 + 2) / 3)):
        value = {"kind": "windows", "window": 16, "stride": 8, "average": average, "documents": windows}
        write_json(tmp_path / average / "a/seed-0/scores/curve-books.json", value)
        (measure,) = collect(tmp_path / average, ["a"], [0])
        assert resample(measure.totals("a", [0]), measure.units(), resamples=10).value == pytest.approx(expected)


def test_trained_methods_are_compared_seed_by_seed_where_both_have_the_seed(tmp_path: Path) -> None:
    folder = fake(
        tmp_path,
        {"a": [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], "b": [[0.0, 0.0], [0.0, 0.0], [0.5, 0.5]]},
        {"a", "b"},
        "a",
    )
    for file in (folder / "b" / "seed-0" / "scores").iterdir():
        file.unlink()
    (measure,) = [m for m in summarise(folder)["measures"] if m["id"] == "loss-long"]
    assert measure["differences"]["b"]["value"] == pytest.approx((0.0 + 0.5) / 2 - (2.0 + 3.0) / 2)


def test_needle_means_weigh_tasks_alike(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "seed-0" / "scores"
    folder.mkdir(parents=True)
    tasks = {"single": [1, 1], "multi_key": [0, 0, 0, 0], "multi_query": [0.5, 0.5], "multi_value": [1]}
    rows = [
        {"task": t, "length": 256, "index": i, "depth": None, "score": s}
        for t, scores in tasks.items()
        for i, s in enumerate(scores)
    ]
    write_jsonl(folder / "needles.jsonl", rows)
    write_json(folder / "needles.json", {"tasks": [{"task": task} for task in tasks]})
    (mean,) = [m for m in collect(tmp_path, ["a"], [0]) if m.id == "needles-mean-256"]
    assert resample(mean.totals("a", [0]), mean.units(), resamples=10).value == pytest.approx((1 + 0 + 0.5) / 3)


def test_means_of_ruler_weigh_lengths_and_tasks_alike(tmp_path: Path) -> None:
    """One task at two lengths with unlike numbers of samples; the eight needle tasks at each length are a mean of
    eight."""
    names = [f"niah_{i}" for i in range(8)]
    scores = {
        64: {name: [1.0, 0.0] for name in names} | {"vt": [1.0]},
        128: {name: [0.0] for name in names} | {"vt": [0.5, 0.25]},
    }
    for length, tasks in scores.items():
        folder = tmp_path / "a" / "seed-0" / "scores" / f"ruler-{length}"
        folder.mkdir(parents=True)
        write_json(folder / "ruler.json", {})
        write_jsonl(
            folder / "answers.jsonl",
            [{"task": t, "sample": i, "score": s} for t, values in tasks.items() for i, s in enumerate(values)],
        )
    found = {m.id: resample(m.totals("a", [0]), m.units(), resamples=10).value for m in collect(tmp_path, ["a"], [0])}
    assert found["ruler-niah-64"] == pytest.approx(0.5) and found["ruler-niah-128"] == 0.0
    assert found["ruler-niah-mean"] == pytest.approx(0.25) and found["ruler-niah_3-mean"] == pytest.approx(0.25)
    assert found["ruler-vt-mean"] == pytest.approx((1 + 0.375) / 2)
    assert "ruler-all-64" not in found and "ruler-all-mean" not in found
