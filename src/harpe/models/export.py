"""Write a model to a folder from which transformers loads it without harpe."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.errors import HarpeError
from harpe.files import new_folder
from harpe.models.card import model_card, rope_entry
from harpe.models.export_code import MODULE, auto_map, modeling_source, stock_class
from harpe.models.geometry import text_config
from harpe.models.kept_tokenizer import check_kept
from harpe.models.lengths import tell_length
from harpe.models.marker import with_marker
from harpe.models.old_keys import add_old_keys, write_config
from harpe.models.per_head import ROPE_TYPE
from harpe.models.processor import keep_processor
from harpe.models.weights import check_structure, check_values


def export_checkpoint(
    model: PreTrainedModel,
    path: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str | None = None,
    sections: Mapping[str, str] | None = None,
) -> Path:
    """Write weights (safetensors), configuration, generation configuration, tokenizer and model card; returns `path`.

    A model with one base per head also gets `modeling_harpe.py` and, in config.json, the `auto_map` that leads there;
    `architectures` keeps the name of transformers' own class, which `transformers serve` and others look up. One base
    for all heads is a stock checkpoint without code. The folder appears whole or not at all.

    `sections` are further headings of a card that is not given (`harpe.models.card.model_card`).

    Programs from before transformers 5 pass over `rope_parameters`: for them config.json has the old keys, or marks at
    which they stop (`harpe.models.old_keys`).

    Raises HarpeError for a folder that exists, a model that was not extended by harpe, one without an output layer,
    one beside which its tokenizer would be another (`harpe.models.kept_tokenizer`), and one with other weights than its
    configuration makes, such as those of adapters, or with numbers that are not finite.
    """
    if not isinstance(model, PreTrainedModel):
        raise HarpeError(
            f"{type(model).__name__} is no model of transformers; merge adapters into the model before it is exported."
        )
    config = text_config(model.config)
    if getattr(config, "harpe_original_length", None) is None:
        raise HarpeError(
            f"{config.name_or_path or 'The model'} was not extended by harpe: there is nothing to export. Extend it "
            "first."
        )
    if getattr(config, "harpe_attention", None) is not None:
        raise HarpeError(
            f"The attention of this model is changed ({config.harpe_attention['type']}): only harpe runs it, so it "
            "cannot be exported. Load it with harpe.models.load.load_model."
        )
    if model.get_output_embeddings() is None:
        raise HarpeError(f"{type(model).__name__} has no output layer; export the language model that it belongs to.")
    like = copy.deepcopy(model.config)
    like.dtype = model.dtype  # a text once it was saved, which some classes cannot be made with
    with torch.device("meta"):
        check_structure(model, stock_class(type(model))(like))
    check_values(model)
    tell_length(model, config.harpe_original_length, config.max_position_embeddings)  # of runs from before this
    if tokenizer is not None:
        check_kept(tokenizer, model.config, tokenizer.name_or_path or type(tokenizer).__name__)
    kind = rope_entry(config).get("rope_type")
    per_head, dynamic = kind == ROPE_TYPE, kind == "dynamic"  # whose configuration keeps the trained context
    name = stock_class(type(model)).__name__
    with new_folder(path) as folder:
        model.save_pretrained(folder, state_dict=with_marker(model, model.state_dict()) if per_head else None)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings["architectures"] = [name]
        settings.pop("auto_map", None)
        if per_head:
            settings["auto_map"] = auto_map(model)
            (folder / f"{MODULE}.py").write_text(modeling_source(model), encoding="utf-8")
        write_config(folder, settings)
        add_old_keys(folder, model.config)
        keep_processor(model.config, folder)
        if tokenizer is not None:
            tokenizer = copy.deepcopy(tokenizer)
            if not dynamic:  # the tokenizer of a run knows the target
                tokenizer.model_max_length = config.max_position_embeddings
            tokenizer.save_pretrained(folder)
        title = f"{Path(path).name}: {config.model_type}"
        title += "" if dynamic else f", {config.max_position_embeddings} tokens"
        (folder / "README.md").write_text(card or model_card(model.config, title, sections=sections), encoding="utf-8")
    return Path(path)
