"""Reading documents: what is read, in which order, and how a mistake is told."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harpe.data.rows import Document
from harpe.data.sources import read_documents
from harpe.errors import HarpeError


def _fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def _texts(source: str | Path, **options: Any) -> list[str]:
    return [document.text for document in read_documents(source, **options)]


def _sentence(source: str | Path, **options: Any) -> str:
    with pytest.raises(HarpeError) as caught:
        list(read_documents(source, **options))
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".txt", ".md", ".tex", ".py", ".rst", ".TXT"])
def test_a_text_file_is_one_document_with_its_bytes_unchanged(tmp_path: Path, suffix: str) -> None:
    text = "one\r\ntwo\u2028 drei\n\n  größer \n"
    path = tmp_path / f"text{suffix}"
    path.write_bytes(text.encode())
    assert list(read_documents(path)) == [Document(f"text{suffix}", text)]
    assert list(read_documents(str(path))) == list(read_documents(path))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffwords".encode())
    (tmp_path / "b.jsonl").write_bytes('\ufeff{"text": "rows"}'.encode())
    assert _texts(tmp_path) == ["words", "rows"]


def test_a_folder_is_walked_in_the_order_of_posix_paths(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.md", "a.txt", "a/b/c.py", "B.rst", "a-b.tex"]
    folder = _fill(tmp_path, {name: name for name in names})
    assert [document.name for document in read_documents(folder)] == sorted(names)
    assert _texts(folder) == sorted(names)


def test_hidden_files_and_unknown_suffixes_are_passed_over(tmp_path: Path) -> None:
    files = {
        "a.txt": "a",
        ".b.txt": "hidden",
        ".git/c.txt": "hidden",
        "d.bin": "\x00",
        "e": "e",
        "f.json": "{}",
        "g.txt.gz": "",
    }
    assert _texts(_fill(tmp_path, files)) == ["a"]


def test_suffixes_that_cannot_be_shown_are_counted_by_their_codes(tmp_path: Path) -> None:
    """Such a count could not be written to the index, or would move the cursor of a terminal."""
    _fill(tmp_path, {"a.txt": "a", "b.\x1b[2J": "b"})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/c.\xff")).write_text("c")
    documents = read_documents(tmp_path)
    assert [document.text for document in documents] == ["a"]
    assert documents.account()["passed_over"] == {".\\x1b[2j": 1, ".\\udcff": 1}


def test_pipes_are_passed_over_and_links_to_folders_do_not_loop(tmp_path: Path) -> None:
    _fill(tmp_path, {"a.txt": "a"})
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert _texts(tmp_path) == ["a"]


def test_a_link_to_nothing_is_told_and_not_passed_over(tmp_path: Path) -> None:
    _fill(tmp_path, {"a.txt": "a"})
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    assert str(tmp_path / "b.txt") in _sentence(tmp_path)


def test_jsonl_gives_one_document_a_line(tmp_path: Path) -> None:
    texts = ["plain", "two\nlines", "line\u2028separator", 'quote "', "größer"]
    lines = [json.dumps({"text": text, "n": 1}, ensure_ascii=False) for text in texts]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join([*lines, "", ""]).encode())
    assert list(read_documents(path)) == [Document(f"rows.jsonl:{n}", text) for n, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_gives_one_document_a_row_in_every_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [f"text {number}" for number in range(600)]  # more than two batches
    table = pa.table({"id": list(range(600)), "text": texts})
    stored = table.schema.set(1, pa.field("text", kind))
    # Beside the rows write_table stores the type. By hand here, since pyarrow 18 cannot write views; it reads them as
    # strings.
    with pq.ParquetWriter(tmp_path / "rows.parquet", table.schema, store_schema=False) as file:
        file.write_table(table)
        file.add_key_value_metadata({"ARROW:schema": base64.b64encode(stored.serialize()).decode()})
    read = pq.read_schema(tmp_path / "rows.parquet").field("text").type
    assert read == kind or (kind, read) == (pa.string_view(), pa.string())
    documents = list(read_documents(tmp_path / "rows.parquet"))
    assert [document.text for document in documents] == texts
    assert [document.name for document in documents] == [f"rows.parquet:{n}" for n in range(1, 601)]


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    _fill(tmp_path, {"a.txt": "", "b.txt": " \n\t", "c.txt": "c"})
    _fill(tmp_path, {"d.jsonl": '{"text": ""}\n{"text": null}\n{"text": "d"}\n'})
    pq.write_table(pa.table({"text": ["", None, "e"]}), tmp_path / "e.parquet")
    assert _texts(tmp_path) == ["c", "d", "e"]


def test_the_text_field_can_be_named(tmp_path: Path) -> None:
    _fill(tmp_path, {"a.jsonl": '{"text": 1, "body": "a"}'})
    pq.write_table(pa.table({"text": [1], "body": ["b"]}), tmp_path / "b.parquet")
    assert _texts(tmp_path, text_field="body") == ["a", "b"]


@pytest.mark.parametrize("value", ["1", "[1, 2]", "1.5", "true", '{"a": "b"}'])
def test_a_jsonl_field_that_holds_no_text_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{{"text": {value}}}\n')
    message = _sentence(path)
    assert message.startswith("--text-field text: line 2 of ")
    assert str(path) in message


def test_a_parquet_column_that_holds_no_text_is_refused_with_its_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"labels": [1], "text": ["a"]}), tmp_path / "rows.parquet")
    message = _sentence(tmp_path / "rows.parquet", text_field="labels")
    assert message.startswith("--text-field labels: ")
    assert "int64" in message


def test_a_missing_field_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    _fill(tmp_path, {"rows.jsonl": '{"words": "a", "body": "b"}'})
    pq.write_table(pa.table({"words": ["a"], "body": ["b"]}), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        message = _sentence(tmp_path / name)
        assert "body, words" in message
        assert name in message
        assert message.startswith("--text-field text: ")


@pytest.mark.parametrize("line", ['{"text": "cut', "[1]", '"text"', "nonsense", "[" * 100_000])
def test_an_invalid_jsonl_line_is_told_with_file_and_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n{{"text": "fine"}}\n')
    assert f"line 2 of {path}" in _sentence(path)


def test_documents_before_a_broken_line_are_given_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n{')
    assert next(read_documents(path)).text == "fine"


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    assert "line 2 of" in _sentence(tmp_path / "rows.jsonl")


def test_text_that_is_not_utf8_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("größer".encode("latin-1"))
    assert f"{tmp_path / 'a.txt'} is not UTF-8" in _sentence(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n' + '{"text": "ö"}\n'.encode("latin-1"))
    assert f"line 2 of {tmp_path / 'b.jsonl'} is not UTF-8" in _sentence(tmp_path / "b.jsonl")


def test_parquet_text_that_is_not_utf8_is_told_with_its_file(tmp_path: Path) -> None:
    bad = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    assert str(tmp_path / "a.parquet") in _sentence(tmp_path / "a.parquet")


@pytest.mark.parametrize("content", [b"", b"no parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert str(tmp_path / "a.parquet") in _sentence(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "name", ["./gone", "/gone/corpus", "~/gone", "../gone", "gone.jsonl", "a/b/c", "gone folder", "gone.TXT"]
)
def test_a_missing_path_is_told_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would fail
    assert _sentence(name) == f"--data {name}: there is no such file or folder. Check the path."


def test_a_missing_path_object_is_never_a_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "no such file or folder" in _sentence(Path("org/name"))


def test_mistakes_about_the_source_are_told_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(HarpeError):
        read_documents(tmp_path / "gone.txt")
    with pytest.raises(HarpeError):
        read_documents(tmp_path)


def test_a_folder_without_a_readable_file_is_told(tmp_path: Path) -> None:
    _fill(tmp_path, {".hidden.txt": "a", "b.bin": "b"})
    assert _sentence(tmp_path).startswith(f"--data {tmp_path} is a folder without any file that harpe reads")


def test_a_file_of_another_kind_is_told_with_the_kinds_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"PK")
    message = _sentence(tmp_path / "a.docx")
    assert ".jsonl" in message
    assert ".parquet" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    _fill(tmp_path, {"a.txt": "a"})
    (tmp_path / "a.txt").chmod(0)
    assert str(tmp_path / "a.txt") in _sentence(tmp_path)


def test_a_hub_name_without_the_hub_is_told(tmp_path: Path) -> None:
    code = """
