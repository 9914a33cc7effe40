"""`harpe perplexity`: prefix curves and sliding windows of one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harpe.errors import HarpeError
from harpe.evaluation.curves import perplexity, prefix_curve, window_totals
from harpe.evaluation.statistics import weighted_mean
from harpe.experiment.evaluation_options import PerplexityOptions
from harpe.experiment.reporter import Reporter
from harpe.experiment.texts import held_out_texts
from harpe.files import write_json
from harpe.models.dtype import choose_dtype
from harpe.models.load import check_vocabulary, load_config, load_model, load_tokenizer, to_accelerator


def parse_lengths(text: str) -> list[int]:
    """Lengths out of `FIRST:LAST:STEP` or `A,B,C`, ascending.

    Raises
    ------
    HarpeError
        For anything else, and for lengths below two tokens.
    """
    try:
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            lengths = list(range(first, last + 1, step))
        else:
            lengths = sorted({int(part) for part in text.replace(",", " ").split()})
    except ValueError as error:
        raise HarpeError(f"--lengths {text} is neither FIRST:LAST:STEP nor numbers with commas between them.") from error
    if not lengths or lengths[0] < 2:
        raise HarpeError(f"--lengths {text} holds no length of at least two tokens.")
    return lengths


def measure_perplexity(options: PerplexityOptions, reporter: Reporter | None = None) -> Path:
    """Measure what `options` asks for; returns the file.

    Raises
    ------
    HarpeError
        For bad options or input, before any model is loaded.
    """
    reporter = reporter or Reporter()
    if options.server is not None:
        raise HarpeError(
            "--server: perplexity needs the probability of every token that the model reads, and servers give text. Leave --server out: "
            "the model then runs in this process. `harpe ruler` can ask a server."
        )
    if (options.lengths is None) == (options.window is None):
        raise HarpeError("Give either --lengths (documents cut to each length) or --window (a window that slides over whole documents).")
    lengths = parse_lengths(options.lengths) if options.lengths else []
    tokenizer = load_tokenizer(options.tokenizer or options.model, options.revision if options.tokenizer is None else None)
    check_vocabulary(load_config(options.model, options.revision), tokenizer, options.model)
    longest = lengths[-1] if lengths else int(options.window or 0)
    held_out = held_out_texts(options.data, tokenizer, longest, options.documents, text_field=options.text_field)
    bos = tokenizer.bos_token_id if options.average == "yarn" else None
    documents = held_out.haystacks if bos is not None else held_out.documents
    dtype, reason = choose_dtype(options.dtype)
    reporter.say(f"{len(documents)} documents of more than {longest} tokens. Arithmetic in {reason}.")
    model = to_accelerator(load_model(options.model, torch.float32, options.revision)).eval()
    value: dict[str, Any] = {"model": Path(options.model).name, "data": held_out.description, "average": options.average, "dtype": dtype}
    rows: list[dict[str, Any]] = []
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        for done, ids in enumerate(documents, 1):
            if lengths:
                rows.append({"document": done - 1, "points": prefix_curve(model, [ids], lengths, options.average, bos)})
            else:
                totals = window_totals(model, ids, int(options.window or 0), options.stride, bos)
                rows.append({"document": done - 1, "nll": [s for s, _ in totals], "tokens": [n for _, n in totals]})
            reporter.progress("perplexity", done, len(documents))
    if lengths:
        value |= {"kind": "prefixes", "points": [_point(rows, i, n, options) for i, n in enumerate(lengths)]}
    else:
        sums, counts = [s for r in rows for s in r["nll"]], [n for r in rows for n in r["tokens"]]
        value |= {"kind": "windows", "window": options.window, "stride": options.stride}
        value |= {"perplexity": perplexity(sums, counts, options.average), "tokens": sum(counts), "documents": rows}
    path = Path(options.out)
    write_json(path, value)
    reporter.say(f"The figures are in {path}.")
    return path


def _point(rows: list[dict[str, Any]], i: int, length: int, options: PerplexityOptions) -> dict[str, Any]:
    """One length: perplexity, by tokens with a bootstrap over documents."""
    sums, counts = [r["points"][i]["nll"][0] for r in rows], [r["points"][i]["tokens"][0] for r in rows]
    point: dict[str, Any] = {"length": length, "perplexity": perplexity(sums, counts, options.average)}
    weights = counts if options.average == "tokens" else [1] * len(counts)
    mean = weighted_mean(sums if options.average == "tokens" else [s / n for s, n in zip(sums, counts, strict=True)], weights)
    ends = torch.tensor([mean.low, mean.high], dtype=torch.float64).exp().tolist()
    return point | {"low": ends[0], "high": ends[1], "nll": sums, "tokens": counts}
