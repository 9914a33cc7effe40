"""GGUF files as models: the logits are those of the stock model that the file was written from, bit for bit, and what
a file says that would be lost is refused."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers import AddedToken
from transformers import PreTrainedModel

import harpe
from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.gguf import ORIGIN, checkpoint_of, gguf_file, origin_note
from harpe.models.gguf_tokenizer import OLDEST
from harpe.models.identity import checkpoint_identity
from harpe.models.load import load_config, load_model, load_tokenizer, resolve

from . import gguf_files
from .gguf_files import RULES, TEMPLATE, through, tiny, tokenizer, write

old = Version(transformers.__version__) < Version(OLDEST)
needs_tokenizers = pytest.mark.skipif(old, reason=f"transformers {transformers.__version__} is refused: see below")
TEXT = (Path(__file__).parents[2] / "README.md").read_text()
ODD = [
    TEXT[:3000],
    "Hello 12345 world  3.14\n\n\tx=1's zqxj<|im_end|><think> zqxj",
    "  I'LL don't 1,000,000.50$ naïve ½ Ⅷ ٣٤ 漢字 😀 🇩🇪 e\u0301 \u00a0\u2003",
    "def f(x):\r\n    return x / 2  # ok\n\n\n",
    "",
    " ",
]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARPE_CACHE", str(tmp_path / "cache"))


@cache
def words(pre: str = "gpt-2") -> Any:
    return tokenizer(pre, TEXT)


def model(family: str = "llama", **changes: Any) -> PreTrainedModel:
    return tiny(family, changes.pop("vocab_size", words().get_vocab_size()), **changes)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 403)[None]).logits


@needs_tokenizers
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_the_stock_model_with_its_weights_in_the_types_of_the_file(
    tmp_path: Path, family: str, kind: str
) -> None:
    stock = model(family, tie_word_embeddings=family == "qwen2")
    file = write(tmp_path / "m.gguf", stock, words("qwen2"), kind, pre="qwen2")
    assert torch.equal(logits(load_model(file)), logits(through(stock, kind)))
    assert kind in str(origin_note(resolve(file)))


@needs_tokenizers
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "max_position_embeddings": 4096}),
        ("llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 131072}),
        ("qwen2", {"rms_norm_eps": 1e-6, "num_key_value_heads": 4}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_the_configuration_is_that_of_the_stock_model(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    stock = model(family, **changes)
    divisors = {}
    if "rope_parameters" in changes and changes["rope_parameters"]["rope_type"] == "llama3":
        rotary: Any = stock.model.rotary_emb
        plain = 1.0 / 5e5 ** (torch.arange(0, 32, 2).float() / 32)
        divisors = {"rope_freqs.weight": (plain / rotary.inv_freq).numpy()}
    file = write(tmp_path / "m.gguf", stock, words("qwen2"), pre="qwen2", holds=divisors)
    found, wanted = load_config(file).to_dict(), stock.config.to_dict()
    other = {"_name_or_path", "architectures", "transformers_version", "dtype", "initializer_range"}
    assert {k: v for k, v in found.items() if k not in other} == {k: v for k, v in wanted.items() if k not in other}
    assert torch.equal(logits(load_model(file)), logits(stock))


@needs_tokenizers
def test_a_base_that_the_file_does_not_name_is_that_of_llama_cpp(tmp_path: Path) -> None:
    stock = model("qwen3", rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    file = write(tmp_path / "m.gguf", stock, words(), states={"rope.freq_base": None})
    assert torch.equal(logits(load_model(file)), logits(stock))


@needs_tokenizers
def test_heads_without_their_own_count_of_keys_are_still_in_the_order_of_transformers(tmp_path: Path) -> None:
    stock = model(num_key_value_heads=4)
    file = write(tmp_path / "m.gguf", stock, words(), states={"attention.head_count_kv": None})
    assert torch.equal(logits(load_model(file)), logits(stock))


@needs_tokenizers
@pytest.mark.parametrize(
    ("family", "pre"),
    [*((family, pre) for family in ("llama", "qwen3") for pre in ("gpt-2", "smollm", *RULES)), ("qwen2", "qwen2")],
)
def test_tokens_are_those_of_the_tokenizer_that_the_file_was_made_from(tmp_path: Path, family: str, pre: str) -> None:
    file = write(tmp_path / "m.gguf", model(family), words(pre), pre=pre)
    found = load_tokenizer(file)
    for text in ODD:
        assert found(text, add_special_tokens=False).input_ids == words(pre).encode(text).ids
    read = unicodedata.normalize("NFC", ODD[2]) if pre == "qwen2" else ODD[2]
    assert found.decode(found(ODD[2]).input_ids, skip_special_tokens=True) == read
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id, found.model_max_length) == (1, 2, 0, 777)
    shown = found.apply_chat_template([{"content": "hi"}], tokenize=False)
    assert found.chat_template == TEMPLATE and shown == "<|im_start|>hi<|im_end|>"


@needs_tokenizers
def test_files_of_another_tokenizer_beside_a_file_change_nothing(tmp_path: Path) -> None:
    (downloads := tmp_path / "downloads").mkdir()
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=words("llama-bpe"), eos_token="<|endoftext|>")
    other.chat_template = "another"
    other.save_pretrained(downloads)
    (downloads / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "bos_token": "<think>"}')
    found = load_tokenizer(write(downloads / "m.gguf", model(), words()))
    for text in ODD:
        assert found(text, add_special_tokens=False).input_ids == words().encode(text).ids
    assert (found.bos_token_id, found.eos_token_id, found.chat_template) == (1, 2, TEMPLATE)


@needs_tokenizers
def test_special_tokens_are_those_of_the_file_and_in_any_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSeek's have letters that no byte stands for, and none of theirs is called as GPT-2's is."""
    names = ["<pad>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    monkeypatch.setattr(gguf_files, "SPECIAL", names)
    made = tokenizer("llama-bpe", TEXT)
    made.add_tokens([AddedToken(name, normalized=False) for name in ("<｜User｜>", "    ")])
    kinds = gguf.GGUFWriter.add_token_types
    monkeypatch.setattr(gguf.GGUFWriter, "add_token_types", lambda self, types: kinds(self, [*types[:-2], 4, 4]))
    found = load_tokenizer(write(tmp_path / "m.gguf", model(vocab_size=600), made, pre="llama-bpe"))
    for text in ("a<｜User｜>b    c  d", "<｜begin▁of▁sentence｜>x<|endoftext|><s>"):
        assert found(text, add_special_tokens=False).input_ids == made.encode(text).ids
    assert (len(found), found.bos_token_id, found.eos_token_id) == (600, 1, 2)


@needs_tokenizers
@pytest.mark.parametrize(
    ("pre", "says", "wanted"),
    [
        ("gpt-2", {}, []),
        ("llama-bpe", {}, [1]),
        ("llama-bpe", {"add_bos_token": False}, []),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, [1, 2]),
    ],
)
def test_texts_begin_and_end_as_the_file_says_or_llama_cpp_does(
    tmp_path: Path, pre: str, says: dict[str, bool], wanted: list[int]
) -> None:
    file = write(
        tmp_path / "m.gguf", model(), words(pre), pre=pre, whole={f"tokenizer.ggml.{k}": v for k, v in says.items()}
    )
    assert load_tokenizer(file)("").input_ids == wanted


