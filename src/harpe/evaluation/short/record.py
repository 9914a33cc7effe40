"""Keeps the answers to lm-eval's requests, so that a measurement goes on after a kill where it was, and processes can
share it.

lm-eval's own cache pickles its values into a database, and its own way of sharing draws other solved examples in every
process. Here each process has lm-eval write all requests, asks its share of them, and is given the answers of the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harpe.distributed.processes import ALONE, Processes
from harpe.evaluation.records import Records
from harpe.files import sha256_json
from harpe.measurement import Measurement


def _key(kind: str, arguments: Sequence[Any]) -> str:
    return sha256_json([kind, list(arguments)])


class Record:
    """Answers to requests, in a file that grows with them: a line a request, named by the SHA-256 of its text.

    Parameters
    ----------
    path
        The file; what it holds is not asked again.
    contexts
        Requests are asked in blocks of so many contexts, each with all its continuations. What a block gives does not
        depend on the others, so that neither a kill nor the number of processes changes a digit.
    say
        Is told where a kill has cut the last line short (that request is asked again), and where questions are.
    progress
        Called with (done, total) of this process's blocks.
    of
        What is measured: answers of something else are refused.
    """

    def __init__(
        self,
        path: Path,
        contexts: int,
        ranks: Processes = ALONE,
        say: Callable[[str], None] = lambda text: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        of: Measurement | None = None,
    ) -> None:
        self.path, self._contexts, self._ranks, self._progress, self.say = path, contexts, ranks, progress, say
        self._records = Records(path, lambda row: row["request"], ranks, say, of)

    @property
    def known(self) -> int:
        """How many answers there are."""
        return len(self._records.rows)

    def add_partial(self, attr: str, req: Sequence[Any], res: Any) -> None:
        """Called by lm-eval's models with every answer as it comes (the interface of its CacheHook)."""
        self._records.add({"request": _key(attr, req), "answer": res})

    def complete(self, kind: str, ask: Callable[..., list[Any]], requests: list[Any]) -> list[Any]:
        """Answers to all requests, in order; `ask` gets this process's share of the blocks that are not complete."""
        keys = [_key(kind, request.args) for request in requests]
        blocks = [block for block in self._blocks(requests) if not all(keys[i] in self._records.rows for i in block)]
        mine = self._ranks.share(blocks)
        for done, block in enumerate(mine):
            self._progress(done, len(mine))
            for i, answer in zip(block, ask([requests[i] for i in block], disable_tqdm=True), strict=True):
                self._records.add({"request": keys[i], "answer": answer})
        self._progress(len(mine), len(mine))
        self._records.gather()
        answers = [self._records.rows[key]["answer"] for key in keys]
        return [tuple(answer) if isinstance(answer, list) else answer for answer in answers]

    def _blocks(self, requests: list[Any]) -> list[list[int]]:
        """Numbers of requests: contexts by falling length, so that those of a block are alike."""
        by_context: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_context.setdefault(str(request.args[0]), []).append(number)
        groups = sorted(by_context.items(), key=lambda item: (-len(item[0]), item[1]))
        starts = range(0, len(groups), self._contexts)
        return [[number for _, group in groups[start : start + self._contexts] for number in group] for start in starts]
