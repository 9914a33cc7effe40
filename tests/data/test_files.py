"""Data folders as they are found: packed files, .json, links, cloned data sets; and the account of what was read and
what was not."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from harpe.data import rows
from harpe.data.sources import account_text, read_documents
from harpe.data.unpacking import unpacked
from harpe.errors import HarpeError

CARD = "---\nlicense: mit\ntask_categories:\n- text-generation\n---\n# A data set\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def _zst(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": _zst,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def _lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _fill(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def _texts(source: Path, **options: Any) -> list[str]:
    return [document.text for document in read_documents(source, **options)]


def _account(source: Path) -> dict[str, dict[str, int]]:
    documents = read_documents(source)
    list(documents)
    return documents.account()


def _sentence(source: Path, **options: Any) -> str:
    with pytest.raises(HarpeError) as caught:
        _texts(source, **options)
    return str(caught.value)


@pytest.mark.parametrize("packed", PACK)
def test_packed_files_hold_what_their_inner_suffix_says(tmp_path: Path, packed: str) -> None:
    _fill(
        tmp_path,
        {
            f"a.jsonl{packed}": PACK[packed](_lines("row 1", "row 2")),
            f"b.json{packed}": PACK[packed](b'[{"text": "element"}]'),
            f"c.TXT{packed.upper()}": PACK[packed]("größer\r\n".encode()),
            f"d.md{packed}": PACK[packed](b"# words"),
            f"e.parquet{packed}": b"",
        },
    )
    assert _texts(tmp_path) == ["row 1", "row 2", "element", "größer\r\n", "# words"]
    assert _texts(tmp_path / f"a.jsonl{packed}") == ["row 1", "row 2"]
    assert _account(tmp_path)["passed_over"] == {f".parquet{packed}": 1}


@pytest.mark.parametrize("packed", PACK)
def test_a_packed_file_that_is_cut_off_is_told_and_how_far_it_was_read(tmp_path: Path, packed: str) -> None:
    noise = [os.urandom(300).hex() for _ in range(4000)]
    whole = PACK[packed](_lines(*noise))
    for size in (len(whole) // 2, len(whole) - 3):
        path = tmp_path / f"a.jsonl{packed}"
        path.write_bytes(whole[:size])
        message = _sentence(path)
        assert str(path) in message and "is cut off" in message and "bytes of its content could be read" in message
    path.write_bytes(b"no such format at all" * 10)
    assert "is damaged" in _sentence(path)


@pytest.mark.parametrize("packed", PACK)
def test_files_of_several_frames_are_read_to_their_end(tmp_path: Path, packed: str) -> None:
    frames = [PACK[packed](_lines(f"frame {n}")) for n in range(3)]
    (tmp_path / f"a.jsonl{packed}").write_bytes(b"".join(frames))
    assert _texts(tmp_path) == ["frame 0", "frame 1", "frame 2"]


@pytest.mark.parametrize("packed", PACK)
def test_a_frame_behind_the_first_that_does_not_begin_as_one_is_told_and_not_taken_for_the_end(
    tmp_path: Path, packed: str
) -> None:
    first, second = (PACK[packed](_lines(f"frame {n}")) for n in range(2))
    path = tmp_path / f"a.jsonl{packed}"
    for behind in (bytes([second[0] ^ 255]) + second[1:], b"junk"):
        path.write_bytes(first + behind)
        assert "is damaged" in _sentence(path)


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz"])
def test_zeros_behind_a_frame_are_padding(tmp_path: Path, packed: str) -> None:
    frames = [PACK[packed](_lines(f"frame {n}")) for n in range(2)]
    (tmp_path / f"a.jsonl{packed}").write_bytes(frames[0] + bytes(8) + frames[1] + bytes(40_000))
    assert _texts(tmp_path) == ["frame 0", "frame 1"]


def test_a_few_packed_bytes_are_not_unpacked_into_memory_as_a_whole() -> None:
    for pack, suffix in ((lzma.compress, ".xz"), (bz2.compress, ".bz2")):
        raw = pack(bytes(30_000_000))
        tracemalloc.start()
        stream = unpacked(io.BufferedReader(io.BytesIO(raw)), suffix, "a")  # type: ignore[arg-type]
        size = 0
        while piece := stream.read(2**16):
            size += len(piece)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size == 30_000_000 and most < 15_000_000


def test_the_frames_that_pzstd_writes_are_read(tmp_path: Path) -> None:
    frames = [_zst(_lines(f"frame {n}")) for n in range(3)]
    # in front of each, one that is skipped and holds its size
    raw = b"".join(struct.pack("<III", 0x184D2A50, 4, len(frame)) + frame for frame in frames)
    (tmp_path / "a.jsonl.zst").write_bytes(raw)
    assert _texts(tmp_path) == ["frame 0", "frame 1", "frame 2"]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "ä"},{"text": "b"}\n, {"text": "c"}]',
        '{"text": "ä"}\n{"text": "b"}\n{"text": "c"}\n',
        '\ufeff[\r\n  {\r\n    "text": "ä"\r\n  }, {"text": "b"}, {"text": "c", "n": [1, {"a": "]"}]}\r\n]\r\n',
        '{\n  "text": "ä"\n}\n{"text": "b"} {"text": "c"}',
    ],
)
@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_json_is_an_array_of_objects_or_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, size: int
) -> None:
    monkeypatch.setattr(rows, "JSON_BYTES", size)
    path = tmp_path / "a.json"
    path.write_bytes(content.encode())
    assert [(d.name, d.text) for d in read_documents(path)] == [("a.json:1", "ä"), ("a.json:2", "b"), ("a.json:3", "c")]


@pytest.mark.parametrize(
    "content",
    ['[{"text": "a"}, {"text": "b"', '[{"text": "a"}', '[{"text": "a"}] x', '[{"text": "a"}, nonsense and more of it]'],
)
def test_broken_json_is_told_with_its_file_and_row(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for source in (tmp_path, tmp_path / "a.json"):
        message = _sentence(source)
        assert str(tmp_path / "a.json") in message and "row 1" in message


def test_json_is_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "JSON_BYTES", 1000)
    asked: list[int] = []
    opened = rows.opened

    class Counting:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def read(self, size: int) -> bytes:
            asked.append(size)
            return self.stream.read(size)  # type: ignore[no-any-return]

    from contextlib import contextmanager

    @contextmanager
    def counting(path: Path) -> Any:
        with opened(path) as stream:
            yield Counting(stream)

    monkeypatch.setattr(rows, "opened", counting)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * 90}] * 500))
    assert len(_texts(tmp_path / "a.json")) == 500
    assert max(asked) < 3000


def test_json_files_without_the_text_field_are_settings_in_a_folder_and_refused_by_name(tmp_path: Path) -> None:
    _fill(
        tmp_path,
        {"main.py": "code", "package.json": '{"name": "x"}', "tsconfig.json": "{ // words\n}", "list.json": "[1, 2]"},
    )
    assert _texts(tmp_path) == ["code"]
    assert _account(tmp_path)["passed_over"] == {".json without documents": 3}
    assert "has no such field" in _sentence(tmp_path / "package.json")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("b.json", POINTER.encode(), "is a pointer of Git LFS"),
        ("b.json.gz", POINTER.encode(), "is a pointer of Git LFS"),
        ("b.json.gz", _lines("one", "two"), "is damaged"),
        ("b.json.gz", gzip.compress(_lines("one", "two"), mtime=0)[:-9], "is cut off"),
        ("b.json.zst", _zst(_lines("one", "two"))[:-9], "is cut off"),
        ("b.json", b'[{"text": "one and', "is not valid JSON"),
        ("b.json", '[{"text": "café"}]'.encode("latin-1"), "is not UTF-8"),
        ("b.json", '[{"text": "one"}]'.encode("utf-16"), "is not UTF-8"),
    ],
)
def test_json_that_is_broken_from_its_beginning_is_told_and_not_passed_over(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    _fill(tmp_path, {"a.jsonl": _lines("one"), name: content})
    sentence = _sentence(tmp_path)
    assert what in sentence and name in sentence


def test_fields_with_dots_are_found_in_rows_of_every_kind(tmp_path: Path) -> None:
    table = [{"data": {"text": {"body": "a"}, "n": 1}, "x": 1}, {"data": None, "x": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "b.json").write_text(json.dumps(table))
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.json", "c.parquet"):
        assert _texts(tmp_path / name, text_field="data.text.body") == ["a"]
        assert "data.n" in _sentence(tmp_path / name, text_field="data.text.title")
        assert "data.text" in _sentence(tmp_path / name, text_field="data.text")


def test_linked_folders_and_files_are_followed_once_each(tmp_path: Path) -> None:
    elsewhere = _fill(tmp_path / "elsewhere", {"b/c.txt": "c", "d.jsonl": _lines("d"), "blob": "e"})
    data = _fill(tmp_path / "data", {"a.txt": "a", "sub/f.txt": "f"})
    (data / "linked").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere / "b")
    (data / "sub" / "up").symlink_to(data)
    (data / "above").symlink_to(tmp_path)
    (elsewhere / "b" / "up").symlink_to(elsewhere)
    (data / "e.txt").symlink_to(elsewhere / "blob")
    (data / "same.txt").symlink_to(data / "a.txt")
    documents = read_documents(data)
    assert sorted(document.text for document in documents) == ["a", "c", "d", "e", "f"]
    assert documents.account()["passed_over"]["links to what was found already"] >= 4
    assert _texts(data) == _texts(data)


CLONED: dict[str, str | bytes] = {
    "README.md": CARD,
    "LICENSE.txt": "all rights",
    ".gitattributes": "*.parquet filter=lfs",
    "dataset_infos.json": '{"text": "no document"}',
    "loader.py": "import datasets",
    "data/train-00000.jsonl.gz": gzip.compress(_lines("1", "2")),
    "data/README.md": "about the shards",
    "data/old/rows.jsonl": _lines("3"),
}


def test_cards_licences_and_scripts_of_a_cloned_data_set_are_no_documents(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        _fill(folder, CLONED)
    assert sorted(_texts(tmp_path / "one")) == ["1", "2", "3"]
    assert sorted(_texts(tmp_path)) == ["1", "1", "2", "2", "3", "3"]
    assert _account(tmp_path / "one")["passed_over"] == {
        "hidden": 1,
        "cards and licences": 3,
        "of a data set's metadata": 1,
        "scripts of a data set": 1,
    }


def test_a_data_set_of_texts_has_its_card_and_loader_left_out_and_nothing_else(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "README.md": CARD,
        "load.py": "class A(datasets.GeneratorBasedBuilder): pass",
        "one.py": "code",
        "t/a.txt": "a",
    }
    assert _texts(_fill(tmp_path, files)) == ["code", "a"]


def test_a_folder_of_code_is_read_with_its_readme_and_licence(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "README.md": "# Words\n",
        "LICENSE.txt": "all rights",
        "setup.py": "code",
        "docs/post.md": "---\ntitle: a\n---\nwords",
        "docs/README.md": "---\nlayout: page\n---\n",
        "tests/fixture.json": '[{"text": "row"}]',
        "tests/test_a.py": "code",
    }
    names = [document.name for document in read_documents(_fill(tmp_path / "with rows of JSON", files))]
    assert {"setup.py", "tests/test_a.py", "docs/post.md", "docs/README.md"} <= set(names)
    del files["tests/fixture.json"]
    assert [document.name for document in read_documents(_fill(tmp_path / "plain", files))] == sorted(files)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt", "a.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_told_and_not_read(tmp_path: Path, name: str) -> None:
    _fill(tmp_path, {name: POINTER})
    assert "is a pointer of Git LFS" in _sentence(tmp_path)


def test_the_account_says_what_was_read_and_what_was_passed_over(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.JSONL": _lines("1", "", "2") + b'{"text": null}\n',
        "b.txt": "b",
        "c.txt": "",
        "d.md": " \n",
        "e.bin": "e",
        "f.docx": "f",
        "g": "g",
        ".h.txt": "h",
        ".git/i.txt": "i",
    }
    documents = read_documents(_fill(tmp_path, files))
    assert documents.account()["documents"] == {}
    assert [document.text for document in documents] == ["1", "2", "b"]
    assert documents.account() == {
        "files": {".jsonl": 1, ".md": 1, ".txt": 1},
        "documents": {".jsonl": 2, ".txt": 1},
        "empty_documents": {".jsonl": 2, ".md": 1},
        "passed_over": {".bin": 1, ".docx": 1, "empty .txt": 1, "hidden": 2, "without a suffix": 1},
    }
    assert account_text(documents.account()) == (
        "Read: 3 documents (2 .jsonl, 1 .txt) of 3 files (1 .jsonl, 1 .md, 1 .txt). Passed over: 2 empty documents of "
        ".jsonl, 2 hidden, 1 .bin, 1 .docx, 1 empty .txt, 1 empty documents of .md, 1 without a suffix."
    )


def test_a_folder_that_is_passed_over_as_a_whole_is_told_with_the_kinds(tmp_path: Path) -> None:
    assert "Passed over: 2 .arrow, 1 hidden." in _sentence(_fill(tmp_path, {"a.arrow": "a", "b.arrow": "b", ".c": "c"}))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_numbers_of_thousands_of_digits_end_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f'{{"text": "a", "n": {"9" * 5000}}}')
    assert "is not valid JSON" in _sentence(tmp_path / name)


def test_half_of_a_surrogate_pair_names_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "set": "\\ud83d"}')
    assert "does not exist in UTF-8" in _sentence(tmp_path, source_field="set")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "has several columns of one name" in _sentence(tmp_path / "a.parquet")


def test_parquet_sources_that_are_not_utf8_are_told_with_their_field(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": ["a", "b"], "set": bad}), tmp_path / "a.parquet")
    assert f"text or set of {tmp_path / 'a.parquet'} is not UTF-8" in _sentence(tmp_path, source_field="set")


@pytest.mark.parametrize("packed", PACK)
def test_frames_may_be_cut_inside_a_line_and_be_empty(tmp_path: Path, packed: str) -> None:
    raw = _lines("one", "two größer")
    pieces = [raw[:5], b"", raw[5:-10], raw[-10:]]
    (tmp_path / f"a.jsonl{packed}").write_bytes(b"".join(PACK[packed](piece) for piece in pieces))
    assert _texts(tmp_path) == ["one", "two größer"]
