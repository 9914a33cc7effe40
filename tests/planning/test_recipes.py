"""Every recipe trains, and is measured, on the devices that it names, and does not train on half of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedConfig

from harpe._version import __version__
from harpe.cli.parser import build_parser, options_of
from harpe.models.load import load_config
from harpe.planning.devices import Devices, read_devices
from harpe.planning.fit import choose_plan
from harpe.planning.settings import Settings
from harpe.planning.trace import Tracer

from .shapes import config_of

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
SHAPES = {
    "meta-llama/Llama-2-7b-hf": "Llama-2-7B",
    "meta-llama/Meta-Llama-3-8B": "Llama-3.1-8B",  # the shape is the same
    "Qwen/Qwen3-0.6B-Base": "Qwen3-0.6B",
    "HuggingFaceTB/SmolLM2-135M": "SmolLM2-135M",
    "models/smollm2-135m": "SmolLM2-135M",
}
COMMAND = r"^# +(?:torchrun --nproc-per-node (\d+) -m )?harpe ((?:extend|compare) .*?)(?:  .*)?$"


class Recipe:
    """A recipe, what its head says, and its settings as its first command gives them."""

    def __init__(self, name: str) -> None:
        text = (RECIPES / name).read_text()
        found = re.search(r"^# Runs on (\S+) by `harpe plan`", text, re.M)
        commands = re.findall(COMMAND, text, re.M)
        assert found and commands, name
        words = [[part.replace(f"recipes/{name}", str(RECIPES / name)) for part in shlex.split(c)] for _, c in commands]
        every = [options_of(build_parser(__version__).parse_args(each)) for each in words]
        self.devices: Devices = read_devices(found[1])
        self.processes = {
            int(started or getattr(options, "processes_per_row", 1))
            for (started, _), options in zip(commands, every, strict=True)
        }
        self.options: Any = every[0]
        self.keys: dict[str, Any] = yaml.safe_load(text)
        self.length: int = self.keys.get("length") or self.options.length
        self.sequence: int = self.keys.get("pose_length") or self.length
        model = self.keys.get("model") or self.options.model
        self.config: PreTrainedConfig = (
            config_of(SHAPES[model]) if model in SHAPES else load_config("embedded")  # MODEL, of any small one
        )

    def settings(self, sequence_parallel: int) -> Settings:
        return Settings(
            sequence_parallel=sequence_parallel,
            replicas=self.options.replicas,
            activations="recomputed" if self.keys.get("gradient_checkpointing", True) else "kept",
            micro_batch=self.keys.get("micro_batch", 1),
            batch_tokens=self.keys.get("batch_tokens", 0),
            dtype=self.keys.get("dtype", "float32"),
        )

    def measured(self) -> int:
        """Bytes of bfloat16 weights, keys and values at the longest length that a comparison measures."""
        evaluation, config = self.keys.get("evaluation", {}), self.config
        asked = [n for suite in ("ruler", "long") for n in (evaluation.get(suite) or {}).get("lengths", [])]
        lengths = [self.length, *asked] if evaluation else [0]
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        tracer = Tracer(config)
        weights = sum(parameter.numel() for parameter in tracer.model.parameters())
        return 2 * (weights + 2 * config.num_hidden_layers * config.num_key_value_heads * size * max(lengths))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_on_what_it_names_and_not_on_half(name: str) -> None:
    recipe = Recipe(name)
    count = recipe.devices.count
    assert recipe.processes == {count}
    tracer = Tracer(recipe.config)
    settings = recipe.settings(recipe.options.sequence_parallel if count > 1 else 1)
    assert choose_plan(tracer, recipe.sequence, recipe.devices, settings)[1].fits
    assert recipe.measured() <= recipe.devices.usable
    if count > 1:
        half = read_devices(f"{count // 2}x{str(recipe.devices).split('x')[1]}")
        assert not choose_plan(tracer, recipe.sequence, half, recipe.settings(0))[1].fits
