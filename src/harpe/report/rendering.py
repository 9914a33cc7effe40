"""Fills the templates of the pages."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harpe.report.tables import NOT_RUN, duration, facts, plain, signed


@cache
def _environment() -> Environment:
    """The templates, each compiled once."""
    environment = Environment(
        loader=PackageLoader("harpe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"facts": facts, "plain": plain, "duration": duration}
    environment.tests |= {"finite": lambda number: number is not None and math.isfinite(number)}
    environment.globals |= {"exp": lambda nll: math.exp(min(nll, 700.0)), "not_run": NOT_RUN, "signed": signed}
    return environment


def render(template: str, script: str = "", **values: Any) -> str:
    """The page of a template; everything in `values` that is no Markup is escaped.

    Parameters
    ----------
    script
        A file of the templates folder. It stands in the page, and the page's own policy lets no other script run: the policy holds its
        SHA-256.
    """
    text = (Path(__file__).parent / "templates" / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return _environment().get_template(template).render(script=Markup(text), script_hash=Markup(digest), **values)
