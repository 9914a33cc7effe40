"""`harpe prepare` beside the tokenizer's library, and what it needs for a large corpus.

    python scripts/benchmark_prepare.py speed TOKENIZER... --texts FOLDER --result benchmarks/DATE-prepare
    python scripts/benchmark_prepare.py memory TOKENIZER --texts FOLDER --gigabytes 10 --out /tmp/large --result
    benchmarks/DATE-prepare-10gb

speed: pieces of the texts, as documents of a file, through `encode_batch` of the library tokenizers from memory, in
batches of the same size, and from the file to tokens on the disk as `harpe prepare` does it after the texts are
checked; in turns. memory: a corpus of random pieces of the texts is prepared, killed when 90% of its documents are
tokenised, and prepared again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
import zstandard

from harpe.data.packed import PackedDataset
from harpe.data.shards import tokenise_shard
from harpe.data.sources import read_documents
from harpe.data.special_tokens import Watched, reading_tokenizer
from harpe.data.tokenised import BATCH_CHARACTERS
from harpe.files import read_jsonl, write_json, write_text
from harpe.models.load import load_tokenizer
from harpe.runs.directory import processor_name

PIECE = 5000
"""Characters of a document: about as many as a web page has. Of the large corpus: see `--piece`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--piece", type=int, default=PIECE, help="characters of half of the large corpus's documents")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    lines, value = speed(args) if args.what == "speed" else memory(args)
    versions = (
        f"tokenizers {tokenizers.__version__}, transformers {transformers.__version__}, python "
        f"{platform.python_version()}, cores {len(os.sched_getaffinity(0))}, processor {processor_name()}."
    )
    lines += ["", f"{versions} Made by `scripts/benchmark_prepare.py`.", ""]
    write_text(args.result.with_suffix(".md"), "\n".join(lines))
    write_json(args.result.with_suffix(".json"), {**value, "versions": versions})


