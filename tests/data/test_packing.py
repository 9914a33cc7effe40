"""Packing against a few-line packing in plain lists, and what becomes of a data set that is broken, cut off or
killed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from harpe.data import packing, tokenised
from harpe.data.packed import PackedDataset, is_packed
from harpe.data.packing import prepare
from harpe.data.rows import Document
from harpe.data.sampling import Upsampling
from harpe.data.token_ids import tokenizer_identity
from harpe.errors import HarpeError
from harpe.files import new_folder

BOS, EOS, WORDS = 0, 1, 50


def _tokenizer(template: str = "$A", words: int = WORDS, **special: Any) -> PreTrainedTokenizerFast:
    """Words `w3` … with the ids 3 …, set between the special tokens of the template."""
    backend = Tokenizer(
        models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{n}": n for n in range(3, words)}, "<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def _gpt2() -> PreTrainedTokenizerFast:
    """Byte-level, the begin and the end are one token, and neither is set by the tokenizer itself."""
    alphabet = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet | {"<|endoftext|>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


LLAMA: dict[str, Any] = {"template": "<s> $A", "bos_token": "<s>", "eos_token": "</s>"}


def _documents(count: int = 40, seed: int = 0, words: int = WORDS) -> list[Document]:
    generator = np.random.default_rng(seed)
    ids = [generator.integers(3, words, generator.integers(1, 30)) for _ in range(count)]
    return [Document(str(number), " ".join(f"w{n}" for n in row)) for number, row in enumerate(ids)]


def _ids(document: Document) -> list[int]:
    return [int(word[1:]) for word in document.text.split()]


def _naive(
    documents: list[list[int]], length: int, seed: int = 0, limit: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """Sequences, and the starts of documents in them, by lists alone."""
    stream: list[int] = []
    starts: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(documents)):
        starts.append(len(stream))
        stream += documents[number]
    count = min(len(stream), limit or len(stream)) // length
    sequences = [stream[i * length : (i + 1) * length] for i in range(count)]
    return sequences, [start for start in starts if start < count * length]


def _sequences(data: PackedDataset) -> list[list[int]]:
    return [data[i]["input_ids"].tolist() for i in range(len(data))]


@pytest.mark.parametrize(
    ("template", "special", "before", "after"),
    [
        ("<s> $A", {"bos_token": "<s>", "eos_token": "</s>"}, [BOS], [EOS]),
        ("<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>"}, [BOS], [EOS]),  # sets the end itself
        ("$A", {"bos_token": "<s>", "eos_token": "</s>"}, [], [EOS]),  # has a begin and does not set it
        ("$A", {"eos_token": "</s>"}, [], [EOS]),
        ("$A </s>", {"eos_token": "</s>"}, [], [EOS]),
        ("$A", {"bos_token": "</s>", "eos_token": "</s>"}, [], [EOS]),  # as GPT-2
        ("</s> $A", {"bos_token": "</s>", "eos_token": "</s>"}, [EOS], []),  # as OPT: in front of every document
        ("<s> $A", {"bos_token": "<s>"}, [BOS], []),
        ("$A", {}, [], []),
    ],
)
def test_packing_is_the_naive_packing_for_every_kind_of_special_tokens(
    tmp_path: Path, template: str, special: dict[str, Any], before: list[int], after: list[int]
) -> None:
    documents = _documents()
    sequences, starts = _naive([before + _ids(document) + after for document in documents], 16, seed=3)
    data = prepare(documents, _tokenizer(template, **special), 16, tmp_path / "data", seed=3)
    assert _sequences(data) == sequences
    assert np.load(tmp_path / "data" / "documents.npy", allow_pickle=False).tolist() == starts
    stream = [token for sequence in sequences for token in sequence]
    assert not [pair for pair in pairwise(stream) if pair in ((EOS, EOS), (BOS, BOS))]


def test_gpt2_documents_have_one_separator_between_them(tmp_path: Path) -> None:
    tokenizer = _gpt2()
    texts = ["one", "größer", "a longer third text, with 日本語"]
    alphabet = tokenizer.get_vocab()
    byte_ids = [
        [alphabet[str(tokenizer.convert_ids_to_tokens(i))] for i in tokenizer(text).input_ids] for text in texts
    ]
    assert [len(ids) for ids in byte_ids] == [len(text.encode()) for text in texts]
    data = prepare([Document("", text) for text in texts], tokenizer, 8, tmp_path / "data")
    assert _sequences(data) == _naive([[*ids, 256] for ids in byte_ids], 8)[0]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    length=st.integers(2, 50),
    seed=st.integers(0, 2**40),
    limit=st.none() | st.integers(50, 400),
)
def test_any_documents_are_packed_as_naively(lengths: list[int], length: int, seed: int, limit: int | None) -> None:
    documents = [Document("", " ".join(f"w{3 + (n + k) % 47}" for k in range(size))) for n, size in enumerate(lengths)]
    whole = [[BOS, *_ids(document), EOS] for document in documents]
    sequences, starts = _naive(whole, length, seed, limit)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "data")
        if not sequences:
            with pytest.raises(
                HarpeError, match=f"{sum(map(len, whole))} tokens in {len(whole)} documents.* needs {length}"
            ):
                prepare(documents, _tokenizer(**LLAMA), length, out, seed=seed, max_tokens=limit)
            return
        data = prepare(documents, _tokenizer(**LLAMA), length, out, seed=seed, max_tokens=limit)
        assert _sequences(data) == sequences
        for i in range(len(data)):
            inside = sorted({0, *(start - i * length for start in starts if i * length <= start < (i + 1) * length)})
            assert data.document_starts(i).tolist() == inside
            positions = [k - max(start for start in inside if start <= k) for k in range(length)]
            assert data.position_ids(i).tolist() == positions


def test_items_are_int64_and_labels_are_a_copy(tmp_path: Path) -> None:
    data = prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    item = data[0]
    assert set(item) == {"input_ids", "labels"}
    for tensor in (*item.values(), data.position_ids(0)):
        assert tensor.dtype == torch.int64
        assert tensor.shape == (16,)
    assert data.document_starts(0).dtype == np.int64
    item["input_ids"].fill_(7)
    assert not torch.equal(item["labels"], item["input_ids"])
    assert torch.equal(data[0]["input_ids"], item["labels"])


def test_indices_are_those_of_a_sequence(tmp_path: Path) -> None:
    data = prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    assert torch.equal(data[-1]["input_ids"], data[len(data) - 1]["input_ids"])
    for i in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[i]
        with pytest.raises(IndexError):
            data.position_ids(i)


def test_the_same_input_and_seed_give_the_same_hash_and_another_seed_another_order(tmp_path: Path) -> None:
    def made(name: str, **options: Any) -> PackedDataset:
        return prepare(_documents(), _tokenizer(**LLAMA), options.pop("length", 16), tmp_path / name, **options)

    first, again, other = made("a", seed=5), made("b", seed=5, description="words"), made("c", seed=6)
    assert first.hash == again.hash
    assert _sequences(first) == _sequences(again)
    assert first.hash != other.hash
    assert _sequences(first) != _sequences(other)
    assert first.hash != made("d", seed=5, length=8).hash


def test_the_hash_depends_on_where_documents_start(tmp_path: Path) -> None:
    tokenizer = _tokenizer()
    one = prepare([Document("", "w3 w3 w3 w3")], tokenizer, 4, tmp_path / "one")
    two = prepare([Document("", "w3 w3"), Document("", "w3 w3")], tokenizer, 4, tmp_path / "two")
    assert _sequences(one) == _sequences(two)
    assert one.hash != two.hash


def test_batches_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "a")
    for name, limit, value in (
        ("b", "BATCH_CHARACTERS", 100),
        ("c", "BATCH_DOCUMENTS", 3),
        ("d", "BATCH_CHARACTERS", 1),
    ):
        monkeypatch.setattr(tokenised, limit, value)
        assert prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / name).hash == whole.hash


def test_no_more_text_is_read_at_a_time_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenised, "BATCH_CHARACTERS", 1000)
    read = 0

    def documents() -> Iterator[Document]:
        nonlocal read
        for _ in range(100):
            read += 90
            yield Document("", "x" * 90)

    given = 0
    for batch in tokenised._batches(documents()):
        size = sum(len(document.text) for document in batch)
        given += size
        assert size <= 1000
        assert read - given <= 90
    assert given == 9000


@pytest.mark.parametrize(("words", "dtype", "width"), [(2**16, "uint16", 2), (2**16 + 1, "uint32", 4)])
def test_ids_are_stored_in_the_smallest_type_that_holds_the_vocabulary(
    tmp_path: Path, words: int, dtype: str, width: int
) -> None:
    documents = [Document("", f"w{words - 1} w3 w{words - 1} w65535")]
    data = prepare(documents, _tokenizer(words=words), 4, tmp_path / "data")
    assert _sequences(data) == [[words - 1, 3, words - 1, 65535]]
    assert data.index["dtype"] == dtype
    raw = (tmp_path / "data" / "tokens.bin").read_bytes()
    assert [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)] == _sequences(data)[0]


def test_the_index_tells_what_is_there(tmp_path: Path) -> None:
    tokenizer = _tokenizer(**LLAMA)
    data = prepare(_documents(), tokenizer, 16, tmp_path / "data", seed=4, max_tokens=100, description="random words")
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    assert {key: index[key] for key in ("length", "sequences", "tokens", "seed", "description")} == {
        "length": 16,
        "sequences": 6,
        "tokens": 96,
        "seed": 4,
        "description": "random words",
    }
    assert index["documents"] == len(_naive([[BOS, *_ids(d), EOS] for d in _documents()], 16, 4, 100)[1])
    assert index["hash"] == data.hash
    assert index["tokenizer"] == tokenizer_identity(tokenizer)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["documents.npy", "index.json", "tokens.bin"]
    starts = np.load(tmp_path / "data" / "documents.npy", allow_pickle=False)
    content = b"uint16 16\n" + (tmp_path / "data" / "tokens.bin").read_bytes() + starts.astype("<i8").tobytes()
    assert index["hash"] == hashlib.sha256(content).hexdigest()


def test_a_tokenizer_is_named_by_its_content_and_not_by_how_it_was_called() -> None:
    tokenizer = _tokenizer(**LLAMA)
    before = tokenizer_identity(tokenizer)
    tokenizer(["w3 w4 w5"], truncation=True, max_length=2)
    assert tokenizer_identity(tokenizer) == before == tokenizer_identity(_tokenizer(**LLAMA))
    assert before["vocabulary"] == WORDS
    assert tokenizer_identity(_tokenizer(words=51, **LLAMA)) != before
    assert tokenizer_identity(_tokenizer(**{**LLAMA, "template": "$A"})) != before


def test_documents_longer_than_the_tokenizer_expects_are_neither_cut_nor_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = _tokenizer(**LLAMA, model_max_length=4)
    tokenizer(["w3 w4 w5"], truncation=True, max_length=2)
    log = logging.getLogger("transformers")
    log.addHandler(caplog.handler)
    try:
        data = prepare(_documents(), tokenizer, 16, tmp_path / "data")
    finally:
        log.removeHandler(caplog.handler)
    assert _sequences(data) == _naive([[BOS, *_ids(document), EOS] for document in _documents()], 16)[0]
    assert not caplog.records


def test_texts_without_tokens_are_no_documents(tmp_path: Path) -> None:
    documents = [Document("", "w3 w4 w5"), Document("", ""), Document("", "  "), Document("", "w6 w7 w8")]
    data = prepare(documents, _tokenizer(**LLAMA), 5, tmp_path / "data", seed=1)
    assert _sequences(data) == _naive([[BOS, 3, 4, 5, EOS], [BOS, 6, 7, 8, EOS]], 5, 1)[0]


def test_a_pickled_data_set_is_small_and_reads_the_same(tmp_path: Path) -> None:
    data = prepare(_documents(2000), _tokenizer(**LLAMA), 16, tmp_path / "data", max_tokens=20_000)
    expected = _sequences(data)  # the map is open now
    pickled = pickle.dumps(data)
    assert len(pickled) < (tmp_path / "data" / "tokens.bin").stat().st_size / 2
    assert _sequences(pickle.loads(pickled)) == expected


def test_worker_processes_read_the_same(tmp_path: Path) -> None:
    data = prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    expected = _sequences(data)
    loaded = [row for batch in DataLoader(data, batch_size=2, num_workers=2) for row in batch["input_ids"].tolist()]
    assert loaded == expected


def test_a_data_set_is_found_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = prepare(_documents(), _tokenizer(**LLAMA), 16, Path("data"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(_sequences(data)) == len(data)


@pytest.mark.parametrize("documents", [[], [Document("", "")], [Document("", " "), Document("", "\n")]])
def test_an_empty_corpus_is_told(tmp_path: Path, documents: list[Document]) -> None:
    with pytest.raises(HarpeError, match="--data gave no documents with text"):
        prepare(documents, _tokenizer(**LLAMA), 16, tmp_path / "data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 1}, "--length is 1"),
        ({"length": 0}, "--length is 0"),
        ({"length": 16, "max_tokens": 15}, "15 tokens were asked for, less than one sequence of 16"),
        ({"length": 16, "max_tokens": 0}, "0 tokens were asked for"),
        ({"length": 16, "seed": -1}, "--seed is -1"),
    ],
)
def test_options_out_of_range_are_told_before_anything_is_read(
    tmp_path: Path, options: dict[str, int], words: str
) -> None:
    read = []

    def documents() -> Iterator[Document]:
        read.append("a document")
        yield from _documents()

    with pytest.raises(HarpeError, match=words):
        prepare(documents(), _tokenizer(**LLAMA), out=tmp_path / "data", **options)  # type: ignore[arg-type]
    assert not read


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    data = prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    with pytest.raises(HarpeError, match="already holds a packed data set"):
        prepare(_documents(seed=1), _tokenizer(**LLAMA), 16, tmp_path / "data")
    assert PackedDataset(tmp_path / "data").hash == data.hash
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("other", "file"):
        with pytest.raises(HarpeError, match="is not an empty folder"):
            prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "empty").hash == data.hash


def test_a_folder_that_was_taken_meanwhile_is_told(tmp_path: Path) -> None:
    def documents() -> Iterator[Document]:
        yield from _documents()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "mine.txt").write_text("mine")

    with pytest.raises(HarpeError, match="is not overwritten"):
        prepare(documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine.txt"]


@pytest.mark.parametrize("name", ["tokens.bin", "documents.npy"])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    @contextmanager
    def planted(path: Path) -> Iterator[Path]:
        with new_folder(path) as folder:
            (folder / name).symlink_to("/dev/full")  # takes no byte: the disk is full
            yield folder

    monkeypatch.setattr(packing, "new_folder", planted)
    with pytest.raises(HarpeError, match=f"The disk is full: {tmp_path / 'data'} could not be written"):
        prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def documents() -> Iterator[Document]:
        yield from _documents()
        raise error

    with pytest.raises(error):
        prepare(documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_no_data_set_and_can_be_repeated(tmp_path: Path) -> None:
    tokenizer = _tokenizer(**LLAMA)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = """
