"""The Triton kernel: compiled for GPUs that need not be here, and the claims of kernel_cases.py in Triton's interpreter
and on a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")


def run_cases(**environment: str) -> str:
    """pytest on kernel_cases.py in a process of its own: whether Triton interprets is decided when it is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("kernel_cases.py")),
    ]
    found = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-10_000:] + found.stderr[-2000:]
    return found.stdout


@pytest.mark.slow
def test_every_claim_holds_in_tritons_interpreter() -> None:
    out = run_cases(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    assert int(re.findall(r"(\d+) passed", out)[0]) >= 60, out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_every_claim_holds_on_a_cuda_gpu() -> None:
    out = run_cases(TRITON_INTERPRET="0")
    assert int(re.findall(r"(\d+) passed", out)[0]) >= 60, out


@pytest.mark.parametrize("there_is_a_gpu", [True, False])
def test_it_is_installed_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, there_is_a_gpu: bool) -> None:
    from harpe.models.install import install
    from harpe.positions import rotation_triton
    from harpe.positions.rotation import use_kernel

    before = use_kernel(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_a_gpu)
    install()
    assert use_kernel(before) is (rotation_triton.rotate if there_is_a_gpu else None)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("dim", "pairs", "interleaved", "scaled"),
    [
        (128, 64, False, False),
        (128, 64, True, False),
        (96, 48, False, False),
        (80, 16, False, False),
        (128, 64, False, True),
        (80, 16, False, True),
    ],
)
def test_compiled_for_a_gpu_it_reads_16_bytes_at_a_time_and_keeps_everything_in_registers(
    dtype: str, dim: int, pairs: int, interleaved: bool, scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For compute capability 9.0, with the alignment that whole projections have. The interpreter accepts what a
    compiler may not."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from harpe.positions import rotation_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    _, options = rotation_triton.launch_options(131_072, 8, 4, dim, pairs, False)
    warps = options.pop("num_warps")
    known: dict[str, Any] = {
        "heads": 8,
        "q_group": 4,
        "k_group": 1,
        "has_factor": scaled,
        "has_scale": scaled,
        "interleaved": interleaved,
        "direction": 1,
    }
    known |= options | dict.fromkeys(("q_dim", "k_dim", "out_q_dim", "out_k_dim", "position_token", "table_pair"), 1)
    kernel = rotation_triton._kernel
    types = {
        "q": f"*{dtype}",
        "k": f"*{dtype}",
        "out_q": f"*{dtype}",
        "out_k": f"*{dtype}",
        "positions": "*i64",
        "table": "*i64",
    }
    signature = {name: "constexpr" if name in known else types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in known.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind != "constexpr"},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "enable_fp_fusion": True}
    )
    ptx = compiled.asm["ptx"]
    data = re.findall(r"(?:ld|st)\.global\.(v\d\.b32|b16|b32)", ptx)
    assert data and set(data) == {"v4.b32"}
    assert ".local" not in ptx
