"""Answers that are made together are those that transformers' own `generate` gives to each prompt alone."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from harpe.api import apply
from harpe.evaluation import greedy
from harpe.evaluation.answers import answer_samples
from harpe.evaluation.cache import why_padded
from harpe.evaluation.greedy import completions
from harpe.evaluation.long.registry import LONG_TASKS
from harpe.evaluation.row_attention import one_query_attention
from harpe.evaluation.ruler.tasks import RULER_TASKS, cleaned, score
from harpe.models.dtype import hold_weights
from harpe.models.load import load_tokenizer

BUDGET = 24


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("embedded")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in pieces, and short beginnings are shared."""
    monkeypatch.setattr(greedy, "PIECE", 32)
    monkeypatch.setattr(greedy, "SHARED", 8)


def prompts() -> list[list[int]]:
    """Of several lengths: some begin alike, two are the same, one is a beginning of another."""
    drawn = torch.randint(5, 2000, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    first, other = [*drawn[:70], 9, 8, 7], drawn[::-1][:21]
    return [first, [*drawn[:40], *[3] * 17], [*first, 6], other, list(first)]


def alone(model: Any, tokenizer: Any, prompt: list[int]) -> str:
    """transformers' `generate` on one prompt, by a model that has read nothing before."""
    model = copy.deepcopy(model)
    config = GenerationConfig(max_new_tokens=BUDGET, do_sample=False, eos_token_id=0, pad_token_id=0)
    ids = torch.tensor([prompt])
    model.generation_config = GenerationConfig()
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return str(tokenizer.decode(out[0, len(prompt) :].tolist(), skip_special_tokens=True))


WINDOW, OWN_MASKS = "window", "harpe_remapped"


@pytest.mark.filterwarnings("ignore:the model has new positions")
@pytest.mark.parametrize(
    ("family", "changes", "padded"),
    [
        ("llama", {}, None),
        ("llama", {"attn_implementation": "eager"}, None),
        ("qwen3", {"key_value_heads": 4}, None),
        ("gpt_neox", {}, None),
        ("olmoe", {}, None),
        ("granite", {}, None),
        ("mistral", {"sliding_window": 16}, WINDOW),
        ("gemma2", {}, WINDOW),  # caps its scores
        ("gpt_oss", {}, WINDOW),  # has sinks
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, "dynamic"),
        ("llama", {"method": "harpe"}, None),
        ("gemma2", {"method": "harpe"}, WINDOW),
        ("llama", {"method": "self-extend"}, OWN_MASKS),
    ],
    ids=str,
)
def test_answers_are_those_of_plain_generation(
    make_tiny: Any, tokenizer: Any, family: str, changes: dict[str, Any], padded: str | None
) -> None:
    changes = dict(changes)
    method, attention = changes.pop("method", None), changes.pop("attn_implementation", None)
    model = make_tiny(family, vocab_size=len(tokenizer), max_position_embeddings=64, **changes)
    if attention:
        model.set_attn_implementation(attention)
    if method:
        apply(model, method, length=256)
    reason = why_padded(model)
    assert (reason is None) if padded is None else (padded in str(reason))
    shares: list[float] = []
    expected = [alone(model, tokenizer, prompt) for prompt in prompts()]
    assert completions(model, tokenizer, prompts(), BUDGET, tick=shares.append) == expected
    assert shares == sorted(shares) and all(0 < share < 1 for share in shares)
    assert model.config._attn_implementation != "harpe_one_query"


def test_an_end_of_text_ends_one_answer_and_no_other(make_tiny: Any, tokenizer: Any) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))
    with torch.no_grad():  # end-of-text after some tokens, sooner or later
        model.lm_head.weight[0] = model.lm_head.weight[5:40].sum(0) * 0.6
    expected = [alone(model, tokenizer, prompt) for prompt in prompts()]
    lengths = {len(tokenizer(text).input_ids) for text in expected}
    assert len(lengths) > 1, lengths
    assert completions(model, tokenizer, prompts(), BUDGET) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [2, 6])