import os, signal, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from harpe.data import packing, tokenised
from harpe.data.rows import Document
tokenised.BATCH_DOCUMENTS = 1

def documents():
    for _ in range(100):
        yield Document("", "w3 w4 w5")
    os.kill(os.getpid(), signal.SIGKILL)

packing.prepare(documents(), PreTrainedTokenizerFast.from_pretrained("tokenizer"), 16, Path("out/data"))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path).returncode == -9
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data.unfinished"]
    with pytest.raises(HarpeError, match="is no packed data set"):
        PackedDataset(tmp_path / "out" / "data")
    prepare(_documents(), tokenizer, 16, tmp_path / "out" / "data").verify()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]


def test_a_run_killed_when_all_is_written_leaves_no_data_set(tmp_path: Path) -> None:
    code = """
import os, signal
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from harpe.data import packing, tokenised
from harpe.data.sampling import Upsampling
from harpe.data.rows import Document
write = packing.write_json

def killed(path, value):
    write(path, value)
    os.kill(os.getpid(), signal.SIGKILL)

packing.write_json = killed
documents = [Document("", "w3 w4 w5", "a")] * 50
tokenizer = PreTrainedTokenizerFast.from_pretrained("tokenizer")
packing.prepare(documents, tokenizer, 16, Path("out/data"), upsampling=Upsampling(2, 3))
"""
    _tokenizer(**LLAMA).save_pretrained(tmp_path / "tokenizer")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path).returncode == -9
    (left,) = (tmp_path / "out").glob(".data.*.partial")
    assert (left / "index.json").is_file()  # hidden, and under another name
    assert not is_packed(tmp_path / "out" / "data")


