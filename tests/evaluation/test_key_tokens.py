"""LongPPL against its definition (Fang et al. 2025, arXiv 2410.23771) written out token by token with stock forwards:
own judge, another judge, and a judge with another tokenizer."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import harpe
from harpe.errors import HarpeError
from harpe.evaluation.perplexity.key_tokens import covered, judge_text
from harpe.files import read_json
from harpe.models import head, key_tokens
from harpe.models.key_tokens import longce_weights, short_context_nll
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.options.measuring import PerplexityOptions
from harpe.suites.perplexity import measure_perplexity

K, L = 60, 250


def stock_losses(model: Any, ids: list[int]) -> list[float]:
    """Of the tokens 1, 2, … of a text."""
    with torch.inference_mode():
        logs = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return [-float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1)]


def naive_short(model: Any, ids: list[int], context: int, step: int) -> list[float]:
    """Loss of every token behind the window that its block of `step` tokens shares; nan for the first `context`."""
    found, windows = [math.nan] * (len(ids) - 1), dict[int, list[float]]()
    for token in range(context, len(ids)):
        begin = (token - context) // step * step
        if begin not in windows:
            windows[begin] = stock_losses(model, ids[begin : begin + context + step])
        found[token - 1] = windows[begin][token - begin - 1]
    return found


def naive_keys(model: Any, ids: list[int], context: int, alpha: float = 2, bound: float = 2) -> list[int]:
    """Places of the key tokens in the text."""
    long, short = stock_losses(model, ids), naive_short(model, ids, context, context // 4)
    return [t for t in range(context, len(ids)) if short[t - 1] - long[t - 1] > alpha and long[t - 1] < bound]


def naive_covered(tokens: list[tuple[int, int]], keys: list[tuple[int, int]]) -> list[bool]:
    """Runs of keys that touch, and which tokens lie inside of one."""
    runs: list[list[int]] = []
    for start, end in keys:
        if runs and runs[-1][1] == start:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    return [any(start <= a and b <= end for start, end in runs) for a, b in tokens]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names with numbers, which come back far behind."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    for n in range(4):
        names = [f"{draw.choice(['alpha', 'beta', 'gamma'])}_{draw.randrange(10**6)}" for _ in range(5)]
        lines = [f"{name} = {draw.randrange(10**5)}" for name in names] + [f"x_{i} = foo({i})" for i in range(4)]
        lines += [f"print({draw.choice(names)})" for _ in range(60)]
        (folder / f"{n}.txt").write_text("\n".join(lines))
    return folder


def measure(texts: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = {"model": "embedded", "data": str(texts), "out": str(out / "p.json"), "dtype": "float32", "documents": 4}
    given |= {"lengths": f"128,{L}", "key_tokens": True, "short_context": K}
    return read_json(measure_perplexity(PerplexityOptions(**{**given, **changes})))


def expected(losses: list[list[float]], keys: list[list[int]]) -> tuple[float, int]:
    found = [of[t - 1] for of, places in zip(losses, keys, strict=True) for t in places]
    return math.exp(sum(found) / len(found)), len(found)


def test_longppl_of_a_model_that_judges_itself_is_that_of_the_definition(texts: Path, tmp_path: Path) -> None:
    value = measure(texts, tmp_path)
    model, tokenizer = load_model("embedded", torch.float32).eval(), load_tokenizer("embedded")
    rows = [tokenizer(path.read_text(), verbose=False).input_ids[:L] for path in sorted(texts.iterdir())]
    losses, keys = [stock_losses(model, row) for row in rows], [naive_keys(model, row, K) for row in rows]
    found = value["key_tokens"]
    assert (found["judge"], found["step"], found["alpha"], found["beta"]) == ("the model itself", 15, 2, -2)
    for point in found["points"]:
        perplexity, count = expected(losses, [[t for t in each if t < point["length"]] for each in keys])
        assert point["perplexity"] == pytest.approx(perplexity, rel=1e-4) and point["count"] == count
        assert point["low"] <= point["perplexity"] <= point["high"]
        assert point["tokens"] == [sum(t < point["length"] for t in each) for each in keys]
    assert found["points"][-1]["count"] > 10 and found["share"] == found["points"][-1]["count"] / (4 * (L - K))
    # by position: a token's loss lies where the token before it stands
    for b in found["positions"]:
        here = [of[t - 1] for of, each in zip(losses, keys, strict=True) for t in each if b["start"] < t <= b["end"]]
        assert b["tokens"] == len(here) and b["nll"] == pytest.approx(sum(here) / len(here), rel=1e-4)
    assert sum(b["tokens"] for b in found["positions"]) == found["points"][-1]["count"]
    # what is measured without is the same
    plain = measure(texts, tmp_path / "plain", key_tokens=False)
    assert plain["points"] == value["points"] and "key_tokens" not in plain
    svg = (tmp_path / "p-key-tokens.svg").read_text()
    assert "tokens that need more than 60 tokens before them; judge: the model itself" in svg
    assert not (tmp_path / "plain" / "p-key-tokens.svg").exists()


def test_a_judge_with_the_same_tokenizer_chooses_the_tokens_and_the_model_is_measured(
    make_tiny: Any, texts: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer("embedded")
    other = make_tiny("llama", vocab_size=len(tokenizer))
    save_checkpoint(other, tokenizer, tmp_path / "other", 512)
    value = measure(texts, tmp_path, model=str(tmp_path / "other"), judge="embedded")
    judge = load_model("embedded", torch.float32).eval()
    rows = [tokenizer(path.read_text(), verbose=False).input_ids[:L] for path in sorted(texts.iterdir())]
    keys = [naive_keys(judge, row, K) for row in rows]
    perplexity, count = expected([stock_losses(other, row) for row in rows], keys)
    last = value["key_tokens"]["points"][-1]
    assert last["perplexity"] == pytest.approx(perplexity, rel=1e-4) and last["count"] == count > 10
    with pytest.raises(HarpeError, match="key-tokens model"):  # another judge is another measurement
        measure(texts, tmp_path, model=str(tmp_path / "other"))


def characters() -> PreTrainedTokenizerFast:
    """One token a byte, nothing in front of texts."""
    alphabet = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet | {"<e>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>")


def test_a_judge_with_another_tokenizer_is_mapped_by_characters(
    make_tiny: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both directions: the judge's tokens are shorter than the model's, and longer. A random judge has key tokens under
    wider bounds alone."""
    monkeypatch.setattr(key_tokens, "ALPHA", 0.2)
    monkeypatch.setattr(key_tokens, "BETA", -9.0)
    bytes_, words = characters(), load_tokenizer("embedded")
    sharp = make_tiny("llama", vocab_size=257, max_position_embeddings=2048)
    with torch.no_grad():  # losses far apart
        sharp.lm_head.weight.mul_(3)
    save_checkpoint(sharp, bytes_, tmp_path / "bytes", 2048)
    short = load_model("embedded", torch.float32).eval()
    for name, model, judge, own, theirs in (
        ("a", short, sharp, words, bytes_),
        ("b", sharp, short, bytes_, words),
    ):
        names = [str(tmp_path / "bytes") if each is sharp else "embedded" for each in (model, judge)]
        value = measure(texts, tmp_path / name, model=names[0], judge=names[1], lengths=str(L))
        total, count = 0.0, 0
        for path in sorted(texts.iterdir()):
            text = path.read_text()
            begin = own("a").input_ids[:-1]
            size = L - len(begin)
            read = own(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            offsets = read.offset_mapping[:size]
            judged = theirs(text[: offsets[-1][1]], return_offsets_mapping=True, verbose=False)
            places = naive_keys(judge, judged.input_ids, K, 0.2, 9.0)
            inside = naive_covered(offsets, [judged.offset_mapping[t] for t in places])
            losses = stock_losses(model, [*begin, *read.input_ids[:size]])
            for i, key in enumerate(inside):
                if key and i + len(begin) > 0:
                    total, count = total + losses[i + len(begin) - 1], count + 1
        last = value["key_tokens"]["points"][-1]
        assert last["count"] == count > 10
        assert last["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_covered_tokens_are_those_within_runs_of_touching_keys() -> None:
    draw = random.Random(1)
    for _ in range(300):
        edges = sorted(draw.sample(range(60), 20))
        keys = [pair for pair in pairwise(edges) if draw.random() < 0.5]
        cuts = sorted(draw.sample(range(60), 25))
        tokens = [pair for pair in pairwise(cuts) if draw.random() < 0.9]
        assert covered(tokens, keys).tolist() == naive_covered(tokens, keys)
    # the three bytes of one character
    three = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert covered(three, [(1, 2), (1, 2)]).tolist() == [False, True, True, True, False]
    assert covered([(0, 1)], []).tolist() == [False]


@pytest.mark.filterwarnings("ignore:the model has new positions")
@pytest.mark.parametrize("method", ["harpe", "yarn", "self-extend", "dca", "ntk-dynamic"])
def test_short_contexts_are_texts_of_their_own_with_every_encoding(make_tiny: Any, method: str) -> None:
    model = make_tiny("llama", max_position_embeddings=64)
    harpe.apply(model, method, length=256)
    ids = torch.randint(1, 97, (201,), generator=torch.Generator().manual_seed(0))
    short_context_nll(model, ids, 90, 30)  # a text that was read before changes nothing
    found = short_context_nll(model, ids, 40, 16).numpy()
    assert np.isnan(found[:39]).all()
    fresh = make_tiny("llama", max_position_embeddings=64)
    expected = []
    for token in range(40, 201):
        begin = (token - 40) // 16 * 16
        if method == "ntk-dynamic" or not expected:
            fresh = make_tiny("llama", max_position_embeddings=64)
            harpe.apply(fresh, method, length=256)
        expected.append(stock_losses(fresh, ids[begin : begin + 56].tolist())[token - begin - 1])
    np.testing.assert_allclose(found[39:], expected, rtol=1e-4, atol=1e-5)


def test_no_logits_of_a_whole_text_exist(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    formed = head.logits_of
    monkeypatch.setattr(head, "CHUNK", 7)
    monkeypatch.setattr(head, "logits_of", lambda model, states: seen.append(states.shape[1]) or formed(model, states))
    short_context_nll(make_tiny("llama"), torch.arange(1, 90), 32, 16)
    assert max(seen) == 7 and sum(seen) == 89 - 32


def test_longce_weights_are_those_of_the_paper_and_pass_no_gradient() -> None:
    long = torch.tensor([1.0, 3.0, 0.5, 2.0], requires_grad=True)
    short = torch.tensor([math.nan, 2.0, 1.0, 9.0])
    weights = longce_weights(long, short)
    assert weights.tolist() == pytest.approx([1.0, math.exp(-1.0), math.exp(0.5), 5.0])
    (weights * long).mean().backward()
    assert long.grad is not None and long.grad.tolist() == pytest.approx((weights / 4).tolist())


def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(texts: Path, tmp_path: Path) -> None:
    for changes, sentence in (
        ({"lengths": None, "window": 100}, "--key-tokens goes with --lengths"),
        ({"average": "yarn"}, "averages over tokens"),
        ({"short_context": L}, f"--short-context {L}: key tokens have more than that before them"),
        ({"short_context": 0}, "--short-context 0"),
        ({"key_tokens": False, "judge": "embedded"}, "--judge says which tokens"),
        ({"judge": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises(HarpeError, match=sentence):
            measure(texts, tmp_path, **changes)
    assert not list(tmp_path.glob("p*"))
    slow = load_tokenizer("embedded")
    ids = slow("one two three").input_ids
    with pytest.raises(HarpeError, match="do not come back from their text"):
        judge_text(slow, [*ids, ids[-1] + 1, ids[1], ids[1]][::-1] * 3, 9, slow, ())
