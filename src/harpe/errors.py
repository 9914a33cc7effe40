"""The one exception that a user is meant to read."""

from __future__ import annotations


class HarpeError(ValueError):
    """A mistake in the input, told in sentences: what was wrong, in which option or file, what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class BrokenOff(HarpeError):
    """An exchange with the other processes broke off, because one of them has ended."""


class OtherFailed(HarpeError):
    """Another one of the processes that work together could not go on. It tells why, and this one ends without another
    word."""
