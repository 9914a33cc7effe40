"""`harpe VERB …`: parses options, runs a verb, turns errors into sentences.

Exit codes: 0 done, 2 a problem with the input that the message explains, 130 interrupted (Ctrl-C), 143 and 129 ended by SIGTERM and SIGHUP.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harpe._version import __version__
from harpe.cli.parser import build_parser, options_of
from harpe.cli.signals import Ended, exit_code, signals_interrupt
from harpe.errors import HarpeError, OtherFailed
from harpe.options.measuring import FetchDataOptions, PerplexityOptions, RulerOptions, ShortOptions
from harpe.options.verbs import (
    BasesOptions,
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    ExtendOptions,
    PrepareOptions,
    QuickstartOptions,
    ReportOptions,
)

VERBS: dict[str, type] = {
    "bases": BasesOptions,
    "prepare": PrepareOptions,
    "extend": ExtendOptions,
    "evaluate": EvaluateOptions,
    "compare": CompareOptions,
    "report": ReportOptions,
    "export": ExportOptions,
    "perplexity": PerplexityOptions,
    "ruler": RulerOptions,
    "short": ShortOptions,
    "fetch-data": FetchDataOptions,
    "quickstart": QuickstartOptions,
}


def _prepare() -> None:
    """Quiet libraries and all cores, before the first heavy import has an effect."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import torch
    import transformers

    from harpe.runs.directory import available_cores

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())


def bases(options: BasesOptions, terminal: Any) -> None:
    """Print a base set, as a table or as JSON, and draw it where a folder is named."""
    from harpe.commands.bases import base_table, choose, write

    value = choose(options)
    written = write(value, Path(options.out)) if options.out is not None else []
    if options.json:
        print(json.dumps(value))
    else:
        terminal.table(base_table(value))
        if written:
            terminal.say(f"Written: {', '.join(map(str, written))}")


def prepare(options: PrepareOptions, terminal: Any) -> None:
    """Pack a corpus, and show what was drawn from its sources."""
    _prepare()
    from harpe.commands.prepare import prepare as run
    from harpe.report.terminal import sources_table

    terminal.table(sources_table(run(options, terminal)))


def extend(options: ExtendOptions, terminal: Any) -> None:
    """Extend a checkpoint."""
    _prepare()
    from harpe.commands.extend import extend as run

    run(options, terminal)


def evaluate(options: EvaluateOptions, terminal: Any) -> None:
    """Measure a checkpoint or a run."""
    _prepare()
    from harpe.commands.evaluate import evaluate as run
    from harpe.distributed.processes import is_first
    from harpe.report.terminal import main_table, score_table

    folder = run(options, terminal)
    if is_first():
        terminal.table(main_table(folder) if (folder / "plan.json").is_file() else score_table(folder))


def compare(options: CompareOptions, terminal: Any) -> None:
    """Compare several methods."""
    _prepare()
    from harpe.comparison.run import compare as run
    from harpe.report.terminal import main_table

    folder = run(options, terminal)
    if not options.plan:
        terminal.table(main_table(folder))
        terminal.say(f"The report: {folder / 'report' / 'index.html'}")


def report(options: ReportOptions, terminal: Any) -> None:
    """Write the report page again; also the statistics behind it, where the run was cut short or an earlier version left them out."""
    from harpe.comparison.summary import complete
    from harpe.ownership import refuse_foreign
    from harpe.report.page import write_report
    from harpe.report.read.run import is_comparison
    from harpe.report.terminal import main_table
    from harpe.runs.position_losses import write_positions
    from harpe.runs.scored import check_models

    run = Path(options.run)
    pages = [run / "report" / name for name in ("index.html", "tables.md", "tables.csv")]
    refuse_foreign(*pages, run / "positions.json", run / "summary.json")
    check_models(run)
    if not is_comparison(run):
        write_positions(run)
    else:
        complete(run)
    page = write_report(run)
    terminal.table(main_table(run))
    terminal.say(f"The report: {page}")


def export(options: ExportOptions, terminal: Any) -> None:
    """Write a checkpoint that loads without harpe."""
    _prepare()
    from harpe.commands.export import export as run

    run(options, terminal)


def quickstart(options: QuickstartOptions, terminal: Any) -> None:
    """Run the demonstration."""
    _prepare()
    from harpe.commands.quickstart import quickstart as run

    run(options, terminal)


def perplexity(options: PerplexityOptions, terminal: Any) -> None:
    """Measure perplexity by length or in windows."""
    _prepare()
    from harpe.suites.perplexity import measure_perplexity

    measure_perplexity(options, terminal)


def ruler(options: RulerOptions, terminal: Any) -> None:
    """Write RULER samples, and answer them where a model is named."""
    _prepare()
    from harpe.distributed.processes import is_first
    from harpe.report.score_tables import against_table, ruler_table
    from harpe.suites.ruler import run_ruler

    folder = run_ruler(options, terminal)
    if options.model is not None and is_first():
        terminal.table(ruler_table(folder))
    if options.against is not None and is_first():
        terminal.table(against_table(folder))


def short(options: ShortOptions, terminal: Any) -> None:
    """Run short benchmarks."""
    _prepare()
    from harpe.distributed.processes import is_first
    from harpe.report.score_tables import against_table, short_table
    from harpe.suites.short import measure_short

    folder = measure_short(options, terminal)
    if is_first():
        terminal.table(short_table(folder))
    if options.against is not None and is_first():
        terminal.table(against_table(folder))


def fetch_data(options: FetchDataOptions, terminal: Any) -> None:
    """Download benchmark data."""
    from harpe.suites.ruler import fetch_data as run

    run(options, terminal)


FUNCTIONS: dict[str, Callable[[Any, Any], None]] = {
    "bases": bases,
    "prepare": prepare,
    "extend": extend,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "export": export,
    "perplexity": perplexity,
    "ruler": ruler,
    "short": short,
    "fetch-data": fetch_data,
    "quickstart": quickstart,
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser(VERBS, f"harpe {__version__}")
    parsed = parser.parse_args(arguments)
    from harpe.cli.terminal import Terminal

    terminal = Terminal()
    try:
        with signals_interrupt():
            FUNCTIONS[parsed.verb](options_of(parsed, VERBS), terminal)
    except OtherFailed:
        terminal.close()
        return 0  # the launcher ends all with the code of the process that failed, when that one has spoken
    except HarpeError as error:
        terminal.close()
        print(f"harpe {parsed.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        how = f"Ended by {signal.Signals(error.number).name}" if isinstance(error, Ended) else "Interrupted"
        with suppress(OSError):  # the terminal may be gone
            terminal.close()
            print(f"{how}. Nothing that was saved is lost: the same command (extend: with --resume) goes on.", file=sys.stderr)
        return exit_code(error)
    terminal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
