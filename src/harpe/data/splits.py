"""Which files of a data set belong to a split that is held out, told by the names of folders and files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

TRAIN = ("train", "training")
HELD_OUT = ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "holdout", "heldout")
"""Of both, the names that the library `datasets` knows too; the last two are harpe's."""

_WORDS = "|".join((*TRAIN, *HELD_OUT))
_IN_NAME = re.compile(rf"(?<![a-z])({_WORDS})(?![a-z])")
"""Set apart by anything but letters: `train-00000-of-00002`, `c4-validation.00000`."""
_WHOLE_NAME = re.compile(rf"({_WORDS})[-._0-9]*")


def held_out(files: Iterable[Path], root: Path, is_text: Callable[[Path], bool]) -> dict[Path, str]:
    """The files of splits that are held out beside one to train on, each with its split's name.

    A split is a folder (`validation/…`) or a part of a file's name (`data/test-00000-of-00001.parquet`). It counts only
    where the same folder also holds one named train.

    Parameters
    ----------
    is_text
        Says which files are one text each: the names of these are titles often ("The Great Train Robbery.txt"), and
        have to be the split's alone.
    """
    named = [(path, *found) for path in files if (found := _split(path.relative_to(root), is_text(path)))]
    trained = {folder for _, folder, word in named if word in TRAIN}
    return {path: word for path, folder, word in named if word in HELD_OUT and folder in trained}


def _split(path: PurePath, is_text: bool) -> tuple[PurePath, str] | None:
    """The folder that is divided into splits, and the name of the one that a file belongs to."""
    for depth, part in enumerate(path.parts[:-1]):
        if part.lower() in (*TRAIN, *HELD_OUT):
            return PurePath(*path.parts[:depth]), part.lower()
    stem = path.name.lower().split(".")[0] if is_text else path.name.lower()
    words = [found[1]] if is_text and (found := _WHOLE_NAME.fullmatch(stem)) else []
    words = words if is_text else _IN_NAME.findall(stem)
    if not words or len({word in TRAIN for word in words}) > 1:  # train_test_split is neither
        return None
    return path.parent, words[0]
