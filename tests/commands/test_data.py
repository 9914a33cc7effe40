"""`harpe data`: the page and the JSON hold what a loop over the documents finds, hostile texts do nothing, and nothing
of the user's changes."""

from __future__ import annotations

import html
import json
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

import harpe
from harpe.cli.main import main
from harpe.commands.data import describe
from harpe.data.packed import PackedDataset
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.models.load import load_tokenizer
from harpe.options.runs import DataOptions
from harpe.report.prepared_terminal import prepared_tables
from harpe.report.wording import printable

HOSTILE = "</pre><script>alert(1)</script> \x1b[31m \x9b2J \x07 \u202e & \u2028 <img src=x onerror=alert(2)>"


@pytest.fixture
def rows(workspace: Path) -> Path:
    """Rows of two sources, one of which has a hostile name, with hostile texts at their beginnings and ends."""
    lines = []
    for n in range(40):
        text = f"{n} {HOSTILE} " + f"the quick brown fox {n % 7} jumps. " * (1 + n * n) + f"{HOSTILE} {n}"
        lines.append(json.dumps({"text": text, "from": "web\x1b[2J<i>" if n % 3 else "books"}))
    (workspace / "rows.jsonl").write_text("\n".join(lines))
    return workspace


@pytest.fixture
def folder(rows: Path) -> Path:
    return harpe.prepare(
        str(rows / "rows.jsonl"), str(rows / "model"), 512, rows / "prepared", source_field="from", upsample_factor=2.0
    )


