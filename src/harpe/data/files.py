"""Finds the files of a corpus, and says which of them are no texts and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import yaml

from harpe.data.splits import held_out
from harpe.data.unpacking import opened
from harpe.errors import HarpeError

TEXT_SUFFIXES = (".txt", ".md", ".tex", ".py", ".rst")
"""Files that are one document each."""

LINE_SUFFIXES = (".jsonl", ".ndjson")
"""Files of one object a line."""

ROW_SUFFIXES = (*LINE_SUFFIXES, ".json", ".parquet")
"""Files that hold one document a row, in the field that --text-field names."""

ARCHIVE = ".tar"
"""Files that hold others."""

SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES, ARCHIVE)

SPLIT_SUFFIXES = (".txt", *ROW_SUFFIXES, ARCHIVE)
"""Files that folders or names divide into splits; code and the like have folders of such names for other reasons."""

SHORT = {".tgz": ".tar.gz"}
"""Suffixes in one word, and what they stand for."""

PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""Behind any of the others but .parquet, which packs its columns itself."""

LISTED = f"{' '.join(SUFFIXES)}, and all but .parquet with {' '.join(PACKED_SUFFIXES)} behind it (.tar.gz also as .tgz)"

METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""What the library `datasets` writes beside rows."""

PAPERS = re.compile(
    "(readme|licen[sc]e)([._-].*)?|copying|notice|citation|contributing|changelog|authors|security|datasheet|code_of_conduct|requirements"
)
"""Names, small and without suffixes, of files that tell of a data set and are no part of it."""

LOADERS = re.compile(rb"\b(GeneratorBasedBuilder|ArrowBasedBuilder)\b")
"""A class of `datasets` that every script which loads a data set derives from."""

CARD_KEYS = frozenset(
    "annotations_creators configs dataset_info language language_creators license multilinguality pretty_name "
    "size_categories "
    "source_datasets tags task_categories task_ids".split()
)
"""Of the YAML header of a data set's card (huggingface.co/docs/hub/datasets-cards)."""


@dataclass
class Found:
    """The files of a corpus."""

    files: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    """How many were passed over, by a name of the kind: `.bin`, `hidden` …"""
    splits: tuple[str, ...] = ()
    """Of a data set that were passed over, because they are held out from the one named train beside them."""


def suffix_of(path: PurePath) -> str:
    """A file's suffix in lower case, as `.jsonl` or `.jsonl.zst`; where no suffix is known, the last one or ""."""
    parts = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(parts) == 2 and parts[1] in PACKED_SUFFIXES and parts[0] in SUFFIXES:
        return "".join(parts)
    return parts[-1] if parts else ""


def inner_suffix(path: PurePath) -> str:
    """The suffix without that of the packing: what the content is."""
    suffix = SHORT.get(suffix_of(path), suffix_of(path))
    return next((suffix.removesuffix(packed) for packed in PACKED_SUFFIXES if suffix.endswith(packed)), suffix)


def is_read(path: PurePath) -> bool:
    """Whether the suffix is one that harpe reads."""
    suffix, inner = suffix_of(path), inner_suffix(path)
    return inner in SUFFIXES and (suffix == inner or inner != ".parquet")


def walk(folder: Path, holds_rows: Callable[[Path], bool]) -> Found:
    """The files of a folder in the order of their POSIX paths; links are followed, and every file is found once.

    Parameters
    ----------
    holds_rows
        Says of a .json file whether it holds documents; others are passed over, since most .json files are settings.

    Raises
    ------
    HarpeError
        Where a folder cannot be read, or holds no file that is.
    """
    found = _Walk()
    found.enter(folder)
    candidates = sorted(found.files, key=lambda path: path.relative_to(folder).as_posix())
    kept = []
    for path in candidates:
        if path.name.lower() in METADATA:
            found.passed_over["of a data set's metadata"] += 1
        elif not path.exists():
            kept.append(path)  # a link to nothing is kept, to be reported when it is read
        elif path.stat().st_size == 0 and inner_suffix(path) != ".parquet":
            found.passed_over[f"empty {suffix_of(path)}"] += 1
        elif inner_suffix(path) == ".json" and not holds_rows(path):
            found.passed_over[f"{suffix_of(path)} without documents"] += 1
        else:
            kept.append(path)
    kept = _without_papers(kept, folder, found.passed_over)
    apart = held_out((path for path in kept if inner_suffix(path) in SPLIT_SUFFIXES), folder, _is_text)
    found.passed_over.update(f"{suffix_of(path)} of the split {word}" for path, word in apart.items())
    files = [path for path in kept if path not in apart]
    if not files:
        over = f" Passed over: {counted(found.passed_over)}." if found.passed_over else ""
        raise HarpeError(f"--data {folder} is a folder without any file that harpe reads ({LISTED}).{over}")
    return Found(files, found.passed_over, tuple(sorted(set(apart.values()))))


