"""PI, NTK, YaRN, LongRoPE: what a changed model rotates by is what their authors' formulas give, and what stock
transformers gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.test_families import rotary_of
from tests.models.tiny_families import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from harpe.errors import HarpeError
from harpe.methods.registry import make_stages, method_named
from harpe.models.apply import apply_encoding
from harpe.models.geometry import read_geometry

SHORT, LONG, BASE, HEAD = 128, 1024, 10_000.0, 16
FACTORS = [1.0, 1.1, 1.3, 1.7, 2.5, 4.0, 7.0, 8.0]


def changed(make_tiny: Any, name: str, **options: Any) -> Any:
    """A tiny Llama after the method, and the original's geometry."""
    model = make_tiny("llama", max_position_embeddings=SHORT)
    geometry = read_geometry(model.config, "tiny")
    (stage,) = make_stages(method_named(name), geometry, LONG, options)
    return apply_encoding(model, stage.encoding, geometry, LONG)


def frequencies(model: Any, length: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and the factor on cos and sin after a forward pass over `length` tokens, read from the angles
    themselves."""
    rotary = model.model.rotary_emb
    cos, _ = rotary(torch.zeros(1, dtype=torch.float32), torch.arange(length)[None])
    return rotary.inv_freq.double().numpy(), float(cos[0, 0, 0])


def plain(base: float = BASE) -> np.ndarray:
    return base ** (-np.arange(0, HEAD, 2) / HEAD)


def yarn_reference(scale: float) -> np.ndarray:
    """YaRN, sections 3.2 and 3.4, pair by pair: r = L / wavelength turns; the ramp in the pairs' numbers as the
    authors' program has it."""

    def pair_of(turns: float) -> float:
        return HEAD * math.log(SHORT / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = max(math.floor(pair_of(32)), 0), min(math.ceil(pair_of(1)), HEAD - 1)
    found = []
    for i, frequency in enumerate(plain()):
        ramp = min(max((i - low) / ((high - low) or 0.001), 0.0), 1.0)
        found.append(frequency * (1 - ramp) + frequency / scale * ramp)
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "options", "wanted", "factor"),
    [
        ("pi", {}, plain() / 8, 1.0),
        ("pi", {"factor": 4.0}, plain() / 4, 1.0),
        ("ntk", {}, plain(BASE * 8 ** (HEAD / (HEAD - 2))), 1.0),
        ("abf", {"base": 5e5}, plain(5e5), 1.0),
        ("base-kept", {}, plain(), 1.0),
        ("ntk-dynamic", {}, plain(BASE * (8 * 8 - 7) ** (HEAD / (HEAD - 2))), 1.0),
        ("ntk-dynamic", {"factor": 1.0}, plain(BASE * 8 ** (HEAD / (HEAD - 2))), 1.0),
        ("yarn", {}, yarn_reference(8.0), 0.1 * math.log(8) + 1),
        (
            "longrope",
            {"long_factor": FACTORS},
            plain() / np.array(FACTORS),
            math.sqrt(1 + math.log(8) / math.log(SHORT)),
        ),
    ],
)
def test_a_changed_model_turns_by_the_authors_formula(
    make_tiny: Any, name: str, options: dict[str, Any], wanted: np.ndarray, factor: float
) -> None:
    found, scaling = frequencies(changed(make_tiny, name, **options), LONG)
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    assert scaling == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("family", ["gpt_neox", "glm", "nemotron"])
@pytest.mark.parametrize("name", ["pi", "ntk", "ntk-dynamic", "yarn", "longrope"])
def test_heads_that_rotate_in_part_turn_by_the_formula_over_that_part(family: str, name: str) -> None:
    model = tiny(family)
    geometry = read_geometry(model.config, "tiny")
    pairs, old = geometry.rotary_dim // 2, read_geometry(model.config, "tiny").original_length
    long_factor = [1.0 + pair for pair in range(pairs)]
    options = {"long_factor": long_factor} if name == "longrope" else {}
    (stage,) = make_stages(method_named(name), geometry, 8 * old, options)
    with torch.no_grad():
        rotary = rotary_of(apply_encoding(model, stage.encoding, geometry, 8 * old))
        cos, sin = rotary(torch.zeros(1, 8 * old, 8), torch.arange(8 * old)[None])
    base, width = geometry.base, 2 * pairs
    exponents = np.arange(0, width, 2) / width
    wanted = {
        "pi": base**-exponents / 8,
        "ntk": (base * 8 ** (width / (width - 2))) ** -exponents,
        "ntk-dynamic": (base * (8 * 8 - 7) ** (width / (width - 2))) ** -exponents,
        "longrope": base**-exponents / np.array(long_factor),
    }
    if name in wanted:
        np.testing.assert_allclose(rotary.inv_freq.double().numpy(), wanted[name], rtol=2e-6)
    factor = {"yarn": 0.1 * math.log(8) + 1, "longrope": math.sqrt(1 + math.log(8) / math.log(old))}.get(name, 1.0)
    assert float(cos[0, 0, 0]) == pytest.approx(factor, rel=1e-6) and float(sin[0, 0, 0]) == 0