def text_of(page: Path) -> str:
    """What a reader of the page sees, by a parser that is not a browser's, and white space as one space."""
    source = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", source)).split())


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def numbers(lengths: list[int], length: int) -> Iterable[str]:
    """Everything that the page says of documents, from a loop over the documents of every sequence."""
    total = sum(lengths)
    yield from (f"{total:,}", f"{len(lengths):,}", f"{total // length:,} sequences of {length:,}")
    yield from (f"{min(lengths):,} tokens", f"{median(lengths):,} tokens", f"{mean(lengths):,.1f} tokens")
    for bound in (4096, 32_768, 131_072):
        inside = [n for n in lengths if n >= bound]
        yield f"at least {bound:,} {sum(inside) / total:.1%} {sum(inside):,} {len(inside):,}"
    for power in range(20):
        inside = [n for n in lengths if 2**power <= n < 2 ** (power + 1)]
        if inside:
            share = f"{sum(inside) / total:.1%}"
            yield f"{2**power:,} to {2 ** (power + 1) - 1:,} {share} {sum(inside):,} {len(inside):,}"
    parts: list[dict[int, int]] = [{} for _ in range(total // length)]
    at = look_back = cut = 0
    for document, n in enumerate(lengths):
        for token in range(at, at + n):
            part = parts[token // length]
            look_back += part.get(document, 0)
            part[document] = part.get(document, 0) + 1
        cut += at // length != (at + n - 1) // length
        at += n
    counts = [len(part) for part in parts]
    yield f"mean {mean(counts):,.2f}, median {median(counts):g}, most {max(counts)}"
    yield f"or of a part of one {counts.count(1) / len(counts):.1%}"
    yield f"boundary of sequences cuts {cut / len(lengths):.1%}"
    yield f"its longest document, mean {mean(max(part.values()) / length for part in parts):.1%}"
    yield f"{look_back / total:,.1f} ({(length - 1) / 2:,.1f} were every sequence one document)"


def lengths_in(folder: Path) -> list[int]:
    tokens = (folder / "tokens.bin").stat().st_size // 2
    return np.diff([*np.load(folder / "documents.npy"), tokens]).tolist()


def test_the_page_holds_every_number_of_a_loop_over_the_documents(folder: Path) -> None:
    harpe.describe(folder)
    page = text_of(folder / "report" / "index.html")
    missing = [words for words in numbers(lengths_in(folder), 512) if words not in page]
    assert not missing
    index = read_json(folder / "index.json")
    for row in index["sources"]:
        shown = [f"{row[key + of]:,}" for key in ("documents", "tokens") for of in ("", "_drawn")]
        shown += [f"{row[key + of]:.1%}" for key in ("share", "long_share") for of in ("", "_drawn")]
        assert " ".join(shown) in page
    assert index["hash"] in page and index["tokenizer"]["sha256"] in page
    for key, value in index["options"].items():
        assert key.replace("_", " ") in page or value is None


def test_the_json_file_holds_every_figure_of_the_page(folder: Path) -> None:
    returned = harpe.describe(folder)
    found = read_json(folder / "report" / "data.json")
    assert found == {"schema_version": 1, **json.loads(json.dumps(returned))}
    lengths = lengths_in(folder)
    assert sum(b["tokens"] for b in found["document_lengths"]["bins"]) == sum(lengths) == found["tokens"]
    assert sum(b["documents"] for b in found["document_lengths"]["bins"]) == len(lengths)
    assert found["sequences"]["length"] == 512 and len(found["boundaries"]) == 5
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = text[text.index("## What a prepared folder holds") :]
    keys = set(found) | {k for key in ("document_lengths", "sequences") for k in found[key]}
    keys |= {k for row in (found["boundaries"][0], found["sources"][0]) for k in row}
    assert not [key for key in keys - {"schema_version"} if f"`{key}`" not in section]


def test_figures_are_drawn_with_a_bar_for_every_bin_in_colours_of_the_page(folder: Path) -> None:
    found = harpe.describe(folder)
    source = (folder / "report" / "index.html").read_text()
    figures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox.*?</svg>", source, re.S)]
    used = [b for b in found["document_lengths"]["bins"] if b["documents"]]
    assert len(figures) == 2
    for figure, key in zip(figures, ("tokens", "documents"), strict=True):
        bars = list(figure.iter("rect"))
        assert len(bars) == len(used) and not [bar for bar in bars if bar.get("fill") or bar.get("style")]
        heights = [float(bar.get("height", "nan")) for bar in bars]
        tallest = max(b[key] for b in used)
        for b, height in zip(used, heights, strict=True):
            assert height == pytest.approx(max(2.5, max(heights) * b[key] / tallest), abs=0.11)
    assert "prefers-color-scheme:dark" in source


# -- hostile texts


def test_nothing_of_a_text_or_a_source_becomes_markup_or_a_script(folder: Path) -> None:
    harpe.describe(folder)
    source = (folder / "report" / "index.html").read_text()
    assert "alert(1)" in source and "<script" not in source and "<img" not in source and "<i>" not in source
    assert source.count("<pre") == source.count("</pre>") == 10
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)
    assert policy and policy[1] == "default-src 'none'; style-src 'unsafe-inline'"
    assert not [
        c for c in source if (c not in "\n\t" and unicodedata.category(c) in ("Cc", "Zl", "Cs")) or c == "\u202e"
    ]
    assert "␛[31m" in source and "\\u202e" in source and "\\u009b2J" in source


def test_no_control_character_reaches_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "alert(1)" in told and "␛[31m" in told and "web␛[2J<i>" in told
    assert not [c for c in told if (c != "\n" and unicodedata.category(c) in ("Cc", "Zl")) or c == "\u202e"]
    value, _ = describe(DataOptions(folder=str(folder)))
    console = Console(force_terminal=True, width=100, color_system="truecolor", record=True)
    for table in prepared_tables(value):
        console.print(table)
    styled = console.export_text(styles=True)
    assert set(re.findall(r"\x1b(\[[0-9;]*m)", styled)) <= {"[0m", "[1m", "[2m", "[3m", "[7m", "[2;3m"}
    assert len(re.findall("\x1b", styled)) == len(re.findall(r"\x1b\[[0-9;]*m", styled)) and "\x9b" not in styled


def test_printable_text_keeps_every_script_and_shows_what_controls() -> None:
    kept = "naïve 漢字 می‌خواهم 👩‍💻 a b\u00a0c"
    assert printable(kept) == kept
    assert printable("a\tb\nc\r", "\n\t") == "a\tb\nc␍"
    assert printable("\x00\x7f\x85\ud800") == "␀␡\\u0085\\ud800"


# -- the tokenizer, and targets


def test_special_tokens_and_answers_are_marked(workspace: Path, make_tiny: Any) -> None:
    tokenizer = load_tokenizer(str(workspace / "model"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '<|end|>' }}{% endfor %}"
        + ("{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}")
    )
    tokenizer.save_pretrained(workspace / "chat")
    turns = [{"role": "user", "content": "Why <|end|>?"}, {"role": "assistant", "content": "Because."}]
    (workspace / "chats.jsonl").write_text("\n".join(json.dumps({"messages": turns, "n": n}) for n in range(20)))
    config = json.loads((workspace / "model" / "config.json").read_text())
    (workspace / "chat" / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer)}))
    folder = harpe.prepare(
        str(workspace / "chats.jsonl"), str(workspace / "chat"), 64, workspace / "chats", chat="messages"
    )
    found = harpe.describe(folder)
    assert found["targets"] == PackedDataset(folder).targets < found["tokens"]
    after = found["boundaries"][0]["after"]
    assert "".join(p["text"] for p in after) == "user:\nWhy <|end|>?<|end|>assistant:\nBecause.<|end|>"
    assert [p["text"] for p in after if p["special"]] == ["<|end|>", "<|end|>"]
    assert "".join(p["text"] for p in after if p["trained"]) == "Because.<|end|>"
    source = (folder / "report" / "index.html").read_text()
    assert '<span class="trained">Because.</span><span class="special trained">&lt;|end|&gt;</span>' in source
    share = f"{found['targets'] / found['tokens']:.1%}"
    assert f"{found['targets']:,} ({share}): of conversations answers" in text_of(folder / "report" / "index.html")


