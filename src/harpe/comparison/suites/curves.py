"""Perplexity on further corpora (`harpe perplexity`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from harpe.comparison.suites.base import Measure, Measured, Subject, Suite, check_least, check_names, way_of
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.options.measuring import CurveTexts, PerplexityOptions
from harpe.options.recipe import ComparisonRecipe
from harpe.reporter import Reporter
from harpe.runs.source import Source
from harpe.runs.texts import held_out_texts
from harpe.suites.perplexity import measure_perplexity, parse_lengths

FIGURES = "-positions"
"""`harpe perplexity` writes NAME.svg and NAME-positions.svg."""
Corpora = dict[str, CurveTexts]


class Curves(Suite):
    """By the name of the corpus."""

    key = "perplexity"
    settings = Corpora
    default: ClassVar[Corpora] = {}
    pinned = "corpora"
    nothing: ClassVar[dict[str, Any]] = {}

    def check(self, of: Corpora, recipe: ComparisonRecipe, where: str) -> None:
        check_names(list(of), "a corpus (perplexity)", where)
        for name, each in of.items():
            if f"{name}{FIGURES}".casefold() in map(str.casefold, of):
                raise HarpeError(
                    f"{where} has the corpora {name} and {name}{FIGURES}, whose figures have one name; rename one of "
                    "them."
                )
            if (each.lengths is None) == (each.window is None):
                raise HarpeError(f"{where}: the corpus {name} needs either lengths or a window.")
            if each.lengths is not None:
                parse_lengths(each.lengths)
            elif not 1 <= each.stride < int(each.window or 0):
                raise HarpeError(f"{where}: the corpus {name} needs a stride of at least 1 and less than the window.")
            check_least([(f"documents of {name}", each.documents, 1)], where)

    def inputs(self, of: Corpora, recipe: ComparisonRecipe, source: Source, run: Path) -> Any:
        found = {}
        for name, each in of.items():
            texts = held_out_texts(each.data, source.tokenizer, _longest(each), each.documents, recipe.reading(each))
            found[name] = texts.identity()
        return found

    def facts(self, inputs: dict[str, str]) -> dict[str, Any]:
        return {f"texts of {name}": value for name, value in inputs.items()}

    def reads(self, of: Corpora) -> Mapping[int, int]:
        """Of corpora that are cut to lengths; how long whole documents are is not known before they are read."""
        found = Counter[int]()
        for each in of.values():
            if each.lengths is not None:
                found[_longest(each)] += _longest(each) * each.documents
        return found

    def score(self, of: Corpora, subject: Subject, scores: Path, reporter: Reporter) -> None:
        recipe = subject.recipe
        for name, each in of.items():
            if not (path := scores / f"curve-{name}.json").is_file():
                options = PerplexityOptions(
                    **vars(each),
                    model=subject.model,
                    out=str(path),
                    dtype=subject.dtype,  # type: ignore[arg-type]
                    revision=subject.revision,
                    tokenizer=recipe.tokenizer,
                    split_special_tokens=recipe.split_special_tokens,
                )
                measure_perplexity(options, reporter)

    def told(self, scores: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted(scores.glob("curve-*.json")):
            name, value = path.stem.removeprefix("curve-"), read_json(path)
            way = way_of(value.get("measurement"), f"perplexity on {name}")
            yield path, {f"texts of {name}": _texts_of(value), **way}

    def measures(self, scores: Path) -> Iterator[Measured]:
        for path in sorted(scores.glob("curve-*.json")):
            name, value = path.stem.removeprefix("curve-"), read_json(path)
            yield from (_prefixes if value["kind"] == "prefixes" else _windows)(name, value)

    def asked(self, of: Corpora) -> dict[str, str]:
        """By the longest length, which is there where the others are: names of corpora may begin alike."""
        return {f"curve-{name}-{_longest(each)}": f"perplexity on {name}" for name, each in of.items()}


def _longest(of: CurveTexts) -> int:
    """Tokens of the longest length, or of the window."""
    return parse_lengths(of.lengths)[-1] if of.lengths else int(of.window or 0)


def _texts_of(value: dict[str, Any]) -> str | None:
    """SHA-256 of the texts that a file of `harpe perplexity` is of, where it says so."""
    return value["measurement"].get("held_out") if isinstance(value.get("measurement"), dict) else None


def _prefixes(name: str, value: dict[str, Any]) -> Iterator[Measured]:
    texts, yarn = _texts_of(value) or "", value.get("average") == "yarn"
    for point in value["points"]:
        length, pairs = point["length"], zip(point["nll"], point["tokens"], strict=True)
        losses = [(total / weight, 1.0) if yarn else (total, weight) for total, weight in pairs]
        title = f"loss on {name} cut to {length:,} tokens"
        measure = Measure(f"curve-{name}-{length}", title, "nats", "lower", "perplexity", length=length)
        yield measure, [((texts, i), 0, total, weight) for i, (total, weight) in enumerate(losses)]


def _windows(name: str, value: dict[str, Any]) -> Iterator[Measured]:
    texts, yarn, window = _texts_of(value) or "", value.get("average") == "yarn", value["window"]
    title = f"loss on {name}, window {window:,}, stride {value['stride']}"
    measure = Measure(f"curve-{name}-{window}", title, "nats", "lower", "perplexity", length=window)
    documents = value["documents"]
    yield measure, [((texts, d["document"]), 0, *_window_loss(d["nll"], d["tokens"], yarn)) for d in documents]


def _window_loss(nll: Sequence[float], tokens: Sequence[int], yarn: bool) -> tuple[float, float]:
    """A document's total and weight: over tokens, or as YaRN's script has it, where every window counts the same."""
    if yarn:
        return sum(s / n for s, n in zip(nll, tokens, strict=True)), float(len(nll))
    return sum(nll), float(sum(tokens))
