"""The versions that pyproject.toml admits are those that the constraint files have tests run in."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ADMITTED = [
    Requirement(line)
    for line in (*PROJECT["dependencies"], *EXTRAS["eval"], *EXTRAS["dev"])
    if not line.startswith("harpe[")
]


def pinned(name: str) -> dict[str, Version]:
    """Version of every package in a constraints file."""
    lines = [line.split("==") for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in lines}


@pytest.mark.parametrize("requirement", ADMITTED, ids=lambda requirement: requirement.name)
def test_lower_bounds_are_the_versions_that_make_oldest_runs(requirement: Requirement) -> None:
    (bound,) = requirement.specifier
    assert bound.operator in (">=", "==", "~=")
    assert pinned("constraints-oldest.txt")[canonicalize_name(requirement.name)] == Version(bound.version)


@pytest.mark.parametrize("requirement", ADMITTED, ids=lambda requirement: requirement.name)
def test_the_versions_of_make_install_are_admitted(requirement: Requirement) -> None:
    assert pinned("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier
