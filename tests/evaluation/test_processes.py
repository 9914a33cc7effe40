"""Two gloo processes on the CPU write the files of one, also where another number of processes began."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import harpe
from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.evaluation import run as evaluation
from harpe.files import read_json, read_jsonl, write_json
from harpe.measurement import records_of, write_records
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.options.runs import CompareOptions

from .launched import run

Launch = Callable[..., tuple[str, str]]
LAUNCHED = Path(__file__).parent / "launched.py"
MEASURED_TIME = ("seconds",)
"""Of the grid: the only entries that no two evaluations share."""


@pytest.fixture
def launch(fork: Any) -> Launch:
    """Runs commands in two processes, one behind the other; what the two have printed, and said of errors."""

    def start(commands: Sequence[Sequence[str]], folder: Path, codes: Sequence[int] = (0, 0)) -> tuple[str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        both = [fork(partial(run, commands, folder), RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
        ended, said = [each.wait() for each in both], "".join(each.stderr for each in both)
        assert ended == list(codes), said
        return "".join(each.stdout for each in both), said

    return start


def torchrun(commands: Sequence[Sequence[str]], folder: Path, **environment: str) -> tuple[int, str]:
    """Have torchrun start two processes for commands; its exit code, and what all have said of errors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commands.json").write_text(json.dumps(commands))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(LAUNCHED)]
    done = subprocess.run(
        [*launcher, str(folder / "commands.json"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stderr


@pytest.fixture
def alone(fork: Any) -> Callable[..., None]:
    """Runs commands in one process with one thread, as the two are: how sums of floats are formed depends on it."""

    def start(commands: Sequence[Sequence[str]], before: Callable[[], None] = lambda: None) -> None:
        one = fork(lambda: before() or max(main(list(command)) for command in commands))
        assert one.wait() == 0, one.stderr

    return start


def keep_answers(folder: Path) -> None:
    """Have this process leave a copy of the answers that `harpe short` removes when it is done."""
    unlink = Path.unlink

    def keep(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith(".requests.jsonl"):
            (folder / self.name).write_bytes(self.read_bytes())
        unlink(self, missing_ok)

    Path.unlink = keep  # type: ignore[method-assign]


def written(folder: Path) -> dict[str, Any]:
    """Every file by name: its bytes, or, where it holds measured time, its values without that."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "grid.json":
            found["grid.json"] = read_json(path)
            del found["grid.json"]["reading"]["seconds"]
        elif path.name == "grid.jsonl":
            found["grid.jsonl"] = [
                {key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(path)
            ]
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def interrupted(whole: Path, folder: Path, records: str, keep: Sequence[int], drop: Sequence[str]) -> None:
    """A copy that two killed processes have left: `keep` records in the parts of each, the last of them with a cut line
    behind it."""
    if folder != whole:
        shutil.copytree(whole, folder)
    path = folder / records
    rows, of = read_jsonl(path), records_of(path)
    path.unlink()
    for name in drop:
        (folder / name).unlink()
    for rank, count in enumerate(keep):
        write_records(path.with_name(f"{path.name}.{rank}"), rows[rank::2][:count], of)
    with path.with_name(f"{path.name}.1").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(rows[-1])[:30])


def shares(folder: Path, records: Path) -> list[int]:
    return [read_json(folder / f"shares.{rank}.json").get(str(records), 0) for rank in (0, 1)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven documents of different lengths, the shortest of some 600 tokens."""
    folder = tmp_path_factory.mktemp("texts")
    for n in range(7):
        lines = (f"value_{i} = compute({i % (n + 3)}, name='{i * 7}')" for i in range(60 + 9 * n))
        (folder / f"{n}.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_perplexity_of_two_processes_is_that_of_one_to_the_byte(
    texts: Path, tmp_path: Path, alone: Callable[..., None], launch: Launch
) -> None:
    def commands(name: str) -> list[list[str]]:
        given = ["perplexity", "embedded", "--data", str(texts), "--documents", "7", "--dtype", "float32"]
        out = tmp_path / name
        return [
            [*given, "--lengths", "32,100,500", "--out", str(out / "prefixes" / "p.json")],
            [*given, "--window", "300", "--stride", "90", "--out", str(out / "windows" / "p.json")],
        ]

    alone(commands("one"))
    for kind in ("prefixes", "windows"):
        for name in ("two after two", "one after two"):
            drop = [path.name for path in (tmp_path / "one" / kind).iterdir() if path.name != "p.records.jsonl"]
            interrupted(tmp_path / "one" / kind, tmp_path / name / kind, "p.records.jsonl", (2, 1), drop)
    told, _ = launch([*commands("two"), *commands("two after two")], tmp_path / "log")
    alone(commands("one after two"))
    assert told.count("process 1 of 2") >= 4 and told.count("Written: ") == 4 and told.count("was cut short") == 2
    for kind in ("prefixes", "windows"):
        whole = written(tmp_path / "one" / kind)
        assert {"p.json", "p.records.jsonl", "p-positions.svg"} <= whole.keys()
        for name in ("two", "two after two", "one after two"):
            assert written(tmp_path / name / kind) == whole
        assert shares(tmp_path / "log", tmp_path / "two" / kind / "p.records.jsonl") == [4, 3]
        assert shares(tmp_path / "log", tmp_path / "two after two" / kind / "p.records.jsonl") == [
            2,
            2,
        ]  # and not the three that were there


@pytest.mark.slow
def test_evaluate_in_two_processes_writes_what_one_writes_for_a_checkpoint_and_for_a_run(
    texts: Path,
    tmp_path: Path,
    alone: Callable[..., None],
    launch: Launch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def checkpoint(name: str) -> list[str]:
        out = str(tmp_path / name / "scores")
        return ["evaluate", "embedded", "--length", "512", *given, "--grid-samples", "4", "--out", out]

    # batches of two samples of the grid: processes share batches
    monkeypatch.setattr(evaluation, "answer_grid", partial(evaluation.answer_grid, batch_tokens=1024))

    given = ["--data", str(texts), "--documents", "5", "--samples", "3", "--dtype", "float32"]
    runs = [tmp_path / name / "run" for name in ("one", "two")]
    make_run(runs[0], texts)
    shutil.copytree(runs[0], runs[1])
    of_run = [["evaluate", str(folder), *given, "--grid-samples", "1"] for folder in runs]
    alone([checkpoint("one"), of_run[0]])
    for name in ("two after two", "one after two"):
        folder = tmp_path / name / "scores"
        interrupted(tmp_path / "one" / "scores", folder, "perplexity.jsonl", (2, 1), ["perplexity.json"])
        interrupted(folder, folder, "needles.jsonl", (3, 8), ["needles.json"])
        interrupted(folder, folder, "grid.jsonl", (0, 5), ["grid.json"])
    # of the run, two processes find one model measured and the other begun
    shutil.copytree(runs[0] / "base" / "scores", runs[1] / "base" / "scores")
    begun = runs[0] / "harpe" / "scores", runs[1] / "harpe" / "scores"
    interrupted(*begun, "needles.jsonl", (5, 0), ["needles.json", "grid.json", "grid.jsonl"])
    told, _ = launch([checkpoint("two"), of_run[1], checkpoint("two after two")], tmp_path / "log")
    alone([checkpoint("one after two")])
    assert told.count("process 1 of 2") >= 6 and told.count("The report is in") == 1
    scores, whole = (written(tmp_path / "one" / kind) for kind in ("scores", "run"))
    assert {
        "perplexity.json",
        "perplexity.jsonl",
        "needles.json",
        "needles.jsonl",
        "grid.json",
        "grid.jsonl",
    } <= scores.keys()
    assert {"report/index.html", "plan.json", "base/scores/needles.json", "harpe/scores/needles.json"} <= whole.keys()
    for name in ("two", "one after two", "two after two"):
        assert written(tmp_path / name / "scores") == scores
    there = written(runs[1])
    for page in (whole, there):  # the page shows the folder's name and the grid's measured time
        del page["report/index.html"]
    assert there == whole
    for file, records in (("perplexity.jsonl", 5), ("needles.jsonl", 24), ("grid.jsonl", 40)):
        share = shares(tmp_path / "log", tmp_path / "two" / "scores" / file)
        assert sum(share) == records and min(share) > 0
        of_run = sum(shares(tmp_path / "log", runs[1] / "harpe" / "scores" / file))
        assert of_run > 0 or file == "perplexity.jsonl"  # which was there


def make_run(run: Path, texts: Path) -> None:
    """A run of `harpe extend` on the embedded model, with the fewest steps."""
    options = {"length": 512, "tokens": 1024, "batch_tokens": 512, "dtype": "float32", "method": "harpe"}
    harpe.extend("embedded", data=str(texts), out=run, **options)
    for scores in run.glob("*/scores"):
        shutil.rmtree(scores)
    shutil.rmtree(run / "report", ignore_errors=True)


@pytest.mark.slow
def test_short_benchmarks_in_two_processes_have_the_records_of_one(
    tmp_path: Path, alone: Callable[..., None], launch: Launch
) -> None:
    """Questions of both kinds, likelihoods of given answers and answers in words; a kill changes no digit either."""
    pytest.importorskip("lm_eval", reason="short benchmarks need the package lm-eval (pip install 'harpe[eval]')")
    data = tmp_path / "data" / "short_bench"
    (data / "piqa").mkdir(parents=True)
    goals = [
        {"goal": f"open the jar {'and wait ' * i}", "sol1": f"turn lid {i}", "sol2": "hit it with a longer text"}
        for i in range(9)
    ]
    (data / "piqa" / "valid.jsonl").write_text("".join(json.dumps(goal) + "\n" for goal in goals))
    (data / "piqa" / "valid-labels.lst").write_text("0\n1\n0\n" * 3)
    (data / "llm-foundry").mkdir()
    asked = [
        {"context": f"Question: Who is {i}{'!' * i}?\nAnswer:", "answer": f"N{i}", "aliases": [f"N{i}"]}
        for i in range(105)
    ]
    (data / "llm-foundry" / "triviaqa_sm_sub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))

    model = load_model("embedded")
    model.config.max_position_embeddings = 1024  # room for answers in words
    save_checkpoint(model, load_tokenizer("embedded"), tmp_path / "model", 1024)

    def command(name: str) -> list[str]:
        given = [
            "short",
            str(tmp_path / "model"),
            "--tasks",
            "piqa,triviaqa_local",
            "--shots",
            "1",
            "--offline",
            "--data",
            str(tmp_path / "data"),
        ]
        return [*given, "--batch-size", "2", "--dtype", "float32", "--out", str(tmp_path / name)]

    alone([command("one")], partial(keep_answers, tmp_path))
    lines = (tmp_path / "piqa.requests.jsonl").read_bytes().splitlines(keepends=True)
    head, *lines = lines
    assert len(lines) == 18
    for name in ("one after two", "two after two"):
        (tmp_path / name).mkdir()
        begun = {
            key: value for key, value in read_json(tmp_path / "one" / "short.json").items() if key != "schema_version"
        }
        write_json(tmp_path / name / "short.json", {**begun, "tasks": {}})
        (tmp_path / name / "piqa.requests.jsonl.0").write_bytes(b"".join([head, *lines[:3]]))
        (tmp_path / name / "piqa.requests.jsonl.1").write_bytes(b"".join([head, *lines[9:14]]) + lines[15][:20])
    told, _ = launch([command("two"), command("two after two")], tmp_path / "log")
    alone([command("one after two")])
    assert told.count("piqa: 8 requests were answered before.") == 1 and told.count("Short benchmarks") == 2
    whole = written(tmp_path / "one")
    assert whole.keys() == {"short.json", "piqa.jsonl", "triviaqa_local.jsonl"}
    for name in ("two", "one after two", "two after two"):
        assert written(tmp_path / name) == whole
    for task, least in (("piqa", 8), ("triviaqa_local", 2)):
        assert min(shares(tmp_path / "log", tmp_path / "two" / f"{task}.requests.jsonl")) >= least


@pytest.mark.slow
def test_a_failure_on_one_process_ends_all_with_its_sentence_and_the_command_goes_on_later(
    texts: Path, tmp_path: Path, alone: Callable[..., None], launch: Launch
) -> None:
    """In processes that torchrun has started, as those of the other tests are not: they are forked."""
    command = ["perplexity", "embedded", "--data", str(texts), "--out", str(tmp_path / "p.json")]
    whole = [*command, "--documents", "7", "--dtype", "float32", "--window", "300"]
    failing = "1:the text of this process cannot be read."
    code, told = torchrun([whole], tmp_path / "log", HARPE_TEST_FAILS=failing)
    assert code != 0 and told.count("harpe perplexity: the text of this process cannot be read.") == 1
    assert not (tmp_path / "p.json").exists()
    alone([whole])
    assert len(read_jsonl(tmp_path / "p.records.jsonl")) == 7
    _, told = launch([command], tmp_path / "log", codes=(2, 0))
    assert told.count("Give either --lengths") == 1  # what all processes would say is said once


@pytest.mark.slow
def test_ruler_in_two_processes_writes_the_files_of_one_and_they_go_on_for_each_other(
    tmp_path: Path, alone: Callable[..., None], launch: Launch
) -> None:
    pytest.importorskip(
        "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
    )

    def command(name: str) -> list[str]:
        given = [
            "ruler",
            "--model",
            "embedded",
            "--length",
            "512",
            "--beyond-context",
            "--samples",
            "4",
            "--tasks",
            "niah_multikey_2,fwe",
        ]
        return [*given, "--batch-tokens", "1500", "--dtype", "float32", "--out", str(tmp_path / name)]

    alone([command("one")])
    whole = written(tmp_path / "one")
    assert whole.keys() == {"answers.jsonl", "fwe.jsonl", "niah_multikey_2.jsonl", "protocol.json", "ruler.json"}
    rows = read_jsonl(tmp_path / "one" / "answers.jsonl")
    assert [(row["task"], row["sample"]) for row in rows] == [
        (task, i) for task in ("niah_multikey_2", "fwe") for i in range(4)
    ]
    assert len({row["prediction"] for row in rows}) > 4  # answers that tell the samples apart
    for name in ("one after two", "two after two"):
        interrupted(tmp_path / "one", tmp_path / name, "answers.jsonl", (2, 3), ["ruler.json"])
    told, _ = launch([command("two"), command("two after two")], tmp_path / "log")
    alone([command("one after two")])
    assert told.count("process 1 of 2") >= 2 and told.count("RULER at 512 tokens") == 2 and "was cut short" in told
    for name in ("two", "one after two", "two after two"):
        assert written(tmp_path / name) == whole


@pytest.mark.slow
def test_long_context_tasks_in_two_processes_write_the_files_of_one_and_go_on_for_each_other(
    tmp_path: Path, alone: Callable[..., None], launch: Launch
) -> None:
    def command(name: str) -> list[str]:
        given = ["long", "embedded", "--lengths", "256,400", "--beyond-context", "--samples", "4"]
        given += ["--tasks", "content-4,order-nth-4", "--batch-tokens", "800", "--dtype", "float32"]
        return [*given, "--out", str(tmp_path / name)]

    alone([command("one")])
    whole = written(tmp_path / "one")
    rows = read_jsonl(tmp_path / "one" / "answers.jsonl")
    assert [(row["task"], row["length"], row["sample"]) for row in rows] == [
        (task, length, i) for task in ("order-nth-4", "content-4") for length in (256, 400) for i in range(4)
    ]
    assert len({row["prediction"] for row in rows}) > 4  # answers that tell the samples apart
    for name in ("one after two", "two after two"):
        interrupted(tmp_path / "one", tmp_path / name, "answers.jsonl", (3, 5), ["long.json"])
    told, _ = launch([command("two"), command("two after two")], tmp_path / "log")
    alone([command("one after two")])
    assert told.count("process 1 of 2") >= 2 and "was cut short" in told
    for name in ("two", "one after two", "two after two"):
        assert written(tmp_path / name) == whole


def test_a_comparison_that_a_launcher_starts_several_times_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from harpe.comparison.run import compare

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HarpeError, match=r"harpe compare was started as 2 processes.*--jobs"):
        compare(CompareOptions(recipe=str(tmp_path / "none.yaml")))