def test_attention_of_one_query_is_as_exact_as_torchs(dtype: torch.dtype, heads: int) -> None:
    """Against float64, beside torch's kernel; in groups of 1 and of 3 queries, with masked keys."""
    drawn = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(5, h, n, 16, generator=drawn, dtype=torch.float64).to(dtype)
        for h, n in ((heads, 1), (2, 300), (2, 300))
    )
    seen = torch.arange(300) < torch.tensor([300, 1, 7, 299, 128])[:, None, None, None]
    mask = torch.zeros(5, 1, 1, 300).masked_fill(~seen, torch.finfo(torch.float32).min)
    key64, value64 = (x.double().repeat_interleave(heads // 2, dim=1) for x in (key, value))
    scores = (query.double() @ key64.transpose(2, 3) * 0.3).masked_fill(~seen, -torch.inf)
    exact = (scores.softmax(-1) @ value64).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        # keys come in float32, rounded to the dtype
        ours, _ = one_query_attention(torch.nn.Module(), query.float(), key.float(), value, mask, scaling=0.3)
        torchs = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, seen, scale=0.3, enable_gqa=heads > 2
        ).transpose(1, 2)
    assert (ours - exact).norm() < 1.5 * (torchs - exact).norm() + 1e-7


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "olmoe", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_held_in_bfloat16_give_the_bits_of_autocast(
    make_tiny: Any, tokenizer: Any, family: str, tied: bool
) -> None:
    model = make_tiny(family, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    ids = torch.tensor([prompts()[0]])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = model(ids).logits
        assert hold_weights(model, torch.bfloat16)
        assert torch.equal(model(ids).logits, before)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16


def test_weights_stay_where_a_model_multiplies_outside_of_autocast(make_tiny: Any) -> None:
    model = make_tiny("llama")
    gate = model.model.layers[0].mlp.gate_proj

    def exactly(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.nn.functional.linear(x.float(), gate.weight.float())

    gate.forward = exactly
    weights = dict(model.named_parameters())
    assert not hold_weights(model, torch.bfloat16)
    assert all(weights[name] is value for name, value in model.named_parameters())


@pytest.mark.parametrize("name", ["niah_multivalue", "vt", "qa_1"])
def test_a_decided_score_is_that_of_every_longer_answer(name: str) -> None:
    """Against all longer answers that random pieces make, one character after the other."""
    task, rng = RULER_TASKS[name], random.Random(0)
    references = ["12", "Ab", "34"]
    pieces = ["12", "ab", "34", " ", "\x00", "\n", "σ", "Σ", "İ", "x", "1", "."]
    ended = 0
    for _ in range(300):
        whole = "".join(rng.choices(pieces, k=20))
        texts = [whole[:end] for end in range(len(whole) + 1)]
        scores = [score(task, text, references) for text in texts]
        first = next((place for place, text in enumerate(texts) if task.decided({"outputs": references}, text)), None)
        if first is not None:
            ended += 1
            assert set(scores[first:]) == {1.0}
        # it is decided where all (or, for questions, any) stand there
        found = [ref.lower() in cleaned(whole).lower() for ref in references]
        assert (first is not None) == (any(found) if task.kind == "qa" else all(found))
    assert ended > 20


@pytest.mark.parametrize("name", ["order-nth-4", "content-4", "babilong-qa1", "coreference-2"])
def test_no_later_text_changes_the_score_of_a_long_task_that_is_decided(name: str) -> None:
    task, rng = LONG_TASKS[name], random.Random(0)
    sample = {"outputs": ["12" if "-4" in name else "kitchen"], "mark": "", "question": "Where is Ann?"}
    pieces = ["12", "1", "٣", "kitchen", "Kitchen", "garden", " ", "\n", "\nUser:", ".", "\u2028", "\x1c", "İ", "x"]
    scores_of_decided = set()
    for _ in range(300):
        whole = "".join(rng.choices(pieces, k=12))
        texts = [whole[:end] for end in range(len(whole) + 1)]
        scores = [task.score(text, sample) for text in texts]
        first = next((place for place, text in enumerate(texts) if task.decided(text)), None)
        assert all(task.decided(f"{text}\ufffd") == task.decided(text) for text in texts)  # a part of a character
        if first is not None:
            assert len(set(scores[first:])) == 1, whole
            scores_of_decided.add(scores[first])
    assert {0.0, 1.0} <= scores_of_decided


def test_the_last_of_several_lists_counts_so_that_graph_walks_are_never_decided() -> None:
    task, sample = LONG_TASKS["graph-bfs"], {"outputs": ["a"]}
    assert task.score("a]", sample) == 1.0 and task.score("a] Final Answer: [b]", sample) == 0.0
    assert not task.decided("a]")


def test_references_whose_case_depends_on_what_follows_decide_nothing() -> None:
    task = RULER_TASKS["qa_1"]
    assert score(task, "ΟΔΟΣ", ["οδος"]) == 1.0 and score(task, "ΟΔΟΣΑ", ["οδος"]) == 0.0
    assert not task.decided({"outputs": ["οδος"]}, "ΟΔΟΣ")
    assert not RULER_TASKS["vt"].decided({"outputs": ["οδος", "ab"]}, "ΟΔΟΣ ab")


@pytest.mark.parametrize("window", [None, 16])
def test_answers_that_end_early_are_beginnings_with_the_same_scores(
    make_tiny: Any, tokenizer: Any, window: int | None
) -> None:
    """References are taken from the full answers, so that some are found early, some late and some never."""
    model = make_tiny("mistral", vocab_size=len(tokenizer), sliding_window=window)
    samples = [{"input": "x y " * n, "answer_prefix": " is", "outputs": ["?"]} for n in (30, 5, 40, 12)]

    def answers(full: bool) -> dict[int, dict[str, Any]]:
        batches = answer_samples(model, tokenizer, RULER_TASKS["vt"], samples, full=full)
        return {row["sample"]: row for batch in batches for row in batch}

    whole = {number: row["prediction"] for number, row in answers(True).items()}
    for sample, (start, end) in zip(samples, [(5, 9), (30, 36), (0, 0), (2, 4)], strict=True):
        text = cleaned(whole[samples.index(sample)])
        sample["outputs"] = [text[start:end] if end else "never", text[start + 1 : end] if end else "said"]
    full, early = answers(True), answers(False)
    assert {number: row["prediction"] for number, row in full.items()} == whole
    assert not any(row["cut"] for row in full.values())
    assert [early[n]["cut"] for n in range(4)] == [True, True, False, True]
    for number, row in early.items():
        assert row["score"] == full[number]["score"]
        assert whole[number].startswith(row["prediction"])
        assert (len(row["prediction"]) < len(whole[number])) == row["cut"]
