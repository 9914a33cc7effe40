"""Makes what a version of harpe leaves on disk, for tests that later versions still read it.

    python scripts/make_fixtures.py tests/fixtures/DATE.tar.xz        (a minute on two cores, 1 MB)

A tiny random model and its texts; a run of `harpe extend` that was interrupted in its middle and one that ended; packed
texts; a comparison of which one row is done and one was interrupted; an exported checkpoint. Recipes hold names that
are relative to the folder, in which tests unpack the archive and work (tests/test_earlier_versions.py). Checkpoints
that nothing reads again and TensorBoard files are left out.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import argparse
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from harpe.cli.main import main as harpe
from harpe.models.load import load_tokenizer, save_checkpoint
from harpe.training.checkpoints import is_complete

RUN = [
    "extend",
    "model",
    "--length=64",
    "--data=texts",
    "--tokens=1024",
    "--batch-tokens=256",
    "--learning-rate=1e-3",
    "--save-every=2",
]
RUN += ["--dtype=float32"]


def make_model() -> None:
    """A random Qwen3 of a hundred thousand parameters with the embedded tokenizer, trained for 32 tokens, and four
    texts."""
    tokenizer = load_tokenizer("embedded")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model("qwen3", **sizes, **heads, **ids, initializer_range=0.1)
    save_checkpoint(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer, Path("model"), 32)
    Path("texts").mkdir()
    for i in range(4):
        Path(f"texts/{i}.txt").write_text(
            " ".join(f"The fox number {n % (5 + i)} jumps over the lazy dog." for n in range(200))
        )
    evaluation = {"data": "texts", "documents": 2, "samples": 0, "grid_samples": 0}
    recipe = {
        "title": "Two rows",
        "model": "model",
        "length": 64,
        "data": "texts",
        "tokens": 1024,
        "batch_tokens": 256,
        "seeds": [0],
    }
    recipe |= {
        "learning_rate": 1e-3,
        "dtype": "float32",
        "save_every": 2,
        "baseline": "abf",
        "evaluation": evaluation,
        "methods": ["abf", "harpe"],
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def killed(arguments: list[str], when: str) -> None:
    """harpe, killed with all of its processes as soon as the checkpoint `when` is whole."""
    child = subprocess.Popen([sys.executable, "-m", "harpe", *arguments], start_new_session=True)
    while not is_complete(Path(when)):
        assert child.poll() is None, f"{arguments} ended by itself"
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    archive = parser.parse_args().out.resolve()
    if archive.exists():
        parser.error(f"{archive} is there: what a version wrote stays as it is, so give another name.")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT) as tar:
            tar.add(folder, ".", filter=anonymous)


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def make(folder: Path) -> None:
    """Everything of the list above, in an empty folder."""
    os.chdir(folder)
    torch.set_num_threads(1)
    make_model()
    assert harpe(["prepare", "--model=model", "--length=64", "--data=texts", "--out=packed"]) == 0
    killed([*RUN, "--out=interrupted"], "interrupted/harpe/stage-1/checkpoint-2")
    assert harpe([*RUN, "--out=ended"]) == 0
    assert (
        harpe(
            ["evaluate", "ended", "--data=texts", "--documents=2", "--samples=0", "--grid-samples=0", "--dtype=float32"]
        )
        == 0
    )
    assert harpe(["export", "ended", "--out=exported"]) == 0
    killed(["compare", "recipe.yaml", "--out=comparison"], "comparison/harpe/seed-0/stage-1/checkpoint-2")
    for folder in Path("ended").rglob("checkpoint-*"):
        shutil.rmtree(folder)
    for path in Path().rglob("events.out.tfevents*"):
        path.unlink()


if __name__ == "__main__":
    main()
