"""Fills the template of the page."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harpe.report.tables.table import NOT_RUN
from harpe.report.wording import facts


@cache
def _environment() -> Environment:
    """The templates, each compiled once."""
    loader = PackageLoader("harpe.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["facts"] = facts
    environment.tests["finite"] = lambda number: number is not None and math.isfinite(number)
    environment.globals["not_run"] = NOT_RUN
    return environment


def render(**values: Any) -> str:
    """The page; everything in `values` that is no Markup is escaped.

    Its script stands in it, and its own policy lets no other script run: the policy holds its SHA-256.
    """
    script = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _environment().get_template("report.html.j2")
    return template.render(script=Markup(script), script_hash=Markup(digest), **values)
