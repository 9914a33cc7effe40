"""Which model families can have a RoPE base per head, found out by trying: no list of names.

A family qualifies when its module rotates q and k by `apply_rotary_pos_emb(q, k, cos, sin)`, its attention takes cos
and sin as `position_embeddings` and does nothing else with them, and its rotation is one that
`harpe.positions.rotation` has: half-split or interleaved pairs, turned either way, on the first dimensions of a head.
That is tested on a few numbers, once a process.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import inspect
import re
import textwrap
from types import FunctionType, ModuleType
from typing import Any

import torch
from transformers import MODEL_MAPPING, PreTrainedConfig

from harpe.errors import HarpeError
from harpe.models.per_head import Family, known_family, nested_types, register_family
from harpe.positions.phases import phase_steps
from harpe.positions.rotation import Layout, encode_positions, rotate_per_head

LAYOUTS = tuple(Layout(interleaved, direction) for interleaved in (False, True) for direction in (1, -1))
PAIR = "cos, sin = position_embeddings"
"""How attentions take their positions; cos is then named once more, in the call of apply_rotary_pos_emb."""


def find_family(config: PreTrainedConfig, name: str = "the model") -> Family:
    """The family of a decoder's configuration.

    Raises HarpeError with the reason, where one base per head cannot be put into this family.
    """
    known = known_family(config)
    if known is None:
        known = _discover(config, name)
        register_family(type(config), known)
    return known


def _refusal(config: PreTrainedConfig, name: str, reason: str) -> HarpeError:
    return HarpeError(
        f"{name} has the model type {config.model_type}, which cannot have one RoPE base per head: {reason}."
    )


def _discover(config: PreTrainedConfig, name: str) -> Family:
    owner = next(cls for cls in type(config).__mro__ if ".models." in cls.__module__)
    try:
        path = owner.__module__.replace(".configuration_", ".modeling_")
        # InternLM 3 is run by Llama's code
        if importlib.util.find_spec(path) is None and (made := MODEL_MAPPING.get(owner, None)):
            path = made.__module__
        module = importlib.import_module(path)
    except ImportError as error:
        raise _refusal(config, name, f"its code could not be imported ({error})") from error
    function = getattr(module, "apply_rotary_pos_emb", None)
    if function is None:
        raise _refusal(config, name, "its attention does not rotate queries and keys by apply_rotary_pos_emb")
    pristine = module if _is_own(function, module) else _second_copy(module)
    classes = [
        cls for cls in vars(module).values() if isinstance(cls, type) and not re.search("Vision|Audio", cls.__name__)
    ]
    rotaries = [cls for cls in classes if cls.__name__.endswith("RotaryEmbedding")]
    attentions = tuple(
        cls
        for cls in classes
        if cls.__name__.endswith("Attention")
        and "position_embeddings" in inspect.signature(getattr(cls, "forward", len)).parameters
    )
    if len(rotaries) != 1 or not attentions:
        raise _refusal(
            config, name, f"it has {len(rotaries)} rotary modules and {len(attentions)} attentions that read from them"
        )
    check_windows(config, attentions, name)
    for cls in attentions:
        source = _source(cls)
        if PAIR in source and len(re.findall(r"\bcos\b", source)) != 2:
            raise _refusal(
                config, name, f"{cls.__name__} uses cos and sin in another way than to rotate queries and keys once"
            )
        if "rope_parameters" in source:
            raise _refusal(config, name, f"{cls.__name__} reads rope parameters for another use than rotating")
    layout = _try_layouts(config, getattr(pristine, "apply_rotary_pos_emb"), rotaries[0])  # noqa: B009
    if layout is None:
        raise _refusal(
            config, name, "its rotation is neither half-split nor interleaved RoPE on the first dimensions of a head"
        )
    return Family(module, rotaries[0], attentions, layout)


def check_groups(config: PreTrainedConfig, name: str = "the model") -> None:
    """Refuse a family that gives query head h the key head h mod H (JetMoE), where ours gives consecutive query heads
    one: queries and keys of different bases would meet, and scores depend on absolute positions.

    Raises HarpeError.
    """
    if any(re.search(r"\bkey\w*\.(repeat|tile)\(", _source(cls)) for cls in find_family(config, name).attentions):
        raise _refusal(config, name, "its query heads do not share a key head with their neighbours")


def normalises_rotated(config: PreTrainedConfig) -> bool:
    """Whether the source of a family's attention has a norm of queries behind the rotation (nanochat, HunYuan), which
    takes out any attention factor. What decides is `harpe.models.rotation_check.check_scaled`, which needs a model."""
    behind = [_source(cls).partition("apply_rotary_pos_emb(")[2] for cls in find_family(config).attentions]
    return any(re.search(r"self\.\w*norm\w*\(\s*(q|query)\w*\s*\)", source) for source in behind)


def _source(attention: type) -> str:
    return inspect.getsource(inspect.unwrap(getattr(attention, "forward")))  # noqa: B009


def check_windows(config: PreTrainedConfig, attentions: tuple[type, ...], name: str = "the model") -> None:
    """Refuse a configuration whose layers with a sliding window alone have RoPE: without it all would, or none.

    Raises HarpeError.
    """
    if getattr(config, "sliding_window", None) and any(_rotates_local_layers_only(_source(cls)) for cls in attentions):
        reason = "only its layers with a sliding window have RoPE, and those see the same distances at any length"
        raise _refusal(config, name, reason)


def _rotates_local_layers_only(source: str) -> bool:
    """Whether an attention's forward calls apply_rotary_pos_emb under a condition about windows (Cohere2, EXAONE 4)."""
    nodes = ast.walk(ast.parse(textwrap.dedent(source)))
    conditions = [
        node for node in nodes if isinstance(node, ast.If) and re.search("sliding|local", ast.unparse(node.test))
    ]
    calls = [node for condition in conditions for node in ast.walk(condition) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func) == "apply_rotary_pos_emb" for call in calls)


