"""What a killed process keeps, and shards: against one process that was let alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harpe.data import tokenised
from harpe.data.packed import PackedDataset
from harpe.data.packing import prepare
from harpe.data.rows import Document
from harpe.data.shards import unfinished
from harpe.errors import HarpeError
from harpe.files import read_json

CODE = """
import os, signal, sys
from pathlib import Path
from harpe.data import tokenised
from test_tokenised import DOCUMENTS, tokenizer
from harpe.data.packing import prepare
tokenised.PART_CHARACTERS, tokenised.BATCH_CHARACTERS = 2000, 300
kill_at = int(sys.argv[2])

def documents():
    for number, document in enumerate(DOCUMENTS):
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield document

prepare(documents(), tokenizer(), 16, Path(sys.argv[1]), request={"texts": "these"})
"""


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1} | {f"w{n}": n for n in range(2, 500)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def _texts() -> list[Document]:
    random = np.random.default_rng(0)
    sizes = random.integers(0, 40, 400)
    return [Document(str(n), " ".join(f"w{n}" for n in random.integers(2, 500, size))) for n, size in enumerate(sizes)]


DOCUMENTS = _texts()
SWAPPED = [DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenised, "PART_CHARACTERS", 2000)
    monkeypatch.setattr(tokenised, "BATCH_CHARACTERS", 300)


def _files(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "index.json": read_json(folder / "index.json")}


def _killed(out: Path, at: int) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", CODE, str(out), str(at)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


class _Counting:
    """Passes documents on, and knows how many of them were tokenised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenised = 0
        real = tokenised.document_ids

        def counted(tokens: Any, texts: list[str]) -> Iterator[list[int]]:
            self.tokenised += len(texts)
            return real(tokens, texts)

        monkeypatch.setattr(tokenised, "document_ids", counted)


@pytest.mark.slow
def test_a_killed_process_loses_one_part_and_the_result_is_that_of_one_that_was_let_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "alone", request={"texts": "these"})
    _killed(tmp_path / "data", at=360)
    _killed(tmp_path / "data", at=390)  # and again, further on
    said, counting = list[str](), _Counting(monkeypatch)
    prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "data", request={"texts": "these"}, say=said.append)
    assert _files(tmp_path / "data") == _files(tmp_path / "alone")
    # 90% are killed at 360 of 400; a part and the batches on their way are lost
    lost = sum(len(document.text) for document in DOCUMENTS[400 - counting.tokenised : 390])
    assert lost < 2000 + 3 * 300 and counting.tokenised < 60
    assert any("tokenised in" in sentence for sentence in said)
    assert not unfinished(tmp_path / "data").exists()


def test_another_request_and_other_texts_are_refused_where_hours_of_work_lie(tmp_path: Path) -> None:
    out = tmp_path / "data"
    _killed(out, at=300)
    left = {
        path: path.read_bytes() for path in unfinished(out).rglob("*") if path.is_file() and "lock" not in path.name
    }
    assert left
    with pytest.raises(HarpeError, match=r"another request \(texts: 'these' there, 'others' now\)"):
        prepare(DOCUMENTS, tokenizer(), 16, out, request={"texts": "others"})
    changed = [*DOCUMENTS[:3], Document("3", "w7"), *DOCUMENTS[4:]]
    for texts in (changed, DOCUMENTS[:20]):
        with pytest.raises(HarpeError, match="no longer those of which"):
            prepare(texts, tokenizer(), 16, out, request={"texts": "these"})
    for path, content in left.items():
        if path.name != "journal.jsonl":
            assert path.read_bytes() == content[: path.stat().st_size]
    prepare(DOCUMENTS, tokenizer(), 16, out, request={"texts": "these"})
    prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "alone", request={"texts": "these"})
    assert _files(out) == _files(tmp_path / "alone")


def test_less_than_a_part_is_made_again_without_a_word(tmp_path: Path) -> None:
    _killed(tmp_path / "data", at=20)
    prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "data", request={"texts": "others"}).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_tokens_outlive_a_draw_that_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarpeError, match="one sequence needs 1000000"):
        prepare(DOCUMENTS, tokenizer(), 1_000_000, tmp_path / "data")
    counting = _Counting(monkeypatch)
    prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "data")
    assert not counting.tokenised


def test_texts_are_compared_also_where_all_of_them_are_tokenised(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with pytest.raises(HarpeError, match="one sequence needs 1000000"):
        prepare(DOCUMENTS, tokenizer(), 1_000_000, out)
    for texts in (
        [*DOCUMENTS[:-1], Document("399", "w7 w8")],
        DOCUMENTS[:-1],
        [DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]],
    ):
        with pytest.raises(HarpeError, match="no longer those of which"):
            prepare(texts, tokenizer(), 16, out)
    more = [*DOCUMENTS, Document("400", "w7 w8 w9")]  # a data set that has grown
    assert prepare(more, tokenizer(), 16, out).hash == prepare(more, tokenizer(), 16, tmp_path / "alone").hash


def test_texts_in_another_order_are_others(tmp_path: Path) -> None:
    _killed(tmp_path / "data", at=300)
    with pytest.raises(HarpeError, match="no longer those of which"):
        prepare(
            [DOCUMENTS[1], DOCUMENTS[0], *DOCUMENTS[2:]], tokenizer(), 16, tmp_path / "data", request={"texts": "these"}
        )


def test_another_end_of_text_is_another_request(tmp_path: Path) -> None:
    _killed(tmp_path / "data", at=300)
    other = tokenizer()
    other.eos_token = "w5"
    with pytest.raises(HarpeError, match="another request .*end"):
        prepare(DOCUMENTS, other, 16, tmp_path / "data", request={"texts": "these"})


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin", "sources.bin"])
def test_a_part_that_was_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    _killed(tmp_path / "data", at=300)
    file = unfinished(tmp_path / "data") / "1-of-1" / name
    os.truncate(file, 10)
    with pytest.raises(HarpeError, match="has 10 bytes and should have"):
        prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "data", request={"texts": "these"})


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin"])
def test_a_full_disk_is_told_while_tokens_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin = tokenised._begin

    def planted(folder: Path, *rest: Any) -> Any:
        state = begin(folder, *rest)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/full")  # takes no byte
        return state

    monkeypatch.setattr(tokenised, "_begin", planted)
    with pytest.raises(HarpeError, match="The disk is full"):
        prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_journal_line_that_a_crash_cut_is_not_gone_on_from(tmp_path: Path) -> None:
    prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "alone", request={"texts": "these"})
    _killed(tmp_path / "data", at=300)
    journal = unfinished(tmp_path / "data") / "1-of-1" / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    prepare(DOCUMENTS, tokenizer(), 16, tmp_path / "data", request={"texts": "these"})
    assert _files(tmp_path / "data") == _files(tmp_path / "alone")
    assert PackedDataset(tmp_path / "data").index["corpus"]["documents"] == sum(bool(d.text) for d in DOCUMENTS)
    assert json.loads(lines[0])["request"]["texts"] == "these"
