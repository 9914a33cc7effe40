"""Feed-forward layers in tiles give the losses and gradients of whole sequences, with less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from harpe.errors import HarpeError
from harpe.models import head
from harpe.models.layers import feed_forward_layers
from harpe.planning.live import LiveBytes
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute
from harpe.training.tiles import _Tiled, check_tiles, mlp_tiles


def gradients(
    model: PreTrainedModel, ids: torch.Tensor, tile: int, autocast: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of `ids` [B, S] and the gradients of all weights, with recompute."""
    model.zero_grad()
    set_recompute(model, True)
    model.train()
    with chunked_loss(model), mlp_tiles(model, tile):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    set_recompute(model, False)
    return float(loss.detach()), {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


def tokens(count: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(3, 90, (rows, count), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_neox"])
def test_losses_and_gradients_are_those_of_whole_sequences(make_tiny: Any, family: str) -> None:
    """Two sequences of 50 tokens in tiles of 16, and the same once more within autocast."""
    model = make_tiny(family)
    for autocast, near in ((False, 1e-5), (True, 2e-2)):
        loss, whole = gradients(model, tokens(50, 2), 0, autocast)
        found, tiled = gradients(model, tokens(50, 2), 16, autocast)
        assert found == pytest.approx(loss, abs=near) and tiled.keys() == whole.keys()
        for name, gradient in whole.items():
            assert (tiled[name] - gradient).norm() <= near * gradient.norm() + 1e-7, name


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("part", ["mlp.down_proj", "lm_head"])
def test_gradients_of_bfloat16_weights_are_summed_in_float32(
    make_tiny: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Over 256 tiles, and as many chunks of the loss: no farther from float64 than in one piece."""
    monkeypatch.setattr(head, "CHUNK", 8)
    model, ids = make_tiny("llama", tie_word_embeddings=False), tokens(2048)
    name = next(name for name, _ in model.named_parameters() if part in name)
    _, exact = gradients(model.double(), ids, 0)
    wanted = exact[name].clone()
    model.bfloat16()
    tiled = error(gradients(model, ids, 8)[1][name], wanted)
    monkeypatch.setattr(head, "CHUNK", 2048)
    assert tiled <= 1.2 * error(gradients(model, ids, 0)[1][name], wanted)


def test_no_tensor_of_a_feed_forward_layer_is_as_long_as_the_sequence(make_tiny: Any) -> None:
    model, peaks = make_tiny("llama"), []
    for tile in (0, 64):
        with LiveBytes() as live:
            gradients(model, tokens(4096), tile)
        peaks.append(live.peak)
    width = model.config.intermediate_size
    assert peaks[1] < peaks[0] - 4 * 4096 * width * 4  # four at least, float32


def test_many_tiles_hold_no_more_than_two(make_tiny: Any) -> None:
    """Gradients of a tile's weights are gone before the next: planned is one tile."""
    layer, peaks = make_tiny("llama").model.layers[0].mlp, []
    weights = list(layer.parameters())
    for count in (1, 2, 4):  # tokens, and tiles
        states = torch.randn(1, count, 64, requires_grad=True)
        with LiveBytes() as live:
            _Tiled.apply(layer.forward, 1, states, *weights).sum().backward()
        peaks.append(live.peak)
        layer.zero_grad()
    assert max(peaks) - min(peaks) < 0.3 * sum(weight.nbytes for weight in weights)


def test_modules_are_left_as_they_were(make_tiny: Any) -> None:
    """Also one that two layers share, and one that has a `forward` of its own."""
    model = make_tiny("llama")
    model.model.layers[1].mlp = shared = model.model.layers[0].mlp
    own = shared.forward = shared.forward
    with mlp_tiles(model, 4):
        assert shared.forward is not own
    assert vars(shared)["forward"] is own


def test_layers_that_give_more_than_states_or_look_at_other_tokens_are_refused(
    make_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HarpeError, match="Leave --mlp-tile out"):
        check_tiles(make_tiny("gpt_oss"), 16)
    model = make_tiny("llama")
    check_tiles(model, 16)
    layer = feed_forward_layers(model)[0]
    monkeypatch.setattr(type(layer), "forward", lambda self, states: 50 * states.cumsum(1))
    with pytest.raises(HarpeError, match="look at other tokens"):
        check_tiles(model, 16)
