"""An exported checkpoint in the hands of somebody who has no harpe."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

import harpe
from harpe.errors import HarpeError
from harpe.models import export as export_module
from harpe.models import per_head
from harpe.models.load import embedded_model_path, load_model
from harpe.models.per_head import PROTOCOL
from harpe.positions import phases, rotation

from .exported import GENERATING, HERE, LONG, NAMES, SHORT, environment, extended, logits, named, prepared
from .tiny_families import bases_of, heads_of


@pytest.mark.parametrize("name", named(NAMES))
def test_logits_without_harpe_are_bit_for_bit_those_with_it(told: Any, name: str) -> None:
    expected, got = told[name]
    assert "error" not in got, got
    for length, wanted in expected["logits"].items():
        assert torch.equal(got["logits"][length], wanted), length
        before = expected["before"][length]
        assert (wanted - before).abs().max() <= 1e-5 * before.abs().max(), length


def test_the_lengths_cross_tiles_and_both_kinds_of_pairs() -> None:
    table = torch.zeros(32, 64, dtype=torch.int64)
    kinds = [rotation.encode_positions(torch.arange(int(length))[None], table)[0].dtype for length in LONG]
    assert kinds == [torch.int32, torch.int32, torch.int32, torch.int64]


def test_different_bases_give_different_logits(told: Any) -> None:
    """Otherwise equality would prove nothing."""
    model = extended(prepared("llama"), [10_000.0] * 2)
    assert (logits(model, SHORT)["300"] - told["llama"][1]["logits"]["300"]).abs().max() > 0.1


@pytest.mark.parametrize("name", GENERATING)
def test_generation_with_left_padding_gives_the_same_tokens(told: Any, name: str) -> None:
    expected, got = told[name]
    assert got["generated"].tolist() == expected["generated"].tolist()


@pytest.mark.parametrize("name", named(n for n in NAMES if n != "wide"))
def test_saved_again_from_the_loaded_model_it_loads_again(told: Any, root: Path, name: str) -> None:
    expected, got = told[name]
    assert torch.equal(got["again"]["300"], expected["logits"]["300"])
    first, second = (json.loads((root / folder / "config.json").read_text()) for folder in (name, f"{name}-again"))
    for key in ("auto_map", "architectures", "rope_parameters", "max_position_embeddings", "harpe_original_length"):
        assert first.get(key) == second.get(key), key
    if name != "one-base":
        assert marks(root / f"{name}-again") == marks(root / name) != []
        assert (root / name / "modeling_harpe.py").read_bytes() == (
            root / f"{name}-again" / "modeling_harpe.py"
        ).read_bytes()


@pytest.mark.parametrize("name", named(n for n in NAMES if n not in ("wide", "one-base")))
def test_the_auto_classes_make_the_classes_of_the_file_under_stock_names(told: Any, root: Path, name: str) -> None:
    expected, got = told[name]
    assert got["class"][0] == expected["class"]
    assert got["class"][1].endswith(".modeling_harpe")
    assert got["base"][1].endswith(".modeling_harpe")
    assert got["same_base"]
    config = json.loads((root / name / "config.json").read_text())
    classes = {"AutoConfig": got["class"][2], "AutoModel": got["base"][0], "AutoModelForCausalLM": got["class"][0]}
    assert list(config["auto_map"].items())[:3] == [(key, f"modeling_harpe.{value}") for key, value in classes.items()]
    assert config["architectures"] == [expected["class"]]


def marks(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return [key for key in weights.keys() if key.endswith("inv_freq_per_head")]  # noqa: SIM118


def test_one_base_for_all_heads_is_a_stock_checkpoint_without_code(told: Any, root: Path) -> None:
    folder = root / "one-base"
    config = json.loads((folder / "config.json").read_text())
    assert not list(folder.glob("*.py"))
    assert not marks(folder)
    assert "auto_map" not in config
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}
    assert told["one-base"][1]["class"][1] == "transformers.models.llama.modeling_llama"


@pytest.mark.parametrize("name", named(n for n in NAMES if n != "one-base"))
def test_rope_scaling_tells_older_programs_the_same(told: Any, root: Path, name: str) -> None:
    config = json.loads((root / name / "config.json").read_text())
    decoder = config.get("text_config", config)
    rope = decoder["rope_parameters"]
    assert decoder["rope_scaling"] == rope.get("full_attention", rope)
    assert decoder["rope_scaling"]["rope_type"] == "harpe"
    assert decoder["rope_theta"] is None


@pytest.mark.parametrize("name", named(n for n in NAMES if n != "one-base"))
def test_without_trust_remote_code_nothing_loads(told: Any, name: str) -> None:
    assert "harpe" in told[name][1]["untrusting"]["error"]


def test_the_weights_hold_a_tensor_that_converters_do_not_know(told: Any, root: Path) -> None:
    assert marks(root / "llama") == ["model.rotary_emb.inv_freq_per_head"]
    assert marks(root / "gpt_neox") == ["gpt_neox.rotary_emb.inv_freq_per_head"]


SHARED = """
import sys, warnings
from pathlib import Path
import torch
sys.path.insert(0, {here!r})
from models.exported import SHORT, extended, logits, prepared
from models.tiny_families import bases_of
from transformers import AutoModelForCausalLM
root, order = Path({root!r}), {order!r}
torch.set_num_threads({threads})

