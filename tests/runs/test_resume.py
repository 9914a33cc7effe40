"""What a run decided when it began holds to its end: bases, model, texts, plan; what is damaged or changed is a
sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import harpe
from harpe.commands.bases import choose
from harpe.commands.export import export
from harpe.commands.prepare import prepare
from harpe.commands.quickstart import quickstart
from harpe.errors import HarpeError, OtherFailed
from harpe.files import read_json
from harpe.locks import locked
from harpe.options.bases import BasesOptions
from harpe.options.extend import ExtendOptions, PrepareOptions
from harpe.options.runs import ExportOptions, QuickstartOptions
from harpe.reporter import Reporter
from harpe.runs import directory
from harpe.training.progress import JsonlLog

SETTINGS: dict[str, Any] = {
    "length": 256,
    "tokens": 8 * 256,
    "learning_rate": 1e-3,
    "dtype": "float32",
    "save_every": 2,
}


class Stop(Exception):
    pass


class Said(Reporter):
    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text + "\n"


def run(workspace: Path, out: str = "run", **changes: Any) -> Path:
    options = {"method": "harpe", **SETTINGS, "model": str(workspace / "model"), "data": str(workspace / "texts")}
    options |= changes
    return harpe.extend(out=workspace / out, **options)


def begin(workspace: Path, monkeypatch: pytest.MonkeyPatch, out: str = "run", **changes: Any) -> None:
    """A run that ends as by a kill after its third step; its last checkpoint is that of step 2."""
    log = JsonlLog.on_log

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        log(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(JsonlLog, "on_log", stop)
        with pytest.raises(Stop):
            run(workspace, out, **changes)
    assert (workspace / out / "harpe" / "stage-1" / "checkpoint-2" / "complete.json").is_file()


def test_bases_that_were_measured_are_read_back_and_the_plan_stays(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file more in --data would give other bases; the run goes on with its own, to the weights of a run that was not
    interrupted."""
    monkeypatch.setenv("HARPE_CACHE", str(workspace / "cache"))
    adaptive = {"assignment": "adaptive", "layer_bases": "permuted"}
    whole = run(workspace, "whole", **adaptive)
    begin(workspace, monkeypatch, **adaptive)
    plan, stages = (workspace / "run/plan.json").read_bytes(), (workspace / "run/harpe/stages.json").read_bytes()
    (workspace / "texts" / "0.txt").write_text("b" * 9000)
    monkeypatch.setattr("harpe.commands.extend.measured_heads", lambda *args: pytest.fail("measured again"))
    target = run(workspace, resume=True, **adaptive)
    assert (workspace / "run/plan.json").read_bytes() == plan and (
        workspace / "run/harpe/stages.json"
    ).read_bytes() == stages
    for name in ("model.safetensors", "config.json"):
        assert (target / name).read_bytes() == (whole / name).read_bytes()


def test_what_was_changed_or_damaged_since_is_a_sentence(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(workspace, monkeypatch)
    other = workspace / "others"
    other.mkdir()
    for i in range(6):
        (other / f"{i}.txt").write_text(f"a jay flew over number {i} " * 500)
    begin(workspace, monkeypatch, "others-run", data=str(other))

    def weights(at: Path) -> None:
        path = workspace / "model" / "model.safetensors"
        tensors = load_file(path)
        tensors["lm_head.weight"] += 1
        save_file(tensors, path, metadata={"format": "pt"})

    def context(at: Path) -> None:
        path = workspace / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 128}))

    def token(at: Path) -> None:
        path = at / "data/256/tokens.bin"
        path.write_bytes(path.read_bytes()[:-2] + b"\1\0")

    def texts(at: Path) -> None:
        shutil.rmtree(at / "data")
        shutil.copytree(workspace / "others-run" / "data", at / "data")

    def write(name: str, text: str) -> Callable[[Path], object]:
        return lambda at: (at / name).write_text(text)

    cases: list[tuple[Callable[[Path], object], str]] = [
        (weights, "not what the run in .* began with: its content differs"),
        (context, "not what the run in .* began with: its content differs"),
        (token, "was changed after it was written"),
        (texts, "training texts are not those"),
        (write("recipe.yaml", "a: ["), r"recipe\.yaml cannot be read"),
        (write("recipe.yaml", ""), r"recipe\.yaml holds no recipe"),
        (write("plan.json", "{}"), r"plan\.json is damaged"),
        (write("plan.json", '{"training": 3}'), r"plan\.json is damaged"),
        (write("plan.json", '{"trai'), r"plan\.json is not valid JSON"),
        (write("harpe/stages.json", "{}"), r"stages\.json is damaged"),
        (write("harpe/stages.json", "[1]"), r"stages\.json holds no JSON object"),
        (lambda at: (at / "harpe/stages.json").unlink(), r"stages\.json is gone"),
        (lambda at: (at / "plan.json").unlink(), r"plan\.json is gone"),
        (write("data/256/index.json", "{}"), r"index\.json"),
        (write("environment.json", "{"), r"environment\.json is not valid JSON"),
    ]
    shutil.copytree(workspace / "model", workspace / "kept")
    for number, (change, message) in enumerate(cases):
        shutil.copytree(workspace / "run", at := workspace / f"case-{number}")
        change(at)
        with pytest.raises(HarpeError, match=message):
            run(workspace, at.name, resume=True)
        assert not (at / "harpe" / "model").exists() and (at / "harpe/stage-1/checkpoint-2").is_dir()
        shutil.copytree(workspace / "kept", workspace / "model", dirs_exist_ok=True)
    run(workspace, resume=True)


