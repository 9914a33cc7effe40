"""Configurations of published models, without their files: those that scripts plan for, too."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

SHAPES = json.loads((Path(__file__).parents[2] / "scripts" / "shapes.json").read_text())


def config_of(name: str) -> PreTrainedConfig:
    found: PreTrainedConfig = AutoConfig.for_model(**SHAPES[name])
    return found
