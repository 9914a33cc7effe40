"""The model card (README.md) of an exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedConfig

from harpe.models.geometry import changed_layers, rope_key, text_config
from harpe.models.per_head import LENGTH, ROPE_TYPE


def rope_entry(config: PreTrainedConfig) -> dict[str, object]:
    """The rope parameters of the layers that attend to everything."""
    config = text_config(config)
    key = rope_key(config)
    entry: dict[str, object] = config.rope_parameters if key is None else config.rope_parameters[key]
    return entry


def model_card(
    config: PreTrainedConfig, title: str, base_model: str | None = None, sections: Mapping[str, str] | None = None
) -> str:
    """Markdown with the front matter that the hub reads.

    Parameters
    ----------
    config
        Of the exported model.
    base_model
        The checkpoint that was extended, where it has a name on the hub.
    sections
        Further headings with their text, such as method, plan, data and scores.
    """
    per_head = rope_entry(config).get("rope_type") == ROPE_TYPE
    tags = ["long-context", "rope", *(["harpe", "custom_code"] if per_head else [])]
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in tags)]
    if base_model is not None:
        front.append(f"base_model: {base_model}")
    parts = {"Load": _load(per_head), "Positions": _positions(config, per_head), **(sections or {})}
    body = "\n\n".join(f"## {heading}\n\n{text.strip()}" for heading, text in parts.items())
    head = "\n".join(front)
    return f"---\n{head}\n---\n\n# {' '.join(title.split())}\n\n{body}\n"  # a folder's name may hold a line break


def _load(per_head: bool) -> str:
    code = ", trust_remote_code=True" if per_head else ""
    lines = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'path = "…"  # this folder',
    ]
    lines += [
        f"model = AutoModelForCausalLM.from_pretrained(path{code})",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "```",
    ]
    if per_head:
        lines += [
            "",
            "`modeling_harpe.py` is all the code that is needed; read it before you trust it. Without "
            "`trust_remote_code` transformers",
            "stops with `KeyError: 'harpe'`. Formats with one RoPE base for all heads (GGUF, MLX, TensorRT-LLM) cannot "
            "hold this model.",
        ]
    return "\n".join(lines)


def _positions(config: PreTrainedConfig, per_head: bool) -> str:
    text, entry = text_config(config), rope_entry(config)
    lengths = (
        f"The context is {text.max_position_embeddings} tokens; the original model was trained with "
        f"{text.harpe_original_length}."
    )
    if entry.get("rope_type") == "dynamic":  # transformers takes this number for the trained context
        lengths = (
            f"The original model was trained with {text.harpe_original_length} tokens, beyond which the base grows "
            "with the text."
        )
    if not per_head:
        return (
            f"{lengths} Positions are those of rope type `{entry.get('rope_type', 'default')}`, base "
            f"{entry.get('rope_theta'):,.0f}."
        )
    layers = changed_layers(config)
    scaled = _scale(entry)
    if "frequencies" in entry:
        return (
            f"{lengths} Every key/value head has a table of rotary frequencies of its own, in `config.json` under "
            f"`frequencies`, in layers {', '.join(map(str, layers))}.{scaled and f' {scaled}'}"
        )
    rows = entry["bases"]
    assert isinstance(rows, list)
    by_layer = [(i, row) for i, row in enumerate(rows) if isinstance(row, list)] or [(layers[0], rows)]
    own = "Every key/value head has a RoPE base of its own ([HARPE](https://arxiv.org/abs/2412.07171)):"
    lines = [lengths, "", own, ""]
    if len({tuple(row) for _, row in by_layer}) == 1:
        lines.append(", ".join(f"{base:,.0f}" for base in by_layer[0][1]))
    else:
        lines += [f"* layer {i}: {', '.join(f'{base:,.0f}' for base in row)}" for i, row in by_layer]
    if len(layers) < text.num_hidden_layers:
        where = ", ".join(map(str, layers))
        lines += ["", f"They hold in layers {where}; the others keep the positions that they had."]
    lines += ["", scaled] * bool(scaled)
    return "\n".join(lines)


def _scale(entry: dict[str, object]) -> str:
    """What queries are multiplied by, where they are."""
    given = entry.get("length_scale")
    if not given:
        return ""
    values = ", ".join(f"{value:.4g}" for value in given) if isinstance(given, list) else f"{given:.4g}"
    length = entry[LENGTH]
    return (
        f"The query of the n-th token is multiplied by max(1, 1 + c (ln n / ln {length} - 1)), c being {values}"
        f"{', by key/value head' if isinstance(given, list) else ''}."
    )
