"""A corpus prepared once: what is refused before the work, what the folder tells, and that runs train on exactly it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import harpe
from harpe.cli.main import main
from harpe.cli.parser import build_parser
from harpe.commands import prepare as preparation
from harpe.commands.evaluate import evaluate
from harpe.comparison.run import compare
from harpe.data.embedded import held_out_files
from harpe.data.packed import PackedDataset
from harpe.data.sampling import Upsampling
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.load import load_tokenizer
from harpe.options.extend import PrepareOptions
from harpe.options.measuring import EvaluateOptions
from harpe.options.runs import CompareOptions
from harpe.reporter import Reporter
from harpe.runs.corpus import TextCorpus
from harpe.runs.texts import packed

SETTINGS: dict[str, Any] = {
    "length": 256,
    "tokens": 8 * 512,
    "batch_tokens": 512,
    "learning_rate": 1e-3,
    "dtype": "float32",
}


class Listening(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def prepared(workspace: Path, out: str = "prepared", **changes: Any) -> Path:
    options = {"data": str(workspace / "texts"), "model": str(workspace / "model"), "length": 256, **changes}
    return harpe.prepare(out=workspace / out, **options)


def extended(workspace: Path, out: str = "run", **changes: Any) -> Path:
    options = {"method": "harpe", **SETTINGS, "model": str(workspace / "model"), "data": str(workspace / "prepared")}
    options |= changes
    return harpe.extend(out=workspace / out, **options)


@pytest.fixture
def sources(workspace: Path) -> Path:
    """Two sub-folders: `books` with two long texts and four short ones, `posts` with short ones only."""
    folder = workspace / "sources"
    for name, sizes in (("books", (900, 700, 40, 50, 60, 70)), ("posts", (30, 45, 60, 75, 90, 30, 40, 50))):
        (folder / name).mkdir(parents=True)
        for n, size in enumerate(sizes):
            (folder / name / f"{n}.txt").write_text(
                " ".join(f"{name} {n} line {i % 13} of {size}." for i in range(size))
            )
    return folder


# -- runs on a prepared folder


def test_a_run_on_prepared_texts_trains_as_one_on_the_texts_themselves(workspace: Path) -> None:
    raw = extended(workspace, "raw", data=str(workspace / "texts"))
    folder = prepared(workspace, tokens=SETTINGS["tokens"])
    ours = extended(workspace)
    hashes = {read_json(workspace / run / "plan.json")["corpus"]["hash"] for run in ("raw", "run")}
    assert hashes == {PackedDataset(folder).hash}
    assert (raw / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()


def test_a_run_takes_the_beginning_of_a_longer_stream_and_knows_its_overlap(workspace: Path) -> None:
    folder = prepared(workspace)
    extended(workspace)
    data = PackedDataset(workspace / "run" / "data" / "256")
    assert data.hash == PackedDataset(folder).hash and data.tokens > SETTINGS["tokens"]
    assert (workspace / "run" / "data" / "256" / "tokens.bin").samefile(folder / "tokens.bin")  # not a copy
    evaluate(
        EvaluateOptions(
            model=str(workspace / "run"),
            data=str(workspace / "texts"),
            documents=2,
            samples=0,
            grid_samples=1,
            dtype="float32",
        )
    )
    found = read_json(workspace / "run" / "harpe" / "scores" / "perplexity.json")["overlap"]
    assert found["training_hash"] == data.hash and found["share"] > 0.9  # the texts were trained on, and that is told


def test_a_run_that_goes_on_in_another_folder_reads_prepared_texts_at_its_own_length(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There --data, relative, names nothing; the run's links are good."""
    prepared(workspace, length=512)
    tokenizer, lengths = load_tokenizer(str(workspace / "model")), []
    for place in (workspace, workspace / "model"):
        monkeypatch.chdir(place)
        data = packed(workspace / "run" / "data" / "256", "prepared", tokenizer, 256)
        lengths.append((data.length, len(data[0]["input_ids"])))
    assert lengths == [(256, 256)] * 2


def test_texts_too_few_for_the_stages_are_told_before_anything_is_trained(workspace: Path) -> None:
    """Without --tokens: one step, of two stages."""
    assert PackedDataset(prepared(workspace, tokens=512)).tokens == 512
    with pytest.raises(HarpeError, match=r"Stage 1 has 0\.5 of 512 tokens, less than one step of 512; give more"):
        extended(workspace, method="abf-staged", tokens=0)
    assert not (workspace / "run").exists()