def _is_own(function: Any, module: ModuleType) -> bool:
    """Whether a function is the module's, not one that a kernel library has put there since."""
    return not isinstance(function, FunctionType) or inspect.unwrap(function).__module__ == module.__name__


def _second_copy(module: ModuleType) -> ModuleType:
    """The module as it is on disk, for its own rotation where the loaded one has been patched."""
    spec = importlib.util.find_spec(module.__name__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


def _try_layouts(config: PreTrainedConfig, function: Any, rotary: type) -> Layout | None:
    """The layout in which our rotation agrees with the family's own on random numbers; None: in no layout."""
    view = copy.copy(config)
    nested = nested_types(config)
    kept = ("partial_rotary_factor",)

    def plain(rope: dict[str, Any] | None) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": 100.0, **{k: v for k, v in (rope or {}).items() if k in kept}}

    view.rope_parameters = (
        {key: plain(config.rope_parameters[key]) for key in nested} if nested else plain(config.rope_parameters)
    )
    arguments = nested[:1]
    positions = torch.tensor([[3, 11]], device="cpu")
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.device("cpu"), torch.no_grad():
        try:
            module = rotary(view)
            frequencies = getattr(module, f"{nested[0]}_inv_freq" if nested else "inv_freq")
            pairs = frequencies.shape[0]
            q, k = (torch.randn(1, 2, 2, 2 * pairs, generator=generator, dtype=torch.float32) for _ in range(2))
            cos, sin = module(q, positions, *arguments)
            wanted = function(q, k, cos, sin)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
            return None
        table = torch.tensor(phase_steps([frequencies.double().tolist()] * 2))
        for layout in LAYOUTS:
            got = rotate_per_head(q, k, *encode_positions(positions, table), layout)
            if all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in zip(got, wanted, strict=True)):
                return layout
    return None
