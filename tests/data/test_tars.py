"""Tar archives: WebDataset's samples, dumps of other files, and what is no archive or no text."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harpe.data.sources import account_text, read_documents
from harpe.errors import HarpeError

Members = Iterable[tuple[str, bytes | str]]


def _zst(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


def _tar(members: Members, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, content in members:
            raw = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.type = len(raw), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def _put(path: Path, members: Members) -> Path:
    path.write_bytes(_tar(members))
    return path


def _rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _read(source: Path, **options: Any) -> tuple[list[str], str]:
    documents = read_documents(source, **options)
    texts = [document.text for document in documents]
    return texts, account_text(documents.account())


def _sentence(source: Path, **options: Any) -> str:
    with pytest.raises(HarpeError) as caught:
        _read(source, **options)
    return str(caught.value)


def test_samples_are_texts_or_the_json_that_has_the_text_field(tmp_path: Path) -> None:
    samples: Members = [
        ("000000.txt", "first"),
        ("000000.jpg", b"\xff\xd8"),
        ("000001.jpg", b"\xff\xd8"),
        ("000001.txt", "passed over"),
        ("000001.json", '{"text": "second", "url": "x"}'),
        ("000002.json", '{"text": "third"}'),
        ("000002.txt", "passed over too"),
        ("000003.txt", "fourth"),
        ("000003.json", '{"caption": "no text field"}'),
        ("000003.cls", "7"),
    ]
    texts, account = _read(_put(tmp_path / "shard-000.tar", samples))
    assert texts == ["first", "second", "third", "fourth"]
    assert account == (
        "Read: 4 documents (2 .json in tars, 2 .txt in tars) of 1 file (1 .tar). Passed over: 2 .jpg in tars, 2 .txt "
        "in tars beside their .json, 1 .cls in tars, 1 .json in tars without documents."
    )


def test_stock_datasets_finds_the_same_samples(tmp_path: Path) -> None:
    import datasets

    samples: Members = [
        member
        for n in range(20)
        for member in ((f"a/{n:06}.json", json.dumps({"n": n})), (f"a/{n:06}.txt", f"text {n} größer\r\n"))
    ]
    path = _put(tmp_path / "a.tar", samples)
    theirs = datasets.load_dataset("webdataset", data_files={"train": str(path)}, split="train", streaming=True)
    assert _read(path)[0] == [row["txt"] for row in theirs]


def test_the_field_of_json_members_may_be_nested_and_name_a_source(tmp_path: Path) -> None:
    samples = [(f"{n}.json", json.dumps({"data": {"text": f"text {n}"}, "set": f"set {n}"})) for n in range(3)]
    members = [*samples, ("9.json", '[{"data": {"text": "x"}, "set": "s"}, {"data": {"text": "y"}, "set": "s"}]')]
    path = _put(tmp_path / "a.tar", members)
    documents = list(read_documents(path, text_field="data.text", source_field="set"))
    assert [(d.text, d.source) for d in documents] == [
        ("text 0", "set 0"),
        ("text 1", "set 1"),
        ("text 2", "set 2"),
        ("x", "s"),
        ("y", "s"),
    ]
    assert [d.name for d in documents][-2:] == ["a.tar:9.json:1", "a.tar:9.json:2"]
    assert "--source-field where: row 1 of 0.json in " in _sentence(path, text_field="data.text", source_field="where")
    path = _put(tmp_path / "b.tar", [("a.txt", "a"), ("a.json", '{"text": "b", "set": "s"}'), ("b.txt", "c")])
    assert f"b.txt in {path} is one text without fields" in _sentence(path, source_field="set")


def test_dumps_of_rows_and_of_texts_are_read_member_by_member(tmp_path: Path) -> None:
    members: Members = [
        ("./dump/", b""),
        ("dump/00.jsonl", _rows("1", "2")),
        ("dump/01.jsonl.zst", _zst(_rows("3")) + _zst(_rows("4"))),
        ("dump/02.JSONL.GZ", gzip.compress(_rows("5"))),
        ("dump/2301.00001.txt", "6"),
        ("dump/2301.00002.txt", "7"),
        ("dump/2301.00003.json", '{"text": "8"}'),
        ("dump/2301.00004", "no suffix"),
        ("dump/notes.md", "# 9"),
        ("dump/main.tex.gz", gzip.compress(b"10")),
        ("dump/part.parquet", b"PAR1"),
        ("dump/more.tar", _tar([("a.txt", "a")])),
        ("dump/._00.jsonl", b"\0\5"),
        ("dump/.git/a.txt", "hidden"),
        ("dump/empty.txt", ""),
        ("dump/dataset_info.json", '{"text": "no document"}'),
    ]
    texts, account = _read(_put(tmp_path / "dump.tar", members))
    assert texts == ["1", "2", "3", "4", "5", "6", "7", "8", "# 9", "10"]
    assert account == (
        "Read: 10 documents (2 .jsonl in tars, 2 .jsonl.zst in tars, 2 .txt in tars, 1 .json in tars, 1 .jsonl.gz in "
        "tars, 1 .md in tars, 1 .tex.gz in tars) of 1 file (1 .tar). Passed over: 2 hidden in tars, 1 .parquet in "
        "tars, 1 .tar in tars, 1 empty documents of .txt in tars, 1 of a data set's metadata in tars, 1 without a "
        "suffix in tars."
    )


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TGZ", "a.tar.zst", "a.tar.bz2", "a.tar.xz"])
def test_packed_archives_are_read_and_told_where_they_are_cut_off(tmp_path: Path, name: str) -> None:
    pack = {"gz": gzip.compress, "zst": _zst, "bz2": bz2.compress, "xz": lzma.compress}
    noise = random.Random(0).randbytes(300_000).hex()
    raw = pack[name.lower().replace("tgz", "gz").split(".")[-1]](_tar([("a.txt", "one"), ("b.jsonl", _rows(noise))]))
    (tmp_path / name).write_bytes(raw)
    assert _read(tmp_path)[0] == _read(tmp_path / name)[0] == ["one", noise]
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    message = _sentence(tmp_path)
    assert f"{tmp_path / name} is cut off: " in message and "bytes of its content could be read" in message
    (tmp_path / name).write_bytes(raw[:-4])  # behind the last member
    assert "is cut off" in _sentence(tmp_path)


@pytest.mark.parametrize("passed_over", [True, False])
def test_an_archive_that_is_cut_off_anywhere_is_refused_with_how_far_it_was_read(
    tmp_path: Path, passed_over: bool
) -> None:
    suffix = "jpg" if passed_over else "txt"
    raw = _tar([(f"{n}.{suffix}", b"x" * 700) for n in range(3)])
    path, member = tmp_path / "a.tar", 512 + 1024
    for cut in (100, 512, 600, 1212, member, member + 512, 2 * member, 2 * member + 80, 3 * member - 1, 3 * member):
        path.write_bytes(raw[:cut])
        message = _sentence(path)
        assert f"{path} is no whole tar archive" in message and ("cut off" in message or "unexpected end" in message)
        assert f"{cut // member:,} members of it could be read" in message
        assert (f", up to {cut // member - 1}.{suffix}." in message) == (cut >= member)
    path.write_bytes(raw[: 3 * member + 512])  # one block of zeros, as some programs end
    assert len(_read(path)[0]) == (0 if passed_over else 3)


NO_ARCHIVES = {"prose": b"no tar at all", "page": b"<html>" * 1000, "packed": gzip.compress(_tar([("a.txt", "a")]))}


@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES)  # bytes as names hold the time of packing
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert "is no whole tar archive" in _sentence(tmp_path)


def test_archives_joined_by_cat_are_refused_and_not_read_in_part(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_tar([("a.txt", "a")]) + _tar([("b.txt", "b")]))
    assert "something stands behind its end" in _sentence(tmp_path)


def test_pointers_and_damage_inside_are_told_with_the_member(tmp_path: Path) -> None:
    for name, content, what in (
        ("a.txt", "version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.txt", "café".encode("latin-1"), "is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(_rows("1", "2"))[:-9], "is cut off"),
        ("a.json.zst", b"no such format", "is damaged"),
        ("a.jsonl", '{"text": ', "line 1 of a.jsonl in "),
        ("a.json", '{"text": ', "is not valid JSON"),
        ("a.jsonl", '{"body": ""}', "The fields there are: body"),
    ):
        path = _put(tmp_path / "a.tar", [("0.txt", "fine"), (name, content)])
        message = _sentence(path)
        assert what in message and f"{name} in {path}" in message


def test_links_devices_and_paths_that_lead_out_touch_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("a.txt", tarfile.SYMTYPE),
            ("b.txt", tarfile.LNKTYPE),
            ("c.txt", tarfile.CHRTYPE),
            ("d.txt", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(info)
        for name in (f"{tmp_path}/secret.txt", "../../secret.txt", "line\nbreak\x1b[31m.txt"):
            info = tarfile.TarInfo(name)
            info.size = 6
            tar.addfile(info, io.BytesIO(b"inside"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.tar").write_bytes(buffer.getvalue())
    texts, account = _read(folder)
    assert texts == ["inside"] * 3 and "4 links, devices and files with holes in tars" in account
    assert all(document.name.isprintable() for document in read_documents(folder))
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "data", "secret.txt"]


def test_headers_that_claim_absurd_sizes_end_in_a_sentence_at_once(tmp_path: Path) -> None:
    def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, pax: dict[str, str] | None = None) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.pax_headers = size, kind, pax or {}
        return info.tobuf(tarfile.GNU_FORMAT if size > 8**11 else tarfile.PAX_FORMAT)

    for raw in (
        header("a.jpg", 2**62),
        header("a.txt", 2**62),
        header("a.jsonl", 2**40),
        header("a.txt", 10, pax={"size": "-1000000"}),
        header("././@LongLink", 2**40, tarfile.GNUTYPE_LONGNAME),
        header("././@LongLink", 600, tarfile.GNUTYPE_LONGNAME),
    ):
        (tmp_path / "a.tar").write_bytes(_tar([("0.txt", "fine")])[:1024] + raw + b"x" * 1024)
        assert "1 members of it could be read, up to 0.txt" in _sentence(tmp_path)


def test_damage_anywhere_never_ends_in_anything_but_a_sentence(tmp_path: Path) -> None:
    members: Members = [
        ("a.txt", "a" * 600),
        ("b.json", '{"text": "b"}'),
        (f"{'long/' * 60}c.txt", "c"),
        ("d/größer.txt", "d"),
    ]
    chance, refused = random.Random(1), 0
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        whole = _tar(members, format=format)
        for _ in range(300):
            raw = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
            for _ in range(chance.randrange(4)):
                at = chance.randrange(max(1, len(raw)))
                raw[at : at + 1] = bytes([chance.randrange(256)])
            (tmp_path / "a.tar").write_bytes(raw)
            try:
                _read(tmp_path / "a.tar")
            except HarpeError:
                refused += 1
    assert refused > 300


def test_memory_does_not_grow_with_the_members(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        _put(tmp_path / "a.tar", ((f"{n:08}.txt", f"text {n}") for n in range(count)))
        tracemalloc.start()
        assert sum(1 for _ in read_documents(tmp_path / "a.tar")) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # with what is imported and cached once
    assert peak(4000) < peak(500) + 200_000  # tarfile alone keeps over 1 kB a member


def test_tars_of_a_folder_belong_to_its_sub_folders_and_beside_them_lie_papers(tmp_path: Path) -> None:
    for name in ("web", "books"):
        (tmp_path / name).mkdir()
        _put(tmp_path / name / "a.tar", [("inner/0.txt", name)])
    (tmp_path / "web" / "README.md").write_text("about")
    (tmp_path / "code.py").write_text("code")
    documents = read_documents(tmp_path, by_folder=True)
    assert [(d.name, d.text, d.source) for d in documents] == [
        ("books/a.tar:inner/0.txt", "books", "books"),
        ("code.py", "code", "."),
        ("web/a.tar:inner/0.txt", "web", "web"),
    ]
    assert documents.account()["passed_over"] == {"cards and licences": 1}


def test_the_archives_of_gnu_tar_are_read(tmp_path: Path) -> None:
    long = "folder-" * 30
    (tmp_path / "in" / long).mkdir(parents=True)
    (tmp_path / "in" / long / ("file" * 40 + ".txt")).write_text("long name")
    (tmp_path / "in" / "rows.jsonl").write_bytes(_rows("row"))
    for format in ("gnu", "posix", "v7", "ustar"):
        name = "in/rows.jsonl" if format in ("v7", "ustar") else "in"
        made = subprocess.run(["tar", f"--format={format}", "-cf", "a.tar", name], cwd=tmp_path, capture_output=True)
        if made.returncode:
            pytest.skip("another tar")
        texts = _read(tmp_path / "a.tar")[0]
        assert sorted(texts) == (["row"] if name.endswith("l") else ["long name", "row"])


def test_a_missing_tar_is_no_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("gone.tar", "gone.tgz", "gone.tar.zst"):
        with pytest.raises(HarpeError, match="no such file or folder"):
            read_documents(name)