def test_a_shorter_length_is_cut_from_the_stream_and_a_longer_one_is_refused(workspace: Path) -> None:
    prepared(workspace, length=512)
    extended(workspace)
    assert read_json(workspace / "run" / "plan.json")["corpus"]["hash"] == PackedDataset(workspace / "prepared").hash
    with pytest.raises(
        HarpeError, match=r"prepared in sequences of 512 tokens, and --length is 1024.*Prepare the texts again with"
    ):
        extended(workspace, "longer", length=1024, batch_tokens=1024)
    with pytest.raises(HarpeError, match="it must divide them"):
        extended(workspace, "odd", length=384, batch_tokens=384)
    assert not (workspace / "longer").exists() and not (workspace / "odd").exists()


def test_another_tokenizer_is_refused(workspace: Path) -> None:
    prepared(workspace)
    tokenizer = load_tokenizer("embedded")
    tokenizer.add_tokens(["abc"])
    tokenizer.backend_tokenizer.no_truncation()
    other = workspace / "other"
    shutil.copytree(workspace / "model", other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        HarpeError, match=r"was prepared with another tokenizer \(SHA-256 \w{12}, the model's is \w{12}\)"
    ):
        extended(workspace, model=str(other))
    assert not (workspace / "run").exists()


def test_changed_or_lost_data_are_told(workspace: Path) -> None:
    folder = prepared(workspace)
    with (folder / "tokens.bin").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\x07\x00")
    with pytest.raises(HarpeError, match="was changed after it was written"):
        extended(workspace)
    assert not (workspace / "run").exists()
    shutil.rmtree(folder)
    prepared(workspace)
    extended(workspace)
    shutil.rmtree(folder)
    with pytest.raises(HarpeError, match="are no longer in .*prepared"):
        extended(workspace, resume=True)
    prepared(workspace, seed=1)
    with pytest.raises(HarpeError, match="does not hold what this run began with"):
        extended(workspace, resume=True)
    shutil.rmtree(folder)
    prepared(workspace)
    extended(workspace, resume=True)


def test_heads_are_measured_on_prepared_texts_too(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARPE_CACHE", str(workspace / "cache"))
    prepared(workspace)
    extended(workspace, assignment="adaptive")
    assert any("Heads look" in reason for reason in read_json(workspace / "run" / "plan.json")["reasons"])


def test_prepared_texts_are_not_evaluated_on(workspace: Path) -> None:
    folder = prepared(workspace)
    with pytest.raises(HarpeError, match="was prepared for training"):
        evaluate(
            EvaluateOptions(model=str(workspace / "model"), data=str(folder), out=str(workspace / "scores"), length=128)
        )


def recipe(workspace: Path, **changes: Any) -> str:
    value = {
        "title": "tiny",
        "model": str(workspace / "model"),
        "data": str(workspace / "prepared"),
        "gradient_checkpointing": False,
        "seeds": [0],
        "baseline": "abf",
        "evaluation": {"data": str(workspace / "texts"), "documents": 2, "samples": 0, "grid_samples": 0},
        "methods": ["abf", "abf-staged"],
        **SETTINGS,
        **changes,
    }
    (workspace / "recipe.yaml").write_text(yaml.safe_dump(value))
    return str(workspace / "recipe.yaml")


@pytest.mark.slow
def test_a_comparison_trains_all_stages_on_the_stream_of_its_seed(workspace: Path) -> None:
    data = PackedDataset(prepared(workspace, "texts-7", length=512))
    path = recipe(
        workspace, seeds=[7], data=str(workspace / "texts-{seed}"), methods=["abf-staged"], baseline="abf-staged"
    )
    run = compare(CompareOptions(recipe=path, out=str(workspace / "compared")))
    assert read_json(run / "plan.json")["corpus"]["hashes"] == {"7": data.hash}
    record = read_json(run / "abf-staged" / "seed-7" / "record.json")
    assert [stage["data_hash"] for stage in record["stages"]] == [data.hash] * 2
    assert record["tokens"] == SETTINGS["tokens"]


def test_several_seeds_need_a_stream_each(workspace: Path) -> None:
    prepared(workspace)
    with pytest.raises(
        HarpeError, match=r"in one order, on which all 2 seeds would train\. Give --seeds 0, or .*\{seed\}"
    ):
        compare(CompareOptions(recipe=recipe(workspace, seeds=[0, 1]), out=str(workspace / "compared")))
    for seed in (0, 1):
        prepared(workspace, f"seed-{seed}", seed=5)
    path = recipe(workspace, seeds=[0, 1], data=str(workspace / "seed-{seed}"), methods=["abf"])
    with pytest.raises(HarpeError, match=r"gives seed 1 the same stream .* Prepare it with another --seed"):
        compare(CompareOptions(recipe=path, out=str(workspace / "compared")))
    assert not (workspace / "compared").exists()


# -- what the folder holds


def test_folders_and_fields_name_the_same_sources(workspace: Path, sources: Path) -> None:
    rows = [{"text": path.read_text(), "meta": {"set": path.parent.name}} for path in sorted(sources.rglob("*.txt"))]
    (workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), workspace / "rows.parquet")
    rule = {"upsample_length": 2000, "upsample_factor": 4.0}
    indices = [read_json(prepared(workspace, "a", data=str(sources), by_folder=True, **rule) / "index.json")]
    for out, name in (("b", "rows.jsonl"), ("c", "rows.parquet")):
        folder = prepared(workspace, out, data=str(workspace / name), source_field="meta.set", **rule)
        indices.append(read_json(folder / "index.json"))
    assert len({index["hash"] for index in indices}) == len({index["corpus"]["sha256"] for index in indices}) == 1
    assert indices[0]["sources"] == indices[1]["sources"] == indices[2]["sources"]


