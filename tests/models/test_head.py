"""The loss in pieces against the families' own, `model(ids, labels=ids).loss`: scales, caps and biases that show."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from harpe.errors import HarpeError
from harpe.methods.types import per_head_encoding
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry
from harpe.models.head import check_head, hidden_states, logits_of, token_nll
from harpe.training.loss import chunked_loss
from harpe.training.memory import set_recompute

from .tiny_families import FAMILIES, bases_of, tiny, tiny_config

SHOWING = {"logit_scale": 0.37, "logits_scaling": 8.0, "final_logit_softcapping": 2.0, "output_router_logits": False}
"""Settings of transformers' families for logits."""
IN_MAKE_TEST = ("llama", "gemma3_text", "granite", "cohere", "phi", "mixtral")
"""One of each kind: plain, capped, divided, multiplied, with a bias, with experts."""


def showing(family: str, **changes: Any) -> Any:
    """A model of the family whose logits are scaled, capped and biased as far as the family can."""
    config = tiny_config(family)
    model = tiny(family, **{key: value for key, value in SHOWING.items() if hasattr(config, key)}, **changes)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(3)
        if head.bias is not None:
            head.bias.normal_()
    return model


def ids_of(rows: int = 2, length: int = 33) -> torch.Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in IN_MAKE_TEST else pytest.mark.matrix) for f in FAMILIES]
)
def test_value_and_gradients_are_those_of_the_familys_own_loss(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harpe.models.head.CHUNK", 7)
    model, ids = showing(family), ids_of()
    own = model(input_ids=ids, labels=ids).loss
    own.backward()
    wanted = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    with chunked_loss(model.train()):
        set_recompute(model, True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    assert loss.item() == pytest.approx(own.item(), abs=1e-5)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)
    head = model.eval().get_output_embeddings()
    plain = torch.nn.functional.cross_entropy(
        head(hidden_states(model, ids))[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    does_more = any(hasattr(model.config, key) for key in SHOWING if key != "output_router_logits")
    assert (abs(plain.item() - own.item()) > 0.01) == does_more  # the settings show


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_bases_by_head_and_tied_weights_have_the_same_loss_and_gradients(family: str) -> None:
    model, ids = showing(family, tie_word_embeddings=True), ids_of()
    geometry = read_geometry(model.config, family)
    apply_encoding(model, per_head_encoding(tuple(bases_of(model)), geometry), geometry, 512)
    own = model(input_ids=ids, labels=ids).loss
    own.backward()
    wanted = model.get_output_embeddings().weight.grad.clone()
    model.zero_grad()
    loss = token_nll(model, hidden_states(model, ids)[:, :-1], ids[:, 1:], chunk=10).mean()
    loss.backward()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert loss.item() == pytest.approx(own.item(), abs=1e-5)
    torch.testing.assert_close(model.get_output_embeddings().weight.grad, wanted, atol=1e-6, rtol=1e-5)


def test_an_auxiliary_loss_that_the_configuration_adds_is_not_in_it() -> None:
    model, ids = tiny("mixtral", output_router_logits=True), ids_of()
    own = model(input_ids=ids, labels=ids)
    loss = token_nll(model, hidden_states(model, ids)[:, :-1], ids[:, 1:]).mean()
    assert loss.item() == pytest.approx(own.loss.item() - model.router_aux_loss_coef * own.aux_loss.item(), abs=1e-5)
    assert own.loss.item() > loss.item() + 1e-3
    check_head(model)


def test_hooks_and_wrapped_forwards_of_the_object_do_not_change_the_logits() -> None:
    """accelerate wraps `forward` of the object; a LoRA layer stands in the place of the output layer."""
    model, ids = showing("granite"), ids_of()
    wanted = model(input_ids=ids).logits

    class Lora(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base, self.bias = base, None

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.base(states) + 1.0

    states = hidden_states(model, ids)
    model.lm_head = Lora(model.lm_head)
    model.forward = types.MethodType(lambda self, *args, **kwargs: None, model)
    torch.testing.assert_close(logits_of(model, states), wanted + 1.0 / 8.0)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_failure_leaves_the_model_whole(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(family), ids_of()
    before, names = model(input_ids=ids).logits, list(model.state_dict())

    def fail(states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(model.get_output_embeddings(), "forward", fail)
        with pytest.raises(RuntimeError, match="no room"):
            logits_of(model, hidden_states(model, ids))
    assert list(model.state_dict()) == names
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_family_whose_loss_is_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    assert check_head(model) is model
    stock = model.loss_function
    monkeypatch.setattr(type(model), "loss_function", property(lambda self: lambda **kwargs: 1.01 * stock(**kwargs)))
    with pytest.raises(HarpeError, match="Weights has the model type llama, whose own loss of five tokens is"):
        check_head(model, "Weights")


def test_a_loss_that_is_none_and_a_model_that_cannot_read_are_told() -> None:
    with pytest.raises(HarpeError, match="loss of five tokens of Weights is nan"):
        check_head(tiny("llama", rms_norm_eps=-1.0), "Weights")
    model = tiny("llama")
    model.model.layers[0].self_attn.k_proj = torch.nn.Linear(64, 33)
    with pytest.raises(HarpeError, match="Weights .model type llama. cannot read five tokens"):
        check_head(model, "Weights")


def test_a_family_whose_forward_reads_something_else_of_its_decoder_is_refused() -> None:
    class Elsewhere(type(tiny("llama"))):  # type: ignore[misc]
        def forward(self, **kwargs: Any) -> Any:
            kwargs.pop("return_dict", None)
            labels, kwargs["inputs_embeds"] = (
                kwargs.pop("labels", None),
                self.model.embed_tokens(kwargs.pop("input_ids")),
            )
            states = kwargs["inputs_embeds"]
            for layer in self.model.layers:
                states = layer(
                    states, position_embeddings=self.model.rotary_emb(states, torch.arange(states.shape[1])[None])
                )
            return types.SimpleNamespace(
                logits=self.lm_head(self.model.norm(states)), loss=states.sum() if labels is not None else None
            )

    model = tiny("llama")
    model.__class__ = Elsewhere
    with pytest.raises(HarpeError, match="harpe would train it on, and measure it by, something else"):
        check_head(model)
