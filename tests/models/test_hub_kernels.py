"""Kernels of the hub (`use_kernels=True`), with the kernels package itself and a kernel on disk, in a process of its
own.

The kernel is wrong on purpose, so that whoever uses it is seen. transformers takes the kernels package in a narrow
window of versions (0.16 for transformers 5.17, 0.18.2 for 5.23); outside of it these tests are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_kernels_available

from .exported import HERE, environment

pytestmark = pytest.mark.skipif(
    not is_kernels_available(), reason="no version of the kernels package that this transformers takes"
)
PROGRAM = """
import json, sys, warnings
from pathlib import Path
sys.path.insert(0, {here!r})
import torch
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_mapping
from models.exported import extended
from models.tiny_families import bases_of, tiny

variant = Path({root!r}) / "build" / "torch-universal"
(variant / "wrong").mkdir(parents=True)
facts = dict(id="wrong-1", name="wrong", version=1, license="apache-2.0", backend=dict(type="cpu"))
(variant / "metadata.json").write_text(json.dumps({{**facts, "python-depends": []}}))
(variant / "__init__.py").write_text("from .wrong import layers")
(variant / "wrong" / "__init__.py").write_text("")
(variant / "wrong" / "layers.py").write_text('''
from torch import nn
class apply_rotary_transformers(nn.Module):
    has_backward = can_torch_compile = True
    def forward(self, q, k, cos, sin, unsqueeze_dim=1):
        return 2 * q, k
''')

def kernels_into(model):
    try:
        kernel = LocalLayerRepository(Path({root!r}), layer_name="apply_rotary_transformers")
    except TypeError:  # as older versions want it
        kernel = LocalLayerRepository(Path({root!r}), package_name="wrong", layer_name="apply_rotary_transformers")
    with use_kernel_mapping({{"rotary_pos_emb": {{"cpu": kernel}}}}, inherit_mapping=False):
        kernelize(model, mode=Mode.INFERENCE, device="cpu")

@torch.inference_mode()
def logits(model):
    return model.eval()(input_ids=torch.arange(3, 63)[None], use_cache=False).logits

stock, plain = tiny({family!r}), logits(tiny({family!r}))
own = logits(extended(model := tiny({family!r}), bases_of(model)))
assert (own - plain).abs().max() > 0.01
if {when!r} == "after":
    model = extended(model := tiny({family!r}), bases_of(model))
    kernels_into(model)
    kernels_into(stock)
else:
    kernels_into(stock)
    model = extended(model := tiny({family!r}), bases_of(model))
    kernels_into(model)
assert (logits(stock) - plain).abs().max() > 0.01, "the stock model does not use the kernel: the test shows nothing"
assert torch.equal(logits(model), own)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_kernel_of_the_hub_changes_stock_models_and_no_per_head_model(tmp_path: Path, family: str, when: str) -> None:
    code = PROGRAM.format(here=str(HERE.parent), root=str(tmp_path / "kernel"), family=family, when=when)
    env = {**environment(tmp_path / "home"), "PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