def _sources() -> list[Document]:
    """Source a has the words 3 to 19, b 20 to 39, so that a token tells its source; 12 documents are long."""
    random = np.random.default_rng(0)
    sizes = [("a", 3, 20, int(n)) for n in [*random.integers(5, 40, 150), *random.integers(100, 200, 8)]]
    sizes += [("b", 20, 40, int(n)) for n in [*random.integers(5, 40, 60), *random.integers(100, 200, 4)]]
    order = random.permutation(len(sizes))
    texts = [
        (source, " ".join(f"w{n}" for n in random.integers(low, high, size)))
        for source, low, high, size in (sizes[i] for i in order)
    ]
    return [Document(str(n), text, source) for n, (source, text) in enumerate(texts)]


def test_the_upsampled_stream_holds_what_its_index_says_and_keeps_the_sources_shares(tmp_path: Path) -> None:
    """Counted from the tokens: of sources by their words, of long documents by the distance between two begins."""
    documents, rule = _sources(), Upsampling(100, 10.0, None, 2)
    data = prepare(documents, _tokenizer(**LLAMA), 32, tmp_path / "data", upsampling=rule)
    stream = [token for sequence in _sequences(data) for token in sequence]
    assert stream.count(BOS) == data.index["documents"] == sum(1 for _ in data.documents())
    pieces = [ids.tolist() for ids in data.documents()]
    assert [token for piece in pieces for token in piece] == stream
    whole = {(BOS, *_ids(document), EOS): document for document in documents}
    assert all(tuple(piece) in whole for piece in pieces[:-1])  # documents are drawn whole, the last one may be cut
    assert max(Counter(tuple(piece) for piece in pieces).values()) == 2
    every = sum(len(ids) for ids in whole)
    for row, low, high in zip(
        sorted(data.index["sources"], key=lambda row: row["source"]), (3, 20), (20, 40), strict=True
    ):
        own = [piece for piece in pieces if low <= piece[1] < high]
        there = [ids for ids in whole if low <= ids[1] < high]
        assert row["tokens_drawn"] == sum(map(len, own)) and row["tokens"] == sum(map(len, there))
        assert abs(row["tokens_drawn"] / data.tokens - sum(map(len, there)) / every) < 2 * 202 / data.tokens
        long = [piece for piece in own[:-1] if len(piece) >= 100]
        assert row["long_share_drawn"] == pytest.approx(
            sum(map(len, long)) / row["tokens_drawn"], abs=202 / row["tokens_drawn"]
        )
        has = sum(len(ids) for ids in there if len(ids) >= 100)
        wanted = 10 * has / (10 * has + row["tokens"] - has)
        assert (
            row["long_share_drawn"] == pytest.approx(wanted, abs=2 * 202 / row["tokens_drawn"])
            and wanted > 2 * row["long_share"] > 0
        )


