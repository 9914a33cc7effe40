"""Which arithmetic is faster on this machine, by trying."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

from harpe.errors import HarpeError

MINIMUM_GAIN = 1.3
"""bfloat16 is chosen where its matrix products are at least this many times as fast as float32's."""
DTYPES = ("float32", "bfloat16")


HOPELESS = 0.25
"""Processors without bfloat16 imitate it at a hundredth of the speed. A small product shows that; large ones would take
a minute."""


def _products_per_second(dtype: torch.dtype, device: torch.device, seconds: float, size: int = 1024) -> float:
    a = torch.ones(size, size, dtype=dtype, device=device)
    b = torch.ones(size, size, dtype=dtype, device=device)

    def products(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    products(3)  # the first calls load kernels
    done, spent = 0, 0.0
    while spent < seconds:
        spent += products(4)
        done += 4
    return done / spent


def _gain(device: torch.device, seconds: float, size: int) -> float:
    return _products_per_second(torch.bfloat16, device, seconds, size) / _products_per_second(
        torch.float32, device, seconds, size
    )


def choose_dtype(wanted: str = "auto", begun: str | None = None, what: str = "") -> tuple[str, str]:
    """The dtype of the arithmetic, and a sentence that says why.

    Parameters
    ----------
    wanted
        `auto` (probed: about one second at most), `bfloat16` or `float32`.
    begun, what
        The dtype that `what` (this run) has begun in, where it has: it goes on in that unless another one is named. A
        probe may come out differently on another day, and half a run in each dtype would be no run of either.

    Raises
    ------
    HarpeError
        For any other name.
    """
    if wanted in DTYPES:
        return wanted, f"{wanted}, as asked for"
    if wanted == "auto" and begun:
        return begun, f"{begun}, in which {what} began"
    if wanted != "auto":
        raise HarpeError(f"--dtype is {wanted}; choose auto, bfloat16 or float32.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gain = _gain(device, 0.01, 256)
    if gain > HOPELESS:
        gain = _gain(device, 0.4, 1024)
    if gain >= MINIMUM_GAIN:
        reason = f"its matrix products ran {gain:.1f} times as fast as float32's here (one-second probe)"
        return "bfloat16", f"bfloat16: {reason}"
    return "float32", f"float32: bfloat16 matrix products ran only {gain:.2g} times as fast here (one-second probe)"


@torch.inference_mode()
def hold_weights(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Hold the weights of linear layers in the dtype that autocast multiplies them in; in place, for a model that is
    read and not saved.

    In inference mode autocast does not keep what it has rounded: it would round all weights at every step. The logits
    of a few tokens have to be the same bits before and after; returns whether they are, and leaves all as it was where
    they are not (a family that multiplies some of its weights outside of autocast).
    """
    device = model.device.type

    def probe() -> torch.Tensor:
        ids = torch.arange(16, device=model.device)[None] % model.config.get_text_config(decoder=True).vocab_size
        with torch.autocast(device, dtype):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    before, kept = probe(), []
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            for name, value in module.named_parameters(recurse=False):
                kept.append((module, name, value))
                setattr(module, name, torch.nn.Parameter(value.detach().to(dtype), requires_grad=False))
    if torch.equal(before, probe()):
        return True
    for module, name, value in kept:
        setattr(module, name, value)
    return False
