"""RULER v2's samples and scores are those of the published program; who knows the answer gets 100, who guesses gets
what is stated; and what cannot be asked is told."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.evaluation.catalogue import SUITES
from harpe.evaluation.long.order_probe import ordinal
from harpe.evaluation.long.registry import GROUPS, TASKS, chosen
from harpe.evaluation.long.ruler2.data import HOTPOTQA, MMLU, Ruler2Data
from harpe.evaluation.long.ruler2.score import word_distance
from harpe.evaluation.long.ruler2.tasks import Ruler2Task
from harpe.evaluation.ruler.counting import TokenCounter
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_tokenizer
from harpe.options.measuring import LongOptions
from harpe.suites.long import run_long

from .ruler2_rows import FOLDERS, Rows, made, real, written
from .stub_server import StubServer, completion

pytest.importorskip(
    "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
)
REFERENCE = json.loads((Path(__file__).parent / "ruler2_reference.json").read_text())
NAMES = GROUPS["ruler2"]
LETTERS = ("ruler2-mk_niah_medium", "ruler2-mk_niah_hard")


def task_of(name: str) -> Ruler2Task:
    task = TASKS[name]
    assert isinstance(task, Ruler2Task)
    return task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of made-up rows."""
    return written(made(), tmp_path_factory.mktemp("ruler2"))


@pytest.fixture(scope="module")
def data(folder: Path) -> Ruler2Data:
    return Ruler2Data(str(folder))


@pytest.fixture(scope="module")
def count() -> TokenCounter:
    return TokenCounter(load_tokenizer("embedded"))


def digest(row: dict[str, Any], count: Callable[[str], int], data: Ruler2Data) -> str:
    """Of the file as the published program writes it."""
    task = task_of(f"ruler2-{row['task']}")
    lines = [
        {
            "index": sample["index"],
            "question": sample["input"],
            "expected_answer": sample["outputs"][0] if task.name in LETTERS else sample["outputs"],
            "length": sample["length"] - task.tokens,
        }
        for sample in task.samples(row["length"], 5, 42, count, data)
    ]
    return hashlib.sha256("".join(json.dumps(line) + "\n" for line in lines).encode()).hexdigest()


def rows(kind: str) -> list[Any]:
    found = [row for row in REFERENCE["files"] if row["rows"] == kind]
    assert {row["task"] for row in found} == {name.removeprefix("ruler2-") for name in NAMES} and len(found) == 24
    return [pytest.param(row, id=f"{row['task']}-{row['length']}") for row in found]


@pytest.mark.parametrize("row", rows("made"))
def test_samples_are_the_published_programs(row: dict[str, Any], count: TokenCounter, data: Ruler2Data) -> None:
    assert row["tokenizer"] == "embedded" and count.by_words
    assert digest(row, count, data) == row["sha256"]


@pytest.fixture(scope="module")
def of_llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Counts tokens as Llama 2's tokenizer, and real questions and documents."""
    found = request.getfixturevalue("harpe_data")
    counter = TokenCounter(AutoTokenizer.from_pretrained(found / "tokenizers/llama2"))
    return counter, Ruler2Data(str(written(real(found), tmp_path_factory.mktemp("real"))))


