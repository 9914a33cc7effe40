"""Needle samples are exactly as long as they say, contain what they ask for, and are answered by real generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from harpe.cli.main import main
from harpe.data.embedded import reported_files
from harpe.distributed.processes import Processes
from harpe.errors import HarpeError
from harpe.evaluation.needles.answers import answer_batch, answer_samples, key_of, score
from harpe.evaluation.needles.samples import NEEDLE_TASKS, NeedleWriter
from harpe.evaluation.run import EvaluationProtocol, HeldOut, check_needles, evaluate_model
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_model, load_tokenizer, save_checkpoint


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def hay(tokenizer: Any) -> list[list[int]]:
    files = reported_files(("stdlib",))[:6]
    return [tokenizer(f.text, add_special_tokens=False, verbose=False).input_ids for f in files]


@pytest.fixture(scope="module")
def writer(tokenizer: Any, hay: list[list[int]]) -> NeedleWriter:
    return NeedleWriter(tokenizer, hay, seed=11)


@pytest.mark.parametrize("name", NEEDLE_TASKS)
@pytest.mark.parametrize("length", [256, 777, 2048])
def test_a_sample_has_exactly_the_length_asked_for(writer: NeedleWriter, name: str, length: int) -> None:
    for sample in writer.samples(NEEDLE_TASKS[name], length, 5):
        assert len(sample.context) + sum(len(turn.question) + turn.budget for turn in sample.turns) == length


@pytest.mark.parametrize("name", NEEDLE_TASKS)
def test_every_answer_stands_in_the_document_behind_its_key(writer: NeedleWriter, tokenizer: Any, name: str) -> None:
    for sample in writer.samples(NEEDLE_TASKS[name], 512, 10):
        text = tokenizer.decode(sample.context)
        for turn in sample.turns:
            key = tokenizer.decode(turn.question).split()[-1]
            found = [line.split()[-1] for line in text.splitlines() if line.startswith(f"# magic number: {key} ")]
            assert found == list(turn.answers)
            assert len(turn.answers) == NEEDLE_TASKS[name].values


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_depth_is_where_the_needle_stands(writer: NeedleWriter, tokenizer: Any, depth: float) -> None:
    sample = writer.sample(NEEDLE_TASKS["single"], 2048, 0, depth)
    before = tokenizer.decode(sample.context).split("# magic number:")[0]
    share = len(tokenizer(before, add_special_tokens=False).input_ids) / len(sample.context)
    assert share == pytest.approx(depth, abs=0.02)


def test_a_tokenizer_that_ends_texts_ends_no_prefix_and_no_piece(tokenizer: Any) -> None:
    """Against the tokenizer that only begins them."""
    ending = load_tokenizer("embedded")
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert ending("").input_ids == [0, 0]
    haystacks = [list(range(5, 900))]
    for task in NEEDLE_TASKS.values():
        assert NeedleWriter(ending, haystacks, 1).sample(task, 512, 0) == NeedleWriter(tokenizer, haystacks, 1).sample(
            task, 512, 0
        )
    assert NeedleWriter(ending, haystacks, 1).prefix == (0,)


def test_samples_do_not_depend_on_how_many_are_drawn(writer: NeedleWriter) -> None:
    few, many = (
        list(writer.samples(NEEDLE_TASKS["multi_key"], 256, 2)),
        list(writer.samples(NEEDLE_TASKS["multi_key"], 256, 9)),
    )
    assert few == many[:2] and len({s.context for s in many}) == 9


def test_a_length_that_cannot_hold_the_needles_is_refused(writer: NeedleWriter) -> None:
    with pytest.raises(HarpeError, match="multi_query needs at least"):
        writer.sample(NEEDLE_TASKS["multi_query"], 64, 0)


@pytest.mark.parametrize(("samples", "grid"), [(1, 0), (0, 1)])
def test_such_a_length_is_refused_before_anything_is_measured(
    samples: int, grid: int, make_tiny: Any, tokenizer: Any, hay: list[list[int]], tmp_path: Path
) -> None:
    texts, folder = tmp_path / "texts.txt", tmp_path / "scores"
    texts.write_text("a few words, over and over again. " * 40)
    asked = ["--length=64", "--original-length=16", f"--samples={samples}", f"--grid-samples={grid}", "--dtype=float32"]
    assert main(["evaluate", "embedded", f"--data={texts}", f"--out={folder}", *asked]) == 2
    assert not folder.exists()
    model, protocol = (
        make_tiny("llama", vocab_size=len(tokenizer)),
        EvaluationProtocol(16, 256, samples=samples, grid_samples=grid),
    )
    with pytest.raises(HarpeError, match=r"needs at least \d+ tokens with this tokenizer; the length 16 is too short"):
        evaluate_model(model, tokenizer, HeldOut(hay[:3], hay, "test"), protocol, folder)
    assert not folder.exists()


def test_only_whole_numbers_score(writer: NeedleWriter) -> None:
    sample = writer.sample(NEEDLE_TASKS["multi_value"], 512, 0)
    a, b, c = sample.turns[0].answers
    assert score(sample, [f" {a} {b} {c}"]) == 1.0
    assert score(sample, [f" {a} 1{b} {c}7"]) == pytest.approx(1 / 3)
    assert score(sample, [" 12"]) == 0.0


def test_answers_are_greedy_and_earlier_answers_stay_in_the_context(
    make_tiny: Any, writer: NeedleWriter, tokenizer: Any
) -> None:
    """Against a loop without a cache."""
    model = make_tiny("llama", vocab_size=len(tokenizer))
    batch = list(writer.samples(NEEDLE_TASKS["multi_query"], 256, 2))
    got = answer_batch(model, tokenizer, batch)
    for sample, texts in zip(batch, got, strict=True):
        ids = list(sample.context)
        for turn, text in zip(sample.turns, texts, strict=True):
            ids += turn.question
            start = len(ids)
            for _ in range(turn.budget):
                with torch.inference_mode():
                    ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            assert tokenizer.decode(ids[start:]) == text


def test_samples_that_are_answered_already_are_passed_over(
    make_tiny: Any, writer: NeedleWriter, tokenizer: Any
) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))
    samples = list(writer.samples(NEEDLE_TASKS["single"], 256, 6))
    first, rest = list(answer_samples(model, tokenizer, samples, batch_tokens=512)), None
    done = {key_of(record) for record in first[0]}
    rest = list(answer_samples(model, tokenizer, samples, batch_tokens=512, done=done))
    assert rest == first[1:] and len(first) == 3


def test_processes_share_the_batches_that_are_left(make_tiny: Any, writer: NeedleWriter, tokenizer: Any) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))
    samples = [sample for n in (128, 256) for sample in writer.samples(NEEDLE_TASKS["single"], n, 6)]
    whole = list(answer_samples(model, tokenizer, samples, batch_tokens=512))
    shares = [
        list(answer_samples(model, tokenizer, samples, batch_tokens=512, ranks=Processes(rank, 2))) for rank in (0, 1)
    ]
    assert shares == [whole[0::2], whole[1::2]] and len(whole) == 5
    done = {key_of(record) for record in whole[0]}
    shares = [
        list(answer_samples(model, tokenizer, samples, batch_tokens=512, done=done, ranks=Processes(rank, 2)))
        for rank in (0, 1)
    ]
    assert shares == [whole[1::2], whole[2::2]]


def test_the_embedded_model_retrieves_in_its_context_and_not_beyond(writer: NeedleWriter, tokenizer: Any) -> None:
    model = load_model("embedded", torch.float32)
    inside = [
        r["score"]
        for b in answer_samples(model, tokenizer, writer.samples(NEEDLE_TASKS["multi_key"], 256, 30))
        for r in b
    ]
    beyond = [
        r["score"]
        for b in answer_samples(model, tokenizer, writer.samples(NEEDLE_TASKS["multi_key"], 2048, 6))
        for r in b
    ]
    assert sum(inside) >= 28
    assert sum(beyond) <= 1


def test_an_interrupted_evaluation_goes_on_and_a_changed_one_is_refused(
    make_tiny: Any, tokenizer: Any, hay: list[list[int]], tmp_path: Path
) -> None:
    model = make_tiny("llama", vocab_size=len(tokenizer))
    held_out = HeldOut(hay[:3], hay, "test")
    protocol = EvaluationProtocol(64, 256, documents=3, samples=2, tasks=("single",), grid_samples=1, depths=(0.0, 1.0))
    evaluate_model(model, tokenizer, held_out, protocol, tmp_path / "a")
    for name in ("perplexity", "needles", "grid"):
        (tmp_path / "a" / f"{name}.json").rename(tmp_path / f"{name}.json")
        rows = (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "a" / f"{name}.jsonl").write_text("".join(rows[:2]) + rows[2][:9])  # killed in the middle of a line
    evaluate_model(model, tokenizer, held_out, protocol, tmp_path / "a")
    for name in ("perplexity", "needles", "grid"):
        before, after = read_json(tmp_path / f"{name}.json"), read_json(tmp_path / "a" / f"{name}.json")
        for value in (before, after):
            value.get("reading", {}).pop("seconds", None)
        assert before == after
    assert len(read_jsonl(tmp_path / "a" / "grid.jsonl")) == 3 * 2
    with pytest.raises(HarpeError, match=r"with other options \(documents: 3 there, 2 now; samples: 2 there, 100 now"):
        evaluate_model(
            model, tokenizer, held_out, EvaluationProtocol(64, 256, documents=2, tasks=("single",)), tmp_path / "a"
        )


def test_a_tokenizer_that_gives_digits_back_apart_is_refused_before_anything_is_measured(
    hay: list[list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As that of the quicktour of Hugging Face's tokenizers: right answers would score nothing, of any model."""
    trained = Tokenizer(models.BPE(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    words = [f"the magic number {number} of falcon" for number in range(99)]
    trained.train_from_iterator(words, trainers.BpeTrainer(special_tokens=["[UNK]", "</s>"], vocab_size=200))
    apart = PreTrainedTokenizerFast(tokenizer_object=trained, unk_token="[UNK]", eos_token="</s>")
    texts = HeldOut([apart("the magic number " * 200).input_ids], [apart("the magic number " * 200).input_ids], "")
    for counts in ({"samples": 2, "grid_samples": 0}, {"samples": 0, "grid_samples": 2}):
        with pytest.raises(HarpeError, match="the right answer, .*, comes back from its tokens as '.* .*', which"):
            check_needles(apart, texts, EvaluationProtocol(128, 256, **counts))
    check_needles(apart, texts, EvaluationProtocol(128, 256, samples=0, grid_samples=0))
    model = load_model("embedded")
    model.resize_token_embeddings(len(apart))
    save_checkpoint(model, apart, tmp_path / "model", 256)
    call = ["ruler", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "scores"), "--beyond-context"]
    assert main([*call, "--length", "1024", "--samples", "1", "--tasks", "niah_single_1"]) == 2
    assert "comes back from its tokens" in " ".join(capsys.readouterr().err.split())
