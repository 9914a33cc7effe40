"""Rope parameters under the names that programs from before transformers 5 read, or marks at which those stop.

transformers 5 writes `rope_parameters`; transformers 4 and vLLM and SGLang of that time pass over it and read
`rope_theta` (or `rotary_emb_base` …), `rope_scaling` and `partial_rotary_factor` (or `rotary_pct`), with defaults where
they are missing: a model with another base would run on 10,000, silently. config.json therefore has both. Which old
names a family has is asked of its configuration class, which still understands them; and nothing is written that it
would read otherwise than `rope_parameters`, with those beside it or without.

What the old form cannot hold (bases per head; bases that differ by layer type where a family had one name for all) gets
marks: a base of null is no number to go on with, and an unknown rope type stops programs that look at it.

What vLLM's own models read otherwise than transformers is written here too: all that saves a model passes here.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from harpe.files import write_text
from harpe.models.geometry import rope_key, text_config
from harpe.models.per_head import LENGTH, ROPE_TYPE, nested_types

Entries = dict[str | None, dict[str, Any]]
"""Rope parameters by layer type, or under None where all layers share them."""
BASES = ("rope_theta", "rotary_emb_base", "global_rope_theta", "local_rope_theta", "rope_local_base_freq")
"""Names that families had for a base."""
SHARES = ("partial_rotary_factor", "rotary_pct")
"""Names of the share of a head that is rotated."""
BASE_ONLY = ("nemotron",)
"""Families whose class in transformers 4 reads a base and no rope type: found by running it."""
FACTORS = ("short_mscale", "long_mscale")
"""Names under which PhiMoE, and vLLM for every family, look for LongRoPE's attention factor."""
APART = ("rope_theta", "partial_rotary_factor")
"""Keys of `rope_parameters` that stood beside `rope_scaling`, not in it."""


def add_old_keys(folder: Path, config: PreTrainedConfig) -> None:
    """Add them to `folder`/config.json, in which `config` (of a model that harpe extended) has been saved."""
    if getattr(text_config(config), "harpe_original_length", None) is None:
        return
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    decoder = text_config(config)
    read, _ = PreTrainedConfig.get_config_dict(folder)  # numbers that JSON does not have (infinity) as such
    place, plain = (settings, read) if decoder is config else (settings["text_config"], read["text_config"])
    reader = _Reader(decoder, plain)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is tried is none of the user's business
    try:
        added = next(keys for keys in (*_forms(reader), {}) if reader.same({**plain, **keys}))
    finally:
        logging.set_verbosity(verbosity)
    for entry in (rope := place["rope_parameters"], *(rope[key] for key in reader.nested)):
        entry.pop("type", None)
    place |= added
    _name_for_vllm(settings, decoder.max_position_embeddings)
    write_config(folder, settings)


def _name_for_vllm(settings: dict[str, Any], context: int) -> None:
    """Write LongRoPE's attention factor, in every rope entry of a configuration, also under the names at which vLLM
    looks for it: its own models pass over `attention_factor` and `factor` there, and take sqrt(1 + ln s / ln L0), s
    being the ratio of the contexts. transformers warns of the names, and passes over them."""
    for value in settings.values():
        if not isinstance(value, dict):
            continue
        if value.get("rope_type") == "longrope" and (factor := _own_factor(value, context)) is not None:
            value |= dict.fromkeys(FACTORS, factor)
        _name_for_vllm(value, context)


def _own_factor(entry: dict[str, Any], context: int) -> float | None:
    """An attention factor of LongRoPE that does not follow from the contexts; None where it does."""
    if entry.get("attention_factor") is not None:
        return float(entry["attention_factor"])
    before, s = entry.get(LENGTH), entry.get("factor")
    if before is None or s is None or s == context / before:
        return None
    return math.sqrt(1 + math.log(s) / math.log(before)) if s > 1 else 1.0


