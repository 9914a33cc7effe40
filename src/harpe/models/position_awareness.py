"""How much each key/value head picks out single tokens by what they are: Ms-PoE's position awareness (Zhang et al.
2024, arXiv 2403.04797), measured on a few texts inside the trained context.

With a_qk the attention of query q to the keys k = 0 .. q, formed from queries and keys before they are rotated, that of
a query head at q is the share of these keys with

    a_qk > 3 / (q + 1)        (3 times the mean)

Its mean over all documents, the queries in the second half of a document and the query heads of the group is that of a
key/value head. (The authors' program takes the last query of each prompt alone, and every query head for itself.)

Shapes: Q query heads, H key/value heads, S positions, L layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from harpe.models.float_tables import attention_modules
from harpe.models.geometry import text_config
from harpe.models.head_distance import eager_attention, pieces_of
from harpe.models.per_head import key_value_heads

TIMES_THE_MEAN = 3.0


@torch.inference_mode()
def position_awareness(model: PreTrainedModel, documents: Sequence[Sequence[int]], context: int) -> NDArray[np.float64]:
    """Position awareness of every key/value head, a share from 0 to 1: float64 [L, H]; 0 in layers without attention.

    The texts are read by the model as it is; beside that every layer forms its attention once more, with all of its
    tokens at position 0.

    Parameters
    ----------
    documents, context
        As `harpe.models.head_distance.head_distances` takes them.

    Raises
    ------
    HarpeError
        When no document is long enough, or the model's attention modules are not found.
    """
    config = text_config(model.config)
    heads, modules = key_value_heads(config), attention_modules(model, range(config.num_hidden_layers))
    shares, queries = np.zeros((config.num_hidden_layers, heads)), 0
    pieces = pieces_of(documents, context)

    def reduce_layer(layer: int, module: torch.nn.Module) -> Any:
        place = list(inspect.signature(module.forward).parameters).index("position_embeddings")

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            named = "position_embeddings" in kwargs
            pair = kwargs["position_embeddings"] if named else args[place]
            still = tuple(each[:, :1].expand_as(each) for each in pair)
            if named:
                kwargs = {**kwargs, "position_embeddings": still}
            else:
                args = (*args[:place], still, *args[place + 1 :])
            attention_QSS = module.forward(*args, **kwargs)[1][0]
            size = attention_QSS.shape[-1]
            seen = torch.arange(size // 2, size, device=attention_QSS.device)[:, None] + 1
            above = attention_QSS[:, size // 2 :].float() > TIMES_THE_MEAN / seen
            share = above.double().sum(dim=2).div(seen[:, 0]).sum(dim=1)
            shares[layer] += share.unflatten(0, (heads, -1)).mean(dim=1).cpu().numpy()

        return hook

    hooks = [
        module.register_forward_hook(reduce_layer(layer, module), with_kwargs=True) for layer, module in modules.items()
    ]
    try:
        with eager_attention(model):
            for ids in pieces:
                model.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
                queries += len(ids) - len(ids) // 2
    finally:
        for handle in hooks:
            handle.remove()
    return shares / queries
