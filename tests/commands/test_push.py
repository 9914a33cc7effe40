"""`harpe push`, with the hub's client as it is and a stub of the hub."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session, constants
from transformers import AutoModelForCausalLM

import harpe
from harpe.cli.main import main
from harpe.commands.push import local_paths
from harpe.files import write_json
from harpe.models.load import load_model, load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*has new positions")
TOKEN = "hf_of_the_test"


class Hub(BaseHTTPRequestHandler):
    """Keeps repositories as the hub does: files by name, private or not; what it is not told by the client it lacks."""

    repositories: dict[str, dict[str, Any]]
    commits: list[str]

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/whoami-v2":
            self.answer(200, {"name": "org", "type": "user", "orgs": []})
        elif (name := self.path.removeprefix("/api/models/").split("?")[0].split("/tree/")[0]) in self.repositories:
            there = self.repositories[name]
            if "/tree/" in self.path:
                rows = [{"type": "file", "path": file, "size": 1, "oid": "0" * 40} for file in there["files"]]
                self.answer(200, rows)
                return
            files = [{"rfilename": file} for file in there["files"]]
            self.answer(
                200,
                {
                    "id": name,
                    "sha": "1" * 40,
                    "siblings": files,
                    "private": there["visibility"] == "private",
                    "tags": [],
                },
            )
        else:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_PUT(self) -> None:
        name = self.path.removeprefix("/api/models/").removesuffix("/settings")
        self.repositories[name] |= self.body()
        self.answer(200, {})

    def do_POST(self) -> None:
        if self.path == "/api/repos/create":
            told = self.body()
            name = f"{told['organization']}/{told['name']}"
            url = f"http://{self.headers['Host']}/{name}"
            if name in self.repositories:
                self.answer(409, {"error": "You already created this model repo", "url": url})
                return
            self.repositories[name] = {"files": {".gitattributes": b""}, "visibility": told["visibility"]}
            self.answer(200, {"url": url, "name": name, "id": "1"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for each in self.body()["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            lines = [json.loads(line) for line in self.read().splitlines()]
            for line in lines:
                if line["key"] == "file":
                    self.repositories[name]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.repositories[name]["files"][line["value"]["path"]]
            self.commits.append(next(line["value"]["summary"] for line in lines if line["key"] == "header"))
            url = f"http://{self.headers['Host']}/{name}/commit/{'2' * 40}"
            self.answer(200, {"commitUrl": url, "commitOid": "2" * 40, "success": True})

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def body(self) -> Any:
        return json.loads(self.read())

    def answer(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for key, each in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(key, each)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """No lines in the tests' output."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.repositories, Hub.commits = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def extended(workspace: Path) -> Path:
    """An extended checkpoint in a folder, with the report of a run beside it."""
    model = harpe.apply(load_model(workspace / "model"), "harpe", length=256)
    model.save_pretrained(workspace / "mine")
    load_tokenizer(workspace / "model").save_pretrained(workspace / "mine")
    (workspace / "mine" / "report").mkdir()
    (workspace / "mine" / "report" / "index.html").write_text(f"trained on {workspace}/texts")
    (workspace / "mine" / "report" / "tables.csv").write_text("a,b")
    return workspace / "mine"


@dataclass
class Done:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def push(hub: str, extended: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Callable[..., Done]]:
    """`harpe push` of the extended checkpoint."""
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(extended.parent / "token"))
    monkeypatch.chdir(extended.parent)
    close_session()

    def run(*arguments: str, token: str | None = TOKEN, endpoint: str = hub) -> Done:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setenv("HF_TOKEN", token or "")
        code = main(["push", str(extended), *arguments])
        return Done(code, *capsys.readouterr())

    yield run
    close_session()


def test_what_was_uploaded_loads_as_the_model_that_was_pushed(push: Any, extended: Path, tmp_path: Path) -> None:
    done = push("org/long")
    assert done.code == 0, done.err
    there = Hub.repositories["org/long"]
    assert there["visibility"] == "private" and Hub.commits == ["mine, by harpe"]
    assert {"README.md", "config.json", "model.safetensors", "modeling_harpe.py", "report/index.html"} <= {
        *there["files"]
    }
    assert f"report/index.html names a folder of this machine: {extended.parent}" in done.out
    for name, content in there["files"].items():
        path = tmp_path / "back" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", trust_remote_code=True)(ids).logits
        assert torch.equal(back, load_model(extended)(ids).logits)
    assert not list(extended.parent.glob(".harpe-push-*"))


@pytest.mark.parametrize("texts", ["./clients/acme", "org/name"])
def test_a_folder_of_texts_that_the_report_names_is_told_and_a_data_set_is_not(tmp_path: Path, texts: str) -> None:
    run, folder = tmp_path / "run", tmp_path / "model"
    run.mkdir()
    folder.mkdir()
    write_json(run / "plan.json", {"corpus": {"description": f"{texts}, documents of at least 64 tokens"}})
    (folder / "index.html").write_text(f"<dd>{texts}, documents of at least 64 tokens</dd>")
    named = list(local_paths(folder, run))
    assert len(named) == (texts != "org/name") and all(texts in sentence for sentence in named)


def test_a_dry_run_lists_what_would_go_and_asks_the_hub_nothing(push: Any, extended: Path) -> None:
    (extended / "report").rename(extended.parent / "elsewhere")
    assert "No report goes with it" in push("org/long", "--dry-run", token=None, endpoint="http://127.0.0.1:9").out
    (extended.parent / "elsewhere").rename(extended / "report")
    done = push("org/long", "--dry-run", "--report", "false", token=None, endpoint="http://127.0.0.1:9")
    assert done.code == 0, done.err
    assert "model.safetensors  " in done.out and "report/" not in done.out
    assert "this goes to org/long, private" in done.out and not Hub.repositories


def test_a_public_or_a_full_repository_is_refused_until_asked_for(push: Any) -> None:
    Hub.repositories["org/long"] = {"files": {".gitattributes": b"", "old.safetensors": b"x"}, "visibility": "public"}
    done = push("org/long", "--replace")
    assert done.code == 2 and "org/long is public" in done.err
    done = push("org/long", "--public")
    assert done.code == 2 and "holds 1 files already (old.safetensors)" in done.err
    assert not Hub.commits
    done = push("org/long", "--public", "--replace")
    assert done.code == 0, done.err
    there = Hub.repositories["org/long"]
    assert (
        "old.safetensors" not in there["files"]
        and ".gitattributes" in there["files"]
        and there["visibility"] == "public"
    )


def test_who_is_not_logged_in_and_wrong_names_are_told_before_anything_is_written(push: Any) -> None:
    for arguments, token, words in (
        (["org/long"], None, "HF_TOKEN"),
        (["org/long"], "hf_wrong", "HF_TOKEN"),
        (["long"], TOKEN, "give ORG/NAME"),
        (["org/lo ng"], TOKEN, "cannot name a repository"),
    ):
        done = push(*arguments, token=token)
        assert done.code == 2 and words in done.err, done.err
        assert "safetensors" not in done.out and not Hub.repositories
