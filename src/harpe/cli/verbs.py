"""The verbs: the one table of them.

The options of a verb are a dataclass, from which its flags and its help are made. What it does is `run` of the file in
`harpe.commands` that has its name (with _ for -), imported when it is called for, because torch takes seconds to
import.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

VERBS = {
    "bases": "harpe.options.bases:BasesOptions",
    "heads": "harpe.options.heads:HeadsOptions",
    "plan": "harpe.options.planning:PlanOptions",
    "prepare": "harpe.options.extend:PrepareOptions",
    "data": "harpe.options.runs:DataOptions",
    "extend": "harpe.options.extend:ExtendOptions",
    "evaluate": "harpe.options.measuring:EvaluateOptions",
    "compare": "harpe.options.runs:CompareOptions",
    "report": "harpe.options.runs:ReportOptions",
    "export": "harpe.options.runs:ExportOptions",
    "push": "harpe.options.runs:PushOptions",
    "perplexity": "harpe.options.measuring:PerplexityOptions",
    "ruler": "harpe.options.measuring:RulerOptions",
    "long": "harpe.options.measuring:LongOptions",
    "short": "harpe.options.measuring:ShortOptions",
    "suites": "harpe.options.measuring:SuitesOptions",
    "fetch-data": "harpe.options.measuring:FetchDataOptions",
    "fetch-model": "harpe.options.fetching:FetchModelOptions",
    "quickstart": "harpe.options.runs:QuickstartOptions",
}
"""The options of every verb, as MODULE:CLASS, in the order of `harpe --help`."""


def options_class(verb: str) -> Any:
    """The dataclass of a verb's options."""
    module, _, name = VERBS[verb].partition(":")
    return getattr(import_module(module), name)


def command(verb: str) -> Callable[[Any, Any], None]:
    """What a verb does with its options and the terminal."""
    found: Callable[[Any, Any], None] = import_module(f"harpe.commands.{verb.replace('-', '_')}").run
    return found
