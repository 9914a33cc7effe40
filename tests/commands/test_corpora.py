"""Corpora as they are published, through `harpe prepare` from end to end."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import harpe
from harpe.data.chat import ChatTemplate
from harpe.data.packed import PackedDataset
from harpe.data.sources import read_documents
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.load import load_tokenizer
from harpe.reporter import Reporter
from harpe.runs.texts import held_out_texts

SETS = {"RedPajamaCommonCrawl": (3, 60), "RedPajamaBook": (4, 8), "RedPajamaGithub": (2, 40)}
"""Of every set, so many long documents and short ones."""
LONG = 600
"""Tokens from which on a document is long here."""
Row = dict[str, Any]


class Listening(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(("import", "return", "the", "of", "values", "self", "data")) for _ in range(words))


def _rows(seed: int) -> list[Row]:
    chance = random.Random(seed)
    rows = [
        {"text": f"{name} {seed} {n} " + _text(chance, words), "meta": {"redpajama_set_name": name}}
        for name, (long, short) in SETS.items()
        for n, words in enumerate([900] * long + [40] * short)
    ]
    chance.shuffle(rows)
    return rows


def _jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _zst(rows: list[Row]) -> bytes:
    """In two frames, cut where it falls."""
    raw, pack = _jsonl(rows), zstandard.ZstdCompressor().compress
    return pack(raw[: len(raw) // 2]) + pack(raw[len(raw) // 2 :])


@pytest.fixture
def slimpajama(workspace: Path) -> tuple[Path, list[Row]]:
    """A clone of cerebras/SlimPajama-627B, but for its size; and the rows to train on."""
    root, trained = workspace / "SlimPajama-627B", list[Row]()
    for seed, (split, chunk, file) in enumerate(
        [
            ("train", 1, "example_train_0"),
            ("train", 1, "example_train_1"),
            ("train", 10, "example_train_0"),
            ("validation", 1, "example_holdout_0"),
            ("test", 1, "example_holdout_0"),
        ]
    ):
        path = root / split / f"chunk{chunk}" / f"{file}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = _rows(seed)
        path.write_bytes(_zst(rows))
        trained += rows if split == "train" else []
    (root / "README.md").write_text("---\ntask_categories:\n- text-generation\nlanguage:\n- en\n---\n# SlimPajama\n")
    (root / ".gitattributes").write_text("*.zst filter=lfs diff=lfs merge=lfs -text\n")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("[core]\n")
    return root, trained


def _prepared(workspace: Path, data: Path, out: str, **changes: Any) -> tuple[Row, str]:
    listening = Listening()
    options = {"length": 256, "source_field": "meta.redpajama_set_name", "upsample_length": LONG, **changes}
    folder = harpe.prepare(str(data), str(workspace / "model"), out=workspace / out, reporter=listening, **options)
    return read_json(folder / "index.json"), " ".join(listening.said)


def test_slimpajama_is_read_as_it_is_published_and_upsampled_inside_its_sets(
    workspace: Path, slimpajama: tuple[Path, list[Row]]
) -> None:
    root, rows = slimpajama
    index, said = _prepared(workspace, root / "train", "prepared", upsample_factor=10.0)
    tokenizer = load_tokenizer("embedded")
    texts = tokenizer([row["text"] for row in rows], add_special_tokens=False)["input_ids"]
    lengths = [(row["meta"]["redpajama_set_name"], len(ids) + 1) for row, ids in zip(rows, texts, strict=True)]
    tokens, long = Counter[str](), Counter[str]()
    for name, length in lengths:
        tokens[name] += length
        long[name] += length if length >= LONG else 0
    table = {row["source"]: row for row in index["sources"]}
    assert table.keys() == SETS.keys()
    for name, row in table.items():
        assert (row["documents"], row["tokens"]) == (3 * sum(SETS[name]), tokens[name])
        assert row["long_documents"] == 3 * SETS[name][0]
        assert row["share"] == pytest.approx(tokens[name] / tokens.total())
        assert row["share_drawn"] == pytest.approx(row["share"], abs=0.03)  # a document is drawn whole
        p = long[name] / tokens[name]
        assert row["long_share"] == pytest.approx(p)
        assert row["long_share_drawn"] == pytest.approx(10 * p / (10 * p + 1 - p), abs=0.05)
    assert max(row["copies"]["most"] for row in table.values()) == 1
    assert f"Read: {len(rows)} documents ({len(rows)} .jsonl.zst) of 3 files (3 .jsonl.zst)." in said
    assert "Passed over" not in said


def test_the_root_of_slimpajama_is_read_as_its_train_and_says_what_is_passed_over(
    workspace: Path, slimpajama: tuple[Path, list[Row]]
) -> None:
    root, rows = slimpajama
    train, _ = _prepared(workspace, root / "train", "train", upsample_factor=10.0)
    whole, said = _prepared(workspace, root, "whole", upsample_factor=10.0)
    assert whole["hash"] == train["hash"] and whole["corpus"]["documents"] == len(rows)
    assert (
        "Passed over: 2 hidden, 1 .jsonl.zst of the split test, 1 .jsonl.zst of the split validation, 1 cards and "
        "licences."
    ) in said
    assert whole["read"]["passed_over"] == {
        "hidden": 2,
        ".jsonl.zst of the split test": 1,
        ".jsonl.zst of the split validation": 1,
        "cards and licences": 1,
    }


def test_a_corpus_is_the_same_in_every_form_that_it_is_published_in(workspace: Path) -> None:
    rows = _rows(0)
    nested = [{"data": row} for row in rows]
    forms: dict[str, dict[str, Any]] = {name: {} for name in ("zst", "hub", "json", "jsonl.gz", "tar", "samples")}
    for name in forms:
        (workspace / name).mkdir()
    (workspace / "zst" / "a.jsonl.zst").write_bytes(_zst(nested))
    (workspace / "json" / "a.json").write_text(json.dumps(nested, indent=1))
    (workspace / "jsonl.gz" / "a.jsonl.gz").write_bytes(
        gzip.compress(_jsonl(nested[:10])) + gzip.compress(_jsonl(nested[10:]))
    )
    data = workspace / "hub" / "data"
    data.mkdir()
    for name, part in (
        ("train-00000-of-00002", nested[:50]),
        ("train-00001-of-00002", nested[50:]),
        ("test-00000-of-00001", nested[:7]),
    ):
        pq.write_table(pa.Table.from_pylist(part), data / f"{name}.parquet")
    (workspace / "hub" / "README.md").write_text("---\nconfigs:\n- config_name: default\n---\n")

    def tar(path: Path, members: dict[str, bytes]) -> None:
        with tarfile.open(path, "w") as archive:
            for name, raw in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))

    tar(workspace / "tar" / "dump.tar", {"a.jsonl": _jsonl(nested[:20]), "b.jsonl.zst": _zst(nested[20:])})
    samples = {f"{n:06}.{s}": json.dumps(row).encode() for n, row in enumerate(nested) for s in ("json", "jpg")}
    tar(workspace / "samples" / "shard-000000.tar", samples)

    fields = {"text_field": "data.text", "source_field": "data.meta.redpajama_set_name"}
    made = {name: _prepared(workspace, workspace / name, f"out-{name}", **fields) for name in forms}
    assert len({index["hash"] for index, _ in made.values()}) == 1
    assert len({index["corpus"]["sha256"] for index, _ in made.values()}) == 1
    assert len(PackedDataset(workspace / "out-tar")) > 0
    assert "Passed over: 1 .parquet of the split test, 1 cards and licences." in made["hub"][1]
    assert f"Passed over: {len(rows)} .jpg in tars." in made["samples"][1]
    assert f"Read: {len(rows)} documents ({len(rows)} .json in tars) of 1 file (1 .tar)." in made["samples"][1]


@pytest.mark.parametrize("kind", ["list", "list of objects"])
def test_lists_in_the_place_of_the_text_are_refused_in_rows_of_every_kind(workspace: Path, kind: str) -> None:
    value: Any = {"text": ["a", "b"]} if kind == "list" else [{"text": "a"}]
    (workspace / "a.jsonl").write_text(json.dumps({"data": value}))
    (workspace / "a.json").write_text(json.dumps([{"data": value}]))
    pq.write_table(pa.Table.from_pylist([{"data": value}]), workspace / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        with pytest.raises(HarpeError) as caught:
            _prepared(workspace, workspace / name, "out", text_field="data.text", source_field=None)
        message = str(caught.value)
        assert message.startswith("--text-field data.text: ") and name in message and "list" in message
    assert not (workspace / "out").exists()


def test_conversations_in_tars_are_read_and_texts_beside_them_refused(workspace: Path) -> None:
    tokenizer = load_tokenizer("embedded")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    chat = ChatTemplate(tokenizer, True)
    turns = [{"role": "user", "content": "a"}]
    with tarfile.open(workspace / "a.tar", "w") as archive:
        for name, text in (("0.json", json.dumps({"messages": turns})), ("0.txt", "caption"), ("1.txt", "alone")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    documents = read_documents(workspace / "a.tar", text_field="messages", chat=chat)
    assert next(documents).text == "<user>a\n"
    with pytest.raises(HarpeError, match=r"--chat: 1\.txt in .*a\.tar is one text and no rows of messages"):
        next(documents)


def test_measuring_asks_which_split_is_meant(slimpajama: tuple[Path, list[Row]]) -> None:
    root, _ = slimpajama
    tokenizer = load_tokenizer("embedded")
    with pytest.raises(HarpeError, match="holds the splits test, validation and train of a data set. Name the one"):
        held_out_texts(str(root), tokenizer, 256, 2)
    assert len(held_out_texts(str(root / "validation"), tokenizer, 256, 2).documents) == 2