def speed(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    lines = [
        f"# harpe prepare beside the tokenizer's library ({datetime.date.today()})",
        "",
        f"MB of text a second, {args.megabytes} MB in documents of {PIECE:,} characters: medians of {args.rounds}",
        "rounds in turns (from, to).",
        "",
        "| tokenizer | library, MB/s | harpe, MB/s | ratio |",
        "|---|---|---|---|",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "texts.jsonl"
        made = 0
        with file.open("w", encoding="utf-8") as stream:
            for text in pieces(args.texts, random=None):
                if made >= args.megabytes * 1e6:
                    break
                stream.write(json.dumps({"text": text}) + "\n")
                made += len(text.encode())
        for name in args.tokenizers:
            tokenizer = reading_tokenizer(load_tokenizer(name), split=True)
            texts = [document.text for document in read_documents(file)]
            rates: dict[str, list[float]] = {"library": [], "harpe": []}
            for _ in range(args.rounds):
                began = time.perf_counter()
                count = by_library(tokenizer.backend_tokenizer, texts)
                rates["library"].append(made / 1e6 / (time.perf_counter() - began))
                shutil.rmtree(Path(place) / "out", ignore_errors=True)
                began = time.perf_counter()
                watched = Watched(read_documents(file), tokenizer)
                part = tokenise_shard(watched, tokenizer, Path(place) / "out", {}, dict, print)
                rates["harpe"].append(made / 1e6 / (time.perf_counter() - began))
                assert abs(int(part.lengths.sum()) - count) <= 2 * len(texts)  # but for what stands around documents
            ratios = [ours / theirs for ours, theirs in zip(rates["harpe"], rates["library"], strict=True)]
            cells = [shown(values) for values in (rates["library"], rates["harpe"], ratios)]
            lines.append(f"| {Path(name).name} ({len(tokenizer):,}) | {' | '.join(cells)} |")
            rows.append({"tokenizer": Path(name).name, "vocabulary": len(tokenizer), **rates, "ratios": ratios})
    return lines, {"rows": rows}


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def by_library(backend: Any, texts: list[str]) -> int:
    """Tokens, in batches as large as harpe's."""
    count, batch, characters = 0, list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            count += sum(len(each.ids) for each in backend.encode_batch(batch, add_special_tokens=False))
            batch, characters = [], 0
    return count + sum(len(each.ids) for each in backend.encode_batch(batch, add_special_tokens=False))


def pieces(texts: Path, random: np.random.Generator | None, piece: int = PIECE) -> Any:
    """Pieces of the texts in order, or at random and without end."""
    whole = [document.text for document in read_documents(texts)]
    if random is None:
        for text in whole:
            yield from (text[i : i + PIECE] for i in range(0, len(text), PIECE))
        return
    while True:
        text = whole[random.integers(len(whole))]
        size = int(min(len(text), random.lognormal(np.log(piece), 1)))
        start = int(random.integers(len(text) - size + 1))
        yield text[start : start + size]


def memory(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    folder = args.out / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    documents, made = write_corpus(folder, args.texts, args.gigabytes * 1e9, args.piece)
    command = [sys.executable, "-m", "harpe", "prepare", "--data", str(folder), "--model", args.tokenizers[0]]
    command += ["--length", "32768", "--out", str(args.out / "prepared")]
    journal = args.out / "prepared.unfinished" / "1-of-1" / "journal.jsonl"
    began = time.perf_counter()
    with (args.out / "log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
        while running.poll() is None and read(journal) < 0.9 * documents:
            time.sleep(1)
        if running.poll() is not None:
            raise SystemExit(f"harpe prepare ended before 90% of the documents were whole parts: see {log.name}.")
        running.send_signal(signal.SIGKILL)
        running.wait()
        killed = time.perf_counter() - began
        at, kept = peak(), read(journal)
        began = time.perf_counter()
        subprocess.run(command, stdout=log, stderr=log, check=True)
    again = time.perf_counter() - began
    data = PackedDataset(args.out / "prepared")
    data.verify()
    value = {
        "bytes": made,
        "documents": documents,
        "tokens": data.tokens,
        "killed_at_documents": kept,
        "seconds_until_killed": killed,
        "seconds_afterwards": again,
        "peak_bytes": peak(),
        "peak_bytes_until_killed": at,
    }
    lines = [
        f"# A large corpus through harpe prepare ({datetime.date.today()})",
        "",
        f"{made / 1e9:.1f} GB of text in {documents:,} documents (random pieces of books, .jsonl.zst), tokenizer",
        f"{Path(args.tokenizers[0]).name}, {data.tokens:,} tokens in sequences of 32,768. The process was killed",
        "(SIGKILL) when 90% of the documents were tokenised, and started again. Other work ran beside it: its times",
        "say little.",
        "",
        "| | |",
        "|---|---|",
        f"| peak resident memory, GB | {value['peak_bytes'] / 1e9:.2f} |",
        f"| minutes until it was killed | {killed / 60:.1f} |",
        f"| documents in parts that were whole | {kept:,} ({kept / documents:.1%}) |",
        f"| minutes of the second process, with all reading and packing | {again / 60:.1f} |",
    ]
    shutil.rmtree(folder)
    return lines, value


def read(journal: Path) -> int:
    """Documents in whole parts."""
    return int(read_jsonl(journal)[-1].get("read", 0)) if journal.is_file() else 0


def peak() -> int:
    """Of the largest process that has ended, in bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def write_corpus(folder: Path, texts: Path, size: float, piece: int) -> tuple[int, int]:
    """Files of a gigabyte of text each."""
    random, documents, made = np.random.default_rng(0), 0, 0
    source = pieces(texts, random, piece)
    while made < size:
        path, inside = folder / f"{len(list(folder.iterdir())):04d}.jsonl.zst", 0
        with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as stream:
            while inside < min(1e9, size - made):
                text = next(source)
                stream.write(json.dumps({"text": text}).encode() + b"\n")
                inside, documents = inside + len(text.encode()), documents + 1
        made += inside
    return documents, made


if __name__ == "__main__":
    main()