from harpe.data.sources import read_documents
from harpe.errors import HarpeError
for name in ("org/name", "name", "org/name:config"):
    try:
        read_documents(name)
    except HarpeError as error:
        print(error)
"""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = told.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["org/name", "name", "org/name:config"]
    assert all(line.startswith("--data ") and "HF_HUB_OFFLINE forbids" in line for line in lines)


class _Rows:
    """What `datasets.load_dataset` gives with streaming, as far as it is used."""

    def __init__(self, rows: list[dict[str, Any]], names: list[str] | None, fail: bool = False) -> None:
        self.rows, self.column_names, self.fail = rows, names, fail

    def select_columns(self, names: list[str]) -> _Rows:
        return _Rows([{name: row[name] for name in names} for row in self.rows], names, self.fail)

    def __iter__(self) -> Any:
        yield from self.rows
        if self.fail:
            raise ConnectionError("the line\nwent dead")


def test_a_hub_data_set_is_streamed_with_configuration_split_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> _Rows:
        asked.append((arguments, options))
        return _Rows([{"text": "a", "n": 1}, {"text": None, "n": 2}, {"text": "b", "n": 3}], ["text", "n"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    documents = list(read_documents("org/name:20231101.en", split="validation", revision="abc"))
    assert documents == [Document("org/name:20231101.en:1", "a"), Document("org/name:20231101.en:3", "b")]
    assert asked == [(("org/name", "20231101.en"), {"split": "validation", "revision": "abc", "streaming": True})]
    assert "n, text" in _sentence("name", text_field="body")
    assert "a number" in _sentence("name", text_field="n")


def test_the_source_of_a_row_is_read_from_a_nested_field_of_every_kind_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = [
        {"text": f"text {n}", "meta": {"set": name, "n": n}, "url": "x"}
        for n, name in enumerate(["web", "books", "web"])
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: _Rows(rows, list(rows[0])))
    for source in (tmp_path / "rows.jsonl", tmp_path / "rows.parquet", "org/name"):
        found = [(document.text, document.source) for document in read_documents(source, source_field="meta.set")]
        assert found == [("text 0", "web"), ("text 1", "books"), ("text 2", "web")]
        assert {document.source for document in read_documents(source, source_field="url")} == {"x"}
        assert {document.source for document in read_documents(source)} == {""}
        message = _sentence(source, source_field="meta.name")
        assert message.startswith("--source-field meta.name: ") and "has no such field" in message
        assert "holds a number" in _sentence(source, source_field="meta.n")
        assert _sentence(source, source_field="origin").startswith("--source-field origin: ")


def test_a_field_with_a_dot_in_its_own_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "meta.set": "web"}\n')
    assert [document.source for document in read_documents(tmp_path, source_field="meta.set")] == ["web"]


def test_sub_folders_are_sources(tmp_path: Path) -> None:
    _fill(tmp_path, {"top.txt": "a", "books/b.txt": "b", "books/old/c.txt": "c", "web/d.jsonl": '{"text": "d"}'})
    found = {document.text: document.source for document in read_documents(tmp_path, by_folder=True)}
    assert found == {"a": ".", "b": "books", "c": "books", "d": "web"}


def test_sources_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert "is one text without fields" in _sentence(tmp_path, source_field="meta")
    assert "has no folders" in _sentence("org/name", by_folder=True)


@pytest.mark.parametrize("names", [["text"], None])
def test_a_hub_data_set_that_breaks_off_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | None
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: _Rows([{"text": "a"}], names, fail=True))
    assert "failed after row 1 (the line went dead)" in _sentence("org/name")
