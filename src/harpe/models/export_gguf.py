"""An exported model as a GGUF file, by llama.cpp's own converter, where GGUF can hold its positions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig

from harpe.errors import HarpeError, optional_module
from harpe.models.card import rope_entry
from harpe.models.geometry import text_config
from harpe.models.gguf_header import FREQUENCIES, Header, llama3_divisors, read_header
from harpe.models.per_head import ROPE_TYPE

HELD = ("default", "linear", "llama3", "yarn")
"""Rope types with which llama.cpp gave transformers' probabilities from a file of its converter."""
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""What transformers and llama.cpp take where nothing is said."""
NAME = "model.gguf"
OUT_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def check_gguf(config: PreTrainedConfig, converter: Path) -> None:
    """Refuse, before anything is written, a model that a GGUF file would not be.

    Raises HarpeError for bases or tables per head, other rope types, and a converter that is not there.
    """
    rope = rope_entry(text_config(config))
    kind = rope.get("rope_type", "default")
    if kind == ROPE_TYPE:
        raise HarpeError(
            "A GGUF file has one table of RoPE frequencies for all heads, and this model has one for each key/value "
            "head: as GGUF it would be another model. What one table holds can be converted: --method abf, ntk, pi and "
            "yarn. For this one see docs/serving.md: transformers and vLLM run it."
        )
    if kind not in HELD or rope.get("attention_factor") is not None:
        what = "an attention factor of its own" if kind in HELD else f"the rope type {kind}"
        raise HarpeError(
            f"This model has {what}, which llama.cpp's converter writes otherwise or leaves out. It takes "
            f"{', '.join(HELD)}, without one."
        )
    if not converter.is_file():
        raise HarpeError(
            f"--gguf {converter} is not there. Name llama.cpp's convert_hf_to_gguf.py, or the command that the package "
            "convert-hf-to-gguf installs."
        )
    optional_module("gguf", "gguf", "Checking a GGUF file needs", "gguf")


def write_gguf(folder: Path, config: PreTrainedConfig, converter: Path) -> Path:
    """Have the converter write `folder`/model.gguf from the checkpoint in `folder`, in the checkpoint's own dtype.

    Raises HarpeError where it fails, or states another base, scaling or context than the checkpoint; then no file is
    left.
    """
    target, temporary = folder / NAME, folder / f".{NAME}.partial"
    out_type = OUT_TYPES[str(config.dtype).removeprefix("torch.")]
    command = [sys.executable, str(converter)] if converter.suffix == ".py" else [str(converter.absolute())]
    try:
        done = subprocess.run(
            [*command, str(folder), "--outtype", out_type, "--outfile", str(temporary)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not temporary.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise HarpeError(f"{converter.name} could not convert {folder}: {last}. The checkpoint itself is whole.")
        check_file(temporary, text_config(config))
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def check_file(file: Path, config: PreTrainedConfig) -> None:
    """HarpeError where a GGUF file has another base, scaling or context than the model's configuration."""
    header, rope = read_header(file), rope_entry(config)
    scaling = {"linear": "linear", "yarn": "yarn"}.get(str(rope.get("rope_type")), "none")
    wanted = {"rope.freq_base": rope["rope_theta"], "context_length": config.max_position_embeddings}
    wanted |= {"rope.scaling.factor": rope["factor"]} if scaling != "none" else {}
    if scaling == "yarn":  # where its ramp begins and ends, in turns within that length
        trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        wanted |= {"rope.scaling.original_context_length": trained}
        wanted |= {f"rope.scaling.yarn_{name}": rope.get(name) or usual for name, usual in BETAS.items()}
    usual = {f"rope.scaling.yarn_{name}": value for name, value in BETAS.items()}
    found = {key: usual.get(key) if (there := header.own(key)) is None else there for key in wanted}
    kind = header.own("rope.scaling.type") or "none"
    if kind != scaling or any(abs((found[key] or 0) - value) > 1e-6 * value for key, value in wanted.items()):
        raise HarpeError(
            f"The converter wrote {found} with the scaling {kind}, and the model has {wanted} with {scaling}. The file "
            "is not kept."
        )
    if not _same_divisors(header, config, rope.get("rope_type") == "llama3"):
        raise HarpeError(
            f"The converter wrote other frequencies ({FREQUENCIES}) than the model's. The file is not kept."
        )


def _same_divisors(header: Header, config: PreTrainedConfig, scaled: bool) -> bool:
    """Whether a file divides frequencies as Llama 3's scaling does, or not at all without it."""
    if not scaled or FREQUENCIES not in header.tensors:
        return scaled == (FREQUENCIES in header.tensors)
    wanted = llama3_divisors(
        config, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    there = torch.from_numpy(np.array(header.tensors[FREQUENCIES].data, dtype=np.float32))
    return there.shape == wanted.shape and torch.allclose(there, wanted, rtol=1e-4)
