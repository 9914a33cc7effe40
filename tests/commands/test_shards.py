"""A corpus that several processes tokenise, or one that is killed, and short texts that are mixed in: by the verb."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harpe
from harpe.data import shards, tokenised
from harpe.data.packed import PackedDataset
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.reporter import Reporter

TEMPLATE = (
    "{% for m in messages %}# {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant\n{% endif %}"
)


class Listening(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model with a chat template, texts in seven files of two folders, and a file of conversations."""
    tokenizer = load_tokenizer("embedded")
    tokenizer.chat_template = TEMPLATE
    save_checkpoint(load_model("embedded"), tokenizer, tmp_path / "model", 256)
    random = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "texts" / ("a" if number < 4 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        rows = [" ".join(f"x{n}" for n in random.integers(0, 99, random.integers(3, 300))) for _ in range(20)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    chats = [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n} " * (n % 5 + 1)}]
        for n in range(400)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (tmp_path / "held.jsonl").write_text((tmp_path / "texts/b/5.jsonl").read_text().splitlines()[0])
    return tmp_path


def prepared(place: Path, out: str, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "by_folder": True,
        "upsample_length": 200,
        "upsample_factor": 3.0,
        "short_data": str(place / "chats.jsonl"),
        "short_share": 0.25,
        "short_chat": "messages",
        "held_out": str(place / "held.jsonl"),
        **changes,
    }
    return harpe.prepare(str(place / "texts"), str(place / "model"), 128, place / out, **options)


def _same(one: Path, other: Path) -> bool:
    names = {path.name for path in one.iterdir()}
    content = all((one / name).read_bytes() == (other / name).read_bytes() for name in names - {"index.json"})
    return content and read_json(one / "index.json") == read_json(other / "index.json")


@pytest.mark.parametrize("count", [2, 7])
def test_shards_put_together_are_what_one_process_makes_to_the_last_byte(place: Path, count: int) -> None:
    alone = prepared(place, "alone")
    for number in reversed(range(1, count + 1)):
        prepared(place, "shards", shard=f"{number}/{count}")
    index = read_json(alone / "index.json")
    assert index["held_out_left_out"] == 1 and index["read"]["files"] == {".jsonl": 7} and index["targets"]
    assert _same(alone, prepared(place, "shards")) and not (place / "shards.unfinished").exists()


@pytest.mark.slow
def test_shards_are_tokenised_by_processes_at_the_same_time(place: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    common = ["--data", "texts", "--model", "model", "--length", "128", "--out", "out"]
    command = [sys.executable, "-m", "harpe", "prepare", *common]
    running = [subprocess.Popen([*command, "--shard", f"{n}/2"], env=environment, cwd=place) for n in (1, 2)]
    assert [process.wait() for process in running] == [0, 0]
    assert subprocess.run(command, env=environment, cwd=place, check=False).returncode == 0
    alone = harpe.prepare(str(place / "texts"), str(place / "model"), 128, place / "alone")
    assert PackedDataset(place / "out").hash == PackedDataset(alone).hash


def test_shards_that_are_missing_or_of_another_request_are_told(place: Path) -> None:
    prepared(place, "out", shard="2/3")
    with pytest.raises(HarpeError, match="1 whole shards of 3. Start this command with --shard 1/3, 3/3 first"):
        prepared(place, "out")
    prepared(place, "out", shard="1/3")
    prepared(place, "out", shard="3/3", held_out=None)
    with pytest.raises(HarpeError, match="another request .*held_out_sha256"):
        prepared(place, "out")
    with pytest.raises(HarpeError, match="another request .*by_folder"):
        prepared(place, "out", by_folder=False)
    with pytest.raises(HarpeError, match="a division into 3, and this is one into 2"):
        prepared(place, "out", shard="1/2")


def test_shards_of_folders_that_differ_are_not_put_together(place: Path) -> None:
    prepared(place, "out", shard="1/2")
    (place / "texts" / "a" / "0new.jsonl").write_text(json.dumps({"text": "one more"}) + "\n")
    prepared(place, "out", shard="2/2")
    with pytest.raises(HarpeError, match="another request .*files"):
        prepared(place, "out")


def test_a_shard_s_template_and_end_of_text_are_those_of_all(place: Path) -> None:
    prepared(place, "out", shard="1/2")
    (place / "model" / "chat_template.jinja").write_text(TEMPLATE.replace("# ", "## "))
    prepared(place, "out", shard="2/2")
    with pytest.raises(HarpeError, match="another request .*chat_template"):
        prepared(place, "out")


@pytest.mark.parametrize("name", ["masked.bin", "lengths.bin", "tokens.bin"])
def test_half_a_copy_of_a_shard_is_told(place: Path, name: str) -> None:
    for number in (1, 2):
        prepared(place, "out", shard=f"{number}/2")
    (place / "out.unfinished" / "2-of-2" / name).unlink()
    with pytest.raises(HarpeError, match=f"{name} has 0 bytes and should have"):
        prepared(place, "out")


def test_texts_that_lie_elsewhere_are_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(place, "out", shard="1/2")
    (place / "texts").rename(place / "moved")
    monkeypatch.chdir(place)
    options: dict[str, Any] = {
        "by_folder": True,
        "upsample_length": 200,
        "upsample_factor": 3.0,
        "short_data": "chats.jsonl",
        "short_share": 0.25,
        "short_chat": "messages",
        "held_out": Path("held.jsonl"),
    }
    harpe.prepare(Path("moved"), "model", 128, "out", shard="2/2", **options)
    PackedDataset(harpe.prepare("moved/", "model", 128, "out", **options)).verify()


def test_a_refused_start_of_a_run_keeps_what_was_tokenised(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenised, "PART_CHARACTERS", 20_000)
    monkeypatch.setattr(tokenised, "BATCH_CHARACTERS", 5_000)
    last = place / "texts" / "b" / "6.jsonl"
    whole = last.read_text()
    last.write_text(whole[: len(whole) // 2])
    given: dict[str, Any] = {"original_length": 64, "dtype": "float32", "tokens": 1024}
    arguments = (str(place / "model"), 128, str(place / "texts"), place / "run")
    with pytest.raises(HarpeError, match="not valid JSON"):
        harpe.extend(*arguments, **given)
    kept = list((place / "run").rglob("journal.jsonl"))
    assert len(kept) == 1
    last.write_text(whole)
    said = Listening()
    harpe.extend(*arguments, reporter=said, **given)
    assert any("Going on behind" in sentence for sentence in said.said) and not list(place.rglob("*.unfinished"))
    alone = harpe.prepare(place / "texts", str(place / "model"), 128, place / "alone", tokens=1024)
    assert PackedDataset(place / "run" / "data" / "128").hash == PackedDataset(alone).hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": "0/2"}, "--shard is 0/2"),
        ({"shard": "3/2"}, "--shard is 3/2"),
        ({"min_length": -1}, "--min-length is -1"),
        ({"shard": "²/3"}, "--shard is ²/3"),
        ({"shard": "half"}, "--shard is half"),
        ({"shard": "1/8"}, "--shard 1/8 divides files, and --data .* has 7"),
        ({"short_share": 0.0}, "belong together"),
        ({"short_data": None, "short_chat": None}, "belong together"),
        ({"short_share": 1.0}, "above 0 and below 1"),
        ({"short_data": None, "short_share": 0.0}, "--short-chat is about the rows of --short-data"),
        ({"short_data": "embedded"}, "embedded texts are long"),
        ({"short_data": "/nowhere.jsonl"}, "no such file"),
        ({"tokens": 1_000_000}, "--tokens 1,000,000 would take"),
        ({"tokens": 128, "short_share": 0.5}, "would get .*% of the tokens, not 50%"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        prepared(place, "out", **changes)
    assert not (place / "out").exists() and not (place / "out.unfinished").exists()


def test_the_texts_of_a_shard_are_not_needed_any_more_when_all_are_there(place: Path) -> None:
    for number in (1, 2):
        prepared(place, "out", shard=f"{number}/2")
    (place / "texts").rename(place / "elsewhere")
    (place / "chats.jsonl").unlink()
    prepared(place, "out")
    PackedDataset(place / "out").verify()


def test_answers_alone_are_trained_on_in_short_conversations_and_everything_in_texts(place: Path) -> None:
    """Read back from the tokens: a document that begins as a conversation does, and what stands behind its answer."""
    folder, tokenizer = prepared(place, "out"), load_tokenizer(str(place / "model"))
    data = PackedDataset(folder)
    marks = np.fromfile(folder / "targets.bin", "u1")
    chats = tokens = 0
    for start, ids in zip(data.starts, data.documents(), strict=True):
        text, trained = tokenizer.decode(ids), marks[start : start + len(ids)]
        tokens += len(ids)
        if not text.startswith("# user"):
            assert trained.all()
        elif start + len(ids) < data.tokens:  # not cut off by the end of the stream
            chats += 1
            answered = tokenizer.decode(ids[trained == 1])
            assert answered.startswith("answer") and "question" not in answered and "#" not in answered
    assert chats > 50
    by = {row["source"]: row["share_drawn"] for row in data.index["sources"]}
    assert by["--short-data"] == pytest.approx(0.25, abs=0.01)


def test_sequences_without_an_answer_are_left_out_and_the_others_stay_as_they_are(place: Path) -> None:
    """Long questions, short answers: against the stream in a list, cut into sequences."""
    random = np.random.default_rng(1)
    rows = [
        {"messages": [{"role": "user", "content": "why " * int(size)}, {"role": "assistant", "content": "so"}]}
        for size in random.integers(1, 900, 40)
    ]
    (place / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = []
    for length in (128, 1_000_000_000):
        options: dict[str, Any] = {"chat": "messages"}
        if length > 128:  # everything in one sequence, of which nothing is left out
            length = PackedDataset(made[0]).index["corpus"]["tokens"] // 128 * 128
        said = Listening()
        made.append(
            harpe.prepare(
                str(place / "long.jsonl"), str(place / "model"), length, place / f"l{length}", reporter=said, **options
            )
        )
    cut, whole = (PackedDataset(folder) for folder in made)
    ids, marks = np.fromfile(made[1] / "tokens.bin", "<u2"), np.fromfile(made[1] / "targets.bin", "u1")
    keep = [i for i in range(len(ids) // 128) if marks[128 * i + 1 : 128 * (i + 1)].any()]
    assert 0 < len(keep) < len(ids) // 128 == len(keep) + cut.index["sequences_left_out"]
    assert [cut[n]["input_ids"].tolist() for n in range(len(cut))] == [
        ids[128 * i : 128 * (i + 1)].tolist() for i in keep
    ]
    labels = [(cut[n]["labels"] != -100).tolist() for n in range(len(cut))]
    assert labels == [marks[128 * i : 128 * (i + 1)].astype(bool).tolist() for i in keep]
    starts = set(whole.starts.tolist())
    for n, i in enumerate(keep):
        assert cut.document_starts(n).tolist() == sorted(
            {0, *(s - 128 * i for s in starts if i * 128 <= s < i * 128 + 128)}
        )
    assert cut.targets == sum(map(sum, labels)) and cut.index["sequences"] == len(cut) == len(keep)
    cut.verify()
    assert sum(row["tokens_drawn"] for row in cut.index["sources"]) == cut.tokens
    given: dict[str, Any] = {"original_length": 64, "dtype": "float32", "learning_rate": 1e-3, "method": "harpe"}
    harpe.extend(str(place / "model"), 128, str(made[0]), place / "run", **given)
    losses = [json.loads(line)["loss"] for line in (place / "run/harpe/stage-1/log.jsonl").read_text().splitlines()]
    assert losses and min(losses) > 0  # a step that trains on nothing has a loss of 0


def test_documents_below_a_length_are_left_out_and_counted_and_short_texts_are_not(place: Path) -> None:
    """Lengths from the tokenizer and what stands around documents."""
    plain: dict[str, Any] = {"upsample_factor": 1.0, "short_data": None, "short_share": 0.0, "short_chat": None}
    tokenizer, lengths = load_tokenizer(str(place / "model")), []
    held = json.loads((place / "held.jsonl").read_text())["text"]
    for file in sorted((place / "texts").rglob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        lengths += [len(tokenizer(text)["input_ids"]) for text in texts if text != held]  # its begin is its end
    limit = sorted(lengths)[len(lengths) // 2]
    some = PackedDataset(prepared(place, "some", **plain, min_length=limit))
    assert min(len(ids) for ids in list(some.documents())[:-1]) >= limit
    assert some.index["too_short_left_out"] == sum(length < limit for length in lengths) > 50
    index = read_json(prepared(place, "mixed", min_length=limit) / "index.json")
    assert index["too_short_left_out"] == some.index["too_short_left_out"]
    assert next(row for row in index["sources"] if row["source"] == "--short-data")["documents"] == 400
    for number in (1, 2):
        prepared(place, "parts", min_length=limit, shard=f"{number}/2")
    assert _same(prepared(place, "parts", min_length=limit), place / "mixed")
    with pytest.raises(HarpeError, match="no document of --min-length 1,000,000"):
        prepared(place, "none", **plain, min_length=1_000_000)


@pytest.mark.slow
def test_a_killed_verb_goes_on_and_makes_the_same(place: Path) -> None:
    big = place / "big"
    big.mkdir()
    random = np.random.default_rng(2)
    for number in range(6):
        rows = [" ".join(f"y{n}" for n in random.integers(0, 9999, 4_000)) for _ in range(40)]
        (big / f"{number}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = (
        "from harpe.data import tokenised; tokenised.PART_CHARACTERS, tokenised.BATCH_CHARACTERS = 500_000, 100_000; "
    )
    code += "from harpe.cli.main import main; main()"
    command = [sys.executable, "-c", code, "prepare", "--data", "big", "--model", "embedded", "--length", "1024"]
    running = subprocess.Popen([*command, "--out", "out"], env=environment, cwd=place)
    journal, deadline = place / "out.unfinished" / "1-of-1" / "journal.jsonl", time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (place / "out").exists() and journal.is_file()
    done = subprocess.run([*command, "--out", "out"], env=environment, cwd=place, capture_output=True, check=False)
    assert done.returncode == 0 and "Going on behind" in " ".join((done.stdout + done.stderr).decode().split())
    assert subprocess.run([*command, "--out", "alone"], env=environment, cwd=place, check=False).returncode == 0
    assert _same(place / "alone", place / "out") and not journal.parent.parent.exists()


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["before it marked them", "while it removed them"])
def test_what_a_process_killed_at_its_end_has_left_goes_with_the_next_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    for number in (1, 2):
        prepared(place, "out", shard=f"{number}/2")
    with monkeypatch.context() as at:
        if moment == "before it marked them":
            at.setattr("harpe.commands.prepare.remove_shards", killed)
        else:
            remove, calls = shards.remove_folder, list[Path]()
            at.setattr(shards, "remove_folder", lambda path: killed() if calls else (calls.append(path), remove(path)))
        with pytest.raises(KeyboardInterrupt):
            prepared(place, "out")
    assert list((place / "out.unfinished").glob("*-of-2/journal.jsonl"))
    (place / ".out.lock").mkdir(exist_ok=True)
    with pytest.raises(HarpeError, match="already holds a packed data set"):
        prepared(place, "out")
    assert not (place / "out.unfinished").exists() and not (place / ".out.lock").exists()
    PackedDataset(place / "out").verify()


def test_shards_of_something_else_beside_whole_data_stay(place: Path) -> None:
    prepared(place, "out")
    last = place / "texts" / "b" / "6.jsonl"
    last.write_text(last.read_text() + json.dumps({"text": "one more"}) + "\n")
    for number in (1, 2):
        prepared(place, "other", shard=f"{number}/2")
    (place / "other.unfinished").rename(place / "out.unfinished")
    with pytest.raises(HarpeError, match="already holds a packed data set"):
        prepared(place, "out")
    shutil.rmtree(place / "out")
    PackedDataset(prepared(place, "out")).verify()
