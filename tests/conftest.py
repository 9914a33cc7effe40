"""Things that several tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network

import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harpe.models.load import load_tokenizer, save_checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def tiny_model(
    family: str, *, heads: int = 4, key_value_heads: int = 2, layers: int = 2, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random model of a family whose attention is not flat: initializer_range 0.1, float32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=changes.pop("vocab_size", 97),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=16,
        max_position_embeddings=changes.pop("max_position_embeddings", 512),
        initializer_range=0.1,
        tie_word_embeddings=changes.pop("tie_word_embeddings", False),
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        rope_parameters=changes.pop("rope_parameters", {"rope_type": "default", "rope_theta": 10_000.0}),
        **({"sliding_window": None} if family == "mistral" else {}) | changes,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def make_tiny() -> Any:
    """The function that makes random models."""
    return tiny_model


@pytest.fixture(scope="session")
def harpe_data() -> Path:
    """The folder of real texts and checkpoints, where HARPE_DATA names one."""
    folder = os.environ.get("HARPE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HARPE_DATA names no folder with real texts and checkpoints")
    return Path(folder).absolute()


@pytest.fixture
def workspace(make_tiny: Any, tmp_path: Path) -> Path:
    """`model` (random Qwen3, grouped queries, context 64) and `texts` (prose of repeated words)."""
    tokenizer = load_tokenizer("embedded")
    model = make_tiny("qwen3", vocab_size=len(tokenizer), max_position_embeddings=64)
    save_checkpoint(model, tokenizer, tmp_path / "model", 64)
    (tmp_path / "texts").mkdir()
    for i in range(6):
        words = " ".join(f"the quick brown fox number {n % (7 + i)} jumps over the lazy dog." for n in range(400))
        (tmp_path / "texts" / f"{i}.txt").write_text(words)
    return tmp_path


class Forked:
    """A process that is forked from the test's: everything in it is its own, and nothing has to be imported again.

    It runs `work` with one thread and ends with the code that this returns; what it prints is in `stdout` and `stderr`.
    """

    def __init__(self, work: Callable[[], int], folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._code = folder, None
        if torch.cuda.is_initialized():
            pytest.skip("a process that uses a GPU cannot be forked; this test runs where it is the first")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            # threads of the parent, and locks that they hold, are none of a forked process
            os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
            torch.set_num_threads(1)
            for state in (AcceleratorState, PartialState, GradientState):  # of a training in the test's own process
                state._reset_state()
            code = work()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 240.0) -> int:
        """The exit code, negative for a signal; a process that takes longer is killed."""
        until = time.monotonic() + seconds
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                self.kill()
                raise AssertionError(f"a forked process did not end:\n{self.stdout}\n{self.stderr}")
            else:
                time.sleep(0.01)
        return self._code

    def kill(self) -> None:
        """End it, where it runs."""
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self._folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it has printed to standard error so far."""
        return (self._folder / "stderr").read_text()


@pytest.fixture
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Forked]]:
    """Starts `Forked` processes, with changes to their environment as keywords; ends what a failing test has left."""
    children: list[Forked] = []

    def start(work: Callable[[], int], **environment: str) -> Forked:
        children.append(Forked(work, tmp_path_factory.mktemp("forked"), environment))
        return children[-1]

    yield start
    for child in children:
        child.kill()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Forked]]]:
    """Starts so many forked processes that find each other as those of torchrun do, each doing the same work."""
    children: list[Forked] = []

    def start(count: int, work: Callable[[], int]) -> list[Forked]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        folder = tmp_path_factory.mktemp("ranks")
        for rank in range(count):
            (folder / f"{rank}").mkdir()
            each = shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
            children.append(Forked(work, folder / f"{rank}", each))
        return children[-count:]

    yield start
    for child in children:
        child.kill()
