"""Random SIGKILLs on everything that takes long, and whether what is left goes on to the files of an undisturbed run.

    python scripts/kill_campaign.py --kills 20 --out benchmarks/DATE-kills

Each trial starts a verb on a tiny model, kills it, starts the same command again (`extend`: with --resume) and compares
all files with those of a run that nobody disturbed. Half of the kills come at a random time of the run's life, half at
a random change that it makes to the disk (`kill_moment.py`), at once or some milliseconds later. Of a comparison, the
process itself is killed, one of its workers, or all together.

Checked after every kill: no process is left after a few seconds; the command goes on and ends with code 0; every file
is there, none is more (temporary ones neither), and each is equal by its bytes but for times. Writes OUT.json, a row a
trial, and OUT.md; trials that OUT.json has are not done again. About 40 minutes on two cores for 20 kills of each of
seven kinds.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import argparse
import datetime
import hashlib
import json
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

import kill_moment
from harpe.cli.main import main as harpe
from harpe.files import read_json, write_json, write_text
from harpe.models.load import load_tokenizer, save_checkpoint
from harpe.training.checkpoints import MARK

PATIENCE = 10.0
"""Seconds that processes of a killed run may take to end."""
TIMES = {"seconds", "train_seconds", "evaluate_seconds", "since", "time", "train_runtime", "began"}
"""Keys of JSON files that hold times."""
PASSED_OVER = ("events.out.tfevents", "worker.log")
"""Files whose names or contents are times, and what libraries print."""
DURATIONS = re.compile(rb'(?:data-order="[^"]*"><b>|\| )[0-9.]+ (?:s|min|h)\b')
"""Cells of the reports' tables that tell what was spent."""


@dataclass(frozen=True)
class Kind:
    """A verb, and which of its processes is killed."""

    name: str
    arguments: Callable[[Path, Path], list[str]]
    """Of the workspace and the run directory."""
    target: str = "self"
    again: tuple[str, ...] = ()
    """Added where the command goes on."""

    @property
    def verb(self) -> str:
        """What is started: the same for all kinds of a comparison, which differ in what is killed."""
        return self.name.partition("-")[0]


def _extend(work: Path, run: Path) -> list[str]:
    return [
        "extend", f"{work}/model", "--length=256", f"--data={work}/texts", f"--out={run}", "--tokens=4096",
        "--method=harpe", "--batch-tokens=512",
        "--learning-rate=1e-3", "--save-every=2", "--dtype=float32",
    ]  # fmt: skip


def _prepare(work: Path, run: Path) -> list[str]:
    return [
        "prepare",
        f"--model={work}/model",
        "--length=256",
        f"--data={work}/texts",
        f"--out={run}",
        "--by-folder",
        "--max-copies=2",
    ]


def _evaluate(work: Path, run: Path) -> list[str]:
    return [
        "evaluate", f"{work}/model", f"--data={work}/texts", f"--out={run}", "--length=256",
        "--original-length=128", "--documents=5",
        "--samples=2", "--grid-samples=2", "--dtype=float32",
    ]  # fmt: skip


def _ruler(work: Path, run: Path) -> list[str]:
    return [
        "ruler", f"--model={work}/model", "--length=1000", f"--out={run}", "--tasks=niah_single_1,vt",
        "--samples=3", "--beyond-context",
        "--batch-tokens=1200", "--dtype=float32",
    ]  # fmt: skip


def _compare(work: Path, run: Path) -> list[str]:
    return ["compare", f"{work}/recipe.yaml", f"--out={run}", "--jobs=2"]


KINDS = (
    Kind("extend", _extend, again=("--resume",)),
    Kind("prepare", _prepare),
    Kind("evaluate", _evaluate),
    Kind("ruler", _ruler),
    Kind("compare-parent", _compare, "parent"),
    Kind("compare-worker", _compare, "worker"),
    Kind("compare-group", _compare, "group"),
)


def make_workspace(work: Path) -> None:
    """A random model with the embedded tokenizer, six texts, and a recipe with a staged method."""
    tokenizer = load_tokenizer("embedded")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "head_dim": 16,
    }
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen3", **sizes, **heads, **ids), dtype=torch.float32
    )
    save_checkpoint(model, tokenizer, work / "model", 128)
    for i in range(6):
        folder = work / "texts" / f"part-{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(
            " ".join(f"the quick fox number {n % (7 + i)} jumps over the lazy dog." for n in range(400))
        )
    evaluation = {"data": f"{work}/texts", "documents": 3, "samples": 1, "grid_samples": 0}
    evaluation["perplexity"] = {"texts": {"data": f"{work}/texts", "lengths": "128,256", "documents": 3}}
    recipe = {
        "title": "kills",
        "model": f"{work}/model",
        "length": 256,
        "data": f"{work}/texts",
        "tokens": 4096,
        "batch_tokens": 1024,
    }
    recipe |= {
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "dtype": "float32",
        "seeds": [0],
        "save_every": 1,
    }
    recipe |= {"baseline": "abf-staged", "evaluation": evaluation, "methods": ["abf-staged", "harpe"]}
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (work / "inject").mkdir()
    shutil.copy(kill_moment.__file__, work / "inject" / "sitecustomize.py")


