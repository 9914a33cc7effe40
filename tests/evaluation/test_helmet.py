"""HELMET's recall, RAG and ICL tasks: prompts and scores are those of its own program, to which golden hashes belong.

They were made by princeton-nlp/HELMET (commit 4526dfb) from `helmet_files`, with the embedded model's tokenizer:
data.load_data, model_utils.tokenize, and the post_process of every task on the answers of `said`. For ICL the program
was given our Parquet files in the place of the hub's data sets, and its `map` ran in one process.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from harpe.data.token_ids import text_ids
from harpe.errors import HarpeError
from harpe.evaluation.greedy import completions
from harpe.evaluation.short.helmet import METRIC, SETS, helmet_names, helmet_part, helmet_tasks
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.options.measuring import ShortOptions
from harpe.suites.short import measure_short

from .helmet_files import said, write_helmet, write_icl

GOLDEN = read_json(Path(__file__).parent.parent / "fixtures" / "helmet.json")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_helmet(folder / "helmet")
    write_icl(folder / "helmet" / "icl")
    return folder


@pytest.mark.parametrize("task", [each for several in SETS.values() for each in several])
def test_questions_prompts_and_scores_are_those_of_the_published_program(data: Path, task: str) -> None:
    """Which questions are drawn, in which order, with which solved examples, shortened to the length, and the score."""
    (definition,) = helmet_tasks(f"helmet-{task}-8k", data / "helmet", load_tokenizer("embedded"))
    golden, rows = GOLDEN[task], definition["custom_dataset"].splits["test"]
    assert len(rows) == golden["questions"] and digest(rows[0]["prompt"]) == golden["first"]
    assert max(len(row["prompt"]) for row in rows) == golden["longest"]
    assert digest("\0".join(row["prompt"] for row in rows)) == golden["prompts"]
    scores = [
        definition["process_results"](row, [said(number, row["answers"])])[METRIC] for number, row in enumerate(rows)
    ]
    assert scores[:24] == golden["scores"] and sum(scores) == pytest.approx(golden["sum"])
    assert 0 < sum(scores) < len(scores)


@pytest.mark.parametrize("task", [each for several in SETS.values() for each in several])
def test_a_task_reads_nothing_beside_the_part_that_it_is_known_by(data: Path, tmp_path: Path, task: str) -> None:
    part = helmet_part(f"helmet-{task}-8k")
    shutil.copytree(data / "helmet" / part, tmp_path / part)
    assert len(helmet_tasks(f"helmet-{task}-8k", tmp_path, load_tokenizer("embedded"))) == 1
    shutil.rmtree(tmp_path / part)
    with pytest.raises(HarpeError, match="missing"):
        helmet_tasks(f"helmet-{task}-8k", tmp_path, load_tokenizer("embedded"))


@pytest.mark.slow
def test_the_verb_asks_them_and_keeps_scores_of_its_own_for_each(data: Path, tmp_path: Path) -> None:
    """Answers are those of plain greedy generation; names that stand for several ask each of them."""
    pytest.importorskip("lm_eval", reason="short benchmarks need the package lm-eval (pip install 'harpe[eval]')")
    model, tokenizer = load_model("embedded", torch.float32), load_tokenizer("embedded")
    model.config.max_position_embeddings = 9000
    save_checkpoint(model, tokenizer, tmp_path / "model", 9000)
    given: dict[str, Any] = {"model": str(tmp_path / "model"), "dtype": "float32", "limit": 2}
    named = "helmet-rag-8k,helmet-json_kv-8k,helmet-nlu-8k"
    measure_short(ShortOptions(tasks=named, data=str(data), out=str(tmp_path / "a"), **given))
    tasks = read_json(tmp_path / "a" / "short.json")["tasks"]
    assert list(tasks) == [*helmet_names("helmet-rag-8k"), "helmet-json_kv-8k", "helmet-nlu-8k"]
    for name, task in tasks.items():
        (definition,) = helmet_tasks(name, data / "helmet", tokenizer)
        budget = definition["generation_kwargs"]["max_gen_toks"]
        assert task["metric"] == METRIC and task["samples"] == 2 and "cut" not in task
        for row in read_jsonl(tmp_path / "a" / f"{name}.jsonl"):
            asked = definition["custom_dataset"].splits["test"][row["doc_id"]]
            (answer,) = completions(model, tokenizer, [text_ids(tokenizer, asked["prompt"])], budget)
            answer = answer.split("\n")[0] if name == "helmet-nlu-8k" else answer
            assert row["filtered_resps"] == [answer]
            assert row[METRIC] == definition["process_results"](asked, [answer])[METRIC]


def test_a_tokenizer_that_tells_no_characters_is_refused_where_a_context_is_too_long(data: Path) -> None:
    class Slow:
        """The embedded model's tokenizer without offsets, as tokenizers in plain Python are."""

        is_fast, fast = False, load_tokenizer("embedded")

        def __call__(self, text: str, return_offsets_mapping: bool = False) -> Any:
            if return_offsets_mapping:
                raise NotImplementedError
            return self.fast(text)

    slow: Any = Slow()
    with pytest.raises(HarpeError, match="a Slow does not say which characters"):
        [helmet_tasks(name, data / "helmet", slow) for name in helmet_names("helmet-recall-8k")]


def test_what_is_missing_or_unknown_is_told(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "embedded", "out": str(tmp_path / "out"), "data": str(tmp_path)}
    with pytest.raises(HarpeError, match=r"niah_multikey_2/validation_16384.jsonl is missing: .*HELMET's archive"):
        measure_short(ShortOptions(tasks="helmet-recall-16k", **given))
    with pytest.raises(HarpeError, match=r"icl/trec/default/train is missing.* hf download CogComp/trec .*/parquet "):
        measure_short(ShortOptions(tasks="helmet-icl-16k", **given))
    (broken := tmp_path / "helmet" / "icl" / "clinc_oos" / "plus" / "train").mkdir(parents=True)
    (broken / "0000.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(HarpeError, match=r"0000.parquet could not be read as rows of text and intent .*clinc/clinc"):
        measure_short(ShortOptions(tasks="helmet-clinic150-8k", **given))
    with pytest.raises(HarpeError, match=r"--tasks helmet-cite-8k: of HELMET there are.*recall \(niah_mk_2.*icl \("):
        measure_short(ShortOptions(tasks="helmet-cite-8k", **given))
    with pytest.raises(HarpeError, match=r"at 8k, 16k"):
        measure_short(ShortOptions(tasks="helmet-nq-4k", **given))
    with pytest.raises(HarpeError, match="--shots: HELMET's tasks have"):
        measure_short(ShortOptions(tasks="helmet-nq-8k", shots=5, **given))
