"""What the README tells users to type is accepted, and its figures are those of committed results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from harpe._version import __version__
from harpe.cli.parser import build_parser, options_of
from harpe.comparison.recipe import read_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [text for language, text in re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M) if not language]
COMMANDS = [
    line for block in BLOCKS for line in block.splitlines() if line.startswith("harpe ") and not line.endswith("…")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted_by_the_parser(command: str) -> None:
    parsed = build_parser(__version__).parse_args(shlex.split(command)[1:])
    options_of(parsed)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 5


def test_every_make_target_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = [name for block in BLOCKS for name in re.findall(r"^make ([a-z-]+)", block, re.M)]
    assert named and set(named) <= set(targets)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_accepted(recipe: Path) -> None:
    text = recipe.read_text()
    commands = re.findall(r"^# +(?:torchrun .* -m )?(harpe (?:extend|compare|prepare) .*?)(?:  .*)?$", text, re.M)
    assert commands
    for command in commands:
        command = command.replace(f"recipes/{recipe.name}", str(recipe))
        options = options_of(build_parser(__version__).parse_args(shlex.split(command)[1:]))
        if command.startswith("harpe prepare"):
            assert options.out == yaml.safe_load(text)["data"] and options.length == yaml.safe_load(text)["length"]
            assert options.tokens >= yaml.safe_load(text)["tokens"]
        elif command.startswith("harpe extend"):
            assert {key: getattr(options, key) for key in yaml.safe_load(text)} == yaml.safe_load(text)
        else:
            assert {row.name for row in read_recipe(options.recipe).methods}


def test_every_figure_of_a_quoted_table_stands_in_a_committed_result() -> None:
    files = [*(ROOT / "benchmarks").glob("*.md"), *(ROOT / "results").glob("*/README.md")]
    results = "".join(path.read_text() for path in files)
    rows = [line for line in README.splitlines() if line.startswith("| ") and re.search(r"\d", line)]
    assert rows
    assert not [row for row in rows if row not in results]
