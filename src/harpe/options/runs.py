"""Options of the verbs on whole runs, and on prepared data: report, data, export, compare, quickstart. The text under
each field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harpe.options.measuring import NeedleOptions
from harpe.options.shared import Dtype, ModelOptions, Recorded
from harpe.options.training import LayoutOptions


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write the report page of a run directory again from its files and print the main table; or the page of one model
    from a folder of scores."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: str
    """The run directory; or a folder that holds, in folders of any names, what harpe ruler, long, short, perplexity and
    evaluate wrote of one model."""
    against: str | None = None
    """Such a folder of another model: its numbers stand beside, with paired differences where both read the same."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(ModelOptions):
    """Say what a folder of prepared training data holds: tokens by source, how long its documents are, and how they lie
    across sequences, with some boundaries of documents decoded.

    Printed, and written as a page with a file of its figures beside it. Nothing is changed in the data.
    """

    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str
    """What `harpe prepare` made, or the training data of a run (RUN/data/LENGTH)."""
    out: str | None = None
    """Folder for index.html and data.json; default: report inside the folder of the data."""
    length: int = 0
    """Look at sequences of so many tokens, as a run at a shorter length cuts them; it must divide the length that they
    were packed with. 0: as they were packed."""


@dataclass(frozen=True, kw_only=True)
class ChosenModelOptions:
    """Which extended model, and how its weights are written."""

    source: str
    """A run directory of `harpe extend` or `harpe compare`, or the folder of an extended model."""
    method: str | None = None
    """Which model of a run directory, by the name of its folder; default: the extended model that its plan
    names. In a comparison it has to be named where several were trained."""
    seed: int | None = None
    """Which training seed of a comparison; default: the first that has a model."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: the model's own."""
    fold: bool = False
    """Put the attention factor (temperature) into the query weights, so that no program need know of it: one base with
    a factor becomes plain RoPE. Exact up to the rounding of the weights."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ChosenModelOptions):
    """Write an extended model so that transformers and `transformers serve` load it without harpe.

    A model with one base per head gets one file of code in plain torch, loaded by trust_remote_code; other models need
    none. The folder holds weights, tokenizer, configuration and a model card.
    """

    positional: ClassVar[tuple[str, ...]] = ("source",)

    out: str
    """Folder to make."""
    gguf: str | None = None
    """llama.cpp's convert_hf_to_gguf.py (or the command convert-hf-to-gguf): have it write model.gguf beside. Refused
    for bases per head, which GGUF cannot hold."""


@dataclass(frozen=True, kw_only=True)
class PushOptions(ChosenModelOptions):
    """Upload an extended model to the hub: what `harpe export` writes, with the run's report page and tables.

    The repository is private unless --public is given. It is made where there is none; one that holds anything is
    refused without --replace. HF_TOKEN, or `hf auth login`, says who uploads.
    """

    positional: ClassVar[tuple[str, ...]] = ("source", "name")

    name: str
    """The repository, ORG/NAME."""
    dry_run: bool = False
    """Say what would be uploaded, and upload nothing; asks the hub nothing."""
    public: bool = False
    """For everybody to see, new repository or old; else a public one is refused."""
    replace: bool = False
    """Put the model in place of everything that the repository holds, in one commit: its history keeps the old."""
    report: bool = True
    """With the run's report page and tables, in the folder report."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(LayoutOptions):
    """Train and measure several methods from one checkpoint on the same tokens, and write the tables with intervals.

    The recipe is a YAML file (recipes/ has examples). A method that fails is recorded and does not stop the others.
    Started again, an interrupted comparison goes on at the method, stage and step where it was; methods that failed are
    tried again.
    """

    positional: ClassVar[tuple[str, ...]] = ("recipe",)

    recipe: str
    """The recipe."""
    out: str | None = None
    """Run directory to make; default: runs/ and the recipe's name."""
    plan: bool = False
    """Print what would be done, and stop: configuration and tokenizer are read, weights and texts are not."""
    seeds: list[int] | None = None
    """Training seeds, instead of the recipe's."""
    model: str | None = None
    """Checkpoint, instead of the recipe's."""
    data: str | None = None
    """Training texts, instead of the recipe's."""
    evaluation_data: str | None = None
    """Held-out texts, instead of the recipe's."""
    jobs: int = 1
    """Methods that are worked on at a time, each on one GPU in turn (or --processes-per-row), and with its share of the
    cores (or OMP_NUM_THREADS threads)."""
    processes_per_row: int = 1
    """Processes that train a method together, one a GPU, with the result of one. One of them measures it."""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions(Recorded, NeedleOptions):
    """Extend the small model inside the package on the Python files of this machine, and compare. No downloads.

    Four rows: the model as it is, and, trained once at the target length on the same tokens, the method that `harpe
    extend` takes by default, HARPE as published, and the control (one base in the middle of HARPE's range). Started
    again with the same options, an interrupted run goes on where it was.
    """

    out: str = "runs/quickstart"
    """Run directory to make."""
    length: int = 2048
    """Target context in tokens; the model was trained with 256."""
    samples: int = 50
    """Needle samples a task and length; 1 at least."""
    tokens: int = 262_144
    """Tokens that each method trains on."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    batch_tokens: int = 8192
    """Tokens an optimiser step."""
    seed: int = 0
    """Of the order of the training documents."""
    dtype: Dtype = "auto"
    """Arithmetic. auto: the faster one, found by a one-second probe."""
    tuning: bool = False
    """Measure on the held-out files that settings are tuned on, instead of those that figures are reported from."""
