"""No code of a checkpoint or a data set runs, whatever stands on the standard input, and no prompt asks for it."""

from __future__ import annotations

import builtins
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import harpe
from harpe.cli.main import main
from harpe.data.sources import read_documents
from harpe.errors import HarpeError
from harpe.models.load import load_config, load_model, load_tokenizer

from .damages import config, damaged, whole

TRACE = "it-ran"


def code(folder: Path) -> str:
    """Python that leaves a trace as soon as it is imported, and has every class that a checkpoint can name."""
    return f"""
from pathlib import Path
Path({str(folder.parent / TRACE)!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig): model_type = "own"
class Own(LlamaForCausalLM): config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast): pass
def generate(*args, **kwargs): Path({str(folder.parent / TRACE)!r}).touch()
"""


def with_code(model_type: str) -> Any:
    """All places where a checkpoint can name or hold code."""

    def change(folder: Path) -> None:
        names = {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForCausalLM": "own.Own",
            "AutoTokenizer": ["own.OwnTokenizer", None],
        }
        config(model_type=model_type, auto_map=names, architectures=["Own"], tokenizer_class="OwnTokenizer")(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "custom_generate").mkdir()
        for file in ("own.py", "custom_generate/generate.py", "__init__.py", "setup.py", f"{folder.name}.py"):
            (folder / file).write_text(code(folder))

    return change


class Payload:
    """What leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(autouse=True)
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`yes | harpe …`, and an error where anything asks."""

    def asked(*args: Any) -> str:
        raise AssertionError(f"a prompt appeared: {args}")

    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 100))
    monkeypatch.setattr(builtins, "input", asked)


@pytest.mark.parametrize("load", [load_config, load_model, load_tokenizer])
def test_a_checkpoint_that_needs_its_own_code_is_refused(checkpoint: Path, tmp_path: Path, load: Any) -> None:
    folder = damaged(checkpoint, tmp_path / "m", with_code("own"))
    with pytest.raises(HarpeError, match="needs code of its own that harpe does not run"):
        load(folder)
    assert not (tmp_path / TRACE).exists()


def test_where_transformers_knows_the_model_its_own_class_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(checkpoint, tmp_path / "m", with_code("llama"))
    model = load_model(folder)
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_model(checkpoint)(ids).logits)
    model.generate(ids, max_new_tokens=1)
    assert not (tmp_path / TRACE).exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_exported_folder_loads_by_our_hooks_and_not_by_its_file(checkpoint: Path, tmp_path: Path) -> None:
    model = harpe.apply(load_model(checkpoint), length=1024, bases=[1e5, 2e5])
    harpe.export(model, tmp_path / "m")
    assert (tmp_path / "m" / "modeling_harpe.py").is_file()
    (tmp_path / "m" / "modeling_harpe.py").write_text(code(tmp_path / "m"))
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m")(ids).logits, model(ids).logits)
    assert not (tmp_path / TRACE).exists()


@pytest.mark.parametrize(
    "command",
    [
        "extend MODEL --data embedded --length 1024 --tokens 4096 --out OUT/run",
        "evaluate MODEL --data embedded --length 512 --out OUT/scores",
        "prepare --model MODEL --data embedded --length 64 --out OUT/data",
        "ruler --tokenizer MODEL --length 512 --samples 1 --tasks niah_single_1 --out OUT/ruler",
    ],
)
def test_no_verb_asks_or_runs_it(
    checkpoint: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(checkpoint, tmp_path / "m", with_code("own"))
    arguments = command.replace("MODEL", str(folder)).replace("OUT", str(tmp_path / "out")).split()
    assert main(arguments) == 2
    assert "needs code of its own" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / TRACE).exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin", "model.pt"])
def test_pickles_in_a_checkpoint_are_not_read(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = damaged(checkpoint, tmp_path / "m", lambda folder: (folder / "model.safetensors").unlink())
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / TRACE)))
    config(transformers_weights=name if name == "adapter_model.bin" else None)(folder)
    with pytest.raises(HarpeError):
        load_model(folder)
    assert not (tmp_path / TRACE).exists()


def test_the_script_of_a_data_set_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "texts.jsonl").write_text('{"text": "one text"}\n')
    (folder / "m.py").write_text(code(folder))
    assert "one text" in [document.text for document in read_documents(str(folder))]
    assert not (tmp_path / TRACE).exists()
