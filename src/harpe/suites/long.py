"""`harpe long`: long-context tasks whose samples are made here, and the answers of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harpe.data.chat import ChatTemplate
from harpe.data.token_ids import plain_ids, text_ids
from harpe.distributed.processes import is_first
from harpe.errors import HarpeError
from harpe.evaluation.answers import scored
from harpe.evaluation.long.filler import essays, noise
from harpe.evaluation.long.generate import samples
from harpe.evaluation.long.registry import CHAT, SUITES, TASKS, chosen
from harpe.evaluation.long.ruler2.data import Ruler2Data
from harpe.evaluation.long.ruler2.tasks import Ruler2Task
from harpe.evaluation.long.task import AtLength, LongTask, set_name
from harpe.evaluation.ruler.counting import TokenCounter
from harpe.evaluation.ruler.sources import DataFolder
from harpe.files import sha256_json
from harpe.models.geometry import text_config
from harpe.models.load import load_config
from harpe.options.measuring import LongSamples
from harpe.report.figures.long_scores import long_figure
from harpe.reporter import Reporter
from harpe.runs.length_scores import AnsweredTask, Samples, of_one_model
from harpe.suites.asking import Asking
from harpe.suites.perplexity import parse_lengths
from harpe.suites.samples import ask, server_of, tokenizer_for

Rows = list[dict[str, Any]]


def run_long(options: LongSamples, reporter: Reporter | None = None) -> Path:
    """Make the samples that `options` asks for, and where it names a model have them answered and write the scores;
    returns the folder.

    Raises HarpeError for unknown tasks, lengths that a task cannot be made with or that the model was not made for,
    missing essays or questions, and a folder that holds something else.
    """
    reporter = reporter or Reporter()
    tasks = chosen(names := options.tasks.replace(",", " ").split())
    lengths = parse_lengths(options.lengths)
    if options.samples < 1:
        raise HarpeError(f"--samples {options.samples}: at least one sample of each task has to be asked.")
    server = server_of(options)
    tokenizer = tokenizer_for(options)
    trained = _trained_length(options)
    filler = noise() if options.filler == "noise" else essays(DataFolder(options.data))
    chat = _chat_format(options, names, tokenizer)
    some = "a" if chat is None else chat("a")  # a chat format may spell what texts begin with
    count, begin = TokenCounter(tokenizer), len(text_ids(tokenizer, some)) - len(plain_ids(tokenizer, some))

    def back(words: str) -> str:
        return str(tokenizer.decode(plain_ids(tokenizer, words), skip_special_tokens=True))

    questions = Ruler2Data(options.data)
    notes = [note for task in tasks if isinstance(task, Ruler2Task) for note in task.check(questions)]
    for note in dict.fromkeys(notes if is_first() else []):
        reporter.say(note)

    def text(name: str) -> str:
        task, length = _named(name)
        asked = options.samples, options.seed, count
        if isinstance(task, Ruler2Task):
            rows = task.samples(length, *asked, questions, begin, back, chat)
        else:
            rows = samples(AtLength(task, length), *asked, filler, begin, back, chat)
        return "".join(json.dumps(row) + "\n" for row in rows)

    around = count(some) - count("a")  # tokens of the chat format, which a published length leaves out

    def taken(task: LongTask | Ruler2Task) -> int:
        return task.whole(lengths[-1], begin) + around * isinstance(task, Ruler2Task)

    longest = max(tasks, key=taken)
    whole, told = taken(longest), f"--lengths {lengths[-1]}"
    if whole > lengths[-1]:
        told += f" with an answer of {longest.name} behind it, {whole} tokens,"
    asking = Asking(
        verb="long",
        title="long-context tasks",
        options=options,
        asked=[AtLength(task, length) for task in tasks for length in lengths],
        place=_place,
        file_of=lambda row: set_name(row["task"], row["length"]),
        text=text,
        samples={name: getattr(options, name) for name in ("samples", "seed", "filler")}
        | ({"chat": sha256_json(tokenizer.chat_template)} if chat else {}),
        longest=(told, whole),
        told=lambda files: f"{files} files of {options.samples} samples, one for each task and length,",
        summary=lambda rows: summary(rows, options.samples, trained),
        facts={"original_length": trained},
        figure=long_figure,
    )
    return ask(asking, tokenizer, server, reporter)


def _chat_format(
    options: LongSamples, names: list[str], tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], str] | None:
    """What puts a question into the tokenizer's chat format, where one is asked for and no server does it."""
    at_server = options.server is not None and options.endpoint == "chat"
    if options.chat and at_server:
        raise HarpeError(
            "--endpoint chat puts the server's own chat format around the prompt; --chat would be a second."
        )
    return ChatTemplate(tokenizer, split=False).question if (options.chat or CHAT in names) and not at_server else None