def test_without_the_tokenizer_there_are_no_boundaries_and_a_sentence_says_why(
    folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows / "model").rename(rows / "gone")
    assert main(["data", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "No boundaries of documents are shown: There is no checkpoint folder" in told and "--tokenizer" in told
    found = read_json(folder / "report" / "data.json")
    assert found["boundaries"] == [] and "no checkpoint folder" in found["boundaries_left_out"]
    assert "no checkpoint folder" in text_of(folder / "report" / "index.html")
    assert len(harpe.describe(folder, tokenizer=str(rows / "gone"))["boundaries"]) == 5
    other = shutil.copytree(rows / "gone", rows / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    found = harpe.describe(folder, tokenizer=str(other))
    assert not found["boundaries"] and "is not the one that made the tokens" in found["boundaries_left_out"]
    index = read_json(folder / "index.json")
    (folder / "index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "options"}))
    assert "which tokenizer made the tokens" in harpe.describe(folder)["boundaries_left_out"]


# -- whose folder


def test_the_data_of_a_run_are_described_and_a_report_inside_prepared_data_disturbs_nothing(folder: Path) -> None:
    before = content(folder)
    found = harpe.describe(folder)
    assert {path: data for path, data in content(folder).items() if "report" not in path.parts} == before
    assert sorted(path.name for path in (folder / "report").iterdir()) == ["data.json", "index.html"]
    PackedDataset(folder).verify()
    workspace = folder.parent
    settings: dict[str, Any] = {"tokens": 1024, "batch_tokens": 512, "learning_rate": 1e-3, "dtype": "float32"}
    (workspace / "short").mkdir()
    for n in range(20):
        (workspace / "short" / f"{n}.txt").write_text(f"the {n} quick brown fox jumps over " * (1 + n))
    for length, data in ((512, folder), (256, folder), (256, workspace / "short")):
        run = workspace / f"run-{length}-{data.name}"
        harpe.extend(str(workspace / "model"), length, str(data), run, **settings)
        there = run / "data" / str(length)
        of_run = harpe.describe(there, length=length)
        assert of_run["name"] == f"{run.name}/data/{length}"
        assert of_run["sequences"]["length"] == length and len(of_run["boundaries"]) == 5
        if data == folder:
            assert of_run["hash"] == found["hash"]
        with pytest.raises(HarpeError, match=f"is a run directory. Name the folder of its training data: {there}"):
            harpe.describe(run)
        harpe.extend(str(workspace / "model"), length, str(data), run, resume=True, **settings)
        (run / "recipe.yaml").write_text("tokens: 1024")  # as a quickstart's, whose plan alone names the model
        assert len(harpe.describe(there, length=length)["boundaries"]) == 5


def test_a_length_cuts_the_sequences(folder: Path) -> None:
    harpe.describe(folder, length=64)
    page = text_of(folder / "report" / "index.html")
    assert not [words for words in numbers(lengths_in(folder), 64) if words not in page]
    assert "cut from those of 512" in page


def test_what_is_no_prepared_data_or_was_damaged_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(folder.parent / "texts")]) == 2
    assert "is no packed data set" in capsys.readouterr().err
    index = read_json(folder / "index.json")
    index["sources"][0]["tokens"] = "many"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(HarpeError, match=r"index\.json is damaged"):
        harpe.describe(folder)
    assert not (folder / "report").exists()


def test_nothing_is_overwritten_but_an_earlier_page_of_the_same_kind(folder: Path) -> None:
    out = folder.parent / "out"
    out.mkdir()
    (out / "index.html").write_text("<!doctype html><p>mine")
    with pytest.raises(HarpeError, match=r"out/index\.html is there already"):
        harpe.describe(folder, out)
    (out / "index.html").write_text('<!doctype html><meta name="generator" content="harpe"><p>the page of a run')
    with pytest.raises(HarpeError, match="page of something else"):
        harpe.describe(folder, out)
    assert "page of a run" in (out / "index.html").read_text() and not (out / "data.json").exists()
    (out / "index.html").unlink()
    harpe.describe(folder, out)
    first = content(out)
    harpe.describe(folder, out)
    assert content(out) == first and not (folder / "report").exists()
    with pytest.raises(HarpeError, match="is not a folder"):
        harpe.describe(folder, out / "index.html" / "deeper")