@pytest.mark.parametrize(
    ("name", "options", "stock"),
    [
        ("pi", {}, {"rope_type": "linear", "factor": 8.0}),
        ("ntk-dynamic", {}, {"rope_type": "dynamic", "factor": 8.0}),
        ("yarn", {}, {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": SHORT}),
        (
            "longrope",
            {"long_factor": FACTORS},
            {
                "rope_type": "longrope",
                "factor": 8.0,
                "long_factor": FACTORS,
                "short_factor": [1.0] * 8,
                "original_max_position_embeddings": SHORT,
            },
        ),
    ],
)
def test_a_changed_model_gives_the_logits_of_a_stock_model_made_with_that_rope_type(
    make_tiny: Any, name: str, options: dict[str, Any], stock: dict[str, Any]
) -> None:
    model = changed(make_tiny, name, **options)
    fields = {
        key: value
        for key, value in make_tiny("llama").config.to_dict().items()
        if key not in ("rope_parameters", "dtype")
    }
    limit = SHORT if name == "ntk-dynamic" else LONG
    other = LlamaForCausalLM(
        LlamaConfig(**{**fields, "max_position_embeddings": limit}, rope_parameters={"rope_theta": BASE, **stock})
    )
    other.load_state_dict(model.state_dict())
    ids = torch.randint(0, 97, (1, 300), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, other.eval()(ids).logits, atol=0, rtol=0)


def test_dynamic_ntk_leaves_short_texts_as_they_were(make_tiny: Any) -> None:
    stock, ids = make_tiny("llama", max_position_embeddings=SHORT), torch.arange(90)[None]
    model = changed(make_tiny, "ntk-dynamic")
    with torch.no_grad():
        model(torch.randint(0, 97, (1, 500)))  # grows, and shrinks back
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, atol=0, rtol=0)


def test_longrope_wants_a_factor_for_every_pair(make_tiny: Any) -> None:
    with pytest.raises(HarpeError, match="has 3 values; the model has 8 pairs"):
        changed(make_tiny, "longrope", long_factor=[1.0, 2.0, 3.0])
    with pytest.raises(HarpeError, match="needs the option long_factor"):
        changed(make_tiny, "longrope")


def test_scaling_below_one_is_refused(make_tiny: Any) -> None:
    with pytest.raises(HarpeError, match="scaled by 1 or more"):
        changed(make_tiny, "pi", factor=0.5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("yarn", {"attention_factor": 0}, "attention_factor of rope type yarn has 0"),
        ("yarn", {"attention_factor": -1.0}, "attention_factor of rope type yarn has -1"),
        ("yarn", {"attention_factor": math.nan}, "attention_factor of rope type yarn has nan"),
        ("yarn", {"factor": math.nan}, "The factor is nan"),
        ("yarn", {"beta_fast": 1, "beta_slow": 32}, "above the other"),
        ("yarn", {"beta_slow": 0}, "beta_slow of rope type yarn has 0"),
        ("pi", {"factor": math.inf}, "The factor is inf"),
        ("ntk-dynamic", {"factor": math.nan}, "The factor is nan"),
        ("mrrope", {"factor": math.inf}, "The factor is inf"),
        ("longrope", {"long_factor": [1.0] * 7 + [math.nan]}, "long_factor of rope type longrope has nan"),
        ("longrope", {"long_factor": FACTORS, "attention_factor": -2}, "attention_factor of rope type longrope"),
        ("harpe-parts", {"low": 0}, "exponents from 0 to 6"),
    ],
)
def test_numbers_that_make_no_positions_are_refused(make_tiny: Any, name: str, options: Any, words: str) -> None:
    with pytest.raises(HarpeError, match=words):
        changed(make_tiny, name, **options)
