"""Change the positions of a loaded model in place."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from harpe.methods.types import Encoding, ModelGeometry
from harpe.models.hooks import install


def apply_encoding(
    model: PreTrainedModel, encoding: Encoding, geometry: ModelGeometry, length: int, sliding_window: str = "keep"
) -> PreTrainedModel:
    """Put an encoding into a loaded model and set its context to `length` tokens; returns the same object.

    The rotary module is made anew from the changed configuration, so that the model is what a fresh load of its saved
    configuration would give. The trained context is kept in the configuration as `harpe_original_length`. May be called again with
    another encoding, for the next stage of a method.

    Parameters
    ----------
    geometry
        Of the original checkpoint, from `read_geometry`.
    sliding_window
        "off" lets every layer attend to everything; "keep" changes nothing.
    """
    install()
    config = model.config
    config.rope_parameters = encoding.rope_parameters(geometry.base)
    config.harpe_original_length = geometry.original_length
    config.max_position_embeddings = length
    if sliding_window == "off":
        config.sliding_window = None
        if getattr(config, "layer_types", None):
            config.layer_types = ["full_attention"] * config.num_hidden_layers
        if hasattr(config, "use_sliding_window"):
            config.use_sliding_window = False
        for module in model.modules():
            for name, value in (("sliding_window", None), ("attention_type", "full_attention")):
                if hasattr(module, name):
                    setattr(module, name, value)
    config.validate_rope()
    base_model = model.base_model
    device = next(model.parameters()).device
    with torch.device(device):
        base_model.rotary_emb = type(base_model.rotary_emb)(config)
    return model
