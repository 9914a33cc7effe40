"""Per-head RoPE inside transformers models: three hooks a family, no copy of any model.

1. The rotary module's `forward`: for rope type "harpe" it returns positions and steps (`harpe.positions.rotation`) in
   the place of cos and sin; any other rope type takes the stock path.
2. The family's `apply_rotary_pos_emb`: such a pair goes to our rotation, every other to the stock function.
3. The attention's `__call__`: takes its own layer's row where bases differ by layer, and under tensor parallelism the
   rows of the heads that this rank holds.

Stock models in the same process take the stock path through all three. The rotary module's `inv_freq` buffer holds
integers (steps), so that it survives `model.to(bfloat16)`; inverse frequencies in bfloat16 are noise.

An entry of `rope_parameters` with rope type "harpe" has the keys
    bases              one base per key/value head, or a list of such rows, one for every layer (null: none)
    frequencies        in their place: inverse frequencies, a row of radians a position for every key/value head, or a
                       list of such tables, one for every layer (null: none); a pair of 0 does not turn
    rope_theta         the base that the checkpoint was trained with
    local              the rope parameters of layers whose row is null, where one rotary module serves all layers
    attention_factor   multiplies cos and sin; default 1; or a list of one for every key/value head
    length_scale       c: queries at position n - 1 are multiplied by max(1, 1 + c (ln n / ln L0 - 1)); default 0;
                       or a list of one for every key/value head. Layers whose row is null have none
    original_max_position_embeddings   L0 in tokens
    partial_rotary_factor              as everywhere in transformers

This file needs torch, transformers, `phases.py` and `rotation.py`: an exported checkpoint carries it as it stands.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin

from harpe.positions.phases import (
    base_frequencies,
    is_per_head,
    of_heads,
    of_layer,
    phase_steps,
    with_factor,
    with_length_scale,
)
from harpe.positions.rotation import Layout, encode_positions, rotate_per_head

ROPE_TYPE = "harpe"
LENGTH = "original_max_position_embeddings"
KEYS = {"rope_theta", "local", "attention_factor", "length_scale", "partial_rotary_factor", LENGTH}
"""Optional keys beside rope_type and bases or frequencies."""
PROTOCOL = 3
"""Version of what the hooks of a process agree on: the pair that takes the place of cos and sin, and who picks rows
from it. Exported checkpoints carry the hooks of the harpe that wrote them; whoever comes second uses what it finds.
Raised with any change of the pair."""
_MARK = "_harpe_hook"


class Family(NamedTuple):
    """What the hooks need to know of a model family."""

    module: ModuleType
    """Where `apply_rotary_pos_emb` is looked up by the attention."""
    rotary: type
    attentions: tuple[type, ...]
    layout: Layout


_families: dict[type, Family] = {}


def register_family(config_class: type, family: Family | None) -> None:
    """Keep the family of a configuration class and of its subclasses; None: forget it."""
    if family is None:
        _families.pop(config_class, None)
    else:
        _families[config_class] = family


def known_family(config: PreTrainedConfig) -> Family | None:
    """The family of a configuration whose class, or a parent of it, has been registered."""
    return next((_families[cls] for cls in type(config).__mro__ if cls in _families), None)


def family_of(config: PreTrainedConfig) -> Family:
    """The same, where it must have been registered."""
    known = known_family(config)
    if known is None:
        raise ValueError(f"Per-head RoPE was not set up for {type(config).__name__}.")
    return known


def key_value_heads(config: PreTrainedConfig) -> int:
    """Key/value heads of every layer."""
    for name in ("num_key_value_heads", "num_kv_heads", "num_attention_heads"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    raise ValueError(f"{type(config).__name__} does not tell its number of attention heads.")


def nested_types(config: PreTrainedConfig) -> list[str]:
    """Layer types that have rope parameters of their own; empty where all layers share one entry."""
    return [key for key, value in config.rope_parameters.items() if isinstance(value, dict) and key != "local"]


def is_factor_alone(rope: dict[str, Any]) -> bool:
    """Whether rope parameters are LongRoPE without any scaling: how one base keeps an attention factor
    (`harpe.models.apply.rope_parameters`)."""
    return {*(rope.get("short_factor") or (0,)), *(rope.get("long_factor") or (0,))} == {1.0}


def stock_frequencies(
    config: PreTrainedConfig, rotary: type, rope: dict[str, Any], layer_type: str | None, length: int | None = None
) -> tuple[list[float], float]:
    """Inverse frequencies and attention factor that the family itself forms from rope parameters of any type but ours.

    `length` is that of the text, in tokens, for types whose frequencies depend on it (longrope).
    """
    view = copy.copy(config)
    view.rope_parameters = dict(rope) if layer_type is None else {**config.rope_parameters, layer_type: dict(rope)}
    if LENGTH in rope and hasattr(view, LENGTH):
        setattr(view, LENGTH, rope[LENGTH])  # transformers prefers it to the entry's (Phi-3)
    kind = rope.get("rope_type", "default")
    form: Any = getattr(rotary, "compute_default_rope_parameters") if kind == "default" else ROPE_INIT_FUNCTIONS[kind]  # noqa: B009
    with torch.device("cpu"):
        told = {"layer_type": layer_type, "seq_len": length}
        frequencies, factor = form(view, **{key: value for key, value in told.items() if value is not None})
    return frequencies.double().tolist(), float(factor)


def table_rows(rope: dict[str, Any]) -> tuple[list[Any], bool]:
    """What an entry has for the heads, by layer (bases, or tables of frequencies), and whether layers differ; one row
    where they do not."""
    given = rope["frequencies"] if "frequencies" in rope else rope["bases"]
    first = next((row for row in given if row is not None), None)
    if "frequencies" in rope and isinstance(first, list | tuple):
        first = next(iter(first), None)
    by_layer = isinstance(first, list | tuple)
    return (list(given), True) if by_layer else ([given], False)


def build_table(config: PreTrainedConfig, layer_type: str | None = None) -> torch.Tensor:
    """Steps of a configuration, on the CPU: int64, in one of the shapes of `Phases.table`."""
    family = family_of(config)
    rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    default = {key: value for key, value in rope.items() if key == "partial_rotary_factor"}
    stock, _ = stock_frequencies(
        config, family.rotary, {"rope_type": "default", "rope_theta": 10000.0, **default}, layer_type
    )
    rows, by_layer = table_rows(rope)
    factor, scale = rope.get("attention_factor") or 1.0, rope.get("length_scale") or 0.0

    def full(steps: torch.Tensor, factor: Any, scale_here: Any) -> torch.Tensor:
        factors, scales = (
            torch.tensor(given, dtype=torch.float64, device="cpu")[:, None] if isinstance(given, list) else given
            for given in (factor, scale_here)
        )
        table = with_factor(steps, factors)
        return with_length_scale(table, scales, rope[LENGTH]) if scale else table

    def steps(row: list[Any]) -> torch.Tensor:
        given = row if "frequencies" in rope else base_frequencies(row, 2 * len(stock))
        return torch.tensor(phase_steps(given), dtype=torch.int64, device="cpu")

    if not by_layer:
        return full(steps(rows[0]), factor, scale) if scale or factor != 1.0 else steps(rows[0])
    unused = torch.zeros(key_value_heads(config), len(stock), dtype=torch.int64, device="cpu")
    other = full(unused, 1.0, 0.0)
    if rope.get("local") is not None:
        local, local_factor = stock_frequencies(config, family.rotary, rope["local"], layer_type)
        own = torch.tensor(phase_steps([local]), dtype=torch.int64, device="cpu").expand_as(unused)
        other = full(own, local_factor, 0.0)
    return torch.stack([other if row is None else full(steps(row), factor, scale) for row in rows])


def initialise(
    config: PreTrainedConfig, device: Any = None, seq_len: int | None = None, layer_type: str | None = None, **_: Any
) -> tuple[torch.Tensor, float]:
    """transformers' protocol for a rope type: the buffer `inv_freq`, here of steps, and a factor, here in the steps."""
    hook(family_of(config))
    return build_table(config, layer_type).to(device if device is not None else torch.get_default_device()), 1.0


