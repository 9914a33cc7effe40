"""Bytes that one layer, and what follows the last layer, hold in a training step, found by running their own code.

PyTorch's fake tensors have shapes and no contents, so that a layer of any family can be run forward and backward over a
million tokens in a fraction of a second, with autocast, recompute and the chunked loss as in training. What is alive is
added up as operators make and drop it. Weights are not counted here; the gradients that a layer makes are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, masking_utils
from transformers.integrations import moe

from harpe.models import head
from harpe.models.geometry import sliding_layers, text_config
from harpe.models.layers import decoder_layers
from harpe.options.training import Adapters
from harpe.planning.live import LiveBytes
from harpe.planning.stand_ins import FLASH, install_flash
from harpe.training import tiles
from harpe.training.lora import frozen_linear_layers, insert_adapters
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute

ASKED = (
    (tiles, "pieces", lambda length, tile: [slice(0, tile)]),
    (masking_utils, "is_tracing", lambda *values: False),
    (masking_utils, "find_packed_sequence_indices", lambda *values, **more: None),
    (moe, "_can_use_grouped_mm", lambda *values: False),
)
"""Questions of transformers that fake tensors would be answered otherwise than real ones, or not at all: whether masks
can be left out, whether texts are packed, and which kernel multiplies experts (all keep the same). One tile is as large
as the next."""


@dataclass(frozen=True)
class Way:
    """What decides the tensors of a pass."""

    tokens: int
    """Of a device, in one pass."""
    sequences: int = 1
    """That these tokens are."""
    parameters: torch.dtype = torch.float32
    """Of the weights that are computed with: gathered ones of FSDP are cast to what they are computed in."""
    autocast: bool = False
    """bfloat16 by autocast over float32 weights, as one process computes."""
    recompute: bool = True
    parts: int = 1
    """Processes that share a sequence."""
    mlp_tile: int = 0
    accumulated: bool = False
    """Gradients of an earlier pass are there already, and are added to."""


@dataclass(frozen=True)
class LayerBytes:
    """Of one layer."""

    kept: int
    """From its forward to its backward pass: its input, or all that the backward pass needs."""
    peak: int
    """Most that is alive in its backward pass (with its recompute), with what it kept and its own gradients."""


@dataclass(frozen=True)
class HeadBytes:
    """From the last layer's output to the loss and back, over all tokens of a pass."""

    forward: int
    """Most that is alive while the loss is formed, with the gradients that are formed there."""
    after: int
    """What of it waits for the backward pass: slopes of the hidden states and of the head's weights."""
    backward: int
    """Most that is alive behind the layers: gradients of head and embeddings."""


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The module tree of a configuration, without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    return model


def needs_masks(config: PreTrainedConfig, length: int) -> bool:
    """Whether attention works with a value for every pair of tokens, which flash attention does not need: eager
    attention has scores, sdpa has masks for sliding windows."""
    config = text_config(config)
    if config._attn_implementation == "eager":
        return True
    window = getattr(config, "sliding_window", None) or 0
    return config._attn_implementation == "sdpa" and bool(sliding_layers(config)) and window < length