class Trial:
    """One process of harpe, forked from this one so that nothing is imported twice, with what it starts."""

    def __init__(self, work: Path, run: Path, arguments: list[str], log: Path, moment: dict[str, Any] | None) -> None:
        self.name = f"{random.getrandbits(64):016x}"
        os.environ["KILL_TRIAL"] = self.name
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setpgid(0, 0)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.environ["PYTHONPATH"] = os.pathsep.join(
                [str(work / "inject"), *filter(None, [os.environ.get("PYTHONPATH")])]
            )
            if moment is not None:
                os.environ["KILL_MOMENT"] = json.dumps({**moment, "under": str(run.parent), "parent": os.getpid()})
                kill_moment.arm()
            torch.set_num_threads(1)
            code = harpe(arguments)
            sys.stdout.flush()
        finally:
            os._exit(code if isinstance(code, int) else 70)

    def wait(self, seconds: float = 600.0) -> int | None:
        """The exit code, negative for a signal; None where it runs on."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return None

    def strays(self) -> list[int]:
        """Processes that it started and that still run after PATIENCE seconds; they are ended then."""
        until = time.monotonic() + PATIENCE
        while (left := kill_moment.processes(self.name)) and time.monotonic() < until:
            time.sleep(0.1)
        kill_moment.kill(left)
        return left


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in and beside a run, by name and without times; empty folders too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part in name for part in PASSED_OVER) or (path.is_dir() and any(path.iterdir())):
            continue
        raw = path.read_bytes() if path.is_file() else b"no file"
        if path.suffix in (".json", ".jsonl"):
            rows = [json.loads(line) for line in (raw.splitlines() if path.suffix == ".jsonl" else [raw])]
            raw = json.dumps(_without_times(rows), sort_keys=True).encode()
        if path.suffix == ".safetensors":  # its header has entries in an order of chance
            with safe_open(path, "pt") as tensors:
                each = {key: tensors.get_tensor(key) for key in sorted(tensors.keys())}
                notes = sorted((tensors.metadata() or {}).items())
            hashes = [(key, str(x.dtype), [*x.shape], hashlib.sha256(_bytes(x)).hexdigest()) for key, x in each.items()]
            raw = json.dumps([hashes, notes]).encode()
        if path.name == MARK:  # the tensors are compared themselves
            raw = json.dumps(sorted(json.loads(path.read_bytes())["files"])).encode()
        if path.suffix in (".html", ".md"):
            raw = DURATIONS.sub(b"", raw)
        found[name] = hashlib.sha256(raw).hexdigest()
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Sentences on what is not as it should be."""
    return [
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} is there and should not be" for name in sorted(found.keys() - expected.keys())),
        *(f"{name} differs" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]),
    ]


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    files: dict[str, str]
    seconds: float
    moments: list[tuple[str, int, str]]
    """Role, number and kind of its changes to the disk."""


def reference(kind: Kind, work: Path) -> Reference:
    run, trace, log = _run_of(kind, work), work / f"{kind.verb}.trace", work / f"{kind.verb}.log"
    start = time.monotonic()
    whole = Trial(work, run, kind.arguments(work, run), log, {"trace": str(trace), "target": "self"})
    if (code := whole.wait()) != 0:
        raise SystemExit(f"{kind.name} ended with {code} although nobody killed it; see {log}.")
    lines = [line.split() for line in trace.read_text().splitlines()]
    of = Reference(
        contents(run.parent), time.monotonic() - start, [(role, int(number), event) for role, number, event in lines]
    )
    shutil.rmtree(run.parent)
    return of


def _run_of(kind: Kind, work: Path) -> Path:
    """The run directory of a trial: the same one for a verb every time, since its name stands in some of its files."""
    run = work / kind.verb / "run"
    run.parent.mkdir()
    return run


