"""RULER's scores are the published ones, answers are greedy in any batch, and an interrupted evaluation goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harpe.commands.report import report_scores
from harpe.distributed.processes import Processes
from harpe.errors import HarpeError
from harpe.evaluation.answers import answer_samples
from harpe.evaluation.greedy import completions
from harpe.evaluation.ruler.answer import summary
from harpe.evaluation.ruler.tasks import RULER_TASKS, score
from harpe.files import append_jsonl, read_json, read_jsonl, whole_lines
from harpe.models.load import load_model, load_tokenizer
from harpe.options.measuring import RulerOptions
from harpe.reporter import Reporter
from harpe.suites.ruler import run_ruler


@pytest.mark.parametrize(
    ("task", "answer", "references", "expected"),
    [
        ("niah_multivalue", " 1234567, 7654321", ["1234567", "7654321", "1111111", "2222222"], 0.5),
        ("vt", "ABCDE\x00fghij", ["abcde", "FGHIJ"], 1.0),
        ("qa_1", " it was in FRANCE.", ["Normandy", "France"], 1.0),  # any reference is enough; an average would be 0.5
        ("qa_2", "no", ["yes"], 0.0),
        ("cwe", "", ["a"], 0.0),
    ],
)
def test_scores_are_string_match_all_and_for_questions_any_match(
    task: str, answer: str, references: list[str], expected: float
) -> None:
    assert score(RULER_TASKS[task], answer, references) == expected


def test_answers_in_a_padded_batch_are_greedy_and_stop_at_the_end_of_text(make_tiny: Any) -> None:
    """Against a loop without cache, padding or batch."""
    tokenizer, model = load_tokenizer("embedded"), make_tiny("llama", vocab_size=len(load_tokenizer("embedded")))
    prompts = [torch.randint(5, 2000, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 21, 14)]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(8):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    assert completions(model, tokenizer, prompts, 8) == [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in expected
    ]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(expected[1][4])
    stop = expected[1].index(expected[1][4])
    assert completions(model, tokenizer, prompts[1:2], 8) == [
        tokenizer.decode(expected[1][: stop + 1], skip_special_tokens=True)
    ]


def test_batches_are_formed_alike_however_much_is_done(make_tiny: Any) -> None:
    tokenizer = load_tokenizer("embedded")
    model = make_tiny("llama", vocab_size=len(tokenizer))
    samples = [
        {"input": "x " * n, "answer_prefix": " is", "outputs": ["x"], "token_position_answer": n}
        for n in (30, 5, 60, 12, 31)
    ]
    batches = list(answer_samples(model, tokenizer, RULER_TASKS["vt"], samples, batch_tokens=200))
    assert sorted(row["sample"] for batch in batches for row in batch) == list(range(5)) and len(batches) > 1
    done = {row["sample"] for row in batches[0]} | {batches[1][0]["sample"]}
    rest = list(answer_samples(model, tokenizer, RULER_TASKS["vt"], samples, batch_tokens=200, done=done))
    assert rest == batches[1:]
    shares = [
        list(answer_samples(model, tokenizer, RULER_TASKS["vt"], samples, batch_tokens=200, ranks=Processes(rank, 2)))
        for rank in (0, 1)
    ]
    assert shares == [batches[0::2], batches[1::2]]


def test_the_summary_has_the_interval_that_fits_the_scores() -> None:
    rows = [{"task": "qa_1", "score": float(i < 8), "prediction": "x"} for i in range(10)]
    rows += [{"task": "vt", "score": s, "prediction": ""} for s in (0.2, 1.0, 0.4)]
    value = summary(rows)["tasks"]
    assert value["qa_1"]["interval"] == "Wilson" and value["qa_1"]["score"] == pytest.approx(80)
    assert (value["qa_1"]["low"], value["qa_1"]["high"]) == (pytest.approx(49.0, abs=0.1), pytest.approx(94.3, abs=0.1))
    assert value["vt"]["interval"] == "bootstrap over samples" and value["vt"]["score"] == pytest.approx(160 / 3)
    assert value["vt"]["empty"] == 3
    assert "mean" not in summary(rows)


def test_a_line_separator_inside_an_answer_ends_no_line(tmp_path: Path) -> None:
    row = {"prediction": "a\u2028b\x85c\u2029"}
    append_jsonl(tmp_path / "a.jsonl", row)
    append_jsonl(tmp_path / "a.jsonl", row)
    assert whole_lines(tmp_path / "a.jsonl") == ([row, row], False)
    with (tmp_path / "a.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"prediction": "a\u2028')
    assert whole_lines(tmp_path / "a.jsonl") == ([row, row], True)


def test_an_interrupted_evaluation_goes_on_and_other_samples_are_refused(tmp_path: Path) -> None:
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    def options(**changes: Any) -> RulerOptions:
        given = {
            "model": "embedded",
            "length": 512,
            "samples": 3,
            "tasks": "fwe",
            "dtype": "float32",
            "beyond_context": True,
        }
        return RulerOptions(**{**given, "out": str(tmp_path / "a"), **changes})

    with pytest.raises(HarpeError, match=r"beyond the 256 tokens.*--beyond-context"):
        run_ruler(options(beyond_context=False))
    with pytest.raises(HarpeError, match="--samples 0: at least one sample"):
        run_ruler(options(samples=0))
    run_ruler(options(), Listener())
    whole = read_json(tmp_path / "a" / "ruler.json")
    rows = (tmp_path / "a" / "answers.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == 1 + 3 and whole["tasks"]["fwe"]["samples"] == 3
    first = json.loads(rows[1])
    assert first["outputs"] == read_jsonl(tmp_path / "a" / "fwe.jsonl")[first["sample"]]["outputs"]
    (tmp_path / "a" / "answers.jsonl").write_text(rows[0] + rows[1] + rows[2][:20])
    run_ruler(options(), Listener())
    assert any("cut short" in text for text in said) and any("beyond it" in text for text in said)
    assert read_json(tmp_path / "a" / "ruler.json") == whole
    assert {r["sample"] for r in read_jsonl(tmp_path / "a" / "answers.jsonl")} == {0, 1, 2}
    with pytest.raises(HarpeError, match=r"with other options \(seed: 42 there, 7 now\)"):
        run_ruler(options(seed=7))
    assert whole["answers"] == "until the score is decided"
    with pytest.raises(HarpeError, match=r"answers: until the score is decided there, full now"):
        run_ruler(options(full_answers=True))
    model = load_model("embedded", torch.float32)  # the records are what the model says
    sample = read_jsonl(tmp_path / "a" / "fwe.jsonl")[0]
    prompt = load_tokenizer("embedded")(sample["input"] + sample["answer_prefix"]).input_ids
    row = next(r for r in read_jsonl(tmp_path / "a" / "answers.jsonl") if r["sample"] == 0)
    assert completions(model, load_tokenizer("embedded"), [prompt], 50) == [row["prediction"]]


def test_a_task_that_was_cut_short_has_no_score_beside_one_that_was_asked_later(tmp_path: Path) -> None:
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )

    def ruler(tasks: str) -> dict[str, Any]:
        common: dict[str, Any] = {"model": "embedded", "dtype": "float32", "beyond_context": True}
        run_ruler(RulerOptions(**common, length=512, samples=3, tasks=tasks, out=str(tmp_path)))
        return read_json(tmp_path / "ruler.json")

    with pytest.raises(HarpeError, match="--tasks names no task"):
        ruler(" , ")
    whole = ruler("fwe")
    head, first, *_ = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text(head + first)  # as a kill leaves it
    (tmp_path / "ruler.json").unlink()
    later = ruler("niah_single_1")
    assert list(later["tasks"]) == ["niah_single_1"] and later["incomplete"] == ["fwe"]
    page = " ".join(report_scores(tmp_path, None).read_text().split())
    assert "ruler.json: cut short, and left out: fwe." in page
    both = ruler("fwe")
    assert both["tasks"]["fwe"] == whole["tasks"]["fwe"] and both["incomplete"] == []
    assert both["tasks"]["niah_single_1"] == later["tasks"]["niah_single_1"]


def test_one_line_of_progress_counts_the_tokens_of_all_tasks(tmp_path: Path) -> None:
    """From the first piece of the first sample on, so that the time left is known long before a task is done."""
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )
    told: list[tuple[int, int | None, str]] = []

    class Listener(Reporter):
        def progress(self, what: str, done: int, total: int | None, note: str = "") -> None:
            if what == "tokens of RULER":
                told.append((done, total, note))

    asked = {"model": "embedded", "length": 512, "samples": 2, "tasks": "niah_single_1,fwe", "dtype": "float32"}
    run_ruler(RulerOptions(out=str(tmp_path / "a"), beyond_context=True, **asked), Listener())
    names = ("niah_single_1", "fwe")
    whole = sum(sample["length"] for name in names for sample in read_jsonl(tmp_path / f"a/{name}.jsonl"))
    assert {total for _, total, _ in told} == {whole}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][0] == whole and all(done < whole for done, _, _ in told[:-1])
    assert 0 < told[1][0] <= 512
    assert list(dict.fromkeys(note for _, _, note in told)) == ["niah_single_1", "fwe", ""]
