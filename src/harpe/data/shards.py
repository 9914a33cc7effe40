"""The parts that a corpus is tokenised in, by one process or by several, and the folder in which they wait to be put
together."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.packed import DTYPES
from harpe.data.rows import Document
from harpe.data.token_ids import id_type, tokenizer_identity, tokens_around
from harpe.data.tokenised import Tokenised, is_complete, tokenise, whole, worth_keeping
from harpe.errors import HarpeError
from harpe.files import PARTIAL, held_place, read_json, remove_folder, sha256_json
from harpe.locks import locked

Say = Callable[[str], None]
SHARD = re.compile("([1-9][0-9]*)-of-([1-9][0-9]*)")
PACKED = "packed"
"""File in a shard that was put together and is of no more use."""


def silent(_: str) -> None:
    pass


def unfinished(out: Path) -> Path:
    """The folder beside `out` in which documents are tokenised (`harpe.data.tokenised`)."""
    return out.with_name(f"{out.name}.unfinished")


def shards_there(out: Path) -> dict[int, dict[int, bool]]:
    """The shards of a corpus for `out` that was divided: by how many there are, and number, whether each is whole."""
    found: dict[int, dict[int, bool]] = {}
    for path in unfinished(out).glob("*-of-*"):
        name = SHARD.fullmatch(path.name)
        if name is not None and name[2] != "1":
            found.setdefault(int(name[2]), {})[int(name[1])] = is_complete(path)
    return found


def check_division(out: Path, count: int) -> None:
    """Refuse a second division beside another."""
    if others := [other for other in shards_there(out) if other != count]:
        raise HarpeError(
            f"{unfinished(out)} holds shards of a division into {others[0]}, and this is one into {count}. Delete "
            "those that are not wanted."
        )


def division(out: Path) -> int:
    """Into how many shards a corpus for `out` was divided, all of which are whole; 1 where it was not divided.

    Raises HarpeError for two divisions, and for shards that are not there, or not whole.
    """
    found = shards_there(out)
    if not found:
        return 1
    count, done = next(iter(found.items()))
    check_division(out, count)
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
        for left in folder.parent.glob(f".{folder.name}.*.partial"):  # of a process that was killed while it removed it
            if PARTIAL.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
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


def remove_shards(folders: Sequence[Path]) -> None:
    """Remove shards that were put together; marked first, so that a kill leaves none that looks as if needed."""
    for folder in folders:
        (folder / PACKED).touch()
    for folder in folders:
        remove_folder(folder)


def tidy(out: Path) -> None:
    """Remove what `out`, which is whole, was made from, where a process was killed before it did so itself.

    Shards of anything else stay: somebody may have copied them there, to put them together when `out` is gone.
    """
    with suppress(HarpeError), held_place(out):
        pass
    found: dict[int, list[int]] = {}
    for path in unfinished(out).glob("*-of-*"):
        if name := SHARD.fullmatch(path.name):
            found.setdefault(int(name[2]), []).append(int(name[1]))
    for count, numbers in found.items():
        with suppress(HarpeError), ExitStack() as stack:
            folders = [stack.enter_context(shard(out, number, count)) for number in numbers]
            if all((folder / PACKED).is_file() for folder in folders) or _became(out, folders, count):
                remove_shards(folders)


def _became(out: Path, folders: Sequence[Path], count: int) -> bool:
    """Whether these are all shards of the corpus that `out` was made from."""
    if len(folders) != count or not all(map(is_complete, folders)):
        return False
    index, parts = read_json(out / "index.json"), [whole(folder) for folder in folders]
    digest = f"{sum(part.digest for part in parts) % 2**256:064x}"
    same = {part.request.get("tokenizer") == index.get("tokenizer") for part in parts}
    return same == {True} and digest == index.get("corpus", {}).get("sha256")


def tokenise_shard(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    request: dict[str, Any],
    details: Callable[[], dict[str, Any]],
    say: Say,
    shortest: int = 0,
) -> Tokenised:
    """`harpe.data.tokenised.tokenise` with what the tokenizer does in the request."""
    dtype = DTYPES[id_type(tokenizer)]
    return tokenise(documents, tokenizer, dtype, folder, _with(request, tokenizer), details, say, shortest)


def whole_shards(
    folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase, request: dict[str, Any]
) -> list[Tokenised]:
    """What was tokenised in all shards of a corpus.

    Raises HarpeError where that was another request than this in what both name, or shards differ.
    """
    parts, wanted = [whole(folder) for folder in folders], _with(request, tokenizer)
    own = ("shard", "short_files")
    for part in parts:
        there = {key: value for key, value in part.request.items() if key not in own}
        first = {key: value for key, value in parts[0].request.items() if key not in own}
        for other in ({key: value for key, value in wanted.items() if key not in own}, first):
            if different := [key for key in other if there.get(key) != other[key]]:
                what = "; ".join(f"{key}: {there.get(key)!r} there, {other[key]!r} otherwise" for key in different)
                raise HarpeError(f"{part.folder} is of another request ({what}). Make that shard again.")
    return parts


def _with(request: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """With what decides ids: the tokenizer, what it sets around texts, whether it splits special tokens that a text
    spells (which its serialised form does not say), and how it renders conversations."""
    around = [list(ids) for ids in tokens_around(tokenizer)]
    template = getattr(tokenizer, "chat_template", None)
    found = {"tokenizer": tokenizer_identity(tokenizer), "around": around, "end": tokenizer.eos_token_id}
    found["split_special_tokens"] = bool(tokenizer.split_special_tokens)
    chats = request.get("chat") is not None or request.get("short_chat") is not None
    return {**request, **found, **({"chat_template": sha256_json(template)} if chats else {})}
