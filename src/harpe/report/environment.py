"""The templates of the pages."""

from __future__ import annotations

import math
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from harpe.report.tables.table import NOT_RUN
from harpe.report.wording import facts


@cache
def environment() -> Environment:
    """The templates, each compiled once. What is put into them is escaped unless it is Markup."""
    loader = PackageLoader("harpe.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["facts"] = facts
    made.tests["finite"] = lambda number: number is not None and math.isfinite(number)
    made.globals["not_run"] = NOT_RUN
    return made
