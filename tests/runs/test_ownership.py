"""Nothing that harpe did not write is replaced, by any verb: refused in a sentence before anything is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harpe.cli.main import main
from harpe.errors import HarpeError
from harpe.evaluation.ruler import fetch as fetching
from harpe.files import held_place, write_json
from harpe.ownership import is_ours, refuse_foreign

FOREIGN = '{"text": "the only copy of a data set"}\n{"text": "its second document"}\n'
EVALUATE = ["protocol.json", "perplexity.json", "needles.jsonl", "grid.jsonl.0"]
AGAINST = ["against.json", "against.md"]


def words(verb: str, folder: Path, data: Path) -> list[str]:
    """A command that writes into `folder`."""
    texts, bases = str(data / "texts.txt"), ["--heads=2", "--head-dim=16", "--length=64", "--min=10000", "--max=20000"]
    plain, few = "--dtype=float32", ["--dtype=float32", "--samples=1", "--grid-samples=1", "--documents=1"]
    ruler = ["ruler", "--tasks=fwe", "--length=512", "--samples=1", f"--out={folder}"]
    return {
        "bases": ["bases", *bases, f"--out={folder}"],
        "evaluate": ["evaluate", "embedded", f"--data={texts}", "--length=64", *few, f"--out={folder}"],
        "perplexity": [
            "perplexity",
            "embedded",
            f"--data={texts}",
            "--lengths=32,64",
            plain,
            f"--out={folder / 'held_out.json'}",
        ],
        "ruler": [*ruler, "--tokenizer=embedded"],
        "ruler answers": [*ruler, "--model=embedded", "--beyond-context", plain, f"--against={data}"],
        "long": [
            *["long", "embedded", "--tasks=content-4", "--lengths=256", "--samples=1", plain],
            *[f"--against={data}", f"--out={folder}"],
        ],
        "short": [
            "short",
            "embedded",
            "--offline",
            "--tasks=piqa",
            f"--data={data}",
            f"--against={data}",
            f"--out={folder}",
        ],
        "prepare": ["prepare", f"--data={texts}", "--model=embedded", "--length=16", f"--out={folder}"],
        "extend": ["extend", "embedded", "--length=512", f"--data={texts}", f"--out={folder}"],
        "export": ["export", "embedded", f"--out={folder}"],
        "report": ["report", str(folder)],
    }[verb]


PLACES = [
    *[("bases", name) for name in ("bases.json", "waveforms.svg")],
    *[("evaluate", name) for name in EVALUATE],
    *[("perplexity", f"held_out{name}") for name in (".json", "-positions.svg", ".records.jsonl", ".records.jsonl.0")],
    *[("ruler", name) for name in ("protocol.json", "fwe.jsonl", "ruler.json")],
    *[("ruler answers", name) for name in ("fwe.jsonl", "answers.jsonl.3", *AGAINST)],
    *[
        ("long", name)
        for name in ("protocol.json", "long.json", "long.svg", "content-4-256.jsonl", "answers.jsonl.3", *AGAINST)
    ],
    *[("short", name) for name in ("short.json", "piqa.jsonl", "piqa.requests.jsonl.1", "against.md")],
    *[(verb, "index.json") for verb in ("prepare", "extend", "export")],
    *[
        ("report", name)
        for name in (
            "report/index.html",
            "report/tables.csv",
            "report/tables.md",
            "positions.json",
            "lengths.json",
            "summary.json",
        )
    ],
]


@pytest.mark.parametrize(("verb", "name"), PLACES)
def test_what_harpe_did_not_write_stays_as_it_is(
    verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = tmp_path / "place", tmp_path / "data"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(FOREIGN)
    (data / "short_bench" / "piqa").mkdir(parents=True)
    for ending in ("valid.jsonl", "valid-labels.lst"):
        (data / "short_bench" / "piqa" / ending).touch()
    (data / "texts.txt").write_text("a few words, over and over again. " * 40)
    before = sorted(folder.rglob("*"))
    assert main(words(verb, folder, data)) == 2
    told = capsys.readouterr().err
    assert str(folder) in told and "Traceback" not in told
    assert (folder / name).read_text() == FOREIGN and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("verb", ["evaluate", "long", "perplexity", "ruler", "short"])
def test_scores_that_a_process_is_measuring_are_left_to_it(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = tmp_path / "place", tmp_path / "data" / "short_bench" / "piqa"
    data.mkdir(parents=True)
    (data / "valid.jsonl").write_text(json.dumps({"goal": "to see", "sol1": "look", "sol2": "listen"}) + "\n")
    (data / "valid-labels.lst").write_text("0\n")
    (tmp_path / "data" / "texts.txt").write_text("a few words, over and over again. " * 400)
    folder.mkdir()
    left = folder / (".held_out.json" if verb == "perplexity" else ".any.json")
    left = left.with_name(f"{left.name}.1.0123456789ab.partial")
    left.touch()
    with held_place(folder / "held_out.json" if verb == "perplexity" else folder):
        assert not left.exists()  # of a process that was killed
        assert main(words(verb, folder, tmp_path / "data")) == 2
        assert f"in use by process {os.getpid()} " in capsys.readouterr().err
    assert not list(folder.iterdir()) and not (tmp_path / ".place.lock").exists()


@pytest.mark.parametrize("verb", ["bases", "perplexity"])
def test_what_harpe_wrote_may_be_written_again(verb: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a few words, over and over again. " * 40)
    for _ in range(2):
        assert main(words(verb, tmp_path / "place", tmp_path)) == 0
    files = sorted((tmp_path / "place").iterdir())
    assert len(files) >= 3 and all(is_ours(file) for file in files)


def test_the_texts_that_are_measured_are_never_the_file_of_the_records(tmp_path: Path) -> None:
    """`--data held_out.jsonl --out held_out.json`: the records have another name."""
    texts = tmp_path / "held_out.jsonl"
    texts.write_text(json.dumps({"text": "a few words, over and over again. " * 40}) + "\n")
    content = texts.read_bytes()
    command = ["perplexity", "embedded", f"--data={texts}", "--lengths=32,64", "--dtype=float32"]
    command.append(f"--out={tmp_path / 'held_out.json'}")
    for _ in range(2):
        assert main(command) == 0
    assert texts.read_bytes() == content and (tmp_path / "held_out.records.jsonl").is_file()


def planted_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize(
    "plant", [Path.mkdir, Path.touch, os.mkfifo, planted_link, lambda path: path.write_bytes(b"\xff\x00")]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.0", "a.svg", "a.html", "a.md", "a.csv", "a.txt", "a"])
def test_whatever_lies_there_without_a_mark_is_foreign(
    plant: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    plant(tmp_path / name)
    with pytest.raises(HarpeError, match="harpe did not write it|is a link"):
        refuse_foreign(tmp_path / name)


def test_a_mark_counts_where_it_stands_first(tmp_path: Path) -> None:
    write_json(tmp_path / "ours.json", {"text": "x"})
    refuse_foreign(tmp_path / "ours.json", tmp_path / "new.json", tmp_path / "new" / "folder" / "a.json")
    (tmp_path / "quoted.json").write_text(json.dumps({"text": (tmp_path / "ours.json").read_text()}))
    (tmp_path / "like.json").write_text('{"schema_version": 1, "rows": []}')
    for name in ("quoted.json", "like.json"):
        with pytest.raises(HarpeError, match="harpe did not write it"):
            write_json(tmp_path / name, {})
    (tmp_path / "file").touch()
    with pytest.raises(HarpeError, match="file is not a folder"):
        refuse_foreign(tmp_path / "file" / "a.json")


def test_fetched_data_take_nobodys_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_download", lambda name: pytest.fail("read although it may not be written"))
    (tmp_path / "ruler").mkdir()
    planted_link(tmp_path / "ruler" / "squad.json")
    assert main(["fetch-data", "--only=squad", f"--out={tmp_path}"]) == 2
    assert (tmp_path / "ruler" / "squad.json").is_symlink()