@pytest.mark.parametrize("row", rows("real"))
def test_samples_of_real_questions_and_another_tokenizer_are_too(row: dict[str, Any], of_llama: Any) -> None:
    assert row["tokenizer"] == "llama2"
    assert digest(row, *of_llama) == row["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_published_evaluators(name: str) -> None:
    published = REFERENCE["scores"][name.removeprefix("ruler2-")]
    asked = [(each, ["A"]) for each in REFERENCE["letters"]] if name in LETTERS else REFERENCE["answers"]
    ours = [task_of(name).score(answer, {"outputs": outputs}) for answer, outputs in asked]
    assert ours == pytest.approx(published) and len(set(published)) > 1


def test_ordinals_are_those_of_inflect() -> None:
    assert [ordinal(number) for number in range(1, 131)] == REFERENCE["ordinals"]


def test_the_distance_of_words_is_levenshteins() -> None:
    def naive(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(naive(a[1:], b) + 1, naive(a, b[1:]) + 1, naive(a[1:], b[1:]) + (a[0] != b[0]))

    rng = random.Random(0)
    for _ in range(100):
        a, b = (rng.choices("xyz", k=rng.randint(0, 5)) for _ in range(2))
        assert word_distance(a, b) == naive(a, b)


def guess(name: str, sample: dict[str, Any], rng: random.Random) -> str:
    """An answer by who has read the question and the list, without order, place or (but for one of several with the
    same number) names."""
    prompt, kind = sample["input"], name.removeprefix("ruler2-")
    if kind.endswith("niah_basic"):
        return " ".join(rng.sample(re.findall(r" is: (\d+)\.", prompt), len(sample["outputs"])))
    if name in LETTERS:
        return f"\\boxed{{{rng.choice('ABCD')}}}"
    if kind.startswith("qa"):
        numbers = re.findall(r"^Document (\d+):$", prompt, re.M)
        return rng.choice(numbers if kind in ("qa_basic", "qa_easy") else ["yes", "no"])
    listed = re.findall(r"^Question (\d+): (.*)$", prompt, re.M)
    asked = re.findall(r"Question (\d+)", prompt)[-1]
    alike = [text for number, text in listed if number == asked]
    return rng.choice(alike if kind in ("mv_niah_medium", "mv_niah_hard") else [text for _, text in listed])


@pytest.mark.parametrize("name", NAMES)
def test_who_knows_scores_100_and_who_guesses_what_is_stated(name: str, count: TokenCounter, data: Ruler2Data) -> None:
    task, rng, scores = task_of(name), random.Random(1), []
    drawn = list(task.samples(4096, 20, 3, count, data))
    for row in drawn:
        assert task.score(row["answer"], row) == 1.0 and task.score("", row) == 0.0
        assert not task.decided(row["answer"])
        scores += [task.score(guess(name, row, rng), row) for _ in range(30)]
    stated = sum(row["chance"] for row in drawn) / len(drawn)
    spread = math.sqrt(sum((score - stated) ** 2 for score in scores) / len(scores))
    assert 0 < stated < 0.6
    assert abs(sum(scores) / len(scores) - stated) < 3.3 * spread / math.sqrt(len(scores))


@pytest.mark.parametrize("name", NAMES)
def test_samples_asked_again_are_the_same_and_fit(name: str, count: TokenCounter, data: Ruler2Data) -> None:
    task, tokenizer = task_of(name), load_tokenizer("embedded")
    first = list(task.samples(8192, 3, 7, count, data, 1))
    assert first == list(task.samples(8192, 3, 7, count, data, 1))
    assert not {row["input"] for row in first} & {row["input"] for row in task.samples(8192, 3, 8, count, data)}
    for row in first:
        assert row["length"] == 1 + len(tokenizer.tokenize(row["input"])) + task.tokens
    lengths = [row["length"] - task.tokens - 1 for row in first]
    assert 7000 < max(lengths) <= 8192  # others may be much shorter: ten questions at a time are left out


@pytest.mark.parametrize("name", NAMES)
def test_a_length_that_is_too_short_is_told(name: str, count: TokenCounter, data: Ruler2Data) -> None:
    with pytest.raises(HarpeError, match=f"{name} cannot be made with 200 tokens.*longer --lengths, or leave"):
        list(task_of(name).samples(200, 1, 42, count, data))


def test_a_context_without_room_for_the_examples_is_told_where_the_program_would_go_on_for_ever(
    count: TokenCounter, data: Ruler2Data
) -> None:
    with pytest.raises(HarpeError, match="4096 tokens and this tokenizer: a context of 4 pieces has no room"):
        list(task_of("ruler2-mk_niah_medium").samples(4096, 3, 7, count, data))


def test_a_tokenizer_that_loses_answers_or_needs_too_many_tokens_is_told(data: Ruler2Data) -> None:
    def words(text: str) -> int:
        return len(text.split())

    (row,) = task_of("ruler2-mv_niah_hard").samples(500, 1, 0, words, data, back=str.lower)
    assert row["answer"] != row["answer"].lower()
    with pytest.raises(HarpeError, match="mk_niah_easy cannot be asked with this tokenizer: .* comes back from"):
        list(task_of("ruler2-mk_niah_easy").samples(500, 1, 0, words, data, back=lambda text: "?"))
    with pytest.raises(HarpeError, match="the right answer of sample .* takes .* and answers may take 2048"):
        list(task_of("ruler2-mk_niah_easy").samples(10**7, 1, 0, lambda text: 100 * len(text), data))


def test_ruler2_is_asked_by_its_name_alone() -> None:
    assert [task.name for task in chosen(["ruler2"])] == list(NAMES) and len(NAMES) == 12
    for group in ("all", "quick", "base-model"):
        assert not {task.name for task in chosen([group])} & set(NAMES)
    with pytest.raises(HarpeError, match="Did you mean .*ruler2-qa_hard"):
        chosen(["ruler2-qa-hard"])


def test_files_of_the_hub_are_read_as_rows_are(folder: Path, tmp_path: Path) -> None:
    for of, hub in ((MMLU, "cais/mmlu"), (HOTPOTQA, "hotpotqa/hotpot_qa")):
        there = tmp_path / FOLDERS[hub]
        there.mkdir(parents=True)
        for split, each in made()[hub].items():
            for part, some in enumerate((each[:7], each[7:])):
                pq.write_table(pa.Table.from_pylist(some), there / f"{split}-0000{part}-of-00002.parquet")
        assert len(Ruler2Data(str(tmp_path)).check(of)) == 2  # not as many rows as were published
    parts, lines = Ruler2Data(str(tmp_path)), Ruler2Data(str(folder))
    assert parts.mmlu == lines.mmlu and parts.hotpotqa == lines.hotpotqa
    (tmp_path / FOLDERS["cais/mmlu"] / "auxiliary_train-00001-of-00002.parquet").unlink()
    with pytest.raises(HarpeError, match="has 1 files auxiliary_train-.*not all that belong together. Fetch it"):
        Ruler2Data(str(tmp_path)).check(MMLU)


def test_without_files_the_hub_is_asked_and_what_it_does_not_give_is_told(
    data: Ruler2Data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HARPE_DATA", raising=False)
    monkeypatch.setenv("HARPE_CACHE", str(tmp_path))

    def hub(name: str, config: str, split: str) -> datasets.Dataset:
        assert config == {"cais/mmlu": "all", "hotpotqa/hotpot_qa": "distractor"}[name]
        return datasets.Dataset.from_list(made()[name][split])

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert (Ruler2Data().mmlu, Ruler2Data().hotpotqa) == (data.mmlu, data.hotpotqa)

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(HarpeError, match=f"looked for at {tmp_path}/ruler2/mmlu/all, and the hub .*no network.*Fetch"):
        Ruler2Data().check(MMLU)


def test_data_in_another_format_and_more_samples_than_questions_are_told(
    folder: Path, data: Ruler2Data, count: TokenCounter, tmp_path: Path
) -> None:
    rows: Rows = made()
    del rows["cais/mmlu"]["test"][3]["choices"]
    with pytest.raises(HarpeError, match=r"test\.jsonl is not in the format of cais/mmlu \(KeyError: 'choices'\)"):
        list(task_of("ruler2-mk_niah_easy").samples(4096, 1, 42, count, Ruler2Data(str(written(rows, tmp_path)))))
    for name, there in (("ruler2-mv_niah_hard", 40), ("ruler2-qa_hard", 20)):
        with pytest.raises(HarpeError, match=f"there are only {there} questions"):
            list(task_of(name).samples(4096, there + 1, 42, count, data))


def options(out: Path, **changes: Any) -> LongOptions:
    given = {"model": "m", "tokenizer": "embedded", "lengths": "4096", "samples": 2, "tasks": "ruler2", "out": str(out)}
    return LongOptions(**{**given, **changes})


def test_a_server_that_knows_the_answers_gets_100_in_all_twelve_in_chat_format(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="--server needs the package openai (pip install 'harpe[eval]')")
    known: dict[str, str] = {}

    def right(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        if not known:
            for path in (tmp_path / "out").glob("ruler2-*.jsonl"):
                known.update({row["input"]: row["answer"] for row in read_jsonl(path)})
        (message,) = body["messages"]
        assert message["role"] == "user"
        said = {"index": 0, "message": {"role": "assistant", "content": known[message["content"]]}}
        return 200, completion("")[1] | {"object": "chat.completion", "choices": [said]}

    with StubServer(right, {"m": 12000}) as stub:
        given = {"server": stub.address, "endpoint": "chat", "data": str(folder), "requests": 1}
        with pytest.raises(HarpeError, match="--lengths 8192 with an answer of ruler2-mv_niah_medium behind it, 14337"):
            run_long(options(tmp_path / "long", lengths="8192", **given))
        run_long(options(tmp_path / "out", **given))
    value = read_json(tmp_path / "out" / "long.json")
    assert list(value["tasks"]) == list(NAMES)
    assert {cell["score"] for task in value["tasks"].values() for cell in task["lengths"]} == {100.0}
    assert value["suites"]["ruler2"]["lengths"][0]["value"] == 100.0


def test_absent_data_are_told_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    get = "Fetch it where there is a network: hf download {} --repo-type dataset"
    with pytest.raises(HarpeError, match=f"cais/mmlu is missing: .*{get.format('cais/mmlu')} --include 'all/"):
        run_long(options(tmp_path / "out", model="embedded", data=str(empty)))
    given = ["--tasks", "ruler2-qa_easy", "--lengths", "2048", "--out", str(tmp_path / "out"), "--data", str(empty)]
    assert main(["long", "embedded", *given]) == 2
    assert get.format("hotpotqa/hotpot_qa") in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_what_the_list_says_of_a_guesser_is_what_samples_say(of_llama: Any) -> None:
    """Of real questions, in per cent."""
    (told,) = (suite.chance for suite in SUITES if suite.name == "RULER v2")
    copied, least, most, letter, alike, short = (float(each) for each in re.findall(r"([\d.]+)%", told))

    def mean(name: str) -> float:
        drawn = list(task_of(f"ruler2-{name}").samples(4096, 40, 42, *of_llama))
        return 100 * sum(row["chance"] for row in drawn) / len(drawn)

    assert [mean(f"{name}_niah_easy") for name in ("mk", "mv")] == pytest.approx([copied] * 2, abs=1.5)
    assert (mean("mk_niah_basic"), mean("qa_easy")) == pytest.approx((least, most), abs=1)
    assert mean("mk_niah_hard") == letter
    assert [mean(f"mv_niah_{kind}") for kind in ("medium", "hard")] == pytest.approx([alike] * 2, abs=3)
    assert mean("qa_hard") == pytest.approx(short, abs=2)
