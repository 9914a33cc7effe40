"""`transformers serve` answers from an exported checkpoint, on loopback, in an environment of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import harpe
from harpe.errors import HarpeError
from harpe.evaluation.greedy import completions
from harpe.files import read_jsonl
from harpe.models.load import embedded_model_path, load_model
from harpe.options.measuring import RulerOptions
from harpe.suites.ruler import run_ruler

from .exported import environment, extended
from .tiny_families import heads_of

pytestmark = pytest.mark.slow
SERVE = "from transformers.cli.transformers import main; main()"
BLOCKED = (
    "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
    "        if name.partition('.')[0] == 'harpe': raise ModuleNotFoundError(name)\nsys.meta_path.insert(0, Absent())\n"
)
TEMPLATE = (
    "{% for m in messages %}# {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}# "
    "assistant\n{% endif %}"
)
PROMPT = "def mean(values):\n    return sum(values) /"
TOKENS = 16
PATIENCE = 400
"""Seconds until the server must answer, on a busy machine."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model with bases per head and a chat template, exported; and harpe's own."""
    model = extended(
        load_model("embedded"), [2e4 + 1e4 * head for head in range(heads_of(load_model("embedded")))], 2048
    ).eval()
    model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    tokenizer.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("served") / "model"
    harpe.export(model, path, tokenizer)
    return path, model, tokenizer


@pytest.fixture(scope="module")
def server(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that was started on the exported folder with an empty HF_HOME, and cannot import harpe."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    assert not list(home.iterdir())
    arguments = [
        "serve",
        str(checkpoint[0]),
        "--trust-remote-code",
        "--device",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED + SERVE, *arguments],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(PATIENCE):
            if process.poll() is not None:
                pytest.fail(f"transformers serve ended: {process.stdout.read()[-3000:] if process.stdout else ''}")
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return dict(json.load(reply))


def generated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> str:
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_completions_are_the_tokens_of_generate(checkpoint: Any, server: str) -> None:
    path, model, tokenizer = checkpoint
    reply = post(
        f"{server}/v1/completions", {"model": str(path), "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    )
    wanted = generated(model, tokenizer, tokenizer(PROMPT, return_tensors="pt")["input_ids"])
    assert reply["choices"][0]["text"] == wanted
    assert reply["usage"]["completion_tokens"] == TOKENS


def test_chat_completions_are_the_tokens_of_generate(checkpoint: Any, server: str) -> None:
    path, model, tokenizer = checkpoint
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": str(path), "messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": False}
    reply = post(f"{server}/v1/chat/completions", body)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    assert reply["choices"][0]["message"]["content"].strip() == generated(model, tokenizer, ids).strip()


@pytest.mark.skipif(find_spec("wonderwords") is None, reason="RULER's word lists come with the package wonderwords")
def test_rulers_answers_by_the_server_are_those_of_generation_in_process(
    checkpoint: Any, server: str, tmp_path: Path
) -> None:
    path, model, tokenizer = checkpoint
    given = {"length": 512, "samples": 3, "tasks": "fwe,niah_multikey_2", "out": str(tmp_path), "tokenizer": str(path)}
    run_ruler(RulerOptions(**given, server=server, model=str(path), requests=2))
    rows = read_jsonl(tmp_path / "answers.jsonl")
    assert len(rows) == 6
    for row in rows:
        sample = read_jsonl(tmp_path / f"{row['task']}.jsonl")[row["sample"]]
        ids = tokenizer(sample["input"] + sample["answer_prefix"]).input_ids
        assert [row["prediction"]] == completions(
            model, tokenizer, [ids], {"fwe": 50, "niah_multikey_2": 128}[row["task"]]
        )
    with pytest.raises(HarpeError, match=r"HTTP 400: Server is pinned to .*has to be the one that the server gives"):
        run_ruler(RulerOptions(**{**given, "out": str(tmp_path / "other")}, server=server, model="other"))


def test_other_positions_would_have_given_other_tokens(checkpoint: Any) -> None:
    """Otherwise equality would prove nothing."""
    _, model, tokenizer = checkpoint
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    assert generated(model, tokenizer, ids) != generated(load_model("embedded").eval(), tokenizer, ids)