def one_trial(kind: Kind, work: Path, of: Reference, number: int, draw: random.Random) -> dict[str, Any]:
    """Kill, go on, compare; a row of the result. `ended` says that the run was over before its kill came."""
    run, log = _run_of(kind, work), work / f"{kind.name}-{number}.log"
    row: dict[str, Any] = {"kind": kind.name, "number": number}
    at_moment = number % 2 == 1
    if at_moment:
        wanted = [m for m in of.moments if kind.target != "worker" or m[0] == "worker"]
        event = draw.choice(sorted({m[2] for m in wanted}))
        role, count, _ = draw.choice([m for m in wanted if m[2] == event])
        delay = draw.choice([0.0, 0.0, draw.uniform(0, 0.05)])
        target = "self" if kind.target == "worker" else kind.target
        moment = {"trace": None, "role": role, "number": count, "delay": delay, "target": target}
        row |= {"moment": f"{event} {count} of a {role}", "delay": round(delay, 4)}
        trial = Trial(work, run, kind.arguments(work, run), log, moment)
        code = trial.wait()
    else:
        after = draw.uniform(0, of.seconds)
        row |= {"moment": "a time", "delay": round(after, 3)}
        trial = Trial(work, run, kind.arguments(work, run), log, None)
        code = _kill_after(trial, kind.target, after, draw)
    killed = code == -signal.SIGKILL or kind.target == "worker"
    row["strays"] = len(trial.strays())
    row["wrong"] = [f"{row['strays']} processes were left after {PATIENCE:g} s"] if row["strays"] else []
    row["ended"] = not killed
    if killed:
        again = [argument for argument in kind.again if (run / "recipe.yaml").is_file()]
        # a folder that is there is whole, and is not written again
        expected = 2 if kind.name == "prepare" and run.exists() else 0
        second = Trial(work, run, [*kind.arguments(work, run), *again], log, None)
        code = second.wait()
        row["wrong"] += [] if code == expected else [f"going on ended with code {code}, see its log"]
        row["wrong"] += ["processes were left after going on"] if second.strays() else []
        row["wrong"] += differences(contents(run.parent), of.files)
    if row["wrong"]:
        run.parent.rename(work / f"failed-{kind.name}-{number}")
    else:
        shutil.rmtree(run.parent)
        log.unlink(missing_ok=True)
    return row


def _kill_after(trial: Trial, target: str, seconds: float, draw: random.Random) -> int | None:
    code = trial.wait(seconds)
    if code is not None:
        return code
    if target == "worker":
        while (code := trial.wait(0.05)) is None and not (workers := kill_moment.processes(trial.name)):
            pass
        if code is None:
            kill_moment.kill([draw.choice(workers)])
        return trial.wait() if code is None else code
    others = kill_moment.processes(trial.name) if target == "group" else []
    kill_moment.kill([trial.pid, *others])
    return trial.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--only", default=",".join(kind.name for kind in KINDS), help="kinds, with commas between them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="stem of the two files of the result; without it nothing is kept")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if kind.name in options.only.split(",")]
    path = Path(f"{options.out}.json") if options.out else None
    rows: list[dict[str, Any]] = read_json(path)["trials"] if path and path.is_file() else []
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    make_workspace(work)
    references: dict[str, Reference] = {}
    for kind in kinds:
        of = references[kind.verb] = references.get(kind.verb) or reference(kind, work)
        done = sum(row["kind"] == kind.name and not row["ended"] for row in rows)
        number = 1 + max((row["number"] for row in rows if row["kind"] == kind.name), default=-1)
        while done < options.kills:
            row = one_trial(kind, work, of, number, random.Random(f"{options.seed} {kind.name} {number}"))
            rows.append(row)
            done, number = done + (not row["ended"]), number + 1
            print(
                f"{kind.name} {done}/{options.kills}: {row['moment']} + {row['delay']} s: "
                f"{row['wrong'] or 'as it should be'}",
                flush=True,
            )
            if path:
                write_json(path, {**_facts(options), "trials": rows})
    wrong = [row for row in rows if row["wrong"]]
    if path:
        write_text(path.with_suffix(".md"), _markdown(rows, _facts(options)))
    if not wrong:
        shutil.rmtree(work, ignore_errors=True)
    print(
        f"{len(wrong)} of {sum(not row['ended'] for row in rows)} kills left something wrong."
        + (f" See {work}." if wrong else "")
    )
    return 1 if wrong else 0


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"date": str(datetime.date.today()), "seed": options.seed, "cores": os.cpu_count(), **versions}


def _markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    lines = [
        f"# Kills, {facts['date']}",
        "",
        "`scripts/kill_campaign.py` kills a run (SIGKILL), starts the command again and compares every file with an",
        f"undisturbed run's, by SHA-256 but for times. Python {facts['python']}, torch {facts['torch']}, transformers",
        f"{facts['transformers']}, {facts['cores']} cores.",
        "",
        "| killed | kills | at a random time | at a change of the disk | strays | not as it should be |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == name and not row["ended"]]
        timed = sum(row["moment"] == "a time" for row in mine)
        wrong, strays = sum(bool(row["wrong"]) for row in mine), sum(row["strays"] for row in mine)
        lines.append(f"| {name} | {len(mine)} | {timed} | {len(mine) - timed} | {strays} | {wrong} |")
    for row in rows:
        if row["wrong"]:
            where = f"{row['kind']} {row['number']}, {row['moment']} + {row['delay']} s"
            lines += ["", f"* {where}: {'; '.join(row['wrong'])}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
