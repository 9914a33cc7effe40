"""The chunked loss against PyTorch's own on full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harpe.training.loss import chunked_cross_entropy, chunked_loss


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_the_full_logits(chunk: int, bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(12, 50, bias=bias).double()
    hidden = torch.randn(2, 33, 12, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (2, 33))
    labels[0, 5:9] = -100
    full = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    wanted = torch.autograd.grad(full, [hidden, *head.parameters()])
    got = chunked_cross_entropy(hidden, head, labels, chunk)
    # the loss is formed in float32, whatever the weights are
    torch.testing.assert_close(got.double(), full, atol=1e-6, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(got, [hidden, *head.parameters()]), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


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
    monkeypatch.setattr("harpe.training.loss.CHUNK", 64)
    model = make_tiny("llama", vocab_size=5000, layers=1)
    ids = torch.randint(1, 97, (1, 512))
    with LargestTensor() as stock:
        expected = model(input_ids=ids, labels=ids).loss
        expected.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    with chunked_loss(model), LargestTensor() as chunked:
        loss = chunked_cross_entropy(model.base_model(ids).last_hidden_state, model.lm_head, ids, 64)
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