def _named(name: str) -> tuple[LongTask | Ruler2Task, int]:
    task, _, length = name.rpartition("-")
    return TASKS[task], int(length)


def _place(name: str) -> tuple[int, int]:
    task, length = _named(name)
    return list(TASKS).index(task.name), length


def _trained_length(options: LongSamples) -> int | None:
    """The context before an extension; None where nobody answers, or a server does and does not tell it."""
    if options.original_length is not None or options.model is None or options.server is not None:
        return options.original_length
    config = text_config(load_config(options.model, options.revision))
    return int(getattr(config, "harpe_original_length", None) or config.max_position_embeddings)


def summary(records: Iterable[dict[str, Any]], whole: int, trained: int | None) -> dict[str, Any]:
    """Scores of every task by length, with what a guesser scores, effective length and length score; and their means
    over the tasks of a suite, where all of them were asked at the same lengths.

    Parameters
    ----------
    whole
        Samples of each task and length; what has fewer was cut short, and is named under `incomplete` alone.
    trained
        Tokens of the context up to which a score is a short one; None where it is not known.
    """
    cells = by_cell(records)
    incomplete = [set_name(*key) for key, rows in cells.items() if len(rows) < whole]
    cells = {key: rows for key, rows in cells.items() if len(rows) >= whole}
    found = {(length, task): samples_of(rows) for (task, length), rows in cells.items()}
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(task for task, _ in cells):
        lengths = [
            {"length": length, **scored(rows), "chance": 100 * found[length, task].chance}
            for (task, length), rows in sorted(cells.items())
            if task == name
        ]
        tasks[name] = {"lengths": lengths, **_over_lengths([name], found, trained)}
    suites: dict[str, Any] = {}
    for name, module in SUITES.items():
        names = [task.name for task in module.TASKS]
        asked = [{length for task, length in cells if task == each} for each in names]
        if asked[0] and all(each == asked[0] for each in asked):
            suites[name] = _over_lengths(names, found, trained)
    return {"tasks": tasks, "suites": suites, "incomplete": incomplete}


def by_cell(records: Iterable[dict[str, Any]]) -> dict[tuple[str, int], Rows]:
    """Records by task and length."""
    cells: dict[tuple[str, int], Rows] = {}
    for row in records:
        cells.setdefault((row["task"], row["length"]), []).append(row)
    return cells


def samples_of(rows: Rows) -> Samples:
    """Records of a task at one length; those of its other lengths are drawn together with them."""
    chance = sum(row["chance"] for row in rows) / len(rows)
    keys, scores = tuple(row["sample"] for row in rows), tuple(row["score"] for row in rows)
    return Samples(keys, scores, rows[0]["task"], chance)


def _over_lengths(names: list[str], found: Mapping[tuple[int, str], Samples], trained: int | None) -> dict[str, Any]:
    """Of a task, or of the mean over several, what all lengths say together."""
    samples = {(length, task): each for (length, task), each in found.items() if task in names}
    value = of_one_model(AnsweredTask("-".join(names), "", "long", None, samples), trained or 0)
    if trained is None:
        value["reason"] = "the context that the model was trained with is not known; --original-length names it"
    means = {"lengths": value["scores"]} if len(names) > 1 else {}
    return means | {key: value[key] for key in ("base", "effective", "area", "reason")}
