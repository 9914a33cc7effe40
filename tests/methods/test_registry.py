"""Methods by name: their options, the paper's stages, the controls, and methods of other packages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harpe.errors import HarpeError
from harpe.methods import registry
from harpe.methods.registry import BUILT_IN, make_stages, method_named, methods
from harpe.methods.types import SelfExtend, Stage, per_head_encoding, shared_encoding, untrained
from harpe.positions.geometry import ModelGeometry

LLAMA2 = ModelGeometry("llama", 32, 32, 32, 128, 128, 4096, 10_000.0, 32_000)
TARGET = 131_072


def stages(name: str, length: int = TARGET, train: bool | None = None, **options: Any) -> list[Stage]:
    return make_stages(method_named(name), LLAMA2, length, options, train=train)


def test_the_default_stages_of_abf_are_the_papers() -> None:
    """Section 3 of paper.md: (1M, 32k), (2M, 64k), (5M, 128k)."""
    found = stages("abf-staged")
    assert [(stage.length, round(stage.encoding.bases[0], 3)) for stage in found] == [
        (32768, 1e6),
        (65536, 2e6),
        (131_072, 5e6),
    ]
    assert sum(stage.share for stage in found) == pytest.approx(1)
    assert stages("abf")[0].encoding.bases[0] == 5e6


def test_stages_not_longer_than_the_trained_context_are_left_out() -> None:
    assert [stage.length for stage in stages("abf-staged", 12_288)] == [6144, 12_288]


def test_given_stages_are_taken_as_they_are() -> None:
    given = [{"base": 1e6, "length": 32768, "share": 0.25}, {"base": 5e6, "length": TARGET, "share": 0.75}]
    assert [(s.encoding.bases[0], s.length, s.share) for s in stages("abf-staged", stages=given)] == [
        (1e6, 32768, 0.25),
        (5e6, TARGET, 0.75),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"base": 1e6, "length": 32768}], "end at the target"),
        ([{"base": 1e6, "length": 65536}, {"base": 1e6, "length": 32768}], "must grow"),
        ([{"base": 1e6, "length": TARGET, "share": 0.5}], "add up to 1"),
        ([{"base": 1e6, "size": TARGET}], "it takes base, length"),
        ([], "empty list"),
        ([{"base": None, "length": TARGET}], "base of stage 1 of abf-staged"),
        ([{"base": 1e6, "length": TARGET + 0.7}], "length of stage 1 of abf-staged"),
        ([{"base": 1e6, "length": TARGET, "share": "x"}], "share of stage 1 of abf-staged"),
    ],
)
def test_stages_that_cannot_be_are_refused(given: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        stages("abf-staged", stages=given)


@pytest.mark.parametrize(
    ("at", "base"), [("top", 5e6), ("middle", 3e6), ("geometric-middle", 5e12**0.5), ("bottom", 1e6)]
)
def test_controls_are_one_base_from_harpes_own_range(at: str, base: float) -> None:
    (stage,) = stages("one-base", at=at)
    assert stage.encoding.bases == pytest.approx((base,) * 32) and not stage.encoding.per_head
    assert stages("harpe")[0].encoding.bases[0] == 1e6 and stages("harpe")[0].encoding.bases[-1] == 5e6


def test_harpe_with_the_published_rule_has_table_2() -> None:
    found = stages("harpe", strategy="peak-valley", rule="published", stride=3e4, min=1e6, max=5e6)[0].encoding.bases
    assert [round(base / 1e6, 2) for base in found[:8]] == [1.00, 1.15, 1.30, 1.45, 2.17, 2.20, 2.23, 2.47]


def test_without_training_the_last_positions_are_kept() -> None:
    (stage,) = stages("abf-staged", train=False)
    assert stage.share == 0 and stage.encoding.bases[0] == pytest.approx(5e6)
    with pytest.raises(HarpeError, match="without training"):
        stages("none", train=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("yarm", {}, "Did you mean yarn"),
        ("pi", {"fcator": 2}, "Did you mean factor"),
        ("pi", {"min": 2}, "pi has no option min"),
        ("one-base", {"at": "left"}, "choose top, middle"),
        ("harpe", {"bounds": 3}, "has no option bounds"),
        ("abf", {"min": "low"}, "The option min of abf is 'low'"),
        ("abf", {"range": "wide"}, "choose critical, short, ntk"),
        ("pi", {"factor": "x"}, "The option factor of pi is 'x' and should be of type float"),
        ("harpe", {"stride": [1]}, "should be of type float"),
        ("harpe", {"strategy": "best"}, "choose .*peak-valley"),
        ("harpe", {"bases": 5}, "The option bases of harpe is 5"),
        ("abf-staged", {"stages": 3}, "The option stages of abf-staged is 3"),
        ("longrope", {"long_factor": "1"}, "The option long_factor"),
        ("self-extend", {"window": 1.5}, "should be of type int"),
        ("harpe", {"bases": [1e6] * 32, "strategy": "peak-valley"}, "bases that are given"),
        ("harpe", {"assignment": "adaptive"}, "measures the model"),
    ],
)
def test_wrong_names_get_a_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        stages(name, **options)


@pytest.mark.parametrize(
    "name",
    [
        "base-kept",
        "pi",
        "ntk",
        "ntk-dynamic",
        "yarn",
        "self-extend",
        "dca",
        "ms-poe",
        "rerope-parts",
        "self-extend-dynamic",
    ],
)
def test_methods_that_start_from_plain_positions_refuse_a_checkpoint_with_a_scaling(name: str) -> None:
    scaled = replace(LLAMA2, trained_angles=tuple(4096.0 * 10_000 ** (-i / 64) for i in range(64)))
    with pytest.raises(HarpeError, match="trained with one of its own, which would be lost"):
        make_stages(method_named(name), scaled, TARGET, {})
    for other in ("none", "harpe", "abf", "abf-staged", "one-base"):
        assert make_stages(method_named(other), scaled, TARGET, {})


class Point:
    """An entry point of another package."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.value, self.function = name, "package:function", function

    def load(self) -> Any:
        if isinstance(self.function, Exception):
            raise self.function
        return self.function


