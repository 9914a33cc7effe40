"""`harpe ruler`: RULER's samples, and the answers of a model."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harpe.data.token_ids import plain_ids
from harpe.errors import HarpeError
from harpe.evaluation.ruler.answer import summary
from harpe.evaluation.ruler.generate import RulerGenerator
from harpe.evaluation.ruler.sources import DataFolder
from harpe.evaluation.ruler.tasks import RULER_TASKS, RulerTask, chosen, score
from harpe.evaluation.ruler.templates import template_of
from harpe.options.measuring import RulerOptions
from harpe.reporter import Reporter
from harpe.suites.asking import Asking
from harpe.suites.samples import ask, server_of, tokenizer_for


def run_ruler(options: RulerOptions, reporter: Reporter | None = None) -> Path:
    """Write the samples that `options` asks for, and answer them where it names a model; returns the folder.

    Raises HarpeError for unknown tasks and formats, missing data, lengths that a task cannot be made with or that the
    model was not made for, and a folder that holds something else.
    """
    if options.samples < 1:
        raise HarpeError(f"--samples {options.samples}: at least one sample of each task has to be asked.")
    tasks = chosen(options.tasks.replace(",", " ").split())
    for task in tasks:
        template_of(task.kind, options.template)
    server = server_of(options)
    if server is not None and options.endpoint == "chat" and options.template != "base":
        raise HarpeError(
            f"--endpoint chat puts the server's own chat format around the prompt; --template {options.template} would "
            "be a second one."
        )
    tokenizer = tokenizer_for(options)
    generator = RulerGenerator(tokenizer, DataFolder(options.data))

    def text(name: str) -> str:
        made = generator.text(RULER_TASKS[name], options.length, options.samples, options.seed, options.template)
        if options.model is not None and RULER_TASKS[name].kind != "qa":
            _check_returned(tokenizer, RULER_TASKS[name], made)
        return made

    names = ("length", "samples", "seed", "template")
    asking = Asking(
        verb="ruler",
        title="RULER",
        options=options,
        asked=tasks,
        place=list(RULER_TASKS).index,
        file_of=lambda row: str(row["task"]),
        text=text,
        samples={name: getattr(options, name) for name in names},
        longest=(f"--length {options.length}", options.length),
        told=lambda files: f"{options.samples} samples of {files} tasks at {options.length} tokens",
        summary=lambda rows: summary(rows, options.samples),
        facts={"length": options.length},
    )
    return ask(asking, tokenizer, server, reporter or Reporter())


def _check_returned(tokenizer: PreTrainedTokenizerBase, task: RulerTask, samples: str) -> None:
    """Refuse a tokenizer from whose tokens right answers do not come back: every model would score nothing."""
    for row in map(json.loads, samples.splitlines()):
        right = " " + " ".join(row["outputs"])
        text = str(tokenizer.decode(plain_ids(tokenizer, right), skip_special_tokens=True))
        if (found := score(task, text, row["outputs"])) < 1:
            raise HarpeError(
                f"{task.name} cannot be asked with this tokenizer: the right answer of sample {row['index']},{right}, "
                f"comes back from its tokens as {text!r}, which scores {found:.0%}. Leave the task out."
            )
