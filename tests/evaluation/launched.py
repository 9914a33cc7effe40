"""What torchrun starts in the tests: `launched.py COMMANDS.json FOLDER` runs several `harpe` commands in a row, in the
same processes.

Every process counts the records that it adds and leaves them in FOLDER/shares.RANK.json, a count a file of records.
Where RANK:TEXT stands in HARPE_TEST_FAILS, the process of that rank fails with that sentence when it reads its first
document.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path
from typing import Any

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.evaluation.perplexity import curves
from harpe.evaluation.records import Records

commands, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
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
    code = code or main(command)
(folder / f"shares.{os.environ['RANK']}.json").write_text(json.dumps(added))
sys.exit(code)