def others(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    monkeypatch.setattr(registry, "_points", lambda: points)
    methods.cache_clear()
    monkeypatch.setattr(registry, "methods", methods.__wrapped__)


def test_a_method_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(geometry: ModelGeometry, length: int, *, times: float = 2.0) -> list[Stage]:
        """Doubled base (nobody 2026)."""
        return [Stage(shared_encoding(times * geometry.base, geometry), length, 1.0)]

    others(monkeypatch, Point("doubled", doubled))
    assert stages("doubled", times=3)[0].encoding.bases[0] == 30_000
    assert method_named("doubled").source == "Doubled base (nobody 2026)."


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (Point("pi", lambda geometry, length: []), "name of another method"),
        (Point("broken", ImportError("no such thing")), "could not be loaded from package:function: no such thing"),
        (Point("empty", lambda geometry, length: []), "must return a list of Stage"),
        (
            Point("short", lambda geometry, length: untrained(shared_encoding(2e4, geometry), 64)),
            "must have the target's",
        ),
        (Point("half", lambda geometry, length: [Stage(shared_encoding(2e4, geometry), length, 0.5)]), "add up to 1"),
    ],
)
def test_a_bad_method_of_another_package_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, point: Point, message: str
) -> None:
    others(monkeypatch, point)
    with pytest.raises(HarpeError, match=message):
        stages(point.name)


def test_every_built_in_method_survives_json(tmp_path: Path) -> None:
    (tmp_path / "tables.json").write_text(json.dumps({"frequencies": [[0.5] * 64] * 32}))
    needs: dict[str, dict[str, Any]] = {
        "longrope": {"long_factor": [1.0] * 64},
        "self-extend": {"window": 2048, "group": 64},
        "layer-scale": {"first": 8.0, "last": 32.0},
        "rerope-parts": {"distances": [[float(head % 5) for head in range(32)]] * 32},
        "ms-poe": {"awareness": [[float(head % 5) for head in range(32)]] * 32},
        "tables": {"file": str(tmp_path / "tables.json")},
    }
    for method in BUILT_IN:
        for stage in stages(method.name, **needs.get(method.name, {})):
            assert Stage.from_dict(json.loads(json.dumps(stage.as_dict()))) == stage
    rows = per_head_encoding([[float(1e6 + i + layer) for i in range(32)] for layer in range(32)], LLAMA2)
    attention = untrained(shared_encoding(1e4, LLAMA2), TARGET)[0]
    for stage in (Stage(rows, TARGET, 1.0, "a note"), attention):
        assert Stage.from_dict(json.loads(json.dumps(stage.as_dict()))) == stage
    assert SelfExtend(2, 3) == SelfExtend(2, 3)
