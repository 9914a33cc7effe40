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
from harpe.models.load import embedded_model_path, load_model, save_checkpoint
from harpe.options.measuring import RulerOptions
from harpe.suites.ruler import run_ruler

from .exported import environment

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
ANSWER = "Forty-two, as everything is."
PROMPT = "def mean(values):\n    return sum(values) /"
TOKENS = 16
PATIENCE = 400
"""Seconds until the server must answer, on a busy machine."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model with bases per head, trained on conversations that all end alike, exported; and harpe's
    own."""
    place = tmp_path_factory.mktemp("served")
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    tokenizer.chat_template = TEMPLATE
    save_checkpoint(load_model("embedded"), tokenizer, place / "start", 256)
    with (place / "chats.jsonl").open("w") as file:
        for number in range(1600):
            turns = [{"role": "user", "content": f"What is {number} to you?"}, {"role": "assistant", "content": ANSWER}]
            file.write(json.dumps({"messages": turns}) + "\n")
    start = str(place / "start")
    data = harpe.prepare(str(place / "chats.jsonl"), start, 512, place / "chats", chat="messages")
    settings = {"batch_tokens": 2048, "learning_rate": 1e-3, "dtype": "float32", "document_mask": "restart"}
    settings["method"] = "harpe"
    trained = harpe.extend(model=start, length=512, data=str(data), tokens=2**15, out=place / "run", **settings)
    model = load_model(trained).eval()
    model.generation_config.eos_token_id = None
    path = place / "model"
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


def test_a_chat_model_that_was_extended_on_conversations_answers_as_they_do(checkpoint: Any, server: str) -> None:
    """A question that was not among them; the model that training began with says something else."""
    messages = [{"role": "user", "content": "What is 12345 to you?"}]
    body = {"model": str(checkpoint[0]), "messages": messages, "max_tokens": 24, "temperature": 0, "stream": False}
    reply = post(f"{server}/v1/chat/completions", body)
    assert reply["choices"][0]["message"]["content"].strip().startswith(ANSWER)
    tokenizer = checkpoint[2]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    before = load_model("embedded").eval().generate(ids["input_ids"], max_new_tokens=24, do_sample=False)
    assert ANSWER not in tokenizer.decode(before[0, ids["input_ids"].shape[1] :])


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