def stranger(name):
    model = AutoModelForCausalLM.from_pretrained(root / name, trust_remote_code=True, attn_implementation="eager")
    model.eval()
    assert type(model).__module__.endswith("modeling_harpe")
    return model

def ours(name):
    return extended(model := prepared(name), bases_of(model))

def stock(name):
    return prepared(name)

before = logits(stock("llama"), SHORT)["300"]
made = [(name, kind, dict(stranger=stranger, ours=ours)[kind](name)) for kind, name in order]
made += [(name, kind, dict(stranger=stranger, ours=ours)[kind](name)) for kind, name in order]
plain = stock("llama")
for number, (name, kind, model) in enumerate(made):
    assert torch.allclose(logits(model, SHORT)["300"], torch.load(root / f"{{name}}.pt"), atol=1e-5), (name, kind)
    if {compiling} and number >= len(order):  # those that were made when all kinds were there
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        wanted = torch.load(root / f"{{name}}.pt")
        assert torch.allclose(logits(compiled, SHORT)["300"], wanted, atol=1e-4), (name, kind)
        torch.compiler.reset()
assert torch.equal(logits(plain, SHORT)["300"], before)
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three exported families and their logits: what the next test needs, where it runs without the others (make
    slow)."""
    folder = tmp_path_factory.mktemp("three")
    for family in ("llama", "qwen3", "gemma3_text"):
        model = extended(model := prepared(family), bases_of(model))
        torch.save(logits(model, SHORT)["300"], folder / f"{family}.pt")
        harpe.export(model, folder / family)
    return folder


EXPORTED_FIRST = [("stranger", "llama"), ("ours", "llama"), ("ours", "qwen3"), ("stranger", "gemma3_text")]
HARPE_FIRST = [("ours", "llama"), ("ours", "gemma3_text"), ("stranger", "llama"), ("stranger", "qwen3")]


@pytest.mark.parametrize(
    ("order", "compiling"),
    [
        pytest.param(EXPORTED_FIRST, False, id="exported-first"),
        pytest.param(HARPE_FIRST, False, id="harpe-first", marks=pytest.mark.slow),
        pytest.param(EXPORTED_FIRST, True, id="exported-first-compiled", marks=pytest.mark.slow),
    ],
)
def test_exported_and_own_models_of_the_same_families_live_in_one_process(
    three: Path, tmp_path: Path, order: Any, compiling: bool
) -> None:
    code = SHARED.format(
        here=str(HERE.parent), root=str(three), order=order, threads=torch.get_num_threads(), compiling=compiling
    )
    source = str(Path(harpe.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(tmp_path), "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


VERSIONS = """
import sys, warnings
from pathlib import Path
sys.path.insert(0, {here!r})
from models.exported import SHORT, extended, logits, prepared
from models.tiny_families import bases_of
from transformers import AutoModelForCausalLM
root = Path({root!r})

