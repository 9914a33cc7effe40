"""Nothing that harpe did not write is ever replaced: what it writes where a user may have files begins with a mark.

The marks: the second key of a JSON object; the first line of records in JSONL; the generator of an HTML page; a comment
before SVG and Markdown; the columns of a CSV table. They are looked for in the first bytes alone, so that a data set of
any size is told in no time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from harpe.errors import HarpeError

WRITTEN_BY = {"written_by": "harpe"}
"""Behind `schema_version` in JSON."""
COMMENT = "<!-- written by harpe -->\n"
"""Before SVG and Markdown."""
RECORDS = '{"harpe": "records", '
"""How the first line of records begins."""
HEAD = 4096

_MARKS = {
    ".json": re.compile(rb'\s*\{\s*"schema_version": \d+,\s*"written_by": "harpe"'),
    ".jsonl": re.compile(re.escape(RECORDS.encode())),
    ".svg": re.compile(re.escape(COMMENT.encode())),
    ".md": re.compile(re.escape(COMMENT.encode())),
    ".html": re.compile(rb'<!doctype html>.*<meta name="generator" content="harpe">', re.DOTALL),
    ".csv": re.compile(rb"measure,title,group,task,length,unit,better,method,method_title,"),
}


def is_ours(path: Path) -> bool:
    """Whether a file carries harpe's mark; a link never does. A process's number may end its name (FILE.jsonl.1)."""
    if path.is_symlink():  # writing would put a file in its place, or lines into another folder's file
        return False
    ending = path.with_suffix("").suffix if path.suffix[1:].isdigit() else path.suffix
    try:
        with path.open("rb") if path.is_file() else open(os.devnull, "rb") as stream:
            return ending in _MARKS and _MARKS[ending].match(stream.read(HEAD)) is not None
    except OSError:
        return False


def may_write(path: Path) -> bool:
    """Whether nothing has this name, or a file with harpe's mark."""
    return not os.path.lexists(path) or is_ours(path)


def remove_ours(path: Path) -> None:
    """Remove a file that carries harpe's mark, where there is one."""
    if is_ours(path):
        path.unlink()


def refuse_foreign(*paths: Path) -> None:
    """Refuse to write over what harpe did not write. Called with everything that a verb will write, before it writes
    anything.

    Raises HarpeError where something without harpe's mark has one of these names (a file, a folder, a link), or a file
    stands where one of their folders should.
    """
    for path in paths:
        if path.is_symlink():
            raise HarpeError(
                f"{path} is a link: it is neither replaced nor written through. Name another place for the results."
            )
        if not may_write(path):
            raise HarpeError(
                f"{path} is there already, and harpe did not write it, or an earlier version that left no mark: it is "
                "not overwritten. Move it to another place, or name another one for the results."
            )
        parent = next((each for each in path.parents if os.path.lexists(each)), None)
        if parent is not None and not parent.is_dir():
            raise HarpeError(f"{path} cannot be written: {parent} is not a folder. Name another place for the results.")