def _is_text(path: Path) -> bool:
    return inner_suffix(path) in TEXT_SUFFIXES


class _Walk:
    """Walks a folder: first what lies in it, and then what links in it point to, unless that was met before."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.passed_over: Counter[str] = Counter()
        self._folders: set[str] = set()
        self._met: set[str] = set()

    def enter(self, folder: Path) -> None:
        linked: list[Path] = []
        self._below(folder, linked)
        while linked:
            link = linked.pop(0)
            real = os.path.realpath(link)
            if link.is_dir():
                # a folder above would lead around for ever, and out of --data into all that lies beside it
                if real in self._folders or _is_above(real, folder) or _is_above(real, link.parent):
                    self.passed_over["links to what was found already"] += 1
                else:
                    self._below(link, linked)
            elif real in self._met:
                self.passed_over["links to what was found already"] += 1
            else:
                self._met.add(real)
                self.files.append(link)

    def _below(self, folder: Path, linked: list[Path]) -> None:
        def refuse(error: OSError) -> None:
            raise HarpeError(f"--data: the folder {error.filename} cannot be read ({error.strerror}).") from error

        for parent, folders, names in os.walk(folder, onerror=refuse):
            real = os.path.realpath(parent)
            if real in self._folders:  # by a link, before
                folders[:] = []
                continue
            self._folders.add(real)
            self.passed_over["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            linked += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
            for path in (Path(parent, name) for name in sorted(names) if not name.startswith(".")):
                if not is_read(path):
                    suffix = suffix_of(path)
                    shown = suffix if suffix.isprintable() else ascii(suffix)[1:-1]  # no UTF-8, or moves a cursor
                    self.passed_over[shown or "without a suffix"] += 1
                elif path.exists() and not path.is_file():
                    self.passed_over["pipes and devices"] += 1
                elif path.is_symlink():
                    linked.append(path)
                else:
                    self._met.add(os.path.join(real, path.name))
                    self.files.append(path)
        self.passed_over += Counter()  # without zeros


def _is_above(real: str, folder: Path) -> bool:
    return os.path.realpath(folder).startswith(real.rstrip(os.sep) + os.sep)


def _without_papers(files: list[Path], root: Path, passed_over: Counter[str]) -> list[Path]:
    """Without what belongs to a cloned data set and is none of its documents: cards, licences, loader scripts.

    A folder is taken for a data set where rows (.jsonl, .parquet …) lie in it or below, where tars lie in it, or where
    it has a card. A folder of plain texts or of code is none, and its README and LICENSE are documents like any other.
    """
    rows = [path for path in files if inner_suffix(path) in ROW_SUFFIXES]
    beside = {path.parent for path in rows if inner_suffix(path) != ".json"}  # which code has beside it too
    above = {parent for path in rows for parent in path.parents if parent == root or root in parent.parents}
    cards = {path for path in files if path.stem.lower() == "readme" and inner_suffix(path) == ".md" and _is_card(path)}
    sets = {path.parent for path in cards}
    known = above | sets | {path.parent for path in files if inner_suffix(path) == ARCHIVE}  # below, code has them too
    scripted = beside | (sets & above)
    kept = []
    for path in files:
        paper = inner_suffix(path) in TEXT_SUFFIXES and PAPERS.fullmatch(
            path.name.lower().removesuffix(suffix_of(path))
        )
        if path in cards or (paper and path.parent in known):
            passed_over["cards and licences"] += 1
        elif inner_suffix(path) == ".py" and (path.parent in scripted or (path.parent in sets and _is_loader(path))):
            passed_over["scripts of a data set"] += 1
        else:
            kept.append(path)
    return kept


def _is_card(path: Path) -> bool:
    """Whether a README begins with the YAML header of a data set's card."""
    try:
        with opened(path) as stream:
            head = stream.read(2**20).decode("utf-8-sig", "replace").replace("\r\n", "\n")
        if not head.startswith("---\n") or "\n---" not in head[3:]:
            return False
        value = yaml.safe_load(head[3:].split("\n---")[0])
    except (HarpeError, OSError, yaml.YAMLError):
        return False  # what is wrong with the file is told when it is read
    return isinstance(value, dict) and not CARD_KEYS.isdisjoint(value)


def _is_loader(path: Path) -> bool:
    """Whether a script loads the data set that it lies in: a data set of .py files has its documents in the others."""
    with opened(path) as stream:
        return path.stem == path.parent.name or LOADERS.search(stream.read(2**20)) is not None


def counted(counts: Counter[str] | dict[str, int]) -> str:
    """Counts by kind as words: `2 .bin, 1 hidden`."""
    return ", ".join(
        f"{count:,} {kind}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
