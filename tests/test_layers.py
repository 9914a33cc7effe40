"""The tree itself: imports run one way, files stay small, the mathematics needs no transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "harpe"
LAYERS = (
    "positions",
    "bases",
    "methods",
    "data",
    "options",
    "models",
    "distributed",
    "training",
    "planning",
    "evaluation",
    "attention_heads",
    "report",
    "runs",
    "suites",
    "comparison",
    "commands",
    "cli",
)
"""From the lowest to the highest."""


def layer_of(path: Path) -> str | None:
    first = path.relative_to(SOURCE).parts[0]
    return first if first in LAYERS else None


def imports(path: Path) -> set[str]:
    """Every harpe layer that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "harpe" and len(parts) > 1 and parts[1] in LAYERS:
                found.add(parts[1])
    return found


def test_imports_run_downward_only() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in SOURCE.rglob("*.py")
        if (layer := layer_of(path))
        for other in imports(path)
        if LAYERS.index(other) > LAYERS.index(layer)
    ]
    assert not wrong


def test_data_and_report_know_no_models() -> None:
    for layer in ("data", "report"):
        for path in (SOURCE / layer).rglob("*.py"):
            assert not imports(path) & {"models", "training", "evaluation", "attention_heads"}, path


def test_files_stay_under_400_lines() -> None:
    long = {path.name: n for path in SOURCE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_positions_need_no_transformers() -> None:
    code = "import sys, harpe.bases.base_sets, harpe.positions.rotation; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_harpe_or_the_options_of_all_verbs_does_not_import_torch() -> None:
    code = "import sys, harpe; from harpe.cli.verbs import VERBS, options_class; [*map(options_class, VERBS)]; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_folder_says_what_lives_in_it() -> None:
    for path in SOURCE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(text.split()) > 5, path


def test_the_architecture_names_every_floor_in_order() -> None:
    text = (SOURCE.parent.parent / "docs" / "architecture.md").read_text().split("```")[1]
    named = [word for line in text.splitlines() if (word := line.split(" ")[0]) in LAYERS]
    assert named == list(reversed(LAYERS))
