"""LongBench v2 and BABILong by `harpe short`, from clones of their data sets: lm-eval's own scores on the checkpoint,
question by question; what is longer than the context is told; what is missing is named."""

from __future__ import annotations

import json
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import harpe
from harpe.cli.main import main
from harpe.comparison.suites.short import Short
from harpe.errors import HarpeError
from harpe.evaluation.against import compare_short
from harpe.evaluation.short.hub import DataSets, expanded
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.options.measuring import ShortOptions, ShortTasks
from harpe.reporter import Reporter
from harpe.suites.short import measure_short, scores_of

pytest.importorskip("lm_eval", reason="short benchmarks need the package lm-eval (pip install 'harpe[eval]')")

CONTEXT = 1024
WORDS = "the return of value in self and def import class name if not is for print list line text".split()


def filler(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clones as the hub has them: a README.md that names the files of each configuration, and files of Parquet."""
    import lm_eval.tasks.longbench2 as definitions

    root, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    texts = [path.read_text() for path in Path(definitions.__path__[0]).glob("[a-z]*.yaml")]
    names = {found[1] for text in texts if (found := re.search(r"^dataset_name: (\w+)$", text, re.MULTILINE))}

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)

    def readme(folder: Path, configs: dict[str, dict[str, str]]) -> None:
        lines = ["---", "configs:"]
        for config, files in configs.items():
            lines += [f"- config_name: {config}", "  data_files:"]
            lines += [line for s, p in files.items() for line in (f"  - split: {s}", f"    path: {p}")]
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]))

    folder = root / "hub" / "recursal" / "longbench-v2"
    for place, name in enumerate(sorted(names)):
        rows = [
            {
                "context": filler(rng, 1200 if place % 7 == 0 and i else 30),  # some do not fit
                "question": f"Which is it, {i}? ",
                "choices": [filler(rng, 3) for _ in range(4)],
                "answer": rng.randrange(4),
            }
            for i in range(2)
        ]
        write(folder / name / "train-00000-of-00001.parquet", rows)
    readme(folder, {name: {"train": f"{name}/train-*"} for name in sorted(names)})
    folder = root / "hub" / "RMT-team" / "babilong-1k-samples"
    configs: dict[str, dict[str, str]] = {}
    for length, words in (("0k", 10), ("1k", 1200)):
        configs[length] = {f"qa{k}": f"{length}/qa{k}-*" for k in range(1, 6)}
        for k in range(1, 6):
            rows = [
                {
                    "input": filler(rng, words if i else 10),
                    "question": f"Where is it, {i}?",
                    "target": rng.choice("aeiou") + "n",
                }
                for i in range(3)
            ]
            write(folder / length / f"qa{k}-00000-of-00001.parquet", rows)
    readme(folder, configs)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model's weights; the context that its configuration states is what both programs go by."""
    folder = tmp_path_factory.mktemp("model")
    model = load_model("embedded", torch.float32)
    model.config.max_position_embeddings = CONTEXT
    save_checkpoint(model, load_tokenizer("embedded"), folder, CONTEXT)
    return str(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base per head, exported with its own code, which lm-eval's model is told to trust."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = harpe.apply(load_model("embedded", torch.float32), "harpe", length=CONTEXT)
        harpe.export(model, folder, load_tokenizer("embedded"))
    return str(folder)


def by_lm_eval(checkpoint: str, task: str, metadata: dict[str, Any], data: Path) -> dict[str, Any]:
    """lm-eval's own program on the checkpoint: its tasks, its model, one question at a time; the data from `data`."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager, babilong, longbench2

    folders = [path for each in (babilong, longbench2) for path in each.__path__]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data / "hub")  # where `datasets` finds OWNER/NAME as a folder
        return dict(
            simple_evaluate(
                HFLM(pretrained=checkpoint, dtype="float32", device="cpu", batch_size=1, trust_remote_code=True),
                tasks=[task],
                task_manager=TaskManager(include_path=folders, include_defaults=False, metadata=metadata),
                bootstrap_iters=0,
            )
            or {}
        )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["checkpoint", "exported"])
@pytest.mark.parametrize("name", ["longbench2", "babilong-1k"])
def test_scores_and_answers_are_those_of_lm_evals_own_run(
    request: pytest.FixtureRequest, model: str, data: Path, tmp_path: Path, name: str
) -> None:
    checkpoint: str = request.getfixturevalue(model)
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    given = {"model": checkpoint, "tasks": name, "offline": True, "data": str(data), "dtype": "float32"}
    measure_short(ShortOptions(out=str(tmp_path), **given), Listener())  # type: ignore[arg-type]
    task, metadata = ("longbench2", {}) if name == "longbench2" else ("babilong_longctx", {"max_seq_lengths": "1k"})
    stock = by_lm_eval(checkpoint, task, metadata, data)
    value = read_json(tmp_path / "short.json")["tasks"][name]
    rows = {(row["task"], row["doc_id"]): row for row in read_jsonl(tmp_path / f"{name}.jsonl")}
    samples = {(t, sample["doc_id"]): sample for t, each in stock["samples"].items() for sample in each}
    assert rows.keys() == samples.keys() and len(rows) == (40 if name == "longbench2" else 15)
    for key, sample in samples.items():
        mine, theirs = rows[key]["filtered_resps"], sample["filtered_resps"]
        if name == "longbench2":
            assert [float(x[0]) for x in mine] == pytest.approx([float(x[0]) for x in theirs], abs=1e-4)
        else:
            assert mine == theirs
        assert rows[key]["acc"] == sample["acc"] and rows[key]["prompt_hash"] == sample["prompt_hash"]
    assert 0 < value["score"] < 100 or model == "exported"  # which nobody has trained
    assert value["score"] == pytest.approx(100 * stock["results"][task]["acc,none"])
    tokenizer = load_tokenizer(checkpoint)
    room = CONTEXT if name == "longbench2" else CONTEXT - 16  # the last token of an answer is not read
    long = {key for key, s in samples.items() if len(tokenizer(s["arguments"][0][0]).input_ids) > room}
    assert long == {key for key, row in rows.items() if row.get("cut")} and 0 < len(long) < len(rows)
    whole = [row["acc"] for key, row in rows.items() if key not in long]
    assert value["cut"]["questions"] == len(long) and f"{len(long)} questions was cut off" in value["note"]
    assert value["cut"]["whole"]["score"] == pytest.approx(100 * sum(whole) / len(whole))
    assert any(f"{len(long)} of {len(rows)} questions are longer than the {CONTEXT} tokens" in text for text in said)


@pytest.mark.slow
def test_a_question_whose_answer_is_read_in_two_ways_counts_once(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GSM8K, whose answers lm-eval reads by two filters: against its own mean by the first one."""
    said = {"one": " #### 1", "two": " it is 2", "three": " #### 3", "four": " 4 or 5"}

    def told(model: Any, tokenizer: Any, ids: torch.Tensor, *_: Any) -> torch.Tensor:
        texts = [said[re.findall(r"How many\? (\w+)", tokenizer.decode(row))[-1]] for row in ids]
        rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        width = max(map(len, rows))
        return torch.tensor([row + [tokenizer.eos_token_id] * (width - len(row)) for row in rows])

    monkeypatch.setattr("harpe.evaluation.short.model.continuations", told)
    folder = tmp_path / "hub" / "openai" / "gsm8k" / "main"
    folder.mkdir(parents=True)
    rows = [{"question": f"How many? {word}", "answer": f"so #### {i}"} for i, word in enumerate(said, 1)]
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    lines = ["---", "configs:", "- config_name: main", "  data_files:"]
    lines += [line for s in ("train", "test") for line in (f"  - split: {s}", f"    path: main/{s}-*")]
    (folder.parent / "README.md").write_text("\n".join([*lines, "---", ""]))
    common: dict[str, Any] = {"model": checkpoint, "tasks": "gsm8k", "offline": True, "shots": 0, "dtype": "float32"}
    for name in ("before", "after"):
        measure_short(ShortOptions(data=str(tmp_path), out=str(tmp_path / name), **common))
        said["two"] = " #### 2, not 9"
        rows_ = read_jsonl(tmp_path / name / "gsm8k.jsonl")
        value = read_json(tmp_path / name / "short.json")["tasks"]["gsm8k"]
        theirs = value["lm_eval"]["gsm8k"]
        assert theirs["exact_match,strict-match"] != theirs["exact_match,flexible-extract"]
        assert value["score"] == 100 * theirs["exact_match,strict-match"]
        assert value["samples"] == 4 and [row["doc_id"] for row in rows_] == [0, 1, 2, 3]
        assert "strict-match; by flexible-extract" in value["note"]
    compare_short(tmp_path / "before", tmp_path / "after", ["gsm8k"])
    against = read_json(tmp_path / "after" / "against.json")["tasks"]["gsm8k"]
    assert (against["before"], against["after"], against["better"], against["worse"]) == (50, 75, 1, 0)


def test_a_group_has_a_score_only_where_all_its_questions_are_scored_alike() -> None:
    """And where its mean is lm-eval's: of a group whose tasks weigh the same, that of all questions is another."""
    right, wrong, other = {"acc": 1.0}, {"acc": 0.0}, {"exact_match": 0.0}
    questions = [{**each, "cut": False, "filter": "none"} for each in (right, right, right, wrong)]
    assert scores_of("a", questions, None, {})["score"] == 75
    assert scores_of("a", questions, None, {"acc,none": 0.75})["score"] == 75
    assert "score" not in scores_of("a", questions, None, {"acc,none": 0.5})  # (3 of 3 + 0 of 1) / 2
    assert "score" not in scores_of("a", [*questions, {**other, "cut": False, "filter": "none"}], None, {})


def test_a_set_names_what_fits_into_the_context() -> None:
    assert expanded(["piqa", "long"], 4096) == ["piqa", "longbench2", *(f"babilong-{k}k" for k in (0, 1, 2, 4))]
    assert expanded(["long"], 131072)[-1] == "babilong-128k" and expanded(["long"], 640)[1:] == ["babilong-0k"]


@pytest.mark.slow
def test_questions_that_changed_are_refused(checkpoint: str, data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": checkpoint, "tasks": "babilong-0k", "data": str(data), "dtype": "float32"}
    options = ShortOptions(out=str(tmp_path), limit=1, **given)
    measure_short(options)
    folder = data / "hub" / "RMT-team" / "babilong-1k-samples"
    (more := folder / "notes.txt").write_text("another version")
    try:
        with pytest.raises(HarpeError, match=r"questions.*RMT-team/babilong-1k-samples"):
            measure_short(options)
    finally:
        more.unlink()
    measure_short(options)


@pytest.mark.slow
def test_what_is_missing_is_named_with_how_to_give_it(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARPE_DATA", str(tmp_path))
    given = ["short", checkpoint, "--out", str(tmp_path / "out"), "--dtype", "float32"]
    assert main([*given, "--tasks", "longbench2", "--offline"]) == 2
    told = capsys.readouterr().err
    assert "--tasks longbench2" in told and "datasets/recursal/longbench-v2" in " ".join(told.split())
    assert f"{tmp_path}/hub/recursal/longbench-v2" in told.replace("\n", "")
    assert main([*given, "--tasks", "hellaswag", "--offline"]) == 2
    assert "hellaswag_local is a part of it" in " ".join(capsys.readouterr().err.split())
    assert main([*given, "--tasks", "longbench3", "--offline"]) == 2
    assert "is no task of lm-eval's" in capsys.readouterr().err
    assert main([*given, "--tasks", "babilong-3k", "--offline"]) == 2
    assert "has the lengths 0k, 1k" in capsys.readouterr().err
    pointer = tmp_path / "hub" / "RMT-team" / "babilong-1k-samples" / "0k"
    pointer.mkdir(parents=True)
    (pointer / "qa1-0.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    readme = "---\nconfigs:\n- config_name: 0k\n  data_files:\n  - split: qa1\n    path: 0k/qa1-*\n---\n"
    (pointer.parent / "README.md").write_text(readme)
    assert main([*given, "--tasks", "babilong-0k", "--offline"]) == 2
    assert "git lfs pull" in " ".join(capsys.readouterr().err.split())
    assert not json.loads((tmp_path / "out" / "short.json").read_text())["tasks"]


def test_rows_are_those_that_a_clone_holds_now(tmp_path: Path) -> None:
    """`datasets` by itself gives the first rows that a folder of that name and README.md ever held."""
    import datasets

    (folder := tmp_path / "hub" / "me" / "them").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files:\n  - split: t\n    path: a.json*\n---\n"
    )
    for rows in ([{"x": 1}], [{"x": 2}, {"x": 3}]):
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = DataSets(tmp_path / "hub", offline=True)
        with data.given():
            assert datasets.load_dataset("me/them", "a", split="t").to_list() == rows
            with pytest.raises(HarpeError, match="clone of https://huggingface.co/datasets/me/others"):
                datasets.load_dataset(path="me/others")
        assert data.used == {"me/them"} == data.hashes(data.used).keys()


def test_a_data_set_on_the_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network")))
    with (
        DataSets(None).given(),
        pytest.raises(
            HarpeError, match=r"me/them could not be read from the hub \(ConnectionError: no network\).*DATA"
        ),
    ):
        datasets.load_dataset("me/them")


def test_a_comparison_is_bound_to_the_data_sets_of_its_tasks_and_to_no_others(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))

    def inputs(tasks: str) -> str | None:
        asked: Any = None  # neither recipe, model nor run is looked at
        return Short().inputs(ShortTasks(tasks=tasks, data=str(folder)), asked, asked, asked)

    before = inputs("babilong-1k")
    assert before and inputs("piqa") is None and inputs("babilong-1k,piqa") == before
    (folder / "hub" / "recursal" / "longbench-v2" / "README.md").write_text("another card")
    (folder / "hub" / "RMT-team" / "babilong-1k-samples" / ".git").mkdir()
    (folder / "hub" / "RMT-team" / "babilong-1k-samples" / ".git" / "index").write_text("x")
    assert inputs("babilong-1k") == before
    (folder / "hub" / "RMT-team" / "babilong-1k-samples" / "README.md").write_text("another card")
    assert inputs("babilong-1k") != before
    with pytest.raises(HarpeError, match="babilon is no task of lm-eval's"):
        inputs("babilon")