def test_upsampling_is_repeated_from_the_same_seed_only(tmp_path: Path) -> None:
    def made(name: str, seed: int = 5, rule: Upsampling | None = None) -> str:
        return prepare(
            _sources(), _tokenizer(**LLAMA), 16, tmp_path / name, seed=seed, upsampling=rule or Upsampling(100, 10.0)
        ).hash

    first = made("a")
    assert first == made("b")
    assert (
        len({first, made("c", seed=6), made("d", rule=Upsampling(100, 9.0)), made("e", rule=Upsampling(120, 10.0))})
        == 4
    )


def test_one_source_without_upsampling_is_the_plain_packing(tmp_path: Path) -> None:
    documents = _documents()
    plain = prepare(documents, _tokenizer(**LLAMA), 16, tmp_path / "a", seed=3, max_tokens=160)
    assert (
        prepare(
            documents, _tokenizer(**LLAMA), 16, tmp_path / "b", seed=3, max_tokens=160, upsampling=Upsampling()
        ).hash
        == plain.hash
    )
    assert plain.index["sources"][0]["documents"] == len(documents)
    assert plain.index["corpus"]["tokens"] == sum(len(_ids(document)) + 2 for document in documents)


def test_the_corpus_is_named_by_its_texts_and_sources(tmp_path: Path) -> None:
    def named(name: str, documents: list[Document]) -> str:
        return str(
            prepare(documents, _tokenizer(), 4, tmp_path / name, upsampling=Upsampling()).index["corpus"]["sha256"]
        )

    one = named("a", [Document("1", "w3 w4 w5 w6", "x"), Document("2", "w7 w8", "y")])
    each = [hashlib.sha256(raw).hexdigest() for raw in (b"x\n11\nw3 w4 w5 w6", b"y\n5\nw7 w8")]
    assert int(one, 16) == sum(int(digits, 16) for digits in each) % 2**256
    assert one != named("b", [Document("1", "w3 w4 w5 w6", "x"), Document("2", "w7 w8", "x")])


