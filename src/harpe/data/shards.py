"""The parts that a corpus is tokenised in, by one process or by several, and the folder in which they wait to be put
together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.packed import DTYPES
from harpe.data.rows import Document
from harpe.data.token_ids import id_type, tokenizer_identity
from harpe.data.tokenised import Tokenised, is_complete, tokenise, whole, worth_keeping
from harpe.errors import HarpeError
from harpe.locks import locked

Say = Callable[[str], None]


def silent(_: str) -> None:
    pass


def unfinished(out: Path) -> Path:
    """The folder beside `out` in which documents are tokenised (`harpe.data.tokenised`)."""
    return out.with_name(f"{out.name}.unfinished")


def shards_there(out: Path) -> int:
    """Into how many shards a corpus for `out` was divided; 1 where it was not.

    Raises HarpeError for two divisions, and for shards that are not there, or not whole.
    """
    found: dict[int, dict[int, bool]] = {}
    for path in unfinished(out).glob("*-of-*"):
        name, _, of = path.name.partition("-of-")
        if name.isdigit() and of.isdigit() and int(of) > 1:
            found.setdefault(int(of), {})[int(name)] = is_complete(path)
    if not found:
        return 1
    if len(found) > 1:
        raise HarpeError(f"{unfinished(out)} holds shards of several divisions. Delete those that are not wanted.")
    ((count, done),) = found.items()
    if missing := [f"{number}/{count}" for number in range(1, count + 1) if not done.get(number)]:
        raise HarpeError(
            f"{unfinished(out)} holds {count - len(missing)} whole shards of {count}. Start this command with --shard "
            f"{', '.join(missing[:8])}{' …' * (len(missing) > 8)} first, or delete the folder to do without shards."
        )
    return count


@contextmanager
def shard(out: Path, number: int, count: int) -> Iterator[Path]:
    """Hold the folder of a shard of the documents for `out`; where the whole is one shard, what is not worth keeping
    goes when the block fails.

    Raises HarpeError where another process holds it.
    """
    folder = unfinished(out) / f"{number}-of-{count}"
    with locked(folder):
        try:
            yield folder
        except BaseException:
            if count == 1 and not worth_keeping(folder):
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):
                    unfinished(out).rmdir()
            raise
    with suppress(OSError):
        unfinished(out).rmdir()


def tokenise_shard(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    request: dict[str, Any],
    details: Callable[[], dict[str, Any]],
    say: Say,
    shortest: int = 0,
) -> Tokenised:
    """`harpe.data.tokenised.tokenise` with the tokenizer in the request."""
    dtype = DTYPES[id_type(tokenizer)]
    return tokenise(documents, tokenizer, dtype, folder, _with(request, tokenizer), details, say, shortest)


def whole_shard(tokenizer: PreTrainedTokenizerBase, folder: Path, request: dict[str, Any]) -> Tokenised:
    """`harpe.data.tokenised.whole` with the tokenizer in the request."""
    return whole(folder, _with(request, tokenizer))


def _with(request: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {**request, "tokenizer": tokenizer_identity(tokenizer)}