@needs_tokenizers
def test_a_sentencepiece_text_gets_its_space_also_where_it_begins_with_one(tmp_path: Path) -> None:
    """The ids are those of sentencepiece and of llama.cpp, worked out by hand: the best pair is merged first."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    plain = ["▁", "a", "b", "▁a", "▁▁", "ab", "▁ab"]
    stock = tiny("llama", len(pieces) + len(plain))

    class Written(gguf.GGUFWriter):
        def add_token_merges(self, merges: Any) -> None:
            self.add_token_scores([0.0] * len(pieces) + [-9.0, -9.0, -9.0, -3.0, -2.0, -1.0, -1.5])

        def add_tokenizer_model(self, model: str) -> None:
            super().add_tokenizer_model("llama")

        def add_token_list(self, tokens: Any) -> None:
            super().add_token_list([*pieces, *plain])

        def add_token_types(self, types: Any) -> None:
            super().add_token_types([2, 3, 3, *([6] * 256), *([1] * len(plain))])

    before, gguf.GGUFWriter = gguf.GGUFWriter, Written
    try:
        file = write(tmp_path / "m.gguf", stock, words())
    finally:
        gguf.GGUFWriter = before
    found, first = load_tokenizer(file), len(pieces)
    ids = {piece: first + index for index, piece in enumerate(plain)}
    assert found("ab").input_ids == [1, ids["▁ab"]]
    assert found(" ab").input_ids == [1, ids["▁"], ids["▁ab"]]
    assert found("a b").input_ids == [1, ids["▁a"], ids["▁"], ids["b"]]
    assert found("é").input_ids == [1, ids["▁"], 3 + 0xC3, 3 + 0xA9]


def refused(file: Path) -> str:
    with pytest.raises(HarpeError) as error:
        resolve(file)
    assert not (file.parent / "cache").exists() or not list((file.parent / "cache" / "gguf").glob("[!.]*"))
    return str(error.value)


BIAS = {"blk.0.attn_q.bias": np.zeros(128, np.float32)}


@needs_tokenizers
@pytest.mark.parametrize(
    ("changes", "words_"),
    [
        ({"states": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}}, "scales its positions"),
        ({"states": {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}}, "scaling.factor 8.0"),
        ({"states": {"rope.scaling.factor": 8.0}}, "scales its positions"),
        ({"states": {"attention.scale": 0.5}}, "states llama.attention.scale, which harpe does not take over"),
        ({"states": {"expert_count": 8}}, "llama.expert_count"),
        ({"states": {"attention.sliding_window": 16}}, "llama.attention.sliding_window"),
        ({"states": {"rope.dimension_count": 16}}, "one size for all"),
        ({"states": {"attention.head_count": [4, 2]}}, r"states \[4, 2\] for llama.attention.head_count"),
        ({"states": {"attention.head_count_kv": [2, 1]}}, r"states \[2, 1\] for llama.attention.head_count_kv"),
        ({"states": {"attention.key_length": [32, 32]}}, r"states \[32, 32\] for llama.attention.key_length"),
        ({"states": {"rope.freq_base": "1e6"}}, "states '1e6' for llama.rope.freq_base"),
        ({"states": {"context_length": None}}, "does not state llama.context_length"),
        ({"holds": {"rope_freqs.weight": np.linspace(1, 3, 16, dtype=np.float32)}}, "in another way than Llama 3"),
        ({"holds": {"blk.1.ffn_up.weight": None}}, "lacks blk.1.ffn_up.weight, .* random"),
        ({"holds": BIAS}, "holds blk.0.attn_q.bias, for which"),
        ({"holds": {"output_norm.weight": np.ones(63, np.float32)}}, r"\[63\], and .* \[64\]"),
        ({"whole": {"general.type": "adapter"}}, "no model but a part for one"),
        ({"whole": {"split.count": 3}}, "one of 3 parts"),
        ({"pre": "deepseek-coder"}, "tokenizer.ggml.pre deepseek-coder"),
    ],
)
def test_what_would_be_lost_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], words_: str
) -> None:
    pre = changes.pop("pre", "gpt-2")
    file = write(tmp_path / "m.gguf", model(), words(), pre=pre, **changes)
    assert re.search(words_, refused(file))


@needs_tokenizers
def test_a_tokenizer_that_transformers_would_load_as_another_is_refused(tmp_path: Path) -> None:
    assert "always takes Qwen2Tokenizer" in refused(write(tmp_path / "m.gguf", model("qwen2"), words()))


@needs_tokenizers
def test_a_scaling_that_the_file_itself_switches_off_is_none(tmp_path: Path) -> None:
    states = {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    assert torch.equal(logits(load_model(write(tmp_path / "m.gguf", model(), words(), states=states))), logits(model()))


def test_another_family_a_cut_file_and_no_gguf_at_all_are_told(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", model("gemma2"), words())
    assert "architecture gemma2; harpe reads llama, qwen2, qwen3" in refused(file)
    file = write(tmp_path / "n.gguf", model(), words())
    whole = file.read_bytes()
    for size in (3, 100, 20_000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "no whole GGUF file" in refused(file)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "git lfs pull" in refused(file)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "m.gguf", model(), words())
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'harpe[gguf]'" in refused(file)


@pytest.mark.skipif(not old, reason="of transformers that splits every text by one rule")
def test_an_old_transformers_is_refused(tmp_path: Path) -> None:
    assert f"needs transformers {OLDEST}" in refused(write(tmp_path / "m.gguf", model(), words()))


@needs_tokenizers
def test_a_file_is_known_by_its_content_whatever_it_is_called(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", model(), words())
    first = Path(resolve(file))
    identity = checkpoint_identity(file)
    (tmp_path / "blob").write_bytes(file.read_bytes())  # Ollama's files have no ending
    assert checkpoint_identity(tmp_path / "blob") == identity
    write(file, model(max_position_embeddings=778), words())
    second = Path(resolve(file))
    assert first != second and first.name[:2] == second.name[:2] == "m-"
    assert load_config(file).max_position_embeddings == 778 and checkpoint_identity(file) != identity


@needs_tokenizers
def test_a_checkpoint_of_another_conversion_is_made_anew(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", model(), words())
    folder = Path(resolve(file))
    origin = folder / ORIGIN
    assert read_json(origin)["types"] == {"F32": 21}
    origin.write_text(origin.read_text().replace('"conversion": 2', '"conversion": 0'))
    (folder / "model.safetensors").write_bytes(b"of before")
    assert torch.equal(logits(load_model(file)), logits(model()))


@needs_tokenizers
def test_of_processes_that_want_it_at_once_one_makes_it_and_the_others_wait(tmp_path: Path, fork: Any) -> None:
    file = write(tmp_path / "m.gguf", model(), words())

    def resolved() -> int:
        checkpoint_of(Path(file), print)
        return 0

    workers = [fork(resolved, HARPE_CACHE=str(tmp_path / "cache")) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    lines = [line for worker in workers for line in worker.stdout.splitlines()]
    assert len(lines) == 4 and sum(line.startswith("Dequantising") for line in lines) == 1


@needs_tokenizers
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "m.gguf", model(), words())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert "HARPE_CACHE" in refused(file)


def test_a_folder_stands_for_its_only_file_and_one_of_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (one := tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert gguf_file(tmp_path) == gguf_file(one) == gguf_file(f"{tmp_path}:a.gguf") == one
    (tmp_path / "b.GGUF").write_bytes(b"GGUF")
    with pytest.raises(HarpeError, match=r"holds 2 GGUF files. Name one of them: .*:a.gguf"):
        resolve(tmp_path)
    with pytest.raises(HarpeError, match="no GGUF file c.gguf in the folder"):
        resolve(f"{tmp_path}:c.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert gguf_file(tmp_path) is None
    assert (
        gguf_file("org/name") is None and gguf_file("embedded") is None and gguf_file(tmp_path / "config.json") is None
    )


@needs_tokenizers
def test_verbs_take_a_file_and_say_what_its_weights_have_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "m.gguf", model(max_position_embeddings=64), words(), "Q8_0")
    assert main(["bases", "--model", str(file), "--length", "128", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["length"] == 128 and "16 Q8_0" in told.err and "stays lost" in told.err
    (tmp_path / "texts.txt").write_text(TEXT)
    settings: dict[str, Any] = {"length": 128, "tokens": 512, "batch_tokens": 128, "dtype": "float32"}
    made = harpe.extend(model=f"{tmp_path}:m.gguf", data=str(tmp_path / "texts.txt"), out=tmp_path / "run", **settings)
    assert any("16 Q8_0" in reason for reason in read_json(tmp_path / "run" / "plan.json")["reasons"])
    assert load_model(made).config.harpe_original_length == 64 and load_tokenizer(made).chat_template == TEMPLATE


def test_a_folder_named_like_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "old.gguf").mkdir()
    assert gguf_file(tmp_path) is None
    with pytest.raises(HarpeError, match=r"holds no config\.json"):
        resolve(tmp_path)


def test_names_with_colons_and_tildes_are_names(tmp_path: Path) -> None:
    (folder := tmp_path / "a: b").mkdir()
    for name in ("x.gguf", "y: z.gguf"):
        (folder / name).write_bytes(b"GGUF")
        assert gguf_file(f"{folder}:{name}") == folder / name
    for name, words in (
        (f"{folder}:w.gguf", f"There is no GGUF file w.gguf in the folder {folder}"),
        ("~nobody-of-that-name/x.gguf", "There is no file ~nobody-of-that-name/x.gguf"),
        (str(tmp_path / "moved.gguf"), "There is no file .*moved.gguf"),
    ):
        with pytest.raises(HarpeError, match=words):
            gguf_file(name)
