"""`harpe perplexity`: prefix curves and sliding windows of one checkpoint."""

from __future__ import annotations

from typing import Any

from harpe.options.measuring import PerplexityOptions
from harpe.suites.perplexity import measure_perplexity


def run(options: PerplexityOptions, terminal: Any) -> None:
    """Measure perplexity by length or in windows."""
    measure_perplexity(options, terminal)
