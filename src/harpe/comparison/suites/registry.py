"""All suites, in the order in which they are measured and shown."""

from __future__ import annotations

from typing import Any

from harpe.comparison.suites.base import Suite
from harpe.comparison.suites.curves import Curves
from harpe.comparison.suites.long import Long
from harpe.comparison.suites.ruler import Ruler
from harpe.comparison.suites.short import Short
from harpe.comparison.suites.standard import Standard
from harpe.options.recipe import EvaluationRecipe

SUITES: tuple[Suite, ...] = (
    Standard(),
    Curves(),
    Ruler(),
    Long(),
    Short(),
)
KEYED = {suite.key: suite for suite in SUITES if suite.key}
"""By their key in a recipe's evaluation."""


def asked_suites(of: EvaluationRecipe) -> list[tuple[Suite, Any]]:
    """The suites that an evaluation asks for, each with its settings."""
    found = [(suite, of.suites.get(suite.key) if suite.key else of) for suite in SUITES]
    return [(suite, settings) for suite, settings in found if settings]
