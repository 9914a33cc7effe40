"""What each of several processes does in the tests: `run` gives several `harpe` commands in a row, in the same process.

Every process counts the records that it adds and leaves them in FOLDER/shares.RANK.json, a count a file of records.
torchrun starts `launched.py COMMANDS.json FOLDER`. Where RANK:TEXT stands in HARPE_TEST_FAILS, the process of that rank
fails with that sentence when it reads its first document.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.evaluation.perplexity import curves
from harpe.evaluation.records import Records


def run(commands: Sequence[Sequence[str]], folder: Path) -> int:
    """The commands up to the first that fails; its exit code. What is put in place of harpe's own functions stays so:
    a process calls this once."""
    added: collections.Counter[str] = collections.Counter()
    add = Records.add

    def count(self: Records, row: dict[str, Any]) -> None:
        before = len(self.rows)
        add(self, row)
        added[str(self.path)] += len(self.rows) - before

    def fail(*given: Any) -> Any:
        raise HarpeError(sentence)

    Records.add = count  # type: ignore[method-assign]
    rank, _, sentence = os.environ.get("HARPE_TEST_FAILS", "").partition(":")
    if rank == os.environ["RANK"]:
        curves.document_losses = fail
    code = 0
    for command in commands:
        code = code or main(list(command))
    (folder / f"shares.{os.environ['RANK']}.json").write_text(json.dumps(added))
    return code


if __name__ == "__main__":
    sys.exit(run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
