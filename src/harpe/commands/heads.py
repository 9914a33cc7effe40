"""What every head does and wants: `harpe heads`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from harpe.attention_heads.copying import RETRIEVAL, TASK, copy_prompts, copy_scores
from harpe.attention_heads.gradients import far_gradients
from harpe.attention_heads.heterogeneity import FEWEST, agreement, heterogeneity
from harpe.data.special_tokens import reading_tokenizer
from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.evaluation.needles.samples import NEEDLE_TASKS, NeedleWriter
from harpe.files import SCHEMA_VERSION
from harpe.methods.registry import make_stages, method_named
from harpe.methods.types import Encoding
from harpe.models.apply import apply_encoding
from harpe.models.dtype import choose_dtype
from harpe.models.float_tables import encoding_tables, model_tables
from harpe.models.geometry import changed_layers, check_sliding_window, read_geometry, rope_key, text_config
from harpe.models.head import check_head
from harpe.models.head_distance import head_distances
from harpe.models.load import load_config, load_model, load_tokenizer, to_accelerator
from harpe.models.per_head import ROPE_TYPE
from harpe.models.rotation_check import check_rotation
from harpe.models.vocabulary import check_vocabulary
from harpe.options.heads import HeadsOptions
from harpe.positions.geometry import ModelGeometry
from harpe.report.heads_page import check_place, write_heads_page
from harpe.report.heads_terminal import head_tables
from harpe.reporter import Reporter
from harpe.runs.head_distances import DOCUMENTS
from harpe.runs.source import open_source
from harpe.runs.texts import held_out_texts

FAST, SLOW = 8.0, 1.0
"""Turns in the trained context above which a pair is fast, and below which it is slow."""


@dataclass(frozen=True)
class _Opened:
    """What is known before weights are read."""

    tokenizer: PreTrainedTokenizerBase
    trained: int
    """Context in tokens that the checkpoint was trained with before any extension."""
    context: int
    """Context in tokens of the checkpoint as it is."""
    length: int
    base: float
    """The base that pairs are put into bands by."""
    geometry: ModelGeometry | None = None
    encoding: Encoding | None = None


def look(options: HeadsOptions, reporter: Reporter | None = None) -> dict[str, Any]:
    """What the heads of a checkpoint do and want, as a JSON object (docs/heads.md).

    Raises HarpeError, before weights are read, for families and methods of which it cannot be said, texts that are too
    short or too few, and a length that is not behind the trained context.
    """
    refuse_several("harpe heads", "one process looks at all heads.")
    reporter = reporter or Reporter()
    if options.out is not None:
        check_place(Path(options.out))
    if options.documents < FEWEST:
        raise HarpeError(f"--documents is {options.documents}; two halves of two texts are the fewest: give {FEWEST}.")
    if options.samples < 0:
        raise HarpeError(f"--samples is {options.samples}; give 0 or more.")
    opened = _opened(options)
    if opened.length <= opened.trained:
        raise HarpeError(
            f"--length is {opened.length}, and {options.model} was trained with {opened.trained} tokens: none lie "
            "behind them, whose loss could be looked at. Give a longer --length."
        )
    held_out = held_out_texts(
        options.data, opened.tokenizer, opened.length, options.documents, options, tuning=True, say=reporter.say
    )
    if len(held_out.documents) < FEWEST:
        raise HarpeError(
            f"--data {options.data} has {len(held_out.documents)} texts of more than {opened.length} tokens, and two "
            f"halves need {FEWEST}. Give more or longer texts, or a shorter --length."
        )
    writer = NeedleWriter(reading_tokenizer(opened.tokenizer, True), held_out.haystacks, options.seed)
    _check_needles(writer, opened.context, options.samples)
    prompts = copy_prompts(writer, opened.context, options.samples) if options.samples else []
    dtype, reason = choose_dtype(options.dtype)
    reporter.say(f"{len(held_out.documents)} texts of more than {opened.length} tokens. Gradients in {reason}.")
    model = load_model(options.model, torch.float32, options.revision)
    check_vocabulary(model, opened.tokenizer, options.model)
    model = to_accelerator(check_rotation(check_head(model, options.model), options.model)).eval()
    distances = head_distances(model, held_out.documents[:DOCUMENTS], opened.context)
    top, weight = copy_scores(model, prompts) if prompts else (None, None)
    if opened.encoding is not None and opened.geometry is not None:
        apply_encoding(model, opened.encoding, opened.geometry, opened.length, options.sliding_window)
    gradients, losses = far_gradients(model, held_out.documents, opened.length, opened.trained, dtype, reporter)
    if not np.isfinite(gradients).all():
        raise HarpeError(f"A gradient of {options.model} is not finite; give --dtype float32.")
    layers = changed_layers(model.config)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": Path(options.model).name,
        "method": options.method,
        "method_options": options.method_options,
        "positions": "as they are" if opened.encoding is None else opened.encoding.describe(),
        "length": opened.length,
        "original_length": opened.trained,
        "context": opened.context,
        "data": held_out.description,
        "documents": len(losses),
        "far_tokens": len(losses) * (opened.length - opened.trained),
        "far_loss": float(np.mean(losses)),
        "dtype": dtype,
        "seed": options.seed,
        "samples": len(prompts),
        "task": TASK if prompts else None,
        "layers": layers,
        "key_value_heads": gradients.shape[2],
        "query_heads": text_config(model.config).num_attention_heads,
        **_wants(gradients, opened, options.seed),
        "heads": [
            {
                "layer": layer,
                "head": head,
                "distance": float(distances[layer, head]),
                "copies": None if top is None else float(top[layer, head]),
                "copy_attention": None if weight is None else float(weight[layer, head]),
                "retrieval": None if top is None else bool(top[layer, head] >= RETRIEVAL),
            }
            for layer in layers
            for head in range(gradients.shape[2])
        ],
    }


def _wants(gradients: Any, opened: _Opened, seed: int) -> dict[str, Any]:
    """What is said of gradients [D, L, H, N], by bands of pairs and by heads."""
    pairs = gradients.shape[-1]
    wavelengths = [2 * math.pi * opened.base ** (i / pairs) for i in range(pairs)]
    turns = [opened.trained / length for length in wavelengths]
    bands = {
        "fast": [i for i in range(pairs) if turns[i] > FAST],
        "middle": [i for i in range(pairs) if FAST >= turns[i] >= SLOW],
        "slow": [i for i in range(pairs) if turns[i] < SLOW],
        "all": list(range(pairs)),
    }
    whole, told = (0, 1, 2), bands["middle"] or bands["all"]
    return {
        "wavelengths": wavelengths,
        "bands": [
            {
                "name": name,
                "first": those[0],
                "last": those[-1],
                "heterogeneity": {
                    kind: ratio.as_dict() for kind, ratio in heterogeneity(gradients, those, seed).items()
                },
                "agreement": _number(agreement(gradients[..., those], whole)),
            }
            for name, those in bands.items()
            if those
        ],
        "gradient": gradients.mean(axis=0).tolist(),
        "agreement": [[_number(value) for value in row] for row in agreement(gradients[..., told])],
    }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _check_needles(writer: NeedleWriter, context: int, samples: int) -> None:
    try:
        writer.check(NEEDLE_TASKS[TASK], context, samples)
    except HarpeError as error:
        raise HarpeError(
            f"The context of {context} tokens has no room for the needles that copying is seen on. Leave it out with "
            "--samples 0."
        ) from error


def _opened(options: HeadsOptions) -> _Opened:
    """Read configuration and tokenizer, and decide the positions."""
    if options.method is None:
        return _as_it_is(options)
    if options.length is None:
        raise HarpeError("--method needs --length, the context in tokens that it makes positions for.")
    source = open_source(
        options.model,
        options.length,
        options.revision,
        options.tokenizer,
        options.original_length,
        options.sliding_window,
    )
    geometry = source.geometry
    method = method_named(options.method)
    encoding = make_stages(method, geometry, options.length, options.method_options or {})[-1].encoding
    encoding_tables(source.config(), encoding, geometry, options.length)  # refused before weights are read
    return _Opened(
        source.tokenizer,
        geometry.original_length,
        geometry.original_length,
        options.length,
        geometry.base,
        geometry,
        encoding,
    )


def _as_it_is(options: HeadsOptions) -> _Opened:
    if options.method_options:
        raise HarpeError("--method-options are those of a --method; name it.")
    if options.sliding_window == "off":
        raise HarpeError("--sliding-window off changes the model; give it with a --method.")
    config = load_config(options.model, options.revision)
    inner = text_config(config)
    told = getattr(inner, "harpe_original_length", None)
    trained, context = options.original_length or told, inner.max_position_embeddings
    key = rope_key(inner) if getattr(inner, "rope_parameters", None) else None
    rope: Any = (inner.rope_parameters if key is None else inner.rope_parameters[key]) or {}
    base = rope.get("rope_theta")
    if rope.get("rope_type") != ROPE_TYPE:
        geometry = read_geometry(config, options.model, trained)
        trained, base = trained or geometry.original_length, geometry.base
        context = context if told else trained
    if base is None:
        raise HarpeError(
            f"The configuration of {options.model} names no RoPE base (rope_theta); add it to its config.json."
        )
    if trained is None:
        raise HarpeError(f"config.json of {options.model} does not say its trained context; give --original-length.")
    length = context if options.length is None else options.length
    check_sliding_window(config, options.model, length, "keep")
    model_tables(config)
    tokenizer = load_tokenizer(*options.tokenizer_of(options.model))
    check_vocabulary(config, tokenizer, options.model)
    return _Opened(tokenizer, trained, context, length, float(base))


def run(options: HeadsOptions, terminal: Any) -> None:
    """Print what the heads do and want, as tables or as JSON, and write the page where a folder is named."""
    value = look(options, Reporter() if options.json else terminal)
    page = write_heads_page(value, Path(options.out)) if options.out is not None else None
    if options.json:
        print(json.dumps(value))
        return
    for table in head_tables(value):
        terminal.table(table)
    if page is not None:
        terminal.say(f"The page: {page}")
