"""What the pages under docs/ point to exists, and what they tell users to type is accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harpe._version import __version__
from harpe.cli.parser import build_parser, options_of

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_and_picture_exists(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if "://" not in t]
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_accepted(page: Path) -> None:
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.S | re.M):
        for line in block.splitlines():
            if line.startswith("harpe "):
                options_of(build_parser(__version__).parse_args(shlex.split(line, comments=True)[1:]))


def test_every_result_row_of_choosing_bases_stands_in_a_committed_result() -> None:
    results = "".join(path.read_text() for path in sorted((DOCS.parent / "benchmarks").glob("*.md")))
    rows = [line for line in (DOCS / "choosing-bases.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert len(rows) > 10
    assert not [row for row in rows if row not in results]