class Tracer:
    """Traces layers of one configuration; equal questions are answered once.

    Parameters
    ----------
    adapters
        That it is trained by.
    """

    def __init__(self, config: PreTrainedConfig, adapters: Adapters | None = None) -> None:
        self.config, self.model = config, meta_model(config)
        self.parameters = self.model.num_parameters()
        """Of the model that is saved."""
        self.adapters = adapters
        if adapters:
            insert_adapters(self.model, adapters)
        frozen = frozen_linear_layers(self.model) if adapters else []
        self.trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.halved = {id(each.weight) for each in frozen} if config.dtype == torch.bfloat16 else set()
        """Weights that bfloat16 arithmetic holds in bfloat16 (`harpe.training.lora.frozen_in_bfloat16`)."""
        self.owner, self.name = decoder_layers(self.model)
        self.layers = list(getattr(self.owner, self.name))
        self.kinds = [self._kind(number) for number in range(len(self.layers))]
        self._known: dict[Any, Any] = {}

    def _kind(self, number: int) -> tuple[Any, ...]:
        types = getattr(text_config(self.config), "layer_types", None)
        shapes = tuple((name, tuple(p.shape)) for name, p in self.layers[number].named_parameters())
        return (types[number] if types else "", shapes)

    def layer(self, number: int, way: Way) -> LayerBytes:
        """What layer `number` holds."""
        return self._once(("layer", self.kinds[number], way), lambda: self._layer(number, way))

    def head(self, way: Way) -> HeadBytes:
        """What the embeddings, the norm and the output layer hold, with the loss in chunks."""
        return self._once(("head", way), lambda: self._head(way))

    def _once(self, key: Any, work: Any) -> Any:
        if key not in self._known:
            self._known[key] = work()
        return self._known[key]

    def _layer(self, number: int, way: Way) -> LayerBytes:
        held = []
        for repeats in (1, 2):
            with self._running([number] * repeats, way) as (model, live):
                loss = _Slope.apply(self._hidden(model, way))
                held.append(live.now)
                if repeats == 2:
                    break
                live.restart()
                with torch.autocast("cpu", enabled=False):
                    loss.backward()
                peak = live.peak
        return LayerBytes(kept=held[1] - held[0], peak=peak)

    def _head(self, way: Way) -> HeadBytes:
        """Linear in the tokens from two chunks on, so that a million are not gone through chunk by chunk."""
        one, two = 2 * head.CHUNK, 3 * head.CHUNK
        if way.tokens <= two:
            return self._head_of(way, way.tokens)
        low, high = (
            self._once(("head", replace(way, tokens=tokens)), lambda tokens=tokens: self._head_of(way, tokens))
            for tokens in (one, two)
        )

        def at(name: str) -> int:
            first, second = getattr(low, name), getattr(high, name)
            return int(first + (second - first) * (way.tokens - one) / (two - one))

        return HeadBytes(at("forward"), at("after"), at("backward"))

    def _head_of(self, way: Way, tokens: int) -> HeadBytes:
        with self._running([], way) as (model, live), chunked_loss(model):
            ids = torch.zeros(1, tokens + 1, dtype=torch.int64)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                model.enable_input_require_grads()  # gradients pass through to the adapters of layers
            with torch.autocast("cpu", torch.bfloat16, enabled=way.autocast):
                loss = model(input_ids=ids, labels=ids).loss
                forward = live.peak
            after = live.now
            live.restart()
            loss.backward()
            return HeadBytes(forward, after, live.peak)

    def _hidden(self, model: PreTrainedModel, way: Way) -> torch.Tensor:
        rows = (way.sequences, way.tokens // way.sequences)
        width = text_config(self.config).hidden_size
        embedded = torch.empty(*rows, width, dtype=way.parameters, requires_grad=True)
        decoder = getattr(model, head._place(model))
        with torch.autocast("cpu", torch.bfloat16, enabled=way.autocast):
            states: torch.Tensor = decoder(inputs_embeds=embedded, use_cache=False, return_dict=True).last_hidden_state
        return states

    @contextmanager
    def _running(self, numbers: list[int], way: Way) -> Iterator[tuple[PreTrainedModel, LiveBytes]]:
        """The model with these layers alone and no memory behind its weights, in training, and the count."""
        setattr(self.owner, self.name, nn.ModuleList([self.layers[number] for number in numbers]))
        try:
            model = copy.deepcopy(self.model)
        finally:
            setattr(self.owner, self.name, nn.ModuleList(self.layers))
        config = text_config(model.config)
        config.num_hidden_layers = len(numbers)
        types = getattr(config, "layer_types", None)
        if types and numbers:
            config.layer_types = [types[number] for number in numbers]
        plain = not needs_masks(config, way.tokens * way.parts)
        if plain:
            config._attn_implementation = FLASH
            install_flash(way.parts)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        model.to(way.parameters)  # type: ignore[arg-type]
        if self.halved and way.autocast:
            for layer in frozen_linear_layers(model):
                layer.to(torch.bfloat16)
        with ExitStack() as stack:
            for place, name, answer in ASKED:
                if hasattr(place, name):
                    stack.enter_context(patch.object(place, name, answer))
            with fake:
                model.to_empty(device="cpu")
                model.train()
                if way.recompute and numbers:
                    set_recompute(model, True)
                if way.accumulated:
                    for parameter in model.parameters():
                        if parameter.requires_grad:
                            parameter.grad = torch.empty_like(parameter)
                stack.enter_context(tiles.mlp_tiles(model, way.mlp_tile if numbers else 0))
                live = LiveBytes()
                with live:
                    yield model, live


class _Slope(torch.autograd.Function):
    """A number whose gradient is some tensor, so that nothing but the backward pass holds either."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor) -> Any:
        ctx.like = states.shape, states.dtype
        return states.new_zeros(())

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> Any:
        shape, dtype = ctx.like
        return torch.empty(shape, dtype=dtype)
