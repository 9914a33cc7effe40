"""The values that methods produce and everything above them consumes.

RoPE (Su et al. 2021, arXiv 2104.09864) rotates pair i of a head's D rotary dimensions at position m by the angle m *
b^(-2i/D), i = 0 .. D/2 - 1. HARPE (Lian et al. 2024, arXiv 2412.07171) gives head h its own base b_h. Under
grouped-query attention a base belongs to a key/value head, and the query heads of its group share it: rotating q and
the shared k with different bases would make scores depend on absolute position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from harpe.errors import HarpeError
from harpe.positions.geometry import ModelGeometry


@dataclass(frozen=True)
class SelfExtend:
    """Exact positions within `window` tokens, floor-divided ones beyond (Jin et al. 2024, arXiv 2401.01325)."""

    window: int
    """Distance in tokens up to which positions are exact."""
    group: int
    """Tokens that share a position beyond it."""


@dataclass(frozen=True)
class DualChunk:
    """Positions that never pass the trained context: within a chunk, to the chunk before, and to all earlier ones (An
    et al. 2024, "Training-free long-context scaling of large language models", arXiv 2402.17463)."""

    chunk: int
    """Tokens of a chunk."""
    local: int
    """Tokens behind the end of a chunk that keep exact distances to it."""


@dataclass(frozen=True)
class DynamicSelfExtend:
    """Self-Extend with the smallest group by which the text fits the trained context, for every query by the length of
    the text up to it (after Jet-Long, arXiv 2607.07740)."""

    window: int
    """As in `SelfExtend`."""
    context: int
    """Trained context in tokens; up to it the group is 1, and positions are as they are."""


@dataclass(frozen=True)
class ReRoPE:
    """Distances above `window` become `window`, in some heads (ReRoPE: Su 2023, https://kexue.fm/archives/9708)."""

    window: int
    """The largest distance in tokens."""
    heads: tuple[tuple[int, ...], ...]
    """Numbers of the key/value heads of every layer that have it; the others have all distances as they are."""

    def __post_init__(self) -> None:
        """JSON has lists."""
        object.__setattr__(self, "heads", tuple(tuple(row) for row in self.heads))

    def __str__(self) -> str:
        return f"ReRoPE(window={self.window}, in {sum(map(len, self.heads))} heads)"


Remapped = SelfExtend | DynamicSelfExtend | DualChunk | ReRoPE
"""Positions changed inside the attention."""
REMAPPED: tuple[type[Remapped], ...] = (SelfExtend, DynamicSelfExtend, DualChunk, ReRoPE)

Table = tuple[tuple[float, ...], ...]
"""Inverse frequencies [key/value heads][pairs]; 0 for a pair that does not turn."""


@dataclass(frozen=True)
class Encoding:
    """Rotary positions of a model: one base per key/value head, or one base for all of them, a table of inverse
    frequencies for every head, or a stock rope type."""

    bases: tuple[float, ...]
    """One base per key/value head."""
    rotary_dim: int
    """Rotary dimensions of a head."""
    per_head: bool
    """False: all bases are equal, and the model stays a stock transformers model with that `rope_theta`."""
    layer_bases: tuple[tuple[float, ...] | None, ...] | None = None
    """One row of bases for every layer, where layers differ, None for a layer that keeps its positions; `bases` is then
    the first row."""
    tables: tuple[Table | None, ...] | None = None
    """Inverse frequencies in radians a position in the place of bases: one table for all layers, or one for every
    layer, None for a layer that keeps its positions. `bases` are then the trained one."""
    stock: dict[str, Any] | None = None
    """Parameters of transformers' rope types (`rope_type`, `rope_theta`, `factor` …); None: only the base changes."""
    attention: Remapped | None = None
    """Positions changed inside the attention instead (no training)."""
    attention_factor: float | tuple[float, ...] = 1.0
    """Multiplies queries and keys (cos and sin) beside what the checkpoint has: of all heads, or one per key/value
    head. Scores are multiplied by its square."""
    length_scale: float | tuple[float, ...] = 0.0
    """c of `with_length_scale`: of all heads, or one per key/value head; 0: queries as they are."""

    def describe(self) -> str:
        """In words, for plans and tables."""
        if isinstance(self.attention, ReRoPE):
            rest = replace(self, attention=None).describe()
            return f"ReRoPE, window {self.attention.window}, in {sum(map(len, self.attention.heads))} heads, on {rest}"
        if self.attention is not None:
            values = ", ".join(f"{name} {value}" for name, value in asdict(self.attention).items())
            return f"{type(self.attention).__name__}, {values}, on base {self.bases[0]:,.0f}"
        if self.stock is not None:
            shown = {
                k: v for k, v in self.stock.items() if k not in ("rope_type", "rope_theta") and not isinstance(v, list)
            }
            values = "".join(f", {name} {value:g}" for name, value in shown.items() if isinstance(value, int | float))
            return f"rope type {self.stock['rope_type']}{values}, on base {self.bases[0]:,.0f}{self._factors()}"
        if self.tables is not None:
            heads = {row for table in self.tables if table is not None for row in table}
            layers = ", by layer" if len(self.tables) > 1 else ""
            count = f"{len(heads)} tables" if len(heads) > 1 else "one table"
            return f"{count} of frequencies{layers}{self._factors()}"
        rows = self.layer_bases or (self.bases,)
        values_of = [base for row in rows if row is not None for base in row]
        factor = self._factors()
        if len(set(values_of)) == 1:
            return f"one base, {values_of[0]:,.0f}{factor}"
        layers = ", by layer" if self.layer_bases else ""
        return f"{len(set(values_of))} bases from {min(values_of):,.0f} to {max(values_of):,.0f}{layers}{factor}"

    def _factors(self) -> str:
        factor = _number_words("attention factor", self.attention_factor, 1.0)
        return factor + _number_words("length scale", self.length_scale, 0.0)


def _number_words(name: str, given: float | tuple[float, ...], nothing: float) -> str:
    values = given if isinstance(given, tuple) else (given,)
    if set(values) == {nothing}:
        return ""
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return f", {name} {low}" if low == high else f", {name}s from {low} to {high}"


AttentionFactor = float | Literal["yarn"] | Sequence[float]
"""An attention factor as methods take it: a number, YaRN's, or a number for every key/value head."""


LengthScale = float | Sequence[float]
"""A scale of queries by length as methods take it: a number, or a number for every key/value head."""


def with_attention_factor(
    encoding: Encoding, factor: AttentionFactor | None, geometry: ModelGeometry, scale: float
) -> Encoding:
    """The encoding with queries and keys multiplied; None: as it is.

    "yarn" is 0.1 ln s + 1 for the scale s, target over trained length (Peng et al. 2023, arXiv 2309.00071, eq. 22): the
    longer the text, the more tokens divide the attention, and the factor sharpens it again.

    Raises HarpeError for numbers that are not above 0, and for another count than there are key/value heads.
    """
    if factor is None:
        return encoding
    if factor == "yarn":
        factor = 0.1 * math.log(max(1.0, scale)) + 1
    values = _of_heads("attention_factor", factor, geometry)
    for value in values:
        if not math.isfinite(value) or value <= 0:
            raise HarpeError(f"attention_factor has {value:g}; it multiplies queries and keys and must be above 0.")
    return replace(encoding, attention_factor=values[0] if len(set(values)) == 1 else values)


def with_length_scale(encoding: Encoding, scale: LengthScale | None, geometry: ModelGeometry) -> Encoding:
    """The encoding with the n-th token's query multiplied by max(1, 1 + c (ln n / ln L0 - 1)) for `scale` c and the
    trained context L0; None: as it is.

    c = 1 is Entropy-ABF's max(1, ln n / ln L0) (Zhang et al. 2024, arXiv 2401.07004), the logits times s ln n of
    Scalable-Softmax (Nakanishi 2025, arXiv 2501.19399) with s = 1 / ln L0, from L0 on.

    Raises HarpeError for numbers below 0, and for another count than there are key/value heads.
    """
    if scale is None:
        return encoding
    values = _of_heads("length_scale", scale, geometry)
    for value in values:
        if not math.isfinite(value) or value < 0:
            raise HarpeError(f"length_scale has {value:g}; 0 leaves queries as they are, and none is below it.")
    return replace(encoding, length_scale=values[0] if len(set(values)) == 1 else values)


def with_factors(
    encoding: Encoding,
    attention_factor: AttentionFactor | None,
    length_scale: LengthScale | None,
    geometry: ModelGeometry,
    length: int,
) -> Encoding:
    """Both of them, for a target of `length` tokens."""
    scaled = with_attention_factor(encoding, attention_factor, geometry, length / geometry.original_length)
    return with_length_scale(scaled, length_scale, geometry)


def _of_heads(name: str, given: float | Sequence[float], geometry: ModelGeometry) -> tuple[float, ...]:
    """One number for all heads, or one for each."""
    if isinstance(given, int | float):
        return (float(given),)
    if len(given) != geometry.key_value_heads:
        raise HarpeError(
            f"{name} has {len(given)} numbers, and the model has {geometry.key_value_heads} key/value heads: give one "
            "for each of them, or one for all."
        )
    return tuple(float(value) for value in given)


def check_bases(bases: Sequence[float], heads: int | None = None, option: str = "--bases") -> tuple[float, ...]:
    """The bases as floats, after checking that each is finite and above 1 and that there is one for every key/value
    head.

    Raises HarpeError naming the offending base, or the number of heads, and the option.
    """
    values = tuple(float(base) for base in bases)
    for position, base in enumerate(values):
        if not math.isfinite(base) or base <= 1:
            raise HarpeError(f"Base {position} in {option} is {base}; a RoPE base must be a finite number above 1.")
    if heads is not None and len(values) != heads:
        raise HarpeError(
            f"{option} has {len(values)} bases, but the model has {heads} key/value heads; give one base for each of "
            "them."
        )
    return values


def per_head_encoding(bases: Sequence[float] | Sequence[Sequence[float] | None], geometry: ModelGeometry) -> Encoding:
    """An encoding with a base of its own for every key/value head (HARPE): one row for all layers, or a row for every
    layer.

    Layers that keep their positions (`geometry.changed_layers` lacks them) may have None for a row; theirs is not used.
    """
    if not any(isinstance(row, Sequence) for row in bases):
        return Encoding(
            check_bases(cast(Sequence[float], bases), geometry.key_value_heads), geometry.rotary_dim, per_head=True
        )
    if len(bases) != geometry.layers:
        raise HarpeError(
            f"--bases has rows for {len(bases)} layers, but the model has {geometry.layers}; give one row for each of "
            "them."
        )
    changed = range(geometry.layers) if geometry.changed_layers is None else geometry.changed_layers
    rows: list[tuple[float, ...] | None] = []
    for layer, row in enumerate(cast(Sequence[Sequence[float] | None], bases)):
        if row is None and layer in changed:
            raise HarpeError(
                f"--bases has no row for layer {layer}, whose positions change; only layers that keep theirs may have "
                "none."
            )
        rows.append(check_bases(row, geometry.key_value_heads) if row is not None and layer in changed else None)
    return Encoding(
        next(row for row in rows if row is not None), geometry.rotary_dim, per_head=True, layer_bases=tuple(rows)
    )


def table_encoding(tables: Sequence[Sequence[Sequence[float]] | None], geometry: ModelGeometry) -> Encoding:
    """An encoding with inverse frequencies [1 or layers][key/value heads][pairs], in radians a position; None for
    layers that keep their positions.

    Raises HarpeError for tables of another shape, and for frequencies that are not finite or below 0.
    """
    if len(tables) not in (1, geometry.layers):
        raise HarpeError(f"There are tables for {len(tables)} layers; give one for all {geometry.layers}, or for each.")
    changed = range(geometry.layers) if geometry.changed_layers is None else geometry.changed_layers
    heads, pairs, rows = geometry.key_value_heads, geometry.rotary_dim // 2, list[Table | None]()
    for layer, table in enumerate(tables):
        if len(tables) > 1 and (table is None or layer not in changed):
            if layer in changed:
                raise HarpeError(f"There is no table for layer {layer}, whose positions change.")
            rows.append(None)
            continue
        if table is None or len(table) != heads or any(len(row) != pairs for row in table):
            raise HarpeError(
                f"A table has {heads} heads of {pairs} pairs of dimensions; that of layer {layer} has not."
            )
        for value in (value for row in table for value in row):
            if not math.isfinite(value) or value < 0:
                raise HarpeError(f"A frequency of layer {layer} is {value}; it must be a number of 0 or above.")
        rows.append(tuple(tuple(float(value) for value in row) for row in table))
    return Encoding((geometry.base,) * heads, geometry.rotary_dim, per_head=True, tables=tuple(rows))


def shared_encoding(base: float, geometry: ModelGeometry) -> Encoding:
    """An encoding with one base for all heads (RoPE, ABF)."""
    (checked,) = check_bases((base,), option="--base")
    return Encoding((checked,) * geometry.key_value_heads, geometry.rotary_dim, per_head=False)


def check_unscaled(geometry: ModelGeometry, what: str) -> None:
    """Refuse a checkpoint that was trained with a scaling of its own, where a method starts from plain positions.

    Raises HarpeError naming the method.
    """
    if geometry.trained_angles is not None or geometry.attention_factor != 1.0:
        raise HarpeError(
            f"{what} starts from RoPE without a scaling, and this checkpoint was trained with one of its own, which "
            "would be lost. Use harpe or abf, whose bases follow from the angles that it was trained on."
        )


def stock_encoding(parameters: dict[str, Any], geometry: ModelGeometry) -> Encoding:
    """An encoding that is a rope type of transformers, on the model's own base unless `parameters` holds another
    `rope_theta`.

    Raises HarpeError for a checkpoint with a scaling of its own, and for numbers that make no positions.
    """
    check_unscaled(geometry, f"Rope type {parameters['rope_type']}")
    for name, given in parameters.items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, float) and not (math.isfinite(value) and value > 0):
                raise HarpeError(f"{name} of rope type {parameters['rope_type']} has {value:g}; give a number above 0.")
    if parameters.get("beta_slow", 0) >= parameters.get("beta_fast", math.inf):
        raise HarpeError(
            f"beta_fast is {parameters['beta_fast']:g} and beta_slow {parameters['beta_slow']:g}; the one must be "
            "above the other."
        )
    stock = {"rope_theta": geometry.base, **parameters}
    return replace(shared_encoding(stock["rope_theta"], geometry), stock=stock)


