"""What stands around a text: its beginning where one begins, end-of-text where a document ends, and nothing around a
piece."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harpe.data.token_ids import begin_ids, document_ids, piece_ids, plain_ids, text_ids, tokens_around, unbegun
from harpe.evaluation.ruler.templates import template_of
from harpe.models.load import load_tokenizer

TEXT = "One text, 12 things.\n"
MARK = "\u2581"


def finished(backend: Tokenizer, template: str, specials: list[str], **named: str) -> PreTrainedTokenizerFast:
    """With special tokens, of which `template` sets some around every text."""
    backend.add_special_tokens(specials)
    pairs = [(token, backend.token_to_id(token)) for token in specials]
    if template != "$A":
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def bytes_of(
    template: str = "$A", specials: tuple[str, ...] = ("<|endoftext|>",), **named: str
) -> PreTrainedTokenizerFast:
    """Byte-level, as Qwen, GPT-NeoX and Llama 3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return finished(backend, template, list(specials), **named)


def pieces_of(template: str, dummy: bool = True, **named: str) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE with byte fallback, as Llama 2; without the space in front, as Gemma."""
    characters = [MARK, *"abcdefghijklmnopqrstuvwxyz,.12"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *characters, MARK * 2]
    merges = [(MARK, MARK)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend(MARK)] if dummy else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", MARK)])
    backend.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return finished(backend, template, ["<s>", "</s>"], unk_token="<unk>", **named)


def unigram(template: str) -> PreTrainedTokenizerFast:
    """As T5: end-of-text behind every text, whatever `add_eos_token` says."""
    scores = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -9.0),
        (MARK, -2.0),
        *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyzOT.,12"),
    ]
    backend = Tokenizer(models.Unigram(scores, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return finished(backend, template, ["</s>"], eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


BOTH = {"bos_token": "<s>", "eos_token": "</s>"}
END = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
TOKENIZERS: dict[str, tuple[PreTrainedTokenizerBase, list[str], list[str]]] = {
    "Llama 2": (pieces_of("<s> $A", **BOTH), ["<s>"], ["</s>"]),
    "Llama 2, add_eos_token": (pieces_of("<s> $A </s>", **BOTH), ["<s>"], ["</s>"]),
    "end-of-text only": (pieces_of("$A </s>", **BOTH), [], ["</s>"]),
    "Gemma": (pieces_of("<s> $A", dummy=False, **BOTH), ["<s>"], ["</s>"]),
    "Qwen": (bytes_of(eos_token="<|endoftext|>"), [], ["<|endoftext|>"]),
    "GPT-NeoX": (bytes_of(**END), [], ["<|endoftext|>"]),
    "GPT-NeoX, add_eos_token": (bytes_of("$A <|endoftext|>", **END), [], ["<|endoftext|>"]),
    "OPT": (bytes_of("<|endoftext|> $A", **END), ["<|endoftext|>"], []),
    "OPT, add_eos_token": (bytes_of("<|endoftext|> $A <|endoftext|>", **END), ["<|endoftext|>"], []),
    "GLM": (
        bytes_of("[gMASK] <sop> $A", ("[gMASK]", "<sop>", "<eop>"), eos_token="<eop>"),
        ["[gMASK]", "<sop>"],
        ["<eop>"],
    ),
    "BERT": (bytes_of("[CLS] $A [SEP]", ("[CLS]", "[SEP]")), ["[CLS]"], ["[SEP]"]),
    "T5": (unigram("$A </s>"), [], ["</s>"]),
    "embedded": (load_tokenizer("embedded"), ["<|endoftext|>"], []),
}


@pytest.fixture(params=TOKENIZERS)
def case(request: Any) -> tuple[PreTrainedTokenizerBase, list[int], list[int]]:
    """A tokenizer, what a text of it begins with, and what a document of it ends with."""
    tokenizer, begin, end = TOKENIZERS[request.param]
    return (
        tokenizer,
        [int(tokenizer.convert_tokens_to_ids(t)) for t in begin],
        [int(tokenizer.convert_tokens_to_ids(t)) for t in end],
    )


def test_a_prompt_has_the_beginning_of_a_text_and_no_end(case: Any) -> None:
    tokenizer, begin, _ = case
    ids = text_ids(tokenizer, TEXT)
    assert ids == [*begin, *tokenizer.encode(TEXT, add_special_tokens=False)]
    assert list(begin_ids(tokenizer)) == begin and text_ids(tokenizer, "") == begin
    assert ids == tokenizer(TEXT).input_ids[: len(ids)]


def test_a_text_that_spells_its_beginning_is_given_no_second_one(case: Any) -> None:
    tokenizer, begin, _ = case
    spelled = tokenizer.decode(begin) + "x"
    if len(begin) > 1:
        spelled = "".join(tokenizer.convert_ids_to_tokens(begin)) + "x"
    assert text_ids(tokenizer, spelled)[: 2 * len(begin)].count(begin[0] if begin else -1) == bool(begin)
    if len(begin) == 1:
        assert unbegun(tokenizer, spelled) == "x" and unbegun(tokenizer, "x") == "x"


def test_a_document_to_train_on_ends_once(case: Any) -> None:
    tokenizer, begin, end = case
    closed = TEXT + "".join(tokenizer.convert_ids_to_tokens(end))
    rows = list(document_ids(tokenizer, [TEXT, "", closed]))
    plain = tokenizer.encode(TEXT, add_special_tokens=False)
    assert rows[0] == [*begin, *plain, *end] and rows[1] == []
    stream = [i for row in (rows[0], rows[2], rows[0]) for i in row]
    special = {tokenizer.convert_ids_to_tokens(i) for i in (*begin, *end)}
    texts = re.sub(r"\s+", " ", " ".join(map(str, tokenizer.convert_ids_to_tokens(stream))))
    for token in special:
        assert f"{token} {token}" not in texts


def test_pieces_are_those_of_a_whole_text(case: Any) -> None:
    """Also with the tokenizers that set a space in front of a text."""
    tokenizer, _, _ = case
    front, piece = "one", "\nthe 12 words."
    assert plain_ids(tokenizer, front) + piece_ids(tokenizer, piece) == plain_ids(tokenizer, front + piece)


def test_a_vocabulary_without_letters_that_everybody_has_is_looked_at_too() -> None:
    backend = Tokenizer(models.BPE({"\u03b1": 0, "\u03b2": 1}, []))  # what is unknown is left out
    tokenizer = finished(backend, "<s> $A </s>", ["<s>", "</s>"], **BOTH)
    assert plain_ids(tokenizer, "a1.") == [] and tokens_around(tokenizer) == ((2,), (3,))


def test_llama_2s_own_tokenizer_in_every_setting(harpe_data: Path) -> None:
    """From its tokenizer.json, and as transformers' own class with and without what it may add."""
    folder = harpe_data / "tokenizers" / "llama2"
    plain = AutoTokenizer.from_pretrained(folder).encode("Paris is", add_special_tokens=False)
    made = [
        AutoTokenizer.from_pretrained(folder, **options)
        for options in ({}, {"add_eos_token": True}, {"add_bos_token": False})
    ]
    backend = made[0].backend_tokenizer
    vocabulary, merges = backend.get_vocab(), json.loads(backend.to_str())["model"]["merges"]
    own = [
        LlamaTokenizer(vocab=vocabulary, merges=[tuple(m) for m in merges], add_bos_token=bos, add_eos_token=eos)
        for bos in (True, False)
        for eos in (True, False)
    ]
    for tokenizer in (*made, *own):
        begin, _ = tokens_around(tokenizer)
        assert text_ids(tokenizer, "Paris is") == [*begin, *plain] and 2 not in begin
        assert next(document_ids(tokenizer, ["Paris is"])) == [*begin, *plain, 2]
    assert [begin_ids(each) for each in own] == [(1,), (1,), (), ()] and [tokens_around(each)[1] for each in own] == [
        (2,),
        (),
        (2,),
        (),
    ]
    assert tokens_around(made[1])[1] == (2,)
    assert piece_ids(made[0], " 1234") == plain_ids(made[0], "a 1234")[1:] != plain_ids(made[0], " 1234")


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        ("meta-llama3", ["<|begin_of_text|>"]),
        ("command-r-chat", ["<BOS_TOKEN>"]),
        ("jamba", ["<|startoftext|>"]),
        ("chatglm-chat", ["[gMASK]", "sop"]),
        ("meta-chat", ["<s>"]),
        ("Phi3", ["<s>"]),
        ("nemotron5-instruct", ["<s>"]),
        ("base", ["<s>"]),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_every_chat_format_of_ruler_begins_once_with_the_tokenizers_of_its_family(
    template: str, begin: list[str], ends: bool
) -> None:
    tokenizer = bytes_of(
        " ".join([*begin, "$A", *(["<end>"] if ends else [])]), (*begin, "<end>"), bos_token=begin[0], eos_token="<end>"
    )
    ids = text_ids(tokenizer, template_of("vt", template))
    assert tokenizer.convert_ids_to_tokens(ids[: len(begin)]) == begin
    assert not set(begin) & set(
        tokenizer.convert_ids_to_tokens(ids[len(begin) :])
    ) and "<end>" not in tokenizer.convert_ids_to_tokens(ids)
