"""GGUF files, as models are passed around for llama.cpp: dequantised once, into a checkpoint like any other.

The checkpoint lies in harpe's cache under the file's name and the SHA-256 of its content, and is found there the next
time. It is exact: tensors that are not quantised keep their numbers, and quantised ones have those that llama.cpp
multiplies by. What the quantisation has lost stays lost, and is told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harpe.errors import HarpeError
from harpe.files import cache_folder, new_folder, read_json, sha256_once, write_json
from harpe.locks import locked
from harpe.models.saved import missing_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harpe.models.gguf_header import Header

ORIGIN = "gguf.json"
"""What a checkpoint says of the file that it was made from."""
CONVERSION = 2
"""Raised where a file would be made into another checkpoint than before: those of before are then made anew."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of other files of weights, which count more than a GGUF file beside them."""


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that a model's name stands for: FILE, FOLDER:FILE, or a folder whose only weights are one such
    file; None where it stands for something else.

    Raises HarpeError for FOLDER:FILE that is not there, and for a folder of several.
    """
    text, path = str(name), _expanded(str(name))
    if path.is_file():
        if not os.access(path, os.R_OK):
            raise HarpeError(f"{path} may not be read by this user.")
        with path.open("rb") as stream:  # Ollama's have no ending
            return path if path.suffix.lower() == ".gguf" or stream.read(4) == b"GGUF" else None
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix.lower() == ".gguf" and each.is_file())
        if not files or any(each.suffix in WEIGHTS for each in path.iterdir()):
            return None
        if len(files) > 1:
            raise HarpeError(
                f"{path} holds {len(files)} GGUF files. Name one of them: {path}:{files[0].name}, "
                f"{path}:{files[1].name}{' …' if len(files) > 2 else ''}."
            )
        return files[0]
    if not text.lower().endswith(".gguf"):
        return None
    # a name may have colons, and so may a folder's
    splits = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == ":"]
    for folder, file in splits:
        if (path := _expanded(folder) / file).is_file():
            return path
    if not splits:
        raise HarpeError(f"There is no file {text}.")
    folder, file = next(((each, file) for each, file in splits if _expanded(each).is_dir()), splits[-1])
    raise HarpeError(f"There is no GGUF file {file} in the folder {folder}.")


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~ and no user of that name
        return Path(name)


def checkpoint_of(file: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of the checkpoint that a GGUF file stands for, in harpe's cache; made where it is not there yet.

    Of several processes one makes it, and the others wait. It takes some seconds a gigabyte, and memory for all weights
    in the dtype in which they are kept.

    Raises HarpeError as `write_checkpoint`, before anything is written.
    """
    digest = sha256_once(file)
    cache = cache_folder() / "gguf"
    target = cache / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', file.stem)[:100]}-{digest[:16]}"
    if not _is_made_from(target, digest):
        with locked(cache, wait=True):
            if not _is_made_from(target, digest):
                say(f"Dequantising {file} into {target}.")
                write_checkpoint(file, target, replace=True)
    say(f"{origin_note(target)} It is read from {target}.")
    return target


def origin_note(folder: str | Path | None) -> str | None:
    """A sentence on what the weights of a checkpoint have lost; None where it was not made from a GGUF file."""
    if not folder or not (path := Path(folder) / ORIGIN).is_file():
        return None
    origin = read_json(path)
    types = ", ".join(f"{number} {kind}" for kind, number in origin["types"].items())
    lost = "what quantising took from them stays lost" if origin["quantised"] else "none of them is quantised"
    return (
        f"The weights come from the GGUF file {origin['file']} (tensors: {types}), kept in {origin['dtype']}; {lost}."
    )


