"""Special tokens that a text spells are text or tokens, as it is asked for; and how many tokens a text has at most."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harpe.data.packing import prepare
from harpe.data.rows import Document
from harpe.data.special_tokens import Watched, reading_text, reading_tokenizer
from harpe.data.token_bounds import TokenBound
from harpe.errors import HarpeError
from harpe.models.load import load_tokenizer
from harpe.models.vocabulary import check_vocabulary

WORDS = ["the hartebeest runs over the plain", "def f(x):\n    return x", "one two three four"] * 20
END, BEGIN = "<|endoftext|>", "<s>"


def _fast(kind: str) -> PreTrainedTokenizerBase:
    special = [END, BEGIN, "[UNK]"]
    if kind == "byte-level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "byte fallback":
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="[UNK]", fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
        )
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKD()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="[UNK]", show_progress=False)
    else:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    backend.train_from_iterator(WORDS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, backend.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END, unk_token="[UNK]")


KINDS = ("byte-level", "byte fallback", "unigram", "word piece")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram"])
def test_a_spelled_special_token_is_text_or_the_token_as_asked_and_the_given_tokenizer_stays_as_it_is(
    kind: str,
) -> None:
    tokenizer = _fast(kind)
    text, end = f"one{END}two {BEGIN} three", tokenizer.eos_token_id
    split, whole = reading_tokenizer(tokenizer, True), reading_tokenizer(tokenizer, False)
    for _ in range(2):  # the two share one backend, and a call of one must not change the next of the other
        assert end not in split(text)["input_ids"]
        assert split(text)["input_ids"].count(tokenizer.bos_token_id) == 1  # what the tokenizer sets itself
        assert all(end not in ids for ids in split([text, text])["input_ids"])
        assert whole(text)["input_ids"].count(end) == tokenizer(text)["input_ids"].count(end) == 1
    assert not tokenizer.split_special_tokens


def test_a_tokenizer_that_refuses_ids_without_an_embedding_reads_spelled_tokens_as_asked_too() -> None:
    tokenizer = _fast("byte-level")
    rows = len(tokenizer)
    tokenizer.add_tokens(["<beyond>"])
    check_vocabulary(LlamaConfig(vocab_size=rows), tokenizer, "a model")
    split, whole = reading_tokenizer(tokenizer, True), reading_tokenizer(tokenizer, False)
    for _ in range(2):
        assert tokenizer.eos_token_id not in split(f"one{END}two")["input_ids"]
        assert tokenizer.eos_token_id in whole(f"one{END}two")["input_ids"]
        for each in (split, whole):
            with pytest.raises(HarpeError, match="<beyond>"):
                each("one <beyond>")


@pytest.mark.parametrize("split", [True, False])
def test_a_document_cannot_forge_an_end_of_text_unless_it_is_asked_for(tmp_path: Path, split: bool) -> None:
    tokenizer = reading_tokenizer(load_tokenizer("embedded"), split)
    texts = [f"before {END} behind {number}" for number in range(20)] + ["plain"]
    reading = Watched([Document("", text) for text in texts], tokenizer)
    data = prepare(reading, tokenizer, 16, tmp_path / "packed")
    documents = [list(ids) for ids in data.documents()][:-1]
    if split:
        assert {tokenizer.decode(ids, skip_special_tokens=True) for ids in documents} <= set(texts)
    assert {ids.count(tokenizer.eos_token_id) for ids in documents if len(ids) > 5} == ({1} if split else {2})
    account = reading.account()
    assert account == {"split_special_tokens": split, "spelled": {"documents": 20, "tokens": {END: 20}}}
    assert ("read as text" if split else "as the tokens themselves") in reading_text(account)


def test_a_tokenizer_that_cannot_split_is_refused_where_a_text_needs_it() -> None:
    tokenizer = reading_tokenizer(_fast("unigram"), True)  # special tokens are pieces of its vocabulary like any other
    assert len(list(Watched([Document("", "plain")], tokenizer))) == 1
    with pytest.raises(HarpeError, match="cannot read it as text"):
        list(Watched([Document("", f"a{END}")], tokenizer))
    assert len(list(Watched([Document("", f"a{END}")], reading_tokenizer(tokenizer, False)))) == 1


@pytest.mark.parametrize("kind", [*KINDS, "embedded"])
def test_no_text_has_more_tokens_than_the_bound(kind: str) -> None:
    tokenizer = load_tokenizer("embedded") if kind == "embedded" else _fast(kind)
    bound, rng = TokenBound(tokenizer), random.Random(0)
    alphabets = ["ab \n", "äöü ", "漢字仮名", "😀🦌👩‍🦰", "\ufdfa\u1f82\u0390", "\x00\x7f\u200b", f"{END}{BEGIN} "]
    texts = [
        "",
        " ",
        END * 5,
        *("".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 200))) for _ in range(300)),
    ]
    for text in texts:
        assert len(tokenizer(text)["input_ids"]) <= bound.most(text), text


def test_a_tokenizer_of_plain_python_has_no_bound() -> None:
    class Slow:
        is_fast = False

    slow: Any = Slow()
    assert TokenBound(slow).most("a") == float("inf")