def write_config(folder: Path, settings: dict[str, Any]) -> None:
    """Write `folder`/config.json."""
    write_text(folder / "config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _without_type(entries: Entries) -> Entries:
    """Without the old name of `rope_type`, which transformers leaves beside it."""
    return {key: {name: value for name, value in entry.items() if name != "type"} for key, entry in entries.items()}


class _Reader:
    """What today's configuration class makes of a config.json."""

    def __init__(self, config: PreTrainedConfig, settings: dict[str, Any]) -> None:
        self.cls = next(cls for cls in type(config).__mro__ if cls.__module__.startswith("transformers.models."))
        self.model_type = config.model_type
        self.nested = nested_types(config)
        self.key = rope_key(config)
        self.wanted = _without_type(self._by_layer_type(config.rope_parameters))
        self.context = config.max_position_embeddings
        self.rest = {key: value for key, value in settings.items() if key not in ("rope_parameters", *BASES, *SHARES)}

    def _by_layer_type(self, rope: dict[str, Any]) -> Entries:
        return {key: rope[key] for key in self.nested} if self.nested else {None: rope}

    def entries(self, settings: dict[str, Any]) -> Entries:
        """Rope parameters by layer type, or under None."""
        made: Any = self.cls.from_dict(copy.deepcopy(settings))  # type: ignore[attr-defined]
        return _without_type(self._by_layer_type(made.rope_parameters))

    def same(self, settings: dict[str, Any]) -> bool:
        """Whether they are those of the model."""
        try:
            return self.entries(settings) == self.wanted
        except (TypeError, ValueError, KeyError):
            return False

    def plain(self) -> dict[str, Any]:
        """Settings without any base, for a reader that is told of no scaling."""
        rope: dict[str, Any] = {"rope_type": "default"}
        return {**self.rest, "rope_parameters": {key: dict(rope) for key in self.nested} if self.nested else rope}

    def old_names(self, names: tuple[str, ...], what: str, probe: float) -> dict[str, list[str | None]]:
        """Which of `names` the class takes for `what`, each with the layer types that read it."""
        before, found = self.entries(self.plain()), {}
        for name in names:
            after = self.entries({**self.plain(), name: probe})
            read = [key for key, entry in after.items() if entry.get(what) == probe != before[key].get(what)]
            if read:
                found[name] = read
        return found


def _forms(reader: _Reader) -> list[dict[str, Any]]:
    """What may be added, best first."""
    entries, entry = reader.wanted, reader.wanted[reader.key]
    bases = reader.old_names(BASES, "rope_theta", 54_321.0)
    stop: dict[str, Any] = dict.fromkeys((*bases, "rope_theta"))
    if entry["rope_type"] == ROPE_TYPE:
        unknown = {"rope_scaling": entry}
        return [{**stop, **unknown}, unknown, stop]
    shares = reader.old_names(SHARES, "partial_rotary_factor", 0.75)
    old: dict[str, Any] = {"rope_scaling": None}
    silent = [key for key in entries if all(key not in keys for keys in bases.values())]
    for keys in bases.values():
        if reader.key in keys:
            keys += silent  # layers whose base has no name of its own were read with that of the others (OLMo 3)
    for names, what in ((bases, "rope_theta"), (shares, "partial_rotary_factor")):
        for name, keys in names.items():
            values = [entries[key].get(what) for key in keys]
            if any(value != values[0] for value in values):
                return [stop]
            old |= {name: values[0]} if values[0] is not None else {}
    if entry["rope_type"] != "default":
        if reader.model_type in BASE_ONLY:
            return [stop]
        scaling = {"type": entry["rope_type"], **{k: v for k, v in entry.items() if k not in APART}}
        if set(scaling) == {"type", "rope_type", "factor"}:
            # transformers before 4.43, and OLMo's class after it, takes two fields and no third
            del scaling["rope_type"]
        old["rope_scaling"] = scaling
    # transformers 4 looks for it here, and takes the ratio of contexts for the factor
    if entry["rope_type"] == "longrope":
        old["original_max_position_embeddings"] = entry["original_max_position_embeddings"]
        ratio = reader.context / entry["original_max_position_embeddings"]
        if entry.get("attention_factor") is None and ratio != entry.get("factor", ratio):
            return [stop]
    alone = {**(reader.plain() if old["rope_scaling"] is None else reader.rest), **old}
    return [old, stop] if reader.same(alone) else [stop]