def test_a_field_with_too_many_values_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenised, "MAX_SOURCES", 5)
    documents = [Document(str(n), "w3 w4 w5", f"title {n}") for n in range(6)]
    with pytest.raises(HarpeError, match="more than 5 sources, the last one 'title 5'"):
        prepare(documents, _tokenizer(), 4, tmp_path / "a", upsampling=Upsampling())
    # not asked for: not told apart
    assert prepare(documents, _tokenizer(), 4, tmp_path / "b").index["sources"][0]["documents"] == 6


def test_a_data_set_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    data = prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    file = tmp_path / "data" / "tokens.bin"
    os.truncate(file, file.stat().st_size - 2)
    with pytest.raises(HarpeError, match=f"has {data.tokens * 2 - 2} bytes and should have {data.tokens * 2}"):
        PackedDataset(tmp_path / "data")
    file.unlink()
    with pytest.raises(HarpeError, match="has 0 bytes"):
        PackedDataset(tmp_path / "data")


def test_a_changed_byte_is_found_by_verify(tmp_path: Path) -> None:
    data = prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    data.verify()
    data.cut(8).verify()  # the hash is that of the length it was packed with
    with (tmp_path / "data" / "tokens.bin").open("r+b") as stream:
        stream.seek(100)
        byte = stream.read(1)[0]
        stream.seek(100)
        stream.write(bytes([byte ^ 1]))
    with pytest.raises(HarpeError, match="was changed after it was written"):
        PackedDataset(tmp_path / "data").verify()