def stranger(name):
    return AutoModelForCausalLM.from_pretrained(root / name, trust_remote_code=True, attn_implementation="eager").eval()

{first}
expected = logits(model, SHORT)["300"]
for family in ("same", "other"):
    try:
        stranger(family)
    except RuntimeError as error:
        assert "hooks of version {old}, here {new}" in str(error) and "processes of their own" in str(error), error
    else:
        raise AssertionError(family)
assert (logits(model, SHORT)["300"] == expected).all()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    ['model = stranger("llama")', 'model = extended(model := prepared("llama"), bases_of(model))'],
    ids=["exported", "harpe"],
)
def test_exports_of_two_versions_do_not_share_hooks_in_one_process(tmp_path: Path, first: str) -> None:
    """`same` and `other` are of a harpe whose hooks have the next version: one of the family that is loaded already,
    one of another."""
    for family, later in (("llama", "same"), ("qwen3", "other")):
        model = prepared(family)
        harpe.export(extended(model, bases_of(model)), tmp_path / family)
        file = shutil.copytree(tmp_path / family, tmp_path / later) / "modeling_harpe.py"
        text = file.read_text()
        assert text.count(f"PROTOCOL = {PROTOCOL}\n") == 1
        file.write_text(text.replace(f"PROTOCOL = {PROTOCOL}\n", f"PROTOCOL = {PROTOCOL + 1}\n"))
    code = VERSIONS.format(here=str(HERE.parent), root=str(tmp_path), first=first, old=PROTOCOL, new=PROTOCOL + 1)
    env = {**environment(tmp_path / "home"), "PYTHONPATH": str(Path(harpe.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_hooks_of_another_version_that_came_later_are_told_at_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = extended(model := prepared("llama"), bases_of(model))
    logits(model, SHORT)
    later = functools.wraps(per_head.family_of(model.config).module.apply_rotary_pos_emb)(lambda *args: None)
    later._harpe_hook = PROTOCOL + 1  # type: ignore[attr-defined]
    monkeypatch.setattr(per_head.family_of(model.config).module, "apply_rotary_pos_emb", later)
    with pytest.raises(RuntimeError, match=f"hooks of version {PROTOCOL + 1}, here {PROTOCOL}"):
        logits(model, SHORT)


RESUME = """
import sys, warnings
sys.path.insert(0, {here!r})
import stranger
from pathlib import Path
import torch
from transformers import Trainer, TrainingArguments
torch.set_num_threads({threads})
root = Path({root!r})
random = torch.randint(3, 97, (16, 40), generator=torch.Generator().manual_seed(0))
rows = [dict(input_ids=ids, labels=ids) for ids in random]

def train(folder, source, resume=None):
    model = stranger.load(source)
    arguments = TrainingArguments(output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=2,
                                  learning_rate=1e-3, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return model.state_dict(), [row["loss"] for row in trainer.state.log_history if "loss" in row]

whole, losses = train(root / "whole", root / "llama")
assert losses[-1] < losses[0], losses
resumed, _ = train(root / "resumed", root / "llama", str(root / "whole" / "checkpoint-2"))
assert all(torch.equal(whole[key], resumed[key]) for key in whole)
saved = stranger.load(root / "whole" / "checkpoint-4").state_dict()
assert all(torch.equal(whole[key], saved[key]) for key in whole)
"""


@pytest.mark.slow
def test_training_goes_on_from_an_exported_checkpoint_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    model = prepared("llama")
    harpe.export(extended(model, bases_of(model)), tmp_path / "llama")
    code = RESUME.format(here=str(HERE), root=str(tmp_path), threads=torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path / "home"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "phi3"])
def test_the_file_is_plain_readable_code_of_torch_and_transformers(told: Any, root: Path, family: str) -> None:
    path = root / family / "modeling_harpe.py"
    text = path.read_text()
    tree = ast.parse(text)
    imported = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers"}
    assert "import harpe" not in text and "import triton" not in text
    for command in (["check", "--isolated", "--select", "E,F,W,I,UP,B"], ["format", "--isolated", "--diff"]):
        arguments = [*command, "--line-length", "120", "--target-version", "py311", str(path)]
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("module", [phases, rotation, per_head])
def test_the_formula_is_carried_as_it_stands(told: Any, root: Path, module: Any) -> None:
    text = (root / "llama" / "modeling_harpe.py").read_text()
    functions = [
        value for value in vars(module).values() if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    assert len(functions) > 8
    for function in functions:
        assert textwrap.dedent(inspect.getsource(inspect.unwrap(function))) in text, function.__name__


def test_config_and_tokenizer_tell_the_new_length_and_the_card_the_method(tmp_path: Path) -> None:
    model = load_model("embedded")
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    before = tokenizer.model_max_length
    harpe.export(extended(model, [3e5 + 1e5 * h for h in range(heads_of(model))], 2048), tmp_path / "m", tokenizer)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "harpe"
    assert config["rope_parameters"]["bases"] == [3e5 + 1e5 * h for h in range(8)]
    assert (config["max_position_embeddings"], config["harpe_original_length"]) == (2048, 256)
    assert AutoTokenizer.from_pretrained(tmp_path / "m").model_max_length == 2048
    assert tokenizer.model_max_length == before  # the caller's own is left as it was
    assert (tmp_path / "m" / "generation_config.json").is_file()
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "300,000, 400,000" in card and "trust_remote_code=True" in card
    assert {path.suffix for path in (tmp_path / "m").iterdir()} == {".json", ".md", ".py", ".safetensors"}


def test_a_text_decoder_inside_a_model_of_images_and_text_is_exported_with_it(told: Any, root: Path) -> None:
    written = json.loads((root / "gemma3" / "config.json").read_text())
    assert written["text_config"]["rope_parameters"]["full_attention"]["bases"] == [5e3, 7e4]
    assert written["auto_map"]["AutoModelForImageTextToText"] == "modeling_harpe.Gemma3ForConditionalGeneration"
    assert told["gemma3"][1]["class"][0] == "Gemma3ForConditionalGeneration"


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    model = prepared("llama")
    extended(model, bases_of(model))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("x")
    with pytest.raises(HarpeError, match="exists already"):
        harpe.export(model, tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["thesis.tex"]
    harpe.export(model, tmp_path / "n")
    with pytest.raises(HarpeError, match="exists already"):
        harpe.export(model, tmp_path / "n")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared("llama")
    extended(model, bases_of(model))

    def fail(*_: Any) -> str:
        raise RuntimeError("no")

    monkeypatch.setattr(export_module, "modeling_source", fail)
    with pytest.raises(RuntimeError):
        harpe.export(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_what_harpe_did_not_extend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="not extended by harpe"):
        harpe.export(prepared("llama"), tmp_path / "m")
    model = prepared("llama")
    with pytest.raises(HarpeError, match="no output layer"):
        harpe.export(extended(model, bases_of(model)).model, tmp_path / "m")
    with pytest.raises(HarpeError, match="no model of transformers"):
        harpe.export(torch.nn.Linear(1, 1), tmp_path / "m")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_harpe_itself_loads_what_it_exported_and_exports_it_again(told: Any, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "gemma2", tmp_path / "first")
    model = load_model(tmp_path / "first", attn_implementation="eager").eval()
    assert torch.equal(logits(model, SHORT)["300"], told["gemma2"][0]["logits"]["300"])
    harpe.export(model, tmp_path / "second")
    for file in ("config.json", "modeling_harpe.py", "model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