@dataclass(frozen=True)
class Stage:
    """One stretch of training."""

    encoding: Encoding
    length: int
    """Sequence length in tokens."""
    share: float
    """Share of the token budget, 0..1; the shares of a method's stages add up to 1. A single stage of share 0 is not
    trained."""
    note: str = ""
    """How its values were chosen, for plans."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        attention = self.encoding.attention
        kind = None if attention is None else {"kind": type(attention).__name__, **asdict(attention)}
        return {
            "encoding": {**asdict(self.encoding), "attention": kind},
            "length": self.length,
            "share": self.share,
            "note": self.note,
        }

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Stage:
        """The stage that `as_dict` wrote."""
        encoding = dict(value["encoding"])
        encoding["bases"] = tuple(encoding["bases"])
        rows = encoding["layer_bases"]
        if encoding.get("tables") is not None:
            encoding["tables"] = tuple(
                None if table is None else tuple(tuple(row) for row in table) for table in encoding["tables"]
            )
        for name in ("attention_factor", "length_scale"):
            if isinstance(encoding.get(name), list):
                encoding[name] = tuple(encoding[name])
        encoding["layer_bases"] = None if rows is None else tuple(None if row is None else tuple(row) for row in rows)
        if encoding["attention"] is not None:
            fields, kinds = dict(encoding["attention"]), {cls.__name__: cls for cls in REMAPPED}
            encoding["attention"] = cast(Any, kinds[fields.pop("kind")])(**fields)
        return Stage(Encoding(**encoding), int(value["length"]), float(value["share"]), str(value["note"]))


def untrained(encoding: Encoding, length: int) -> list[Stage]:
    """An encoding that is put into the model as it is."""
    return [Stage(encoding, length, share=0.0)]
