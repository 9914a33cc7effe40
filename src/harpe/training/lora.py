"""Low-rank adapters (LoRA, arXiv 2106.09685) on all linear layers, by peft.

Norms and embeddings are trained whole beside them: at long contexts adapters alone fall behind (LongLoRA, arXiv
2309.12307, table 2). The model stays the object that it was, with adapters in the places of its linear layers, so that
positions, loss, checkpoints and tiles meet it as they meet any other; after training they are merged into the weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harpe.errors import HarpeError
from harpe.options.training import Adapters, TrainingSettings

NAME = "default"
"""Of the adapters, inside peft."""


def check_lora(adapters: Adapters | None) -> None:
    """Refuse adapters without the package that makes them.

    Raises
    ------
    HarpeError
        Naming option and package.
    """
    if adapters is not None and importlib.util.find_spec("peft") is None:
        raise HarpeError("--lora-rank needs peft: pip install 'harpe[lora]', or leave the option out.")


def is_adapted(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def adapt(model: PreTrainedModel, options: TrainingSettings) -> None:
    """Make a model ready to be trained by adapters, where the options have some; a model that has its adapters stays
    as it is.

    Raises
    ------
    HarpeError
        As `insert_adapters`.
    """
    if options.adapters is not None and not is_adapted(model):
        insert_adapters(model, options.adapters, options.seed)


def insert_adapters(model: PreTrainedModel, adapters: Adapters, seed: int = 0) -> None:
    """Put adapters into a model and freeze what they stand for.

    Parameters
    ----------
    seed
        Of the adapters' first matrices; the second ones are 0, so that the model computes what it did.

    Raises
    ------
    HarpeError
        For a model without linear layers beside its output layer.
    """
    from peft import LoraConfig, LoraModel

    head = model.get_output_embeddings()
    # by their whole names: "all-linear" also means a part of the experts of some families
    names = [name for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head]
    if not names:
        raise HarpeError(f"--lora-rank finds no linear layers in a {model.config.model_type}. Leave it out.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LoraModel(model, LoraConfig(r=adapters.rank, lora_alpha=adapters.alpha, target_modules=names), NAME)
    if adapters.embeddings:
        for parameter in _norms_and_embeddings(model):
            parameter.requires_grad_(True)


def _norms_and_embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    inside = [parameter for module in norms for parameter in module.parameters(recurse=False)]
    embeddings: Any = model.get_input_embeddings()
    return [*inside, *embeddings.parameters()]


def frozen_linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Linear layers whose weights are not trained, and are nothing else besides, such as embeddings."""
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and id(module.weight) not in embeddings
    ]


@contextmanager
def frozen_in_bfloat16(model: PreTrainedModel, options: TrainingSettings) -> Iterator[None]:
    """Within the context those frozen matrices are in bfloat16 that are the same numbers there, as those of checkpoints
    in bfloat16 are: half the memory, and under autocast, which would cast them before every product, the same bits."""
    halved: list[Any] = []
    if options.adapters is not None and options.dtype == "bfloat16":
        for layer in frozen_linear_layers(model):
            weight: Any = layer.weight
            held = weight.data.to(torch.bfloat16)
            if torch.equal(held.float(), weight.data):
                weight.data = held
                halved.append(weight)
    try:
        yield
    finally:
        for weight in halved:
            weight.data = weight.data.float()


def lora_note(model: PreTrainedModel, adapters: Adapters) -> str:
    """What is trained of a model that has adapters, in a sentence."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    others = ", norms and embeddings" if adapters.embeddings else ""
    experts = any(parameter.dim() == 3 and not parameter.requires_grad for parameter in model.parameters())
    return (
        f"Trained: adapters of rank {adapters.rank} (alpha {adapters.alpha}) on all linear layers{others}, "
        f"{trained:,} parameters; the others keep their values until the adapters are merged into them."
        + (" Experts, which are no linear layers, have no adapters." if experts else "")
    )


@torch.no_grad()
def merge(model: PreTrainedModel) -> None:
    """Add the adapters to the weights and take them out; without adapters nothing changes.

    Raises
    ------
    HarpeError
        Where a weight would not be finite.
    """
    if not is_adapted(model):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in [each for each in model.named_modules() if isinstance(each[1], LoraLayer)]:
        base: Any = module.get_base_layer()
        try:
            module.merge(safe_merge=True)
        except ValueError as error:
            raise HarpeError(f"The adapters of {name} cannot be merged: {error}") from error
        place, _, last = name.rpartition(".")
        setattr(model.get_submodule(place), last, base)
    del model.peft_config
    model.requires_grad_(True)
