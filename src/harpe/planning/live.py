"""How many bytes of tensors are alive, at any moment of a piece of work: of real tensors and of those without
contents."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the context, adds up the storages that operators make, until nothing refers to them.

    A storage counts once, however many views it has. What a kernel allocates and frees inside is not seen, and what was
    there before is not counted, unless `watch` is told of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        # a view of what was there before is not new
        self.watch(tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in given)
        return out

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count the storages of `tensors` from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._sizes:
                continue
            self._sizes[key] = size = storage.nbytes()
            weakref.finalize(storage, self._gone, key)
            self.now += size
            self.peak = max(self.peak, self.now)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
