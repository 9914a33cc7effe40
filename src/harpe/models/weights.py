"""What the files of weights must be: whole, named, in safetensors, and all that the model has and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from harpe.errors import HarpeError
from harpe.models.marker import MARKER

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_EXPLAINED = {
    "_orig_mod.": "It was saved from a compiled model (torch.compile): save the one inside, model._orig_mod.",
    "module.": (
        "It was saved from a wrapper for several processes (DataParallel, DDP): save the model inside, model.module."
    ),
    ".lora_": "It holds an adapter: merge it into the model (peft: merge_and_unload) and save that.",
    ".qweight": "It is quantised: name the checkpoint that it was made from.",
    ".weight_scale": "It is quantised: name the checkpoint that it was made from.",
    ".absmax": "It is quantised: name the checkpoint that it was made from.",
}
"""What parts of unexpected names tell, and what to do."""
_OTHERS = (".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".safetensors")
_FEW_BITS = ("I8", "U8", "I4", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0")


def check_files(target: str, revision: str | None, name: str) -> None:
    """Look at the files before they are loaded; of a folder each one's header and size, of a model on the hub its
    index.

    Raises
    ------
    HarpeError
        For an adapter, the shards of a distributed run, a checkpoint without safetensors, and files that are missing,
        cut short or hold something else.
    """
    folder = Path(target) if os.path.isdir(target) else None
    if _file(target, "adapter_config.json", revision) is not None:
        raise HarpeError(
            f"{name} holds an adapter (adapter_config.json), not a model of its own. Merge it into its base model "
            "(peft: merge_and_unload), save that, and name it."
        )
    if folder is not None and any(folder.glob("shard-*-model-*.safetensors")):
        raise HarpeError(
            f"{name} holds the shards of a distributed run (shard-…-model-….safetensors), which transformers would "
            "read in place of what is named model. Load it with transformers and save it by save_pretrained."
        )
    if folder is not None and (folder / WEIGHTS).is_file():
        _check_file(folder / WEIGHTS)
        return
    index = _file(target, INDEX, revision)
    if index is not None:
        shards = _shards(index, name)
        if folder is None:
            return
        if missing := [shard for shard in shards if not (folder / shard).is_file()]:
            raise HarpeError(
                f"{index} names {some(missing)}, which {_are(missing)} not there. Copy or download the checkpoint "
                "again."
            )
        for shard in shards:
            _check_file(folder / shard)
    elif folder is not None:
        others = [path.name for path in sorted(folder.iterdir()) if path.suffix in _OTHERS]
        held = f" It holds {some(others)}." if others else ""
        raise HarpeError(
            f"{name} has no weights in safetensors ({WEIGHTS}, or {INDEX} with its files).{held} Pickled weights "
            "(.bin, .pt) can run code when they are read and are refused: where you trust them, load them with "
            "transformers and save them by save_pretrained."
        )


def check_report(model: PreTrainedModel, report: dict[str, Any], name: str) -> None:
    """Refuse a model that does not have its weights, all of them and no others, from the checkpoint.

    Parameters
    ----------
    report
        What `from_pretrained` gives for `output_loading_info`. What a family declares as derived, tied or left out is
        in none of its lists.

    Raises
    ------
    HarpeError
        Naming some of the weights, and what to do where that can be told; also for weights that are not finite.
    """
    kind = type(model).__name__
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    missing, mismatched = set(report["missing_keys"]), sorted(report["mismatched_keys"])
    unexpected = {key for key in report["unexpected_keys"] if not key.endswith(MARKER)}
    if report.get("error_msgs"):
        raise HarpeError(
            f"The weights of {name} could not be loaded: {' '.join(str(report['error_msgs'][0]).split())[:300]}"
        )
    if mismatched:
        key, stored, wanted = mismatched[0]
        more = f" ({len(mismatched) - 1} others differ too)" if len(mismatched) > 1 else ""
        raise HarpeError(
            f"In {name} the weight {key} is {list(stored)}, and a {kind} of its config.json has {list(wanted)}{more}. "
            "Configuration and weights are not of one model: restore the one that was changed."
        )
    found = []
    if missing:
        found.append(f"lacks the weights {some(missing)}, which a {kind} has and which would begin as random numbers")
    if unexpected:
        found.append(f"holds the weights {some(unexpected)}, for which a {kind} has no place")
    tied = getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False)
    if not found and tied and head is not None and head.weight is not embedding.weight:
        raise HarpeError(
            f"config.json of {name} says that the output layer has the embedding's weights (tie_word_embeddings), and "
            "the checkpoint holds others for it. Set it to false where those are meant, or take them out of the "
            "checkpoint."
        )
    if found:
        raise HarpeError(f"{name} {', and '.join(found)}. {_advice(model, missing, unexpected)}")
    _check_finite(model, name)


def check_values(model: PreTrainedModel) -> None:
    """Refuse to write a model that would be refused when it is loaded, or that programs would read in two ways.

    Raises HarpeError for numbers that are not finite, and for an output layer of its own where the configuration says
    that it has the embedding's weights.
    """
    _check_finite(model, "the model")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False)
    if tied and head is not None and not _alike(head.weight, embedding.weight):
        raise HarpeError(
            "The configuration says that the output layer has the embedding's weights (tie_word_embeddings), and the "
            "model has others there: some programs would read the one and some the other. Set it to False, or give the "
            "layer the embedding's weights."
        )


def _alike(one: Any, other: Any) -> bool:
    return one is other or one.device.type == "meta" or torch.equal(one, other.to(one.device))


def _check_finite(model: PreTrainedModel, name: str) -> None:
    if broken := _not_finite(model):
        raise HarpeError(
            f"The weights {some(broken)} of {name} hold numbers that are not finite (NaN or infinity). The training "
            "that made them diverged, or their dtype was too narrow: take an earlier checkpoint, or save it again in "
            "bfloat16 or float32."
        )


def check_structure(model: PreTrainedModel, fresh: PreTrainedModel) -> None:
    """Refuse a model whose weights are not those of a fresh one of its configuration, by names and shapes: what loads
    the saved one would begin with random numbers in their place.

    Raises HarpeError, with what to do where that can be told.
    """
    kind = type(fresh).__name__
    held, wanted = ({key: list(each.shape) for key, each in of.state_dict().items()} for of in (model, fresh))
    missing, unexpected = wanted.keys() - held.keys(), held.keys() - wanted.keys()
    if missing or unexpected:
        found = [f"lacks the weights {some(missing)}"] * bool(missing)
        found += [f"holds the weights {some(unexpected)}, for which that has no place"] * bool(unexpected)
        advice = next((words for part, words in _EXPLAINED.items() if any(part in key for key in unexpected)), "")
        raise HarpeError(
            f"The model is not the {kind} of its configuration: it {', and '.join(found)}. "
            f"{advice or 'Make the configuration say what was changed, or undo it.'}"
        )
    for key, shape in wanted.items():
        if held[key] != shape:
            raise HarpeError(
                f"The weight {key} of the model is {held[key]}, and a {kind} of its configuration has {shape}. Make "
                "the configuration say what was changed, or undo it."
            )


def _not_finite(model: PreTrainedModel) -> list[str]:
    """Weights that hold a number which is none; the sum of each is looked at, which needs one pass and no memory."""
    return [
        name
        for name, weight in model.named_parameters()
        if weight.device.type != "meta"
        and not weight.sum(dtype=torch.float32).isfinite()
        and not weight.isfinite().all()
    ]


def _advice(model: PreTrainedModel, missing: set[str], unexpected: set[str]) -> str:
    for part, advice in _EXPLAINED.items():
        if any(part in key for key in unexpected):
            return advice
    head = model.get_output_embeddings()
    if (
        head is not None
        and not unexpected
        and missing <= {f"{key}.weight" for key, module in model.named_modules() if module is head}
    ):
        return (
            "If the output layer shares the embedding's weights, set tie_word_embeddings to true in config.json; else "
            "save it whole."
        )
    if missing and not unexpected:
        return "A file or a part of one is lost: copy or download the checkpoint again."
    return (
        "Configuration and weights are not of one model of transformers: save it again with save_pretrained of its own "
        "class."
    )


def _file(target: str, file: str, revision: str | None) -> Path | None:
    """A file of a checkpoint, in a folder or on the hub; None where there is none."""
    if os.path.isdir(target):
        path = Path(target) / file
        return path if path.is_file() else None
    found = cached_file(
        target,
        file,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _shards(index: Path, name: str) -> list[str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
        wrong = [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarpeError(
            f"{index} does not say in which files the weights are. Copy or download the checkpoint again."
        ) from error
    if wrong or not shards:
        raise HarpeError(
            f"{INDEX} of {name} names {some(wrong) if wrong else 'no files'}. Weights are read from safetensors files "
            "beside it only."
        )
    return shards


def _check_file(path: Path) -> None:
    """Refuse a file that is no whole safetensors file; its header tells the size that it must have."""
    try:
        with path.open("rb") as stream:
            if stream.read(24) == b"version https://git-lfs.":
                raise HarpeError(f"{path} is a pointer of Git LFS, not the weights. Fetch them: git lfs pull.")
        with safe_open(path, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (no mapping)
                if key.endswith(".weight") and (kind := str(weights.get_slice(key).get_dtype())) in _FEW_BITS:
                    raise HarpeError(
                        f"{path} holds {key} as {kind}: it is quantised. Name the checkpoint that it was made from."
                    )
    except (OSError, SafetensorError) as error:
        raise HarpeError(f"{path} is no whole safetensors file ({error}). Copy or download it again.") from error


def some(names: Collection[str]) -> str:
    """Up to three of many names, in their order, and how many are left."""
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _are(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"
