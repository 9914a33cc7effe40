"""RULER samples are those of the published program, and what makes them fast gives the same numbers as the slow way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harpe.errors import HarpeError
from harpe.evaluation.ruler import fetch as fetching
from harpe.evaluation.ruler.counting import TokenCounter
from harpe.evaluation.ruler.essays import Essays
from harpe.evaluation.ruler.generate import RulerGenerator
from harpe.evaluation.ruler.needles import uuid4
from harpe.evaluation.ruler.search import Budget, Draft, fitting
from harpe.evaluation.ruler.sources import DataFolder
from harpe.evaluation.ruler.tasks import RULER_TASKS, chosen
from harpe.evaluation.ruler.words import CompoundWords
from harpe.models.load import load_tokenizer

pytest.importorskip(
    "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
)
punkt = pytest.importorskip(
    "nltk.tokenize.punkt", reason="RULER's sentences need the package nltk (pip install 'harpe[eval]')"
)

HASHES = json.loads((Path(__file__).parent / "ruler_hashes.json").read_text())["files"]
"""SHA-256 of files that the published program wrote."""
NO_DATA = [
    row
    for row in HASHES
    if row["tokenizer"] == "embedded" and RULER_TASKS[row["task"]].kind != "qa" and row["length"] < 16384
]
NO_DATA = [
    row
    for row in NO_DATA
    if not (RULER_TASKS[row["task"]].needle and RULER_TASKS[row["task"]].needle.haystack == "essay")
]


@pytest.fixture(scope="module")
def embedded() -> Any:
    return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def generators(embedded: Any) -> Any:
    """Generators by tokenizer; the one of Llama 2 lies beside the data."""
    made: dict[str, RulerGenerator] = {}

    def get(name: str, folder: Path | None = None) -> RulerGenerator:
        if name not in made:
            tokenizer = embedded if name == "embedded" else AutoTokenizer.from_pretrained(folder / "tokenizers" / name)
            made[name] = RulerGenerator(tokenizer, DataFolder(folder) if folder else None)
        return made[name]

    return get


def digest(generator: RulerGenerator, row: dict[str, Any], folder: Path) -> str:
    path = generator.write(
        RULER_TASKS[row["task"]], row["length"], row["samples"], folder, row["seed"], row["template"]
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("row", NO_DATA, ids=lambda row: f"{row['task']}-{row['length']}-{row['template']}")
def test_tasks_without_data_are_the_published_programs_bytes(
    row: dict[str, Any], embedded: Any, tmp_path: Path
) -> None:
    generator = RulerGenerator(embedded, DataFolder(tmp_path))
    assert generator.count.by_words
    assert digest(generator, row, tmp_path) == row["sha256"]


@pytest.mark.parametrize("name", RULER_TASKS)
def test_all_65_reference_samples_are_identical(name: str, generators: Any, harpe_data: Path, tmp_path: Path) -> None:
    golden = os.environ.get("HARPE_GOLDEN")
    if not golden or not (Path(golden) / "ruler" / "4096").is_dir():
        pytest.skip("HARPE_GOLDEN names no folder with reference samples of RULER")
    expected = [json.loads(line) for line in (Path(golden) / "ruler" / "4096" / f"{name}.jsonl").open()]
    generator = generators("llama2", harpe_data)
    assert generator.count.by_words
    samples = list(generator.samples(RULER_TASKS[name], 4096, 5))
    assert len(expected) == 5
    for ours, theirs in zip(samples, expected, strict=True):
        assert ours == theirs


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            marks=[pytest.mark.slow] if row["length"] > 16384 else [],
            id=f"{row['tokenizer']}-{row['task']}-{row['length']}",
        )
        for row in HASHES
        if row not in NO_DATA
    ],
)
def test_further_lengths_tokenizers_and_formats_are_the_published_programs_bytes(
    row: dict[str, Any], embedded: Any, generators: Any, harpe_data: Path, tmp_path: Path
) -> None:
    assert digest(generators(row["tokenizer"], harpe_data), row, tmp_path) == row["sha256"]


NASTY = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "a",
                "The grass is green.",
                " ",
                "  ",
                "\n",
                "\n\n",
                "\t",
                "\u00a0",
                "1234567",
                "it's",
                "'s",
                "…",
                "é",
                "e\u0301",
                "漢字",
            ]
        ),
        st.sampled_from(
            [
                "<|endoftext|>",
                "</s>",
                " falcon",
                " falcons",
                "\u2581",
                "x\u2581y",
                "...",
                "12. word",
                '"',
                "\r\n",
                "\x1c",
                "🙂",
            ]
        ),
        st.text(max_size=6),
    ),
    max_size=30,
).map("".join)


def byte_level(pattern: str | None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, split by `pattern` or by GPT-2's own expression, with NFC as Qwen has
    it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("Ġ", "t"),
        ("h", "e"),
        ("Ġt", "he"),
        ("Ġ", "a"),
        ("i", "s"),
        ("Ġ", "Ġ"),
        ("Ċ", "Ċ"),
        (".", "Ċ"),
        ("1", "2"),
    ]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern:
        from tokenizers import Regex

        level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    backend.pre_tokenizer, backend.decoder = level, decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentence_piece(extra: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2's: merges over the whole text, spaces marked, bytes for what is unknown."""
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "a"), ("\u2581", "\u2581"), ("e", "r"), *extra]
    characters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzT.123"]
    tokens = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *characters, *("".join(m) for m in merges)]
    backend = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MADE = {
    "GPT-2": byte_level(None),
    "Llama 3": byte_level(LLAMA_3),
    "Llama 2": sentence_piece(),
    "embedded": load_tokenizer("embedded"),
}


