"""`harpe plan`: layouts that fit, changes that make them fit, refusals, and the JSON behind what is printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from harpe.cli.main import main
from harpe.commands.plan import sentences
from harpe.errors import HarpeError
from harpe.planning.devices import read_devices
from harpe.planning.fit import choose_plan, longest_length, smallest_change
from harpe.planning.memory import plan_memory
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer

from .shapes import config_of


@pytest.fixture(scope="module")
def llama() -> Tracer:
    return Tracer(config_of("Llama-2-7B"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's configuration, without weights."""
    place = tmp_path_factory.mktemp("model")
    shape = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=2, **shape).save_pretrained(place)
    return place


def test_the_fewest_processes_a_sequence_that_fit_are_chosen(llama: Tracer) -> None:
    """LLaMA-2-7B at 128k: 8 sequences at once need 79 GB, pairs of processes 46."""
    devices, settings = read_devices("8xH100"), Settings(batch_tokens=8 * 131072)
    chosen, plan = choose_plan(llama, 131072, devices, settings)
    assert chosen.sequence_parallel == 2 and plan.fits
    assert not plan_memory(llama, 131072, devices, replace(settings, sequence_parallel=1)).fits


def test_what_does_not_fit_is_told_what_makes_it_fit(llama: Tracer) -> None:
    devices, settings = read_devices("1xH100"), Settings()
    chosen, plan = choose_plan(llama, 131072, devices, settings)
    assert not plan.fits
    change = smallest_change(llama, 131072, devices, chosen)
    assert change is not None and change[2].fits
    assert change[0] == "--devices 4xH100-80GB --sequence-parallel 4"
    kept = Settings(sequence_parallel=8, activations="kept", batch_tokens=131072)
    assert not choose_plan(llama, 131072, read_devices("8xH100"), kept)[1].fits
    change = smallest_change(llama, 131072, read_devices("8xH100"), kept)
    assert change is not None and change[0] == "--gradient-checkpointing true"


def test_the_longest_length_fits_and_a_sixteenth_more_does_not(llama: Tracer) -> None:
    devices, settings = read_devices("8xH100"), Settings(sequence_parallel=8)
    longest = longest_length(llama, devices, settings)
    assert choose_plan(llama, longest, devices, settings)[1].fits and longest % 8 == 0
    assert not choose_plan(llama, longest // 16 * 17, devices, settings)[1].fits
    assert longest_length(llama, read_devices("1xH100"), Settings(sequence_parallel=1)) == 0


def test_json_is_what_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["plan", str(folder), "--length", "4096", "--devices", "2xH100", "--tokens", "1e6", "--price", "2"]
    assert main([*call, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["steps"] == 244 and value["fits"] and value["sequence_parallel"] == 2
    assert value["bytes"] == sum(value["parts"].values())
    assert main(call) == 0
    printed = capsys.readouterr().out
    for sentence in sentences(value):
        assert sentence in printed
    assert f"{value['bytes'] / 1e9:.2f}" in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--devices 8*H100", "--devices is 8*H100; write number"),
        ("--devices 8xTPU", "does not say how much memory a TPU has"),
        ("--reserve 1", "--reserve is 1.0"),
        ("--utilization 0", "--utilization is 0.0"),
        ("--price=-1", "--price is -1.0"),
        ("--tokens 100", "less than one step of 4096 tokens"),
        ("--sequence-parallel 3", "does not divide the 2 processes"),
        ("--sequence-parallel 1", "2 are read at one time"),
        ("--devices 8xH100", "does not divide the 4 query heads"),
        ("--replicas 3", "--replicas 3 does not divide"),
        ("--micro-batch 0", "--micro-batch is 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    folder: Path, options: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["plan", str(folder), "--length", "4096", "--devices", "2xH100", *options.split()]
    assert main(call) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_devices_are_read() -> None:
    found = read_devices("16xA100-40GB", 0.25)
    assert (found.count, found.memory, found.usable, found.peak) == (16, 40 * 10**9, 30 * 10**9, 312e12)
    assert read_devices("H200").memory == 141 * 10**9
    with pytest.raises(HarpeError, match="write A100-80GB"):
        read_devices("A100")


@pytest.mark.slow
def test_adapters_need_no_gradients_and_moments_of_what_is_frozen(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """LLaMA-2-7B in bfloat16: 2 bytes a frozen weight, 16 one that is trained."""
    config = config_of("Llama-2-7B")
    config.dtype = "bfloat16"
    config.save_pretrained(tmp_path)
    plan = ["plan", str(tmp_path), "--length=32768", "--devices=1xH100", "--lora-rank=16", "--json"]
    assert main(plan) == 0
    value = json.loads(capsys.readouterr().out)
    trained, every = value["trained_parameters"], value["parameters"]
    shapes = {(4096, 4096): 4, (4096, 11008): 3}
    adapters = 32 * 16 * sum(count * sum(shape) for shape, count in shapes.items())
    assert every == 6_738_415_616
    assert trained == adapters + 32_000 * 4096 + 65 * 4096
    frozen = every - (trained - adapters)
    assert value["parts"]["weights"] == pytest.approx(2 * frozen + 4 * trained, rel=1e-3)
    assert value["parts"]["moments"] == 8 * trained
    assert value["fits"]
    assert main([*plan, "--lora-embeddings=false"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["trained_parameters"] == adapters and alone["parts"]["moments"] == 8 * adapters
    assert alone["bytes"] < value["bytes"]
    assert main([*plan[:3], "--devices=8xH100", "--lora-rank=16"]) == 2
    assert "one process" in capsys.readouterr().err
