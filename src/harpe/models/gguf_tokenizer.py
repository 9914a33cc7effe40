"""The tokenizer that a GGUF file describes: made by transformers, and mended where that leaves something out.

Oracles were llama.cpp's own tokenizer and the tokenizers that the files had been made from.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf import gguf_tokenizer_mapping

from harpe.errors import HarpeError
from harpe.models.gguf_header import Header

OLDEST = "5.20"
"""transformers from before splits the text of every vocabulary by one rule."""


class Splitting(NamedTuple):
    """What llama.cpp ties to `tokenizer.ggml.pre`, the name of how text is split before pairs are merged."""

    whole: bool = False
    """A piece that is a token is not merged from its bytes (`ignore_merges`)."""
    begins: bool = False
    """A text begins with the beginning-of-text token, where the file does not say."""
    digits: bool = False
    """Every digit is a piece; transformers does not know of it."""
    composed: bool = False
    """Accents are put together with their letters before (NFC): the model was trained so, and llama.cpp does not."""


SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": Splitting(digits=True),
    "qwen2": Splitting(composed=True),
    "llama-bpe": Splitting(whole=True, begins=True),
    "tekken": Splitting(whole=True, begins=True),
}
"""Of vocabularies that are merged from bytes; sentencepiece's (`tokenizer.ggml.model` llama) have none."""

NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Special tokens of transformers by the file's names of them."""
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Of `tokenizer.ggml.token_type`; llama.cpp looks for these whole in a text, the last ones in every text."""


def read_tokenizer(header: Header) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its special tokens and its chat template.

    Raises
    ------
    HarpeError
        For a kind that would be split otherwise than it was trained, and for a transformers older than `OLDEST`.
    """
    values, path = header.values, header.path
    kind, pre = values.get("tokenizer.ggml.model"), str(values.get("tokenizer.ggml.pre"))
    if getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", None) is None:
        raise HarpeError(
            f"The tokenizer of {path} needs transformers {OLDEST} or newer; {transformers.__version__} splits texts "
            "otherwise than the model was trained. pip install --upgrade transformers."
        )
    sentencepiece = kind == "llama"
    if not sentencepiece and (kind != "gpt2" or pre not in SPLITTINGS):
        raise HarpeError(
            f"{path} has a tokenizer of a kind (tokenizer.ggml.model {kind}, tokenizer.ggml.pre {pre}) that cannot be "
            f"made from it without loss; that can be done of llama, and of gpt2 with {', '.join(SPLITTINGS)}. Name the "
            "checkpoint in safetensors that it was made from."
        )
    if sentencepiece and values.get("tokenizer.ggml.add_space_prefix") is False:
        raise HarpeError(
            f"{path} has a sentencepiece tokenizer that puts no space before a text, which transformers does not take "
            "over. Name the checkpoint in safetensors that it was made from."
        )
    try:
        backend = _backend(header)
    except Exception as error:
        raise HarpeError(
            f"No tokenizer could be made from {path}: {' '.join(str(error).split())[:300]}. Name the checkpoint in "
            "safetensors that it was made from."
        ) from error
    splitting = Splitting(begins=True) if sentencepiece else SPLITTINGS[pre]
    if sentencepiece:  # transformers leaves the space away where the text begins with one
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        backend.pre_tokenizer = None
    if splitting.whole:
        backend.model.ignore_merges = True
    if splitting.composed:
        backend.normalizer = normalizers.NFC()
    if splitting.digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    named = {kind: values.get(f"tokenizer.ggml.{key}_token_id") for kind, key in NAMED.items()}
    tokens = values["tokenizer.ggml.tokens"]
    if wrong := {NAMED[kind]: index for kind, index in named.items() if index is not None and index >= len(tokens)}:
        raise HarpeError(f"{path} names special tokens ({wrong}) outside its vocabulary of {len(tokens)}.")
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=values.get("tokenizer.chat_template"),
        model_input_names=["input_ids", "attention_mask"],
        **{kind: None if index is None else tokens[index] for kind, index in named.items()},
    )
    ends = values.get("tokenizer.ggml.add_eos_token", False)
    begins = values.get("tokenizer.ggml.add_bos_token", splitting.begins)
    for token, wanted in (("bos_token", begins), ("eos_token", ends)):
        if wanted and getattr(tokenizer, token) is None:
            raise HarpeError(f"{path} says that its tokenizer adds a {token}, and does not say which that is.")
    tokenizer.add_bos_token, tokenizer.add_eos_token = bool(begins), bool(ends)
    return tokenizer


def _backend(header: Header) -> Tokenizer:
    """What transformers makes of the file's metadata alone, with the file's tokens as they are spelled.

    `AutoTokenizer` would read a tokenizer.json that happens to lie beside the file in its place. And transformers
    respells tokens outside of the alphabet of bytes (the wide bars of DeepSeek's), and adds the special tokens of its
    classes where the file has none of that name.
    """
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, described, _ = get_gguf_tokenizer(str(header.path))
    state = json.loads(convert_gguf_tokenizer(architecture, described)[0].to_str())
    tokens, kinds = header.values["tokenizer.ggml.tokens"], header.values.get("tokenizer.ggml.token_type") or ()
    state["model"]["vocab"] = {token: index for index, token in enumerate(tokens)}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    state["added_tokens"] = [
        {"id": index, "content": token, "special": kind != USER_DEFINED, **plain}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and state["model"]["vocab"][token] == index
    ]
    return Tokenizer.from_str(json.dumps(state))
