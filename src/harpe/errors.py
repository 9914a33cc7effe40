"""The one exception that a user is meant to read, and the modules that may be missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class HarpeError(ValueError):
    """A mistake in the input, told in sentences: what was wrong, in which option or file, what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class BrokenOff(HarpeError):
    """An exchange with the other processes broke off, because one of them has ended."""


class OtherFailed(HarpeError):
    """Another one of the processes that work together could not go on. It tells why, and this one ends without another
    word."""


def optional_module(module: str, package: str, what: str, extra: str = "eval") -> Any:
    """A module of the extra packages `harpe[EXTRA]`; where it is missing, `what` begins the sentence that says so."""
    try:
        return import_module(module)
    except ImportError as error:
        raise HarpeError(
            f"{what} the package {package}, which is not installed: pip install 'harpe[{extra}]'."
        ) from error
