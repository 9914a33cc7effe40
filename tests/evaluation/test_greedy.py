"""What a checkpoint's generation_config.json says changes no answer, whoever asks."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, PreTrainedTokenizerFast

from harpe.errors import HarpeError
from harpe.evaluation.answers import answer_samples
from harpe.evaluation.cache import why_padded
from harpe.evaluation.greedy import completions, end_ids
from harpe.evaluation.needles.answers import answer_batch
from harpe.evaluation.needles.grid import answer_grid, grid_samples
from harpe.evaluation.needles.samples import NEEDLE_TASKS, NeedleWriter
from harpe.evaluation.ruler.tasks import RULER_TASKS
from harpe.models.load import load_model, load_tokenizer, save_checkpoint

VOCABULARY = 2048
ODD: dict[str, Any] = {
    "repetition_penalty": 1.9,
    "encoder_repetition_penalty": 1.7,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(5, 1000)),
    "begin_suppress_tokens": list(range(5, VOCABULARY - 1)),
    "bad_words_ids": [[i] for i in range(1000, 1500)],
    "sequence_bias": [[[7], 50.0]],
    "forced_bos_token_id": VOCABULARY - 1,
    "forced_eos_token_id": VOCABULARY - 2,
    "exponential_decay_length_penalty": [0, 3.0],
    "min_new_tokens": 300,
    "min_length": 400,
    "max_length": 5,
    "max_new_tokens": 1,
    "max_time": 1e-9,
    "stop_strings": ["a", "e", " "],
    "eos_token_id": list(range(5, VOCABULARY)),
    "pad_token_id": 3,
    "bos_token_id": 4,
    "temperature": 0.3,
    "do_sample": True,
    "top_k": 4,
    "top_p": 0.5,
    "typical_p": 0.5,
    "num_beams": 3,
    "length_penalty": 3.0,
    "early_stopping": True,
    "guidance_scale": 2.5,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 3,
    "is_assistant": True,
    "assistant_confidence_threshold": 0.99,
    "watermarking_config": {"greenlist_ratio": 0.2, "bias": 9.0},
    "token_healing": True,
    "cache_implementation": "static",
    "use_cache": False,
    "return_dict_in_generate": True,
    "output_scores": True,
    "remove_invalid_values": True,
    "renormalize_logits": True,
}
"""Every one of them is taken by `generate` where the caller leaves it open."""


def naive(model: Any, prompt: list[int], budget: int) -> list[int]:
    """The most probable token after the other, each from a pass of its own over everything before it."""
    ids = list(prompt)
    for _ in range(budget):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def prompts() -> list[list[int]]:
    return [
        torch.randint(5, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (19, 31, 8)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("embedded")


@pytest.fixture
def odd_model(make_tiny: Any, tokenizer: Any, tmp_path: Path) -> Any:
    """A random model from a folder whose generation_config.json is full of odd settings."""
    save_checkpoint(make_tiny("llama", vocab_size=len(tokenizer)), tokenizer, tmp_path / "odd", 512)
    (tmp_path / "odd" / "generation_config.json").write_text(json.dumps(ODD))
    return load_model(tmp_path / "odd", torch.float32)


def test_no_single_setting_changes_an_answer_and_the_settings_stay(make_tiny: Any, tokenizer: Any) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))
    expected = [tokenizer.decode(naive(model, prompt, 8), skip_special_tokens=True) for prompt in prompts()]
    for name, value in ODD.items():
        settings = GenerationConfig.from_dict({name: value})
        model.generation_config = settings
        assert completions(model, tokenizer, prompts(), 8) == expected, name
        assert model.generation_config is settings  # they belong to the checkpoint, which may be saved again


def test_answers_to_ruler_are_those_of_a_naive_loop(odd_model: Any, tokenizer: Any) -> None:
    samples = [{"input": "x y " * n, "answer_prefix": " is", "outputs": ["x"]} for n in (30, 5)]
    rows = {
        row["sample"]: row["prediction"]
        for rows in answer_samples(odd_model, tokenizer, RULER_TASKS["vt"], samples)
        for row in rows
    }
    for number, sample in enumerate(samples):
        ids = [0, *tokenizer.encode(sample["input"] + sample["answer_prefix"], add_special_tokens=False)]
        assert rows[number] == tokenizer.decode(naive(odd_model, ids, 30), skip_special_tokens=True)


def test_answers_about_needles_and_in_the_grid_are_those_of_a_naive_loop(odd_model: Any, tokenizer: Any) -> None:
    writer = NeedleWriter(tokenizer, [torch.arange(5, 700).tolist()], seed=1)
    sample = writer.sample(NEEDLE_TASKS["multi_query"], 400, 0)
    ids = list(sample.context)
    for turn, text in zip(sample.turns, answer_batch(odd_model, tokenizer, [sample])[0], strict=True):
        ids += turn.question
        answer = naive(odd_model, ids, turn.budget)
        assert text == tokenizer.decode(answer)
        ids += answer
    (grid,) = grid_samples(writer, 96, 64, 1)
    for row in (
        row for rows in answer_grid(odd_model, tokenizer, [grid], [(64, 0.5), (96, 0.5)], "crop") for row in rows
    ):
        cell = grid.cell(row["length"], 0.5)
        answer = naive(odd_model, [*cell.context, *cell.turns[0].question], cell.turns[0].budget)
        assert row["answers"] == [tokenizer.decode(answer)]


@pytest.mark.parametrize("family", ["llama", "mistral"])  # rows of a cache; padded, by transformers' generate
def test_logits_that_are_no_numbers_are_no_answer(make_tiny: Any, tokenizer: Any, family: str) -> None:
    """The largest of them is the first NaN: such a model would be one that answers, and is wrong every time."""
    model = make_tiny(family, vocab_size=len(tokenizer), **({"sliding_window": 16} if family == "mistral" else {}))
    assert (why_padded(model) is None) == (family == "llama")
    answers = completions(model, tokenizer, prompts(), 4)
    sample = NeedleWriter(tokenizer, [torch.arange(5, 700).tolist()], seed=1).sample(NEEDLE_TASKS["single"], 96, 0)
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")
    assert int(model(torch.tensor([prompts()[0]])).logits[0, -1].argmax()) == 7 and len(answers) == 3
    with pytest.raises(HarpeError, match="no numbers"):
        completions(model, tokenizer, prompts(), 4)
    with pytest.raises(HarpeError, match="no numbers"):
        answer_batch(model, tokenizer, [sample])


@pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="short benchmarks need the package lm-eval (pip install 'harpe[eval]')"
)
def test_log_likelihoods_that_are_no_numbers_choose_no_answer(make_tiny: Any, tokenizer: Any) -> None:
    from lm_eval.api.instance import Instance

    from harpe.evaluation.short.model import short_model

    model = make_tiny("llama", vocab_size=len(tokenizer))
    wrapped = short_model(None, pretrained=model, tokenizer=tokenizer, batch_size=2, backend="causal")
    asked = [Instance("loglikelihood", {}, ("Question: who?\nAnswer:", word), i) for i, word in enumerate((" a", " b"))]
    assert all(value < 0 for value, _ in wrapped.loglikelihood(asked, disable_tqdm=True))
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(HarpeError, match="no numbers"):
        wrapped.loglikelihood(asked, disable_tqdm=True)


def test_the_models_own_end_of_text_ends_answers_of_the_embedded_model(tokenizer: Any) -> None:
    model = load_model("embedded", torch.float32)
    prompt = tokenizer("def f(x):\n    return").input_ids
    expected = naive(model, prompt, 24)
    model.generation_config = GenerationConfig.from_dict(ODD)
    assert completions(model, tokenizer, [prompt], 24) == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_the_ids_that_end_a_text_are_special_tokens_that_somebody_calls_so() -> None:
    """The end of a turn counts, a word that a configuration's default happens to name does not."""
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    backend.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|tool|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")

    def ends(told: Any, tokenizer: Any = tokenizer, generation: Any = None) -> list[int]:
        config = SimpleNamespace(eos_token_id=told)
        config.get_text_config = lambda **_: config
        model: Any = SimpleNamespace(config=config, generation_config=SimpleNamespace(eos_token_id=generation))
        return end_ids(model, tokenizer)

    assert ends(None) == [3] == ends(2) == ends([0, 1])
    assert ends(4) == [3, 4] and ends([3, 5]) == [3, 5]
    assert ends(None, generation=[4, 5]) == [3]  # where a text ends does not hang on the file that is not read
    assert ends(0, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))) == []


@pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="short benchmarks need the package lm-eval (pip install 'harpe[eval]')"
)
def test_lm_evals_generated_answers_are_those_of_a_naive_loop(odd_model: Any, tokenizer: Any) -> None:
    from lm_eval.api.instance import Instance

    from harpe.evaluation.short.model import short_model

    def request(context: str, **settings: Any) -> Instance:
        return Instance("generate_until", {}, (context, {"until": ["\n\n"], "max_gen_toks": 6, **settings}), 0)

    wrapped = short_model(None, pretrained=odd_model, tokenizer=tokenizer, batch_size=2, backend="causal")
    contexts = ["Question: who?\nAnswer:", "A longer question in the same batch, who is it?\nAnswer:"]
    answers = wrapped.generate_until(
        [request(c, do_sample=False, temperature=0.0) for c in contexts], disable_tqdm=True
    )
    for context, answer in zip(contexts, answers, strict=True):
        ids = naive(odd_model, [0, *tokenizer.encode(context, add_special_tokens=False)], 6)
        assert answer == tokenizer.decode(ids, skip_special_tokens=True).split("\n\n")[0]
    for settings, told in (
        ({"do_sample": True, "temperature": 0.8}, "do_sample True"),
        ({"temperature": 0.8}, "temperature"),
        ({"num_beams": 4}, "4"),
    ):
        with pytest.raises(HarpeError, match=f"not greedy.*{told}"):
            wrapped.generate_until([request("x", **settings)])
    whole, part = (
        tokenizer.encode("A question: yes", add_special_tokens=False),
        tokenizer.encode("A question:", add_special_tokens=False),
    )
    assert wrapped._encode_pair("A question:", " yes") == ([0, *part], whole[len(part) :])


@pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="short benchmarks need the package lm-eval (pip install 'harpe[eval]')"
)
def test_a_tokenizer_that_ends_texts_ends_no_context_of_lm_evals(make_tiny: Any, tokenizer: Any) -> None:
    """The continuation is what is scored, and nothing behind it."""
    from tokenizers.processors import TemplateProcessing

    from harpe.evaluation.short.model import short_model

    other = load_tokenizer("embedded")
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert other("x").input_ids == [*tokenizer("x").input_ids, 0]
    model = make_tiny("llama", vocab_size=len(tokenizer))
    both = [
        short_model(None, pretrained=model, tokenizer=each, batch_size=2, backend="causal")
        for each in (tokenizer, other)
    ]
    for call in (
        lambda m: m._encode_pair("A question:", " yes"),
        lambda m: m.tok_batch_encode(["x y", "z"])[0].tolist(),
    ):
        assert call(both[0]) == call(both[1])
