"""A checkpoint with a scaling of its own is extended from the first step to the export with the bases per head that the
plan printed.

The other side is a Llama in float64 that shares no code with harpe or transformers: it reads the weights of the file
and rotates every key/value head by the base of the plan.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import harpe
from harpe.commands.export import export
from harpe.data.packed import PackedDataset
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_model, load_tokenizer, save_checkpoint
from harpe.options.runs import ExportOptions
from harpe.reporter import Reporter
from harpe.runs import train

HEADS, GROUPS, DIM, LAYERS = 4, 2, 16, 2
BEFORE, CONTEXT, TARGET = 32, 128, 256
SCALINGS: dict[str, tuple[dict[str, Any], float]] = {
    "yarn": ({"factor": 4.0, "original_max_position_embeddings": BEFORE}, 0.1 * math.log(4) + 1),
    "linear": ({"factor": 4.0}, 1.0),
    "llama3": (
        {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": BEFORE},
        1.0,
    ),
}
"""By rope type: its parameters, and the attention factor that the weights have adapted to."""


def checkpoint(make_tiny: Any, folder: Path, kind: str) -> None:
    """Random weights that were trained, as far as the configuration says, to 128 tokens with the scaling."""
    tokenizer = load_tokenizer("embedded")
    config = make_tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=CONTEXT).config
    config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, **SCALINGS[kind][0]}
    torch.manual_seed(1)
    save_checkpoint(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer, folder, CONTEXT)


def naive_logits(
    weights: dict[str, torch.Tensor], ids: torch.Tensor, frequencies: list[list[float]], factor: float
) -> torch.Tensor:
    """Logits [S, V] float64 of tokens [S]; `frequencies[group]` are a key/value head's inverse frequencies [D / 2]."""
    w = {name: value.double() for name, value in weights.items()}
    positions = torch.arange(len(ids)).double()

    def norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale

    def rotate(x: torch.Tensor, group: int) -> torch.Tensor:
        angle = torch.outer(positions, torch.tensor(frequencies[group]).double())
        cos, sin, a, b = angle.cos() * factor, angle.sin() * factor, x[:, : DIM // 2], x[:, DIM // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1)

    x = w["model.embed_tokens.weight"][ids]
    later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        h = norm(x, w[at + "input_layernorm.weight"])
        q, k, v = (h @ w[f"{at}self_attn.{name}_proj.weight"].T for name in "qkv")
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            query = rotate(q[:, head * DIM : (head + 1) * DIM], group)
            key, value = (t[:, group * DIM : (group + 1) * DIM] for t in (k, v))
            scores = (query @ rotate(key, group).T / math.sqrt(DIM)).masked_fill(later, -math.inf)
            heads.append(scores.softmax(-1) @ value)
        x = x + torch.cat(heads, dim=1) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, w[at + "post_attention_layernorm.weight"])
        gate, up = (h @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def naive_loss(
    weights: dict[str, torch.Tensor], batch: list[torch.Tensor], frequencies: list[list[float]], factor: float
) -> float:
    losses = [
        -naive_logits(weights, ids, frequencies, factor).log_softmax(-1)[:-1].gather(1, ids[1:, None]).mean()
        for ids in batch
    ]
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_scaled_checkpoint_is_trained_saved_and_exported_with_the_bases_of_the_plan(
    make_tiny: Any, workspace: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    trained: list[torch.Tensor] = []
    probe = torch.arange(5, 5 + TARGET)[None]

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    def save(model: PreTrainedModel, *given: Any) -> None:
        with torch.no_grad():
            trained.append(model.eval()(probe).logits)
        save_checkpoint(model, *given)

    checkpoint(make_tiny, workspace / "scaled", kind)
    monkeypatch.setattr(train, "save_checkpoint", save)
    options: dict[str, Any] = {
        "length": TARGET,
        "tokens": 4 * 512,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "method": "harpe",
    }
    target = harpe.extend(
        str(workspace / "scaled"), data=str(workspace / "texts"), out=workspace / "run", reporter=Listener(), **options
    )
    plan, factor = read_json(workspace / "run" / "plan.json"), SCALINGS[kind][1]
    bases = plan["methods"][1]["bases"]
    printed = next(text for text in said if f"scaling of positions, {kind}" in text)
    assert len(set(bases)) == GROUPS and min(bases) > 1e4 and plan["original_length"] == CONTEXT
    assert all(f"{base:,.0f}" in printed for base in bases) and (f"factor, {factor:.4g}, is kept" in printed) == (
        factor != 1
    )

    # the first loss that was logged is that of the checkpoint's weights, before any step, at the plan's bases
    frequencies = [[base ** (-2 * i / DIM) for i in range(DIM // 2)] for base in bases]
    data, log = (
        PackedDataset(workspace / "run" / "data" / str(TARGET)),
        read_jsonl(workspace / "run" / "harpe" / "stage-1" / "log.jsonl"),
    )
    batch = [data[i]["input_ids"] for i in range(2)]
    before = load_file(workspace / "scaled" / "model.safetensors")
    assert len(log) == 4 and log[0]["loss"] == pytest.approx(naive_loss(before, batch, frequencies, factor), abs=2e-5)
    others = [
        (frequencies[::-1], factor),
        ([frequencies[0]] * GROUPS, factor),
        ([[1e4 ** (-2 * i / DIM) for i in range(DIM // 2)]] * GROUPS, factor),
    ]
    others += [(frequencies, 1.0)] if factor != 1 else []
    # heads the other way round, one base, the trained base, no attention factor: all would be seen
    for wrong in others:
        assert abs(naive_loss(before, batch, *wrong) - log[0]["loss"]) > 1e-4

    # what was saved is what was trained, here and exported, and turns by those bases
    exported = export(ExportOptions(source=str(workspace / "run"), out=str(workspace / "out")))
    after = load_file(target / "model.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in after)
    for again in (load_model(target), AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)):
        assert again.config.rope_parameters["bases"] == bases and again.config.rope_parameters["rope_type"] == "harpe"
        assert again.config.rope_parameters.get("attention_factor", 1.0) == pytest.approx(factor)
        assert (again.config.max_position_embeddings, again.config.harpe_original_length) == (TARGET, CONTEXT)
        with torch.no_grad():
            assert torch.equal(again.eval()(probe).logits, trained[0])
    expected = naive_logits(after, probe[0], frequencies, factor)
    torch.testing.assert_close(trained[0][0].double(), expected, atol=2e-4, rtol=0)