def test_a_source_that_is_called_as_short_texts_are_is_refused_and_not_left_out(workspace: Path, sources: Path) -> None:
    """It would get the share of short texts, which is none."""
    (sources / "posts").rename(sources / "--short-data")
    with pytest.raises(HarpeError, match="a source that is called --short-data"):
        prepared(workspace, data=str(sources), by_folder=True)
    assert not list(workspace.glob("prepared*"))


def test_the_index_tells_options_hashes_and_the_table(workspace: Path, sources: Path) -> None:
    listening = Listening()
    options = {"by_folder": True, "upsample_length": 2000, "upsample_factor": 4.0, "max_copies": 2, "seed": 3}
    folder = prepared(workspace, data=str(sources), reporter=listening, **options)
    index = read_json(folder / "index.json")
    assert (
        index["schema_version"] == 1
        and index["seed"] == 3
        and len(index["hash"]) == len(index["corpus"]["sha256"]) == 64
    )
    assert index["options"].items() >= options.items() and "out" not in index["options"]
    assert index["tokenizer"]["sha256"] and index["corpus"]["documents"] == 14
    rows = {row["source"]: row for row in index["sources"]}
    assert rows["books"]["long_documents"] == 2 and rows["posts"]["long_share_drawn"] == 0
    assert rows["books"]["long_share_drawn"] > rows["books"]["long_share"]
    assert sum(row["tokens_drawn"] for row in rows.values()) == index["tokens"] == PackedDataset(folder).tokens
    assert "No document of 2,000 tokens in: posts. Nothing is upsampled there." in listening.said
    assert any(f"{index['tokens']:,} tokens in" in said and index["hash"] in said for said in listening.said)
    PackedDataset(folder).verify()


def test_held_out_texts_are_left_out_and_counted(workspace: Path, sources: Path) -> None:
    held = workspace / "held"
    held.mkdir()
    shutil.copy(sources / "books" / "0.txt", held / "another-name.txt")
    whole = read_json(prepared(workspace, "whole", data=str(sources)) / "index.json")
    index = read_json(prepared(workspace, data=str(sources), held_out=str(held)) / "index.json")
    assert index["held_out_left_out"] == 1 and whole["held_out_left_out"] == 0
    assert index["corpus"]["documents"] == whole["corpus"]["documents"] - 1
    text = load_tokenizer("embedded").decode(
        [int(i) for ids in PackedDataset(workspace / "prepared").documents() for i in ids]
    )
    assert "books 1 line" in text and "books 0 line" not in text


def test_texts_that_are_all_held_out_are_not_called_empty(workspace: Path, sources: Path) -> None:
    with pytest.raises(HarpeError, match="no documents that --held-out does not have"):
        prepared(workspace, data=str(sources), held_out=str(sources))
    for shard in ("1/2", "2/2"):
        prepared(workspace, data=str(sources), held_out=str(sources), shard=shard)
    with pytest.raises(HarpeError, match="no documents that --held-out does not have"):
        prepared(workspace, data=str(sources), held_out=str(sources))


