"""`harpe VERB …`: parses options, runs a verb, turns errors into sentences.

Exit codes: 0 done, 2 a problem with the input that the message explains, 130 interrupted (Ctrl-C), 143 and 129 ended by
SIGTERM and SIGHUP.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

from harpe._version import __version__
from harpe.cli.parser import build_parser, options_of
from harpe.cli.signals import Ended, exit_code, signals_interrupt
from harpe.cli.verbs import command
from harpe.errors import HarpeError, OtherFailed

WITHOUT_TORCH = ("bases", "report", "fetch-data", "suites")
"""Verbs that need no model, or not always: they do not wait for the import of torch."""


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


def _dequantise(options: Any) -> None:
    """Make the checkpoint of a GGUF file that is named as the model, and say so: not on standard output, where some
    verbs print JSON."""
    name = getattr(options, "model", None) or getattr(options, "source", None)
    if name is None or getattr(options, "server", None) is not None or os.environ.get("RANK", "0") != "0":
        return
    from harpe.models.gguf import checkpoint_of, gguf_file

    if (file := gguf_file(name)) is not None:
        checkpoint_of(file, lambda text: print(text, file=sys.stderr))


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parsed = build_parser(f"harpe {__version__}").parse_args(arguments)
    from harpe.cli.terminal import Terminal

    terminal = Terminal()
    try:
        with signals_interrupt():
            if parsed.verb not in WITHOUT_TORCH:
                _prepare()
            options = options_of(parsed)
            _dequantise(options)
            command(parsed.verb)(options, terminal)
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
            if os.environ.get("RANK", "0") == "0":  # of several processes, all of which Ctrl-C reaches, one speaks
                print(
                    f"{how}. Nothing that was saved is lost: the same command (extend: with --resume) goes on.",
                    file=sys.stderr,
                )
        return exit_code(error)
    terminal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
