"""The chunked loss against PyTorch's own on full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harpe.errors import HarpeError
from harpe.models.head import hidden_states, logits_of
from harpe.training.loss import check_training_loss, chunked_loss, loss_notes, mean_nll
from harpe.training.memory import set_recompute


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("family", ["llama", "phi"])  # phi: an output bias
def test_value_and_gradients_are_those_of_the_full_logits(make_tiny: Any, family: str, chunk: int) -> None:
    model = make_tiny(family)
    hidden = torch.randn(2, 33, 64, requires_grad=True)
    labels = torch.randint(0, 97, (2, 33))
    labels[0, 5:9] = -100
    head = model.get_output_embeddings()
    full = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    wanted = torch.autograd.grad(full, [hidden, *head.parameters()])
    got = mean_nll(model, hidden[:, :-1], labels[:, 1:], chunk)
    torch.testing.assert_close(got, full, atol=1e-6, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(got, [hidden, *head.parameters()]), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def gradients(model: Any, ids: torch.Tensor, form: Any) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that gets one, in two rounds that add up, under bfloat16 autocast."""
    model.zero_grad()
    for rows in ids:
        with torch.autocast("cpu", torch.bfloat16):
            loss = form(hidden_states(model, rows[None]), rows[None])
        (loss / len(ids)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def read_elsewhere(model: Any) -> None:
    """Output logits that a parameter of the decoder scales."""
    scale = model.model.norm.weight
    model.lm_head.register_forward_hook(lambda module, args, out: out * scale.mean())


def train_an_adapter(model: Any) -> None:
    """A frozen model and a low-rank change of its output layer."""
    model.requires_grad_(False)
    model.lm_head.down, model.lm_head.up = torch.nn.Linear(64, 4), torch.nn.Linear(4, 97)
    model.lm_head.register_forward_hook(lambda module, args, out: out + module.up(module.down(args[0])))


@pytest.mark.parametrize("change", [None, read_elsewhere, train_an_adapter])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_the_gradient_of_the_full_logits_in_mixed_precision(
    make_tiny: Any, tied: bool, change: Any
) -> None:
    model, ids = make_tiny("llama", tie_word_embeddings=tied), torch.randint(0, 97, (3, 40))
    if change is not None:
        change(model)
    full = gradients(
        model, ids, lambda states, labels: F.cross_entropy(logits_of(model, states)[0, :-1].float(), labels[0, 1:])
    )
    found = gradients(model, ids, lambda states, labels: mean_nll(model, states[:, :-1], labels[:, 1:], 16))
    assert found.keys() == full.keys() and any("lm_head" in name or tied for name in found)
    for name, wanted in full.items():
        assert (found[name] - wanted).norm() <= 0.02 * wanted.norm(), name


def test_logits_that_depend_on_other_weights_in_other_places_are_refused(make_tiny: Any) -> None:
    model, ids = make_tiny("llama"), torch.randint(0, 97, (1, 33))
    more = torch.nn.Parameter(torch.ones(()))
    model.lm_head.register_forward_hook(lambda module, args, out: out * more if out.shape[1] > 1 else out)
    with pytest.raises(HarpeError, match="logits of a llama depend on other weights"):
        mean_nll(model, hidden_states(model, ids[:, :-1]), ids[:, 1:], 16)


def test_the_logits_of_a_chunk_are_formed_once(make_tiny: Any) -> None:
    model, ids, seen = make_tiny("llama"), torch.randint(0, 97, (1, 33)), []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    mean_nll(model, hidden_states(model, ids[:, :-1]), ids[:, 1:], 16).backward()
    assert seen == [1, 16, 16]  # a position to find what the logits depend on


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_the_full_logits_never_exist(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harpe.models.head.CHUNK", 64)
    model = make_tiny("llama", vocab_size=5000, layers=1)
    ids = torch.randint(1, 97, (1, 512))
    with LargestTensor() as stock:
        expected = model(input_ids=ids, labels=ids).loss
        expected.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    with chunked_loss(model), LargestTensor() as chunked:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    assert stock.numel >= 512 * 5000  # the measurement sees what it is to see
    assert chunked.numel <= 5000 * 64
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, atol=1e-6, rtol=1e-4)


def test_the_model_is_as_before_afterwards(make_tiny: Any) -> None:
    model = make_tiny("llama")
    ids = torch.randint(1, 97, (1, 32))
    with torch.no_grad():
        before = model(input_ids=ids, labels=ids)
        with chunked_loss(model):
            inside = model(input_ids=ids, labels=ids)
        after = model(input_ids=ids, labels=ids)
    assert inside.logits is None
    torch.testing.assert_close(inside.loss, before.loss, atol=1e-6, rtol=1e-6)
    assert torch.equal(before.logits, after.logits)


RANDOM = {
    "seed_oss": {"residual_dropout": 0.1, "attention_dropout": 0.1},
    "phi": {"resid_pdrop": 0.1, "embd_pdrop": 0.1},
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", RANDOM)
def test_dropout_of_the_configuration_is_off_in_training(make_tiny: Any, family: str, recompute: bool) -> None:
    model, ids = make_tiny(family, **RANDOM[family]), torch.randint(1, 97, (1, 64))
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids).loss.item()
    assert model.train()(input_ids=ids, labels=ids).loss.item() != pytest.approx(wanted, abs=1e-3)  # it would show
    set_recompute(model, recompute)
    recomputed = []
    catch = model.model.layers[0].self_attn.register_forward_hook(lambda *_: recomputed.append(1))
    with chunked_loss(model):
        check_training_loss(model)
        recomputed.clear()
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
    catch.remove()
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
    assert len(recomputed) == 1 + recompute
    assert all(module.training for module in model.modules())


def test_what_cannot_be_switched_off_is_refused(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout that a layer applies itself follows the flag that recomputing needs."""
    model = make_tiny("llama")
    layer = type(model.model.layers[0])
    stock = layer.forward

    def dropping(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return F.dropout(stock(self, *args, **kwargs), 0.1, self.training)

    monkeypatch.setattr(layer, "forward", dropping)
    with chunked_loss(model):
        check_training_loss(model)
        set_recompute(model, True)
        with pytest.raises(HarpeError, match="cannot switch off"):
            check_training_loss(model)


def test_a_family_that_cannot_recompute_activations_is_told_the_option(make_tiny: Any) -> None:
    model = make_tiny("llama")
    model.supports_gradient_checkpointing = False  # as JetMoE's class says
    with pytest.raises(HarpeError, match="give --gradient-checkpointing false"):
        set_recompute(model, True)
    set_recompute(model, False)


def test_the_plan_says_what_of_a_configuration_is_left_out(make_tiny: Any) -> None:
    assert loss_notes(make_tiny("llama").config) == []
    (told,) = loss_notes(make_tiny("seed_oss", residual_dropout=0.1, attention_dropout=0.0).config)
    assert "residual_dropout 0.1" in told and "attention_dropout" not in told
    (told,) = loss_notes(make_tiny("mixtral", num_local_experts=2, sliding_window=None).config)
    assert "auxiliary loss" in told