def validate(self: PreTrainedConfig, rope_parameters: dict[str, Any], ignore_keys: set[str] | None = None) -> None:
    """transformers calls this for every new configuration with rope type "harpe"; ValueError says what is wrong."""
    if {"bases", "frequencies"} <= set(rope_parameters):
        raise ValueError("rope_parameters has bases and frequencies; it takes one of them.")
    name = "frequencies" if "frequencies" in rope_parameters else "bases"
    self._check_received_keys(ROPE_TYPE, set(rope_parameters), {"rope_type", name}, KEYS, ignore_keys=ignore_keys)
    heads = key_value_heads(self)
    given, by_layer = table_rows(rope_parameters)
    rows = [row for row in given if row is not None]
    for key, words, lowest in (
        ("attention_factor", "a factor is a number above 0", 5e-324),
        ("length_scale", "a scale is a number from 0 on", 0.0),
    ):
        numbers = rope_parameters.get(key)
        for value in numbers if isinstance(numbers, list | tuple) else [lowest if numbers is None else numbers]:
            if not isinstance(value, int | float) or not math.isfinite(value) or value < lowest:
                raise ValueError(f"rope_parameters.{key} holds {value!r}; {words}.")
        if isinstance(numbers, list | tuple) and len(numbers) != heads:
            raise ValueError(
                f"rope_parameters.{key} has {len(numbers)} numbers; the model has {heads} key/value heads."
            )
    length = rope_parameters.get(LENGTH)
    if rope_parameters.get("length_scale") and not (isinstance(length, int) and length > 1):
        raise ValueError(f"rope_parameters.length_scale needs {LENGTH}, a number of tokens above 1; it is {length!r}.")
    if by_layer and len(given) != self.num_hidden_layers:
        raise ValueError(
            f"rope_parameters.{name} has rows for {len(given)} layers; the model has {self.num_hidden_layers}."
        )
    for row in rows:
        if name == "frequencies":
            if len(row) != heads or len({len(pairs) for pairs in row}) != 1:
                raise ValueError(f"rope_parameters.frequencies needs {heads} rows of equal length, one for every head.")
            for value in (value for pairs in row for value in pairs):
                if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                    raise ValueError(f"rope_parameters.frequencies holds {value!r}; a frequency is a number from 0 on.")
            continue
        for base in row:
            if not isinstance(base, int | float) or not math.isfinite(base) or base <= 1:
                raise ValueError(f"rope_parameters.bases holds {base!r}; a RoPE base must be a finite number above 1.")
        if len(row) != heads:
            raise ValueError(f"rope_parameters.bases has {len(row)} bases, but the model has {heads} key/value heads.")


