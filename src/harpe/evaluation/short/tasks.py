"""Short benchmarks through lm-eval: its tasks, its prompts, its numbers, on a model that is already loaded.

The data come from the hub, or from files (`hub`, `offline`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harpe.distributed.processes import ALONE, Processes
from harpe.errors import HarpeError, optional_module
from harpe.evaluation.short.hub import DataSets, task_manager
from harpe.evaluation.short.model import short_model
from harpe.evaluation.short.record import Record
from harpe.evaluation.statistics.intervals import share

PAPER_SHOTS = {"mmlu": 5, "hellaswag": 10, "arc_challenge": 25, "piqa": 0, "triviaqa": 5}
"""The paper's five benchmarks and how many solved examples stand in front of a question."""
SHOTS = {**PAPER_SHOTS, **{f"{name}_local": PAPER_SHOTS[name] for name in ("hellaswag", "arc_challenge", "triviaqa")}}


def run_short_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str | dict[str, Any]],
    shots: int | None,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    record: Record | None = None,
    ranks: Processes = ALONE,
    data: DataSets | None = None,
) -> dict[str, Any]:
    """lm-eval's results for tasks on a loaded model: its dict with `results` and, by task, `samples`; a sample says by
    `cut` whether its question was longer than the model's context and lost its beginning.

    Parameters
    ----------
    tasks
        Names of lm-eval's tasks, definitions, or groups of named tasks.
    shots
        Solved examples in front of a question; None: as the task says.
    limit
        Questions of each task; None: all.
    record
        Answers that an interrupted measurement has left, or other processes give; new ones are added.
    ranks
        Processes that share the requests; only the first one's result is whole.
    data
        Where the data sets of named tasks are read from; None: the hub.

    Raises
    ------
    HarpeError
        For unknown tasks, data that cannot be loaded, a context that is too short for a task's answers, and tasks whose
        generated answers are not greedy.
    """
    simple_evaluate = optional_module("lm_eval", "lm-eval", "The short benchmarks need").simple_evaluate
    from lm_eval.tasks import TaskManager

    model.eval()
    wrapped = short_model(record, pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
    named = any(isinstance(task, str) or "group" in task for task in tasks)
    options = {"num_fewshot": shots, "limit": limit, "bootstrap_iters": 0, "log_samples": True}
    manager = task_manager() if named else TaskManager(include_defaults=False)

    def fetch() -> None:
        _run(tasks, lambda: manager.load(list(tasks)))

    def ask() -> Any:
        return simple_evaluate(wrapped, tasks=list(tasks), task_manager=manager, **options)

    with (data or DataSets(None)).given():
        if named and ranks.count > 1:
            # what the hub gives is put into the local cache by one process, before the others look for it
            ranks.broadcast_from_rank0(fetch)
        found = dict(_run(tasks, ask) or {})
    for sample in (each for rows in found.get("samples", {}).values() for each in rows):
        sample["cut"] = any(str(request[0]) in wrapped.cut for request in sample["arguments"])
    return found


def _run(tasks: Sequence[str | dict[str, Any]], work: Callable[[], Any]) -> Any:
    """What `work` gives; what lm-eval has to say against it as a sentence."""
    try:
        return work()
    except HarpeError:
        raise
    except (KeyError, ValueError, OSError, AssertionError, ImportError) as error:
        names = ", ".join(
            task if isinstance(task, str) else str(task.get("group") or task.get("task")) for task in tasks
        )
        raise HarpeError(
            f"lm-eval could not run {names} ({type(error).__name__}: {' '.join(str(error).split())[:300]})."
        ) from error


def accuracy(samples: Sequence[dict[str, Any]], metric: str = "acc") -> dict[str, Any]:
    """Share of right answers in per cent over lm-eval's samples, with its 95 % interval: Wilson's, or of scores between
    0 and 1 a bootstrap's."""
    hits = [float(sample[metric]) for sample in samples if metric in sample]
    return {"metric": metric, **share(hits)[0].as_dict("score", 100), "samples": len(hits)}