def test_a_recipe_without_a_newer_option_is_read_with_what_its_version_did(tmp_path: Path) -> None:
    options = ExtendOptions(model="m", length=8, data="d", out=str(tmp_path / "run"), split_special_tokens=False)
    path = directory.open_run(tmp_path / "run", options, resume=False) / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())

    def written(**changes: Any) -> None:
        path.write_text(
            yaml.safe_dump({key: value for key, value in {**recipe, **changes}.items() if value != "absent"})
        )

    written(schedule="absent", split_special_tokens="absent")
    assert directory.open_run(tmp_path / "run", options, resume=True) == tmp_path / "run"
    with pytest.raises(HarpeError, match="schedule: 'restarted' there, 'carried' now"):
        directory.open_run(tmp_path / "run", replace(options, schedule="carried"), resume=True)
    # versions without it read them as tokens
    with pytest.raises(HarpeError, match="split_special_tokens: False there, True now"):
        directory.open_run(tmp_path / "run", replace(options, split_special_tokens=True), resume=True)
    written(of_a_later_version=1)
    with pytest.raises(HarpeError, match="of_a_later_version: 1 there, None now"):
        directory.open_run(tmp_path / "run", options, resume=True)


def test_what_differs_from_a_quickstart_is_told_and_nothing_else(tmp_path: Path) -> None:
    options = QuickstartOptions(out=str(tmp_path / "run"))
    directory.open_run(tmp_path / "run", options, resume=False)
    with pytest.raises(HarpeError) as told:
        directory.open_run(tmp_path / "run", replace(options, length=4096), resume=True)
    assert str(told.value).splitlines()[1:] == ["  length: 2048 there, 4096 now"]
    with pytest.raises(HarpeError, match="--samples is 0; the demonstration counts needles"):
        quickstart(QuickstartOptions(out=str(tmp_path / "none"), samples=0))
    assert not (tmp_path / "none").exists()


def test_another_environment_is_told_and_kept_by_number(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "run").mkdir()
    assert directory.write_environment(workspace / "run") == directory.write_environment(workspace / "run") == []
    first = (workspace / "run/environment.json").read_bytes()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    (told,) = directory.write_environment(workspace / "run")
    assert "77 now" in told and "environment-2.json" in told
    assert directory.write_environment(workspace / "run") == []
    monkeypatch.setattr(directory, "__version__", "9.9")
    (told,) = directory.write_environment(workspace / "run")
    assert "harpe" in told and "9.9 now" in told and "environment-3.json" in told
    assert (workspace / "run/environment.json").read_bytes() == first
    assert read_json(workspace / "run/environment-2.json")["threads"] == "77"


def test_a_folder_called_model_that_holds_no_whole_model_is_not_taken_for_done(workspace: Path) -> None:
    target = run(workspace)
    (target / "model.safetensors").rename(workspace / "weights")
    with pytest.raises(HarpeError, match="holds no whole model: model.safetensors is missing"):
        run(workspace, resume=True)
    (target / "model.safetensors").write_bytes((workspace / "weights").read_bytes()[:-1])
    with pytest.raises(HarpeError, match="cut short"):
        run(workspace, resume=True)
    shutil.rmtree(target)
    run(workspace, resume=True)
    assert (target / "model.safetensors").read_bytes() == (workspace / "weights").read_bytes()


def test_a_run_that_is_worked_on_is_left_to_its_process(workspace: Path) -> None:
    with locked(workspace / "run"), pytest.raises(HarpeError, match="in use by process"):
        run(workspace)
    assert not (workspace / "run").exists()
    run(workspace)
    with locked(workspace / "run"):
        for work in (
            lambda: run(workspace, resume=True),
            lambda: quickstart(QuickstartOptions(out=str(workspace / "run"))),
        ):
            with pytest.raises(HarpeError, match="in use by process"):
                work()


def test_a_refused_run_leaves_the_users_folder_and_removes_its_own(workspace: Path) -> None:
    (workspace / "run").mkdir()
    (workspace / "link").symlink_to(workspace / "run")
    for out in ("run", "link", "new"):
        with pytest.raises(HarpeError, match="more than the data have"):
            run(workspace, out, tokens=10**9)
    assert list((workspace / "run").iterdir()) == [] and not (workspace / "new").exists()
    assert run(workspace, "link").is_dir()  # an empty folder, and through a link, is as good as a new one


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, False),
    ],
)
def test_verbs_that_one_process_does_refuse_a_launcher_of_several(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    model, texts = str(workspace / "model"), str(workspace / "texts")
    for work in (
        lambda: prepare(PrepareOptions(data=texts, model=model, length=64, out=str(workspace / "packed"))),
        lambda: export(ExportOptions(source=model, out=str(workspace / "exported"))),
        lambda: quickstart(QuickstartOptions(out=str(workspace / "quickstart"))),
        lambda: choose(BasesOptions(model=model, length=256)),
    ):
        with pytest.raises(HarpeError, match=r"was started as \d processes.*without a launcher") as told:
            work()
        assert isinstance(told.value, OtherFailed) is not first
    assert sorted(path.name for path in workspace.iterdir()) == ["model", "texts"]


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, True),
    ],
)
def test_a_training_refuses_processes_that_cannot_find_each_other(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(HarpeError, match=r"\d processes were started .* torchrun") as told:
        run(workspace)
    assert isinstance(told.value, OtherFailed) is not first
    assert not (workspace / "run").exists()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "4"},
    ],
)
def test_a_launcher_of_one_process_is_no_hindrance(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert choose(BasesOptions(model=str(workspace / "model"), length=256))["bases"]