def test_changed_document_starts_are_found(tmp_path: Path) -> None:
    prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    file = tmp_path / "data" / "documents.npy"
    starts = np.load(file, allow_pickle=False)
    for broken in (starts[:-1], starts[::-1], starts + 1, starts * 10**6, starts.astype(np.float64)):
        np.save(file, broken, allow_pickle=False)
        with pytest.raises(HarpeError, match="does not hold the"):
            PackedDataset(tmp_path / "data")
    starts[1] += 1
    np.save(file, starts, allow_pickle=False)
    with pytest.raises(HarpeError, match="was changed after it was written"):
        PackedDataset(tmp_path / "data").verify()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"garbage", pickle.dumps([0, 1])])
def test_document_starts_that_are_no_array_are_refused_and_never_unpickled(tmp_path: Path, content: bytes) -> None:
    prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    (tmp_path / "data" / "documents.npy").write_bytes(content)
    with pytest.raises(HarpeError, match=r"documents\.npy cannot be read"):
        PackedDataset(tmp_path / "data")


@pytest.mark.parametrize(
    "change",
    [{"length": None}, {"length": "many"}, {"dtype": "object"}, {"length": 0}, {"sequences": 1}, {"tokens": -16}],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    prepare(_documents(), _tokenizer(**LLAMA), 16, tmp_path / "data")
    file = tmp_path / "data" / "index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(HarpeError, match=r"index\.json"):
        PackedDataset(tmp_path / "data")


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(HarpeError, match="is no packed data set"):
            PackedDataset(path)