@pytest.mark.parametrize("name", MADE)
@given(texts=st.lists(NASTY, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_words_are_counted_as_whole_texts_are(name: str, texts: list[str]) -> None:
    count = TokenCounter(MADE[name])
    assert count.by_words
    for text in texts:
        assert count(text) == len(MADE[name].tokenize(text)), text


def test_real_tokenizers_are_counted_by_words_and_exactly(harpe_data: Path) -> None:
    text = json.loads((harpe_data / "ruler" / "squad.json").read_text())["data"][0]["paragraphs"]
    text = "\n\n".join(p["context"] for p in text)
    gpt2 = Tokenizer(
        models.BPE.from_file(
            str(harpe_data / "tokenizers/gpt2/vocab.json"), str(harpe_data / "tokenizers/gpt2/merges.txt")
        )
    )
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    neox = PreTrainedTokenizerFast(tokenizer_file=str(harpe_data / "tokenizers/gpt-neox-20b/20B_tokenizer.json"))
    for tokenizer in (
        PreTrainedTokenizerFast(tokenizer_object=gpt2),
        neox,
        AutoTokenizer.from_pretrained(harpe_data / "tokenizers/llama2"),
    ):
        count = TokenCounter(tokenizer)
        assert count.by_words
        for part in (text, text[:5001], text[17:7000].replace(". ", ".  "), f" {text[:3000]} "):
            assert count(part) == len(tokenizer.tokenize(part))


def test_a_tokenizer_that_joins_words_is_not_counted_by_words() -> None:
    joined = sentence_piece((("\u2581the", "\u2581"),))
    assert not TokenCounter(joined).by_words
    assert TokenCounter(joined)("to the end") == len(joined.tokenize("to the end"))
    unknown = byte_level(r"\w+ ?")
    assert not TokenCounter(unknown).by_words


@given(st.sets(st.text("ab-", min_size=1, max_size=4)), st.sets(st.text("ab-", min_size=1, max_size=3)))
def test_compound_words_are_the_sorted_set(adjectives: set[str], nouns: set[str]) -> None:
    expected = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    assert list(CompoundWords(adjectives, nouns)) == expected


def test_identifiers_are_those_of_the_uuid_module() -> None:
    ours, theirs = random.Random(3), random.Random(3)
    for _ in range(200):
        assert uuid4(ours) == str(uuid.UUID(int=theirs.getrandbits(128), version=4))


WORDS = st.sampled_from(
    [
        "end.",
        'end."',
        "Mr.",
        "etc.",
        "(one.)",
        ".)",
        '"Go',
        "why?",
        "so?!",
        "...",
        ". . .",
        "a.b.c.",
        "word",
        "The",
        "5.",
        ".”",
        "--",
        "x.--y",
        "“Oh",
        "?”",
    ]
)


@given(st.lists(WORDS, min_size=1, max_size=60), st.data())
@settings(max_examples=200, deadline=None)
def test_the_sentences_of_a_beginning_are_found_without_splitting_it(words: list[str], data: st.DataObject) -> None:
    tokenizer = punkt.PunktSentenceTokenizer()
    words = " ".join(words).split(" ")
    essays = Essays(words, tokenizer)
    for count in data.draw(st.lists(st.integers(0, 3 * len(words)), min_size=1, max_size=6)):
        text = " ".join((words * 4)[:count])
        assert essays.sentences(count) == tokenizer.tokenize(text.strip())


@pytest.mark.parametrize(
    ("name", "length"), [("vt", 200), ("niah_single_1", 130), ("cwe", 200), ("fwe", 120), ("niah_multikey_3", 400)]
)
def test_a_length_that_cannot_be_reached_ends_with_a_sentence(name: str, length: int, embedded: Any) -> None:
    with pytest.raises(HarpeError, match="cannot be made with"):
        list(RulerGenerator(embedded).samples(RULER_TASKS[name], length, 1))


def test_questions_that_cannot_shrink_or_run_out_end_with_a_sentence(embedded: Any, tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "answer": "a", "context": [[f"t{i}.{j}", ["word " * 200]] for j in range(10)]}
        for i in range(3)
    ]
    (tmp_path / "hotpotqa.json").write_text(json.dumps(rows))
    generator = RulerGenerator(embedded, DataFolder(tmp_path))
    with pytest.raises(HarpeError, match="qa_2 cannot be made with 1024"):
        list(generator.samples(RULER_TASKS["qa_2"], 1024, 1))
    with pytest.raises(HarpeError, match="only 3 questions"):
        list(generator.samples(RULER_TASKS["qa_2"], 32768, 4))
    with pytest.raises(HarpeError, match=r"squad\.json is missing.*fetch-data"):
        list(generator.samples(RULER_TASKS["qa_1"], 4096, 1))


def test_a_context_without_room_for_what_is_hidden_ends_with_a_sentence() -> None:
    def make(size: int) -> Draft:
        raise ValueError("sample larger than population")

    with pytest.raises(HarpeError, match="no room"):
        fitting(make, len, Budget("vt", 100, 0, 5), 12)


def test_unknown_tasks_are_told_with_the_nearest_names() -> None:
    assert (
        [task.name for task in chosen(["qa_1", "niah"])][-1] == "qa_1"
        and len(chosen(["niah"])) == 8
        and len(chosen(["all"])) == 13
    )
    with pytest.raises(HarpeError, match="niah_multikey_1"):
        chosen(["niah_multkey_1"])


def test_downloads_are_checked_and_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.json").write_text('{"data": []}')
    sha256 = hashlib.sha256(b'{"data": []}').hexdigest()
    monkeypatch.setitem(
        fetching.ADDRESSES, "squad", ((tmp_path / "gone.json").as_uri(), (tmp_path / "there.json").as_uri())
    )
    with pytest.raises(HarpeError, match=r"gone\.json could not be read.*it is not used.*ruler/squad\.json"):
        fetching.fetch("squad", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(fetching.SHA256, "squad", sha256)
    assert json.loads(fetching.fetch("squad", tmp_path / "out").read_text()) == {"data": []}
    assert DataFolder(tmp_path / "out").json("squad") == {"data": []}
