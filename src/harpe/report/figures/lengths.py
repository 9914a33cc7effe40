"""Documents by their length: the share of the tokens, and the number of documents, in bins by powers of two."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup, escape

from harpe.data.description import DocumentLengths, LengthBin
from harpe.report.figures.plot import Plot, even_ticks, linear, logarithmic, plain_ticks, powers_of_two, short_number

WIDTH, HEIGHT = 1120, 290
LABELLED = 20
"""More bins than this have no room for a number over each."""


def token_histogram(lengths: DocumentLengths, sequence: int) -> Markup:
    """The share of the tokens by the length of their documents.

    Parameters
    ----------
    sequence
        Tokens of a sequence, which a dotted line marks where a bin begins or ends near it.
    """
    top = max(b.share for b in lengths.bins)
    ticks = plain_ticks(0, top, "%", 100)
    return _bars(
        "Share of the tokens by the length of their documents.",
        lengths,
        sequence,
        ticks,
        lambda b: b.share,
        lambda b: f"{b.share:.1%}",
        "share of the tokens",
    )


def document_histogram(lengths: DocumentLengths, sequence: int) -> Markup:
    """The number of documents by their length; as `token_histogram`."""
    top = max(b.documents for b in lengths.bins)
    ticks = {at: words for at, words in even_ticks(0, top).items() if at == int(at)}
    return _bars(
        "Number of documents by their length.",
        lengths,
        sequence,
        ticks,
        lambda b: b.documents,
        lambda b: short_number(b.documents),
        "documents",
    )


def bin_words(b: LengthBin) -> str:
    """A bin in a line."""
    return f"{b.first:,} to {b.last:,} tokens: {b.documents:,} documents, {b.tokens:,} tokens, {b.share:.2%} of all"


def _bars(
    label: str,
    lengths: DocumentLengths,
    sequence: int,
    ticks: dict[float, str],
    value: Callable[[LengthBin], float],
    words: Callable[[LengthBin], str],
    name: str,
) -> Markup:
    bins = lengths.bins
    first, end = bins[0].first, bins[-1].last + 1
    plot = Plot(label, WIDTH, HEIGHT, (64, 32, WIDTH - 40, HEIGHT - 52), "wide")
    x = logarithmic(first, end, plot.left, plot.right)
    y = linear(0, max(map(value, bins)), plot.bottom, plot.top + 34)
    plot.axes(x, powers_of_two(first, end, 8), y, ticks, "tokens of the document", name)
    plot.add('<g class="m-a">')
    for b in bins:
        left, right, height = x(b.first) + 1.5, x(b.last + 1) - 1.5, plot.bottom - y(value(b))
        if not b.documents:
            continue
        height = max(height, 2.5)  # what is there is seen
        plot.add(
            f'<rect x="{left:.1f}" y="{plot.bottom - height:.1f}" width="{right - left:.1f}" height="{height:.1f}" '
            f'class="tip fill"><title>{escape(bin_words(b))}</title></rect>'
        )
        if len(bins) <= LABELLED:
            plot.text((left + right) / 2, plot.bottom - height - 5, words(b), "t small halo")
    plot.add("</g>")
    if first <= sequence <= end:
        at = x(sequence)
        side, anchor = (6, "start") if at < (plot.left + plot.right) / 2 else (-6, "end")
        plot.line(at, plot.top, at, plot.bottom, "limit")
        plot.text(at + side, plot.top + 9, "one sequence", "t small halo", anchor)
    return plot.svg()