def _is_made_from(target: Path, digest: str) -> bool:
    """Whether a folder holds what this version makes from a file of this content."""
    try:
        origin = json.loads((target / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (origin.get("sha256"), origin.get("conversion")) == (digest, CONVERSION) and missing_of(target) is None


def write_checkpoint(file: Path, target: Path, replace: bool = False) -> None:
    """Write the checkpoint that a GGUF file stands for: safetensors, configuration, tokenizer and chat template; whole
    or not at all.

    Raises
    ------
    HarpeError
        As `read_header`, `read_config` and `read_tokenizer`; where tensors are missing, left over or of another shape,
        or of a type that the package `gguf` cannot read; where the disk is too small; where `target` exists, without
        `replace`.
    """
    from harpe.models.gguf_header import read_config, read_header
    from harpe.models.gguf_tokenizer import read_tokenizer
    from harpe.models.kept_tokenizer import loaded_as

    header = read_header(file)
    config = read_config(header)
    tokenizer: Any = read_tokenizer(header)
    tokenizer.model_max_length = config.max_position_embeddings
    model, places = _empty_model(header, config)
    config.dtype = dtype = _dtype(header)
    with new_folder(target, replace) as temporary:
        _check_disk(temporary, header, dtype.itemsize)
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if (other := loaded_as(tokenizer, temporary, config)) is not None:
            raise HarpeError(
                f"{file} has a tokenizer that transformers would load as another one: for models of "
                f"{config.model_type} it always takes {other}. Name the checkpoint in safetensors that it was made "
                "from."
            )
        weights = {place: _tensor(header, name, config).to(dtype) for name, place in places.items()}
        model.save_pretrained(temporary, state_dict=weights, max_shard_size="5GB")
        config.save_pretrained(temporary)
        types = header.types
        write_json(
            temporary / ORIGIN,
            {
                "conversion": CONVERSION,
                "file": file.name,
                "bytes": file.stat().st_size,
                "sha256": sha256_once(file),
                "types": types,
                "quantised": not set(types) <= {"F32", "F16", "BF16"},
                "dtype": str(dtype).removeprefix("torch."),
                "gguf": version("gguf"),
            },
        )


def _empty_model(header: Header, config: Any) -> tuple[PreTrainedModel, dict[str, str]]:
    """A model without contents, and the names of its weights by the file's.

    Raises HarpeError where the two do not have the same ones.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    from harpe.models.gguf_header import FREQUENCIES
    from harpe.models.weights import some

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    (architecture,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == header.architecture)
    names, places = gguf.get_tensor_name_map(architecture, config.num_hidden_layers), {}
    for place in set(model.state_dict()) - set(model.all_tied_weights_keys or ()):
        module, _, kind = place.rpartition(".")
        places[f"{names.get_name(module)}.{kind}"] = place
    held, kind = set(header.tensors) - {FREQUENCIES}, type(model).__name__
    if lacking := set(places) - held:
        raise HarpeError(
            f"{header.path} lacks {some(lacking)}, which a {kind} has and which would begin as random numbers. "
            "Copy or download it again."
        )
    if left := held - set(places):
        raise HarpeError(
            f"{header.path} holds {some(left)}, for which a {kind} has no place. Name the checkpoint in safetensors "
            "that it was made from."
        )
    for name, place in places.items():
        stored, wanted = [int(n) for n in reversed(header.tensors[name].shape)], list(model.get_parameter(place).shape)
        if stored != wanted:
            raise HarpeError(
                f"{header.path} holds {name} as {stored}, and a {kind} of its metadata has {wanted}. Name the "
                "checkpoint in safetensors that it was made from."
            )
    return model, places


def _tensor(header: Header, name: str, config: Any) -> torch.Tensor:
    """A tensor of the file, dequantised to float32, with its rows as transformers has them."""
    import gguf
    import torch

    stored = header.tensors[name]
    try:
        weight = torch.tensor(gguf.dequantize(stored.data, stored.tensor_type), dtype=torch.float32)
    except NotImplementedError as error:
        raise HarpeError(
            f"{header.path} holds {name} in the type {stored.tensor_type.name}, which the package gguf "
            f"{version('gguf')} cannot dequantise. Name the checkpoint that it was made from."
        ) from error
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if header.architecture == "llama" and heads:
        # llama.cpp rotates neighbouring rows of these models, transformers a row and the one half a head further
        weight = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def _dtype(header: Header) -> torch.dtype:
    """The narrowest dtype that holds every number of the file: a 16-bit one of the file's own, or float32."""
    import numpy as np
    import torch

    from harpe.models.gguf_header import WHOLE

    types = set(header.types)
    halves = types - {"F32"}
    if len(halves) != 1 or not types <= set(WHOLE):
        return torch.float32
    half = WHOLE[halves.pop()]
    singles = [
        torch.from_numpy(np.array(each.data)) for each in header.tensors.values() if each.tensor_type.name == "F32"
    ]
    return half if all(torch.equal(each.to(half).float(), each) for each in singles) else torch.float32


def _check_disk(folder: Path, header: Header, size: int) -> None:
    needed = sum(int(each.n_elements) for each in header.tensors.values()) * size + 50_000_000
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HarpeError(
            f"{header.path} becomes about {needed / 1e9:.1f} GB of checkpoint, and {free / 1e9:.1f} GB are free under "
            f"{folder.parent}. Free some space, or name another cache folder by HARPE_CACHE."
        )
