"""`harpe perplexity`: prefix curves and sliding windows of one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harpe.errors import HarpeError
from harpe.evaluation.curves import prefix_curve, prefix_record, window_curve, window_totals
from harpe.evaluation.run import HeldOut
from harpe.experiment.evaluation_options import PerplexityOptions
from harpe.experiment.overlap import training_overlap
from harpe.experiment.reporter import Reporter
from harpe.experiment.texts import held_out_texts
from harpe.files import append_jsonl, recover_jsonl, write_json, write_text
from harpe.models.dtype import choose_dtype
from harpe.models.load import check_vocabulary, load_config, load_model, load_tokenizer, to_accelerator
from harpe.report.perplexity_figures import perplexity_figures


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
    """Measure what `options` asks for; returns the file. Records of documents that lie beside it are not measured again.

    Raises
    ------
    HarpeError
        For bad options or input, before any model is loaded; where the records beside the file are of another measurement.
    """
    reporter = reporter or Reporter()
    if options.server is not None:
        raise HarpeError(
            "--server: perplexity needs the probability of every token that the model reads, and servers give text. Leave --server out: "
            "the model then runs in this process. `harpe ruler` can ask a server."
        )
    if (options.lengths is None) == (options.window is None):
        raise HarpeError("Give either --lengths (documents cut to each length) or --window (a window that slides over whole documents).")
    path = Path(options.out)
    if path.suffix != ".json":
        raise HarpeError(f"--out {options.out} must end in .json; its records and figures are written beside it.")
    lengths = parse_lengths(options.lengths) if options.lengths else []
    tokenizer = load_tokenizer(options.tokenizer or options.model, options.revision if options.tokenizer is None else None)
    check_vocabulary(load_config(options.model, options.revision), tokenizer, options.model)
    longest = lengths[-1] if lengths else int(options.window or 0)
    held_out = held_out_texts(options.data, tokenizer, longest, options.documents, text_field=options.text_field)
    bos = tokenizer.bos_token_id if options.average == "yarn" else None
    documents = held_out.haystacks if bos is not None else held_out.documents
    rows, dtype, reason = _begun(path.with_suffix(".jsonl"), _protocol(options, held_out, lengths, bos), options.dtype, reporter)
    reporter.say(f"{len(documents)} documents of more than {longest} tokens. Arithmetic in {reason}.")
    if len(rows) < len(documents):
        model = to_accelerator(load_model(options.model, torch.float32, options.revision)).eval()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            for ids in documents[len(rows) :]:
                if lengths:
                    record = prefix_record(model, ids, lengths, bos)
                else:
                    totals = window_totals(model, ids, int(options.window or 0), options.stride, bos)
                    record = {"nll": [s for s, _ in totals], "tokens": [n for _, n in totals]}
                rows.append({"document": len(rows), **record})
                append_jsonl(path.with_suffix(".jsonl"), rows[-1])
                reporter.progress("perplexity", len(rows), len(documents))
    value: dict[str, Any] = {"model": Path(options.model).name, "data": held_out.description, "average": options.average, "dtype": dtype}
    if lengths:
        value |= {"kind": "prefixes", **prefix_curve(rows, lengths, options.average)}
    else:
        value |= {"kind": "windows", "window": options.window, "stride": options.stride}
        value |= window_curve(rows, int(options.window or 0), options.stride, options.average, bos is not None) | {"documents": rows}
    write_json(path, value | {"overlap": training_overlap(options.model, tokenizer, held_out, reporter)})
    written = [path]
    for ending, figure in perplexity_figures(value).items():
        written.append(path.with_name(f"{path.stem}{ending}.svg"))
        write_text(written[-1], figure)
    reporter.say(f"Written: {', '.join(map(str, written))}")
    return path


def _protocol(options: PerplexityOptions, held_out: HeldOut, lengths: list[int], bos: int | None) -> dict[str, Any]:
    """What records depend on, but for the dtype; the weights of a local folder by the names, sizes and times of their files."""
    folder, files = Path(options.model), []
    if folder.is_dir():
        files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.glob("*.safetensors"))]
    name = str(folder.absolute()) if folder.is_dir() else options.model
    of = {"lengths": lengths} if lengths else {"window": options.window, "stride": options.stride}
    return {"model": name, "revision": options.revision, "weights": files, "held_out": held_out.identity(), **of, "bos": bos}


def _begun(path: Path, protocol: dict[str, Any], wanted: str, reporter: Reporter) -> tuple[list[dict[str, Any]], str, str]:
    """The documents' records that are there, the dtype of the arithmetic and why. The file's first line holds the protocol."""
    rows = recover_jsonl(path, reporter.say)
    if not rows:
        dtype, reason = choose_dtype(wanted)
        append_jsonl(path, {"protocol": protocol, "dtype": dtype})
        return [], dtype, reason
    first = rows[0]
    if first.get("protocol") != protocol or wanted not in ("auto", first["dtype"]):
        raise HarpeError(
            f"{path} holds records of another model, other texts or other options (see its first line). Delete it to measure again, or "
            "name another file with --out."
        )
    reporter.say(f"Going on behind the {len(rows) - 1} documents that {path} holds.")
    return rows[1:], str(first["dtype"]), f"{first['dtype']}, in which this measurement began"
