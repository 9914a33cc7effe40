"""The figures of `harpe perplexity` as SVG files that stand on their own, drawn from the JSON object that it writes.

Two kinds of measurement that are not comparable; every figure shows one of them and says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harpe.report.figures.base_sets import OURS, as_file
from harpe.report.figures.plot import Plot, Scale, linear, logarithmic, plain_ticks, powers_of_two, quarters

ENDINGS = ("", "-positions", "-key-tokens")
"""Of the names of figures."""


def perplexity_figures(value: dict[str, Any]) -> dict[str, str]:
    """Figures by the ending of their file's name: "" perplexity by length (prefixes alone), "-positions" loss,
    "-key-tokens" that of key tokens, where there are any."""
    figures = {"-positions": by_position(value, value["positions"], kind_in_words(value))}
    if (keys := value.get("key_tokens")) and keys["positions"]:
        words = f"tokens that need more than {keys['short_context']:,} tokens before them; judge: {keys['judge']}"
        figures["-key-tokens"] = by_position(value, keys["positions"], words)
    return {"": by_length(value), **figures} if value["kind"] == "prefixes" and len(value["points"]) > 1 else figures


def kind_in_words(value: dict[str, Any]) -> str:
    """What was measured, for the figure."""
    if value["kind"] == "prefixes":
        return "documents from their start, each token behind everything before it"
    return f"sliding window of {value['window']:,} tokens, stride {value['stride']:,}"


def _curve(plot: Plot, x: Scale, y: Scale, rows: Sequence[tuple[float, float, float, float]]) -> None:
    """A line with its band through rows of (x, value, low, high), with a point for each where they are few."""
    edge = [(x(at), y(high)) for at, _, _, high in rows] + [(x(at), y(low)) for at, _, low, _ in reversed(rows)]
    plot.path(edge, "area", f"fill:{OURS}", closed=True)
    plot.path([(x(at), y(value)) for at, value, _, _ in rows], "curve", f"stroke:{OURS}")
    if len(rows) <= 64:
        for at, value, _, _ in rows:
            plot.mark(x(at), y(value), "circle", "dot", f"fill:{OURS}", 3.4)


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = 0.08 * (high - low) or 0.05 * abs(high) or 0.1
    return low - spare, high + spare


def _heading(plot: Plot, value: dict[str, Any], what: str, second: str) -> None:
    plot.text(plot.left, 20, f"{value['model']}: {what}", "t name", "start")
    plot.text(plot.left, 38, second, "t small", "start")


def by_length(value: dict[str, Any]) -> str:
    """Perplexity of documents cut to each length."""
    points = value["points"]
    last = points[-1]
    label = f"Perplexity of documents cut to {points[0]['length']:,} to {last['length']:,} tokens, "
    label += f"{last['perplexity']:.4g} at the longest."
    plot = Plot(label, 760, 380, (70, 80, 738, 322))
    rows = [(float(p["length"]), p["perplexity"], p["low"], p["high"]) for p in points]
    low, high = _room([bound for _, _, *bounds in rows for bound in bounds])
    x, y = linear(0, last["length"], plot.left, plot.right), linear(low, high, plot.bottom, plot.top)
    ticks = plain_ticks(low, high)
    plot.axes(x, quarters(last["length"]), y, ticks, "tokens that documents are cut to", "perplexity")
    _curve(plot, x, y, rows)
    way = "over tokens" if value["average"] == "tokens" else "as YaRN's script does, over documents"
    _heading(
        plot,
        value,
        kind_in_words(value),
        f"averaged {way}; band: 95% interval, bootstrap over {len(last['nll'])} documents",
    )
    return as_file(plot)


def by_position(value: dict[str, Any], positions: Sequence[dict[str, Any]], what: str) -> str:
    """Loss of the tokens by where they stand in their document, as far as at least half of the documents go.

    `what` says of which tokens."""
    most = max(b["documents"] for b in positions)
    bins = [b for b in positions if 2 * b["documents"] >= most]
    whole = value["kind"] == "prefixes"
    last = bins[-1]
    where = f"positions {last['start']:,} to {last['end']:,}"
    label = f"Loss by position, {what}: {last['nll']:.4g} nats a token at {where}."
    plot = Plot(label, 760, 380, (70, 80, 738, 322))
    end = float(last["end"])
    if whole:
        middles = [(max(b["start"], 1) * b["end"]) ** 0.5 for b in bins]
        x, ticks = logarithmic(max(bins[0]["start"], 1), end, plot.left, plot.right), powers_of_two(0, end, 9)
    else:
        middles = [(b["start"] + b["end"]) / 2 for b in bins]
        x, ticks = linear(0, end, plot.left, plot.right), quarters(end)
    rows = [(at, b["nll"], b["low"], b["high"]) for at, b in zip(middles, bins, strict=True)]
    low, high = _room([bound for _, _, *bounds in rows for bound in bounds])
    y = linear(low, high, plot.bottom, plot.top)
    plot.axes(x, ticks, y, plain_ticks(low, high), "position", "")
    plot.text(plot.left, plot.top - 12, "loss (nats a token)", "t name", "start")
    _curve(plot, x, y, rows)
    few = min(b["documents"] for b in bins)
    count = f"{most}" if few == most else f"{few} to {most}"
    _heading(plot, value, what, f"averaged over tokens; band: 95% interval, bootstrap over {count} documents")
    return as_file(plot)
