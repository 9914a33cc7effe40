"""Ask a checkpoint every kind of suite by harpe's own verbs, time them, and write the tables of all in a folder.

    python scripts/suite_results.py MODEL --name yarn --texts HELD_OUT --lengths 512,1024,2048 --short-context 256 \
        --long base-model@512,1024,2048 --long content-4@256 --work runs/suites --out results/DATE-suites
    python scripts/suite_results.py OTHER --name other … --against yarn

Long-context tasks (--long; --chat-long in the model's chat format), RULER's needles at every length from 2,048 on,
perplexity with the tokens that need the long context, harpe's own needles and their grid up to the longest length, and
short benchmarks. What --work holds already is not measured again; seconds of all calls are added up.
With --against NAME, paired differences from a model that was asked the same before. HARPE_DATA names the benchmark
data.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harpe.files import read_json, write_json, write_text
from harpe.runs.directory import available_cores, write_environment

SHORT_BENCHMARKS = "piqa,arc_challenge_local,hellaswag_local"
LEAST_FOR_RULER = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--lengths", required=True, help="with commas, ascending")
    parser.add_argument("--short-context", type=int, required=True, help="of the tokens that need the long one")
    parser.add_argument("--long", action="append", required=True, help="long-context tasks: TASKS@LENGTHS, repeated")
    parser.add_argument("--chat-long", action="append", default=[], help="the same in the chat format")
    parser.add_argument("--samples", type=int, default=25, help="a task and length")
    parser.add_argument("--limit", type=int, default=100, help="questions of each short benchmark")
    parser.add_argument("--ruler", default="niah_single_1,niah_single_2,niah_multikey_1")
    parser.add_argument("--against")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    work, lengths = args.work / args.name, [int(each) for each in args.lengths.split(",")]
    model, beyond = [args.model, "--dtype", "auto"], ["--beyond-context"]
    samples = ["--samples", str(args.samples)]
    asked = {}
    for folder, chat, those in (("long", [], args.long), ("chat", ["--chat"], args.chat_long)):
        for tasks, at in (each.split("@") for each in those):
            command = ["long", *model, *beyond, *samples, *chat, "--tasks", tasks, "--lengths", at]
            words = f"long-context tasks{' in the chat format' if chat else ''}: {tasks} at {at}"
            asked[words] = [*command, "--out", str(work / folder)]
    for length in lengths:
        if length >= LEAST_FOR_RULER:
            asked[f"RULER at {length:,}"] = ["ruler", "--model", *model, *beyond, *samples, "--tasks", args.ruler]
            asked[f"RULER at {length:,}"] += ["--length", str(length), "--out", str(work / f"ruler-{length}")]
    asked["perplexity, and of key tokens"] = ["perplexity", *model, "--data", args.texts, "--lengths", args.lengths]
    asked["perplexity, and of key tokens"] += ["--documents", str(args.documents), "--key-tokens", "--short-context"]
    asked["perplexity, and of key tokens"] += [str(args.short_context), "--out", str(work / "perplexity.json")]
    asked["needles and their grid"] = ["evaluate", *model, "--data", args.texts, "--length", str(lengths[-1]), *samples]
    asked["needles and their grid"] += ["--original-length", str(args.short_context), "--grid-samples", "2"]
    asked["needles and their grid"] += ["--documents", str(args.documents), "--out", str(work / "evaluate")]
    asked["short benchmarks"] = ["short", *model, "--tasks", SHORT_BENCHMARKS, "--limit", str(args.limit), "--offline"]
    asked["short benchmarks"] += ["--out", str(work / "short")]
    for suite, command in asked.items():
        _timed(suite, command, work)
    against = ["--against", str(args.work / args.against)] if args.against else []
    subprocess.run([sys.executable, "-m", "harpe", "report", str(work), *against], check=True)
    write_environment(work)
    _collect(args.name, work, args.out, {args.texts: Path(args.texts).name})


def _timed(suite: str, command: list[str], work: Path) -> None:
    """Call a verb of harpe where its suite is not whole; the seconds of all calls are kept."""
    file = work / "seconds.json"
    seconds = read_json(file) if file.is_file() else {"whole": [], "seconds": {}}
    if suite in seconds["whole"]:
        return
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-m", "harpe", *command], check=False).returncode
    seconds["seconds"][suite] = round(seconds["seconds"].get(suite, 0) + time.monotonic() - start, 1)
    seconds["whole"] += [suite] * (ended == 0)
    write_json(file, seconds)
    if ended:
        raise SystemExit(f"`harpe {' '.join(command)}` ended with {ended}.")


def _collect(name: str, work: Path, out: Path, shown: dict[str, str]) -> None:
    """The page, its tables, seconds and versions, with the model under its name and texts without their folder."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    shown |= {read_json(work / "long" / "protocol.json")["answers"]["name"]: name}
    for file in ("index.html", "tables.csv", "tables.md"):
        text = (work / "report" / file).read_text(encoding="utf-8")
        for word, instead in shown.items():
            text = text.replace(word, instead)
        write_text(folder / file, text)
    seconds = read_json(work / "seconds.json")["seconds"]
    rows = [f"| {suite} | {value:,.0f} |" for suite, value in seconds.items()]
    heading = f"# Seconds that {name} took, with {available_cores()} cores, loading and writing with them"
    parts = [heading, "\n".join(["| suite | seconds |", "|---|---:|", *rows])]
    write_text(folder / "seconds.md", "\n\n".join(parts) + "\n\nMade by `scripts/suite_results.py`.\n")
    write_json(folder / "environment.json", read_json(work / "environment.json"))


if __name__ == "__main__":
    main()
