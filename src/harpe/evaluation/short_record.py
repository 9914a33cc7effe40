"""Keeps the answers to lm-eval's requests, so that a measurement goes on after a kill where it was.

lm-eval's own cache pickles its values into a database. This is a JSONL file: a line a request, named by the SHA-256 of its text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harpe.files import append_jsonl, sha256_json, whole_lines, write_jsonl


def _key(kind: str, arguments: Sequence[Any]) -> str:
    return sha256_json([kind, list(arguments)])


class Record:
    """Answers to requests, in a file that grows with them.

    Parameters
    ----------
    path
        The file; what it holds is not asked again.
    say
        Is told where a kill has cut the last line short; that request is asked again.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        rows, cut = whole_lines(path) if path.is_file() else ([], False)
        if cut:
            say(f"The last line of {path} was cut short; its question is asked again.")
            write_jsonl(path, rows)
        self.known: dict[str, Any] = {row["request"]: row["answer"] for row in rows}

    def add_partial(self, attr: str, req: Sequence[Any], res: Any) -> None:
        """Called by lm-eval's models with every answer as it comes (the interface of its CacheHook)."""
        if attr == "generate_until" and req[1].get("do_sample", False):
            return  # drawn answers differ from each other
        key = _key(attr, req)
        append_jsonl(self.path, {"request": key, "answer": res})
        self.known[key] = res

    def complete(self, kind: str, ask: Callable[..., list[Any]], requests: list[Any], **options: Any) -> list[Any]:
        """The answers to all requests in their order; `ask` is called with those that are not known."""
        known = {i: self.known[key] for i, request in enumerate(requests) if (key := _key(kind, request.args)) in self.known}
        rest = [request for i, request in enumerate(requests) if i not in known]
        new = iter(ask(rest, **options) if rest else [])
        answers = [known[i] if i in known else next(new) for i in range(len(requests))]
        return [tuple(answer) if isinstance(answer, list) else answer for answer in answers]


def recorded_model(record: Record, **options: Any) -> Any:
    """lm-eval's model of transformers (HFLM), which reads from the record what is there and adds what is not."""
    from lm_eval.models.huggingface import HFLM

    class Recorded(HFLM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return record.complete("loglikelihood", super().loglikelihood, requests, disable_tqdm=disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return record.complete("loglikelihood_rolling", super().loglikelihood_rolling, requests, disable_tqdm=disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return record.complete("generate_until", super().generate_until, requests, disable_tqdm=disable_tqdm)

    model = Recorded(**options)
    model.set_cache_hook(record)
    return model