def _share_of_heads(attention: torch.nn.Module) -> tuple[int, int] | None:
    """(rank, size): this process has the rank-th of `size` equal parts of the key heads; None: it has them all.

    Read from the key projection itself: the placement of its weight (transformers' tensor parallelism), or what the
    parallel linear layers of vLLM and SGLang tell of themselves.
    """
    # asked at every decoding step, where getattr on a module takes as long as an operation
    children = attention._modules
    for name in ("k_proj", "qkv_proj", "query_key_value"):
        child: Any = children.get(name)
        if child is None:
            continue
        weight = child._parameters.get("weight")
        if weight is None:  # an adapter around the projection, or a parametrised or quantised one
            weight = getattr(child, "weight", None)
        if isinstance(weight, DTensor):
            for dim, placement in enumerate(weight.placements):
                if placement.is_shard():
                    return weight.device_mesh.get_local_rank(dim), weight.device_mesh.size(dim)
        told = vars(child)
        if "num_kv_head_replicas" in told:  # q, k and v in one; a head may be on several devices
            return _server_rank(told) // child.num_kv_head_replicas, child.total_num_kv_heads // child.num_kv_heads
        if "output_size_per_partition" in told and not told.get("gather_output"):
            return _server_rank(told), child.output_size // child.output_size_per_partition
    return None


def _server_rank(told: dict[str, Any]) -> int:
    """This process's rank among those that share a parallel layer: `tp_rank` in vLLM; in SGLang the group's, if any."""
    if "tp_rank" in told:
        return int(told["tp_rank"])
    group = told.get("kv_tp_group") or told.get("tp_group")
    return 0 if group is None else int(group.rank_in_group)


def _own_pair(attention: Any, pair: Any) -> Any:
    """The part of a pair that belongs to this attention's layer and heads; stock cos and sin pass."""
    if not isinstance(pair, tuple) or not is_per_head(pair[0]):
        return pair
    first, second = of_layer(pair[0], pair[1], getattr(attention, "layer_idx", -1))
    share = _share_of_heads(attention)
    return (first, second) if share is None else of_heads(first, second, *share)