def test_the_embedded_texts_are_prepared_without_those_that_are_evaluated_on(tmp_path: Path) -> None:
    folder = harpe.prepare("embedded", "embedded", 2048, tmp_path / "prepared", tokens=40_960)
    tokenizer, texts = load_tokenizer("embedded"), {file.text for file in held_out_files()}
    assert not [
        ids for ids in PackedDataset(folder).documents() if tokenizer.decode(ids, skip_special_tokens=True) in texts
    ]
    options = PrepareOptions(data="embedded", model="embedded", length=2048, out="", by_folder=True)
    sources = {document.source for document in TextCorpus(options, tokenizer, Upsampling()).reading("", 0, Reporter())}
    assert {"stdlib", "torch", "numpy"} <= sources and len(sources) <= 9
    options = PrepareOptions(data="x", model="embedded", length=2048, out="", held_out="embedded")
    assert TextCorpus(options, tokenizer, Upsampling())._left_out == {
        hashlib.sha256(text.encode()).digest() for text in texts
    }


def test_only_the_first_documents_are_read_where_asked(workspace: Path, sources: Path) -> None:
    assert read_json(prepared(workspace, data=str(sources), documents=3) / "index.json")["corpus"]["documents"] == 3


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere"}, "no checkpoint folder"),
        ({"data": "/nowhere"}, "no such file or folder"),
        ({"length": 1}, "--length is 1"),
        ({"tokens": 100}, "100 tokens were asked for, less than one sequence of 256"),
        ({"upsample_factor": 0.5}, "--upsample-factor is 0.5"),
        ({"long_share": 1.0}, "--long-share is 1"),
        ({"long_share": 0.5, "upsample_factor": 2.0}, "give one of them"),
        ({"max_copies": 0}, "--max-copies is 0"),
        ({"documents": -1}, "--documents is -1"),
        ({"source_field": "meta", "by_folder": True}, "give one of them"),
        ({"source_field": "meta"}, "one text without fields"),
        ({"held_out": "/nowhere"}, "no such file or folder"),
        ({"upsample_factor": 2.0, "upsample_length": 100_000}, r"No document has 100000 tokens "),
        ({"tokens": 10**6}, r"--tokens 1,000,000 would take .* tokens can be drawn"),
        (
            {"upsample_factor": 5.0, "upsample_length": 2000, "tokens": 60_000},
            r"of at least 2,000 tokens.*--max-copies \d+\.",
        ),
        ({"length": 10**6}, "one sequence needs 1000000"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(
    workspace: Path, sources: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HarpeError, match=message):
        prepared(workspace, **{"data": str(sources), **changes})
    assert not list(workspace.glob("prepared*"))


def test_a_broken_row_at_the_end_is_told_before_anything_is_tokenised(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "tokenise_shard", lambda *a, **k: pytest.fail("the work has begun"))
    (workspace / "rows.jsonl").write_text('{"text": "fine", "set": "a"}\n' * 500 + '{"text": "no set"}\n')
    with pytest.raises(HarpeError, match=r"--source-field set: line 501 of .*The fields there are: text\."):
        prepared(workspace, data=str(workspace / "rows.jsonl"), source_field="set")


def test_a_full_disk_is_told_before_anything_is_tokenised(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "tokenise_shard", lambda *a, **k: pytest.fail("the work has begun"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("harpe.runs.directory.shutil.disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(HarpeError, match="Preparing the texts needs about"):
        prepared(workspace)


def test_what_is_there_is_not_written_over(workspace: Path) -> None:
    folder = prepared(workspace)
    with pytest.raises(HarpeError, match="already holds a packed data set"):
        prepared(workspace)
    with pytest.raises(HarpeError, match="is prepared already"):
        prepared(workspace, "again", data=str(folder))


# -- the command


def test_the_command_prints_the_table_and_takes_tokens_as_people_write_them(
    workspace: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--data",
        str(sources),
        "--by-folder",
        "--model",
        str(workspace / "model"),
        "--length",
        "256",
        "--tokens",
        "4e3",
    ]
    arguments += ["--upsample-length", "2000", "--upsample-factor", "2", "--out", str(workspace / "prepared")]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["prepare", *arguments]) == 0
    assert PackedDataset(workspace / "prepared").tokens == 4000 // 256 * 256
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    index = read_json(workspace / "prepared" / "index.json")
    for row in index["sources"]:
        (there,) = (words for words in lines if words[:2] == [row["source"], "there"])
        assert there[2:] == [
            str(row["documents"]),
            f"{row['tokens']:,}",
            f"{row['share']:.1%}",
            f"{row['long_share']:.1%}",
        ]
    with pytest.raises(SystemExit):
        build_parser("").parse_args(["prepare", *arguments, "--tokens", "4.5"])