def _wrap_rotary(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def forward(
        self: Any, x: torch.Tensor, position_ids: torch.Tensor | None = None, layer_type: str | None = None
    ) -> Any:
        rope_type = self.rope_type if layer_type is None else self.rope_type[layer_type]
        if rope_type != ROPE_TYPE:
            return stock(self, x, position_ids) if layer_type is None else stock(self, x, position_ids, layer_type)
        if not torch.compiler.is_compiling():
            # kernels patched into the module after us would read our pair as one table for all heads
            hook(family_of(self.config))
        table = getattr(self, "inv_freq" if layer_type is None else f"{layer_type}_inv_freq")
        assert position_ids is not None
        return encode_positions(position_ids.to(x.device), table.to(x.device))

    return forward


def _wrap_apply(stock: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if not is_per_head(cos):
            return stock(q, k, cos, sin, *args, **kwargs)
        return rotate_per_head(q, k, cos, sin, layout, kwargs.get("unsqueeze_dim", args[-1] if args else 1))

    return apply_rotary_pos_emb


def _wrap_attention(cls: Any) -> Callable[..., Any]:
    """A `__call__` for an attention class. Not a `forward`: vLLM exchanges those, to merge q, k and v."""
    place = list(inspect.signature(getattr(cls, "forward")).parameters).index("position_embeddings") - 1  # noqa: B009

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "position_embeddings" in kwargs:
            kwargs["position_embeddings"] = _own_pair(self, kwargs["position_embeddings"])
        elif len(args) > place:
            args = (*args[:place], _own_pair(self, args[place]), *args[place + 1 :])
        return super(cls, self).__call__(*args, **kwargs)  # looked up anew: tracers exchange that of torch.nn.Module

    return __call__


def _marked(function: Any) -> bool:
    """Whether `function` is a hook of these sources, in any copy; RuntimeError where it has another `PROTOCOL`."""
    found = getattr(function, _MARK, None)
    if found is not None and found != PROTOCOL:
        raise RuntimeError(
            f"Per-head RoPE of another version is at work in this process (hooks of version {found}, here {PROTOCOL}): "
            "the checkpoints that are loaded were exported by different versions of harpe. Load them in processes of "
            "their own, or export them again."
        )
    return found is not None


def hook(family: Family) -> None:
    """Put the hooks into a family's classes and module, where they are not there (any more). Safe to call again.

    Raises
    ------
    RuntimeError
        Where hooks of another version are there.
    """
    if not _marked(family.module.apply_rotary_pos_emb):
        wrapped = _wrap_apply(family.module.apply_rotary_pos_emb, family.layout)
        setattr(wrapped, _MARK, PROTOCOL)
        family.module.apply_rotary_pos_emb = wrapped  # type: ignore[attr-defined]
    forward: Any = vars(family.rotary).get("forward")
    if not _marked(forward):
        wrapped = _wrap_rotary(forward if forward is not None else getattr(family.rotary, "forward"))  # noqa: B009
        setattr(wrapped, _MARK, PROTOCOL)
        setattr(family.rotary, "forward", wrapped)  # noqa: B010
    # a class that inherits the hook must not have it twice
    for cls in sorted(family.attentions, key=lambda cls: len(cls.__mro__)):
        if not _marked(getattr(cls, "__call__")):  # noqa: B004, B009
            wrapped = _wrap_attention(cls)
            setattr(wrapped, _MARK, PROTOCOL)
            setattr(cls, "__call__", wrapped)  # noqa: B010


def allow_rope_type(config_class: type) -> None:
    """Let configurations whose own validators know a few rope types only (Phi-3, PhiMoE) accept ours as well."""
    validators = vars(config_class).get("__class_validators__", [])
    for position, stock in enumerate(validators):
        if stock.__name__ != "validate_rope" or _marked(stock):
            continue

        @functools.wraps(stock)
        def validate_rope(self: Any, stock: Callable[..., Any] = stock) -> Any:
            # encoders of sound have no rope_parameters
            ours = (getattr(self, "rope_parameters", None) or {}).get("rope_type") == ROPE_TYPE
            return RotaryEmbeddingConfigMixin.validate_rope(self) if ours else stock(self)

        setattr(validate_rope, _MARK, PROTOCOL)
        validators[position] = validate_rope
        if "validate_rope" in vars(config_class):
            setattr(config_class, "validate_rope", validate_rope)  # noqa: B010


def register_rope_type(initialiser: Callable[..., Any] = initialise) -> None:
    """Teach transformers the rope type "harpe"; RuntimeError where a file of another `PROTOCOL` has done so."""
    _marked(ROPE_INIT_FUNCTIONS.get(ROPE_TYPE))
    setattr(initialiser, _MARK, PROTOCOL)
    ROPE_INIT_FUNCTIONS[ROPE_TYPE] = initialiser
    RotaryEmbeddingConfigMixin._validate_harpe_rope_parameters = validate  # type: ignore[attr-defined]
