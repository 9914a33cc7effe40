"""Options of the verbs. The text under each field is its help on the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from harpe.bases.assignment import Assignment, LayerBases
from harpe.bases.base_sets import Rule, Strategy
from harpe.bases.ranges import RangeRule
from harpe.data.sampling import PUBLISHED_LENGTH


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """Extend a model's context in one stage of training and save it.

    The model may be a folder, a name on the Hugging Face hub, or "embedded" (the small model inside the package). The run directory
    gets the recipe, the plan with its reasons, resumable checkpoints, logs, and the extended model, which transformers loads after
    `import harpe; harpe.register()`.
    """

    model: str
    """Checkpoint to extend: a folder, a hub name (gated ones with HF_TOKEN set), or embedded."""
    length: int
    """Target context in tokens; 128k is 131072."""
    data: str
    """Training texts: a file or folder (.txt .md .tex .py .rst .jsonl .ndjson .json, also .gz .zst .bz2 .xz, and .parquet), a hub data set
    NAME or NAME:CONFIG, embedded, or what `harpe prepare` made."""
    out: str
    """Run directory to make."""
    method: str = "harpe"
    """harpe: a base for every key/value head. abf: one larger base for all heads. Others (yarn, pi, stages …), also of installed packages:
    docs/methods.md."""
    method_options: dict[str, Any] | None = None
    """Options of the method by name, as JSON: '{"factor": 8}'."""
    base: float | None = None
    """The one base of --method abf; default: the top of the range."""
    strategy: Strategy = "uniform"
    """How bases are chosen from the range: evenly (uniform, uniform-descending), in equal ratios (log-uniform), or peak-valley."""
    range: RangeRule = "critical"
    """The range of bases, around the critical base b*. critical: the paper's, 0.73 b* to 3.6 b*. short: 0.2 b* to b*, for trainings of
    some dozens of steps. ntk: 3 to 15 times the NTK-aware base. None goes below the trained base."""
    min: float | None = None
    """Low end of the range of bases, in place of the rule's; may lie below the trained base."""
    max: float | None = None
    """High end of the range of bases, in place of the rule's."""
    stride: float | None = None
    """Distance between candidates of --strategy peak-valley; default: as its rule has it."""
    rule: Rule | None = None
    """Selection rule of --strategy peak-valley; default: published in the paper's own setting, else general."""
    force: bool = False
    """Let --rule published run outside the setting it was tuned for."""
    assignment: Assignment | None = None
    """Which head gets which base: ascending (default), descending, random (--seed), or adaptive (heads that look farther on a few texts
    of --data get larger bases)."""
    layer_bases: LayerBases = "same"
    """same: all layers alike. permuted: the same set in another order in every layer (random or adaptive). own: layers x heads bases."""
    tokens: int = 0
    """Tokens to train on; 0: all of the data, once."""
    learning_rate: float = 2e-5
    """Peak learning rate. The paper's 2e-5 is for 7B models; small models take more (1e-3 below 10M parameters)."""
    schedule: Literal["restarted", "carried"] = "restarted"
    """Of a method in stages: the learning rate rises and falls in every stage, or once over all."""
    batch_tokens: int = 0
    """Tokens an optimiser step; 0: one sequence."""
    micro_batch: int = 1
    """Sequences in one forward pass; the rest of a step is accumulated."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic; weights are trained in float32. auto: the faster one, found by a one-second probe."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Of the order of the documents and of all else that is random."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: the model's own."""
    text_field: str = "text"
    """Field of JSON objects, Parquet rows or data sets that holds the text, with dots into nested ones."""
    split_special_tokens: bool = True
    """Special tokens that a text spells (<|endoftext|>) are read as the text that they are; false: as the tokens themselves."""
    original_length: int | None = None
    """Context that the model was trained with, where config.json does not say it."""
    sliding_window: Literal["keep", "off"] = "keep"
    """off: remove sliding windows, which hide the longer context."""
    resume: bool = False
    """Go on with the interrupted run in --out."""

    def recipe(self) -> dict[str, Any]:
        """What decides the result: all options but where it is written and whether it is resumed."""
        return {key: value for key, value in asdict(self).items() if key not in ("out", "resume")}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Tokenise, upsample and pack a corpus once, for `harpe extend` and `harpe compare` to train on as it lies (--data OUT).

    Every source keeps its share of the tokens; inside each, long documents may be drawn more often (Fu et al. 2024, arXiv 2402.10171). OUT
    gets the packed tokens, where documents start, and index.json with hashes, options and what was drawn by source. It appears when it is
    whole.
    """

    data: str
    """Texts: a file or folder (.txt .md .tex .py .rst .jsonl .ndjson .json, also .gz .zst .bz2 .xz, and .parquet), a hub data set NAME or
    NAME:CONFIG, or embedded."""
    model: str
    """Checkpoint that will be trained, for its tokenizer: a folder, a hub name, or embedded. No weights are read."""
    length: int
    """Tokens of a sequence: the target context. Runs may train on shorter ones that divide it, not on longer ones."""
    out: str
    """Folder to make."""
    tokens: int = 0
    """Tokens to write; 0: as many as there are under --max-copies."""
    upsample_factor: float = 1.0
    """How much more often a long document is drawn than a short one of its source. 1: no upsampling. 10: the published program."""
    upsample_length: int = PUBLISHED_LENGTH
    """Tokens from which on a document is long; the published 4096."""
    long_share: float | None = None
    """In place of --upsample-factor: the share of every source's tokens that long documents get, where they have less (0.7: the paper's
    outcome over all of SlimPajama)."""
    max_copies: int = 1
    """How often a document may be drawn; 1: none is repeated."""
    source_field: str | None = None
    """Field that says which source a row is from, with dots into nested ones (meta.redpajama_set_name); default: all texts are one
    source."""
    by_folder: bool = False
    """Each sub-folder of --data is a source."""
    held_out: str | None = None
    """Texts that will be evaluated on, as for --data: documents with the same text are left out."""
    documents: int = 0
    """Read the first so many documents only, of a corpus that lies in random order; 0: all."""
    seed: int = 0
    """Of the order of the documents, and of which are drawn."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: the model's own."""
    text_field: str = "text"
    """Field of JSON objects, Parquet rows or data sets that holds the text, with dots into nested ones."""
    split_special_tokens: bool = True
    """Special tokens that a text spells (<|endoftext|>) are read as the text that they are; false: as the tokens themselves."""

    def recipe(self) -> dict[str, Any]:
        """What decides the result: all options but where it is written."""
        return {key: value for key, value in asdict(self).items() if key != "out"}


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Measure a checkpoint, or every model of a run directory, on texts that it was not trained on.

    Perplexity by position (token-weighted, whole documents), short-context perplexity, needle tasks with generated answers, and a grid
    of needles by length and depth; all with 95% intervals. What is already measured is not measured again. For a run directory the
    untouched model is measured too, and the report page is written.

    Several processes share the work: torchrun --nproc-per-node 4 -m harpe evaluate … The files are those of one process.
    """

    model: str
    """A run directory of `harpe extend`, or any checkpoint: a folder, a hub name, or embedded."""
    data: str
    """Texts: a file, a folder, a hub data set, or embedded."""
    out: str | None = None
    """Folder for the scores of a checkpoint; a run directory keeps its own."""
    length: int | None = None
    """Longest context in tokens that is measured; default: the model's."""
    original_length: int | None = None
    """Short context in tokens; default: the length before the extension, else the model's context."""
    documents: int = 32
    """Documents that perplexity is measured on; each must be longer than --length."""
    samples: int = 100
    """Needle samples a task and length; 0: no needle tasks."""
    grid_samples: int = 10
    """Needle samples a cell of the grid; 0: no grid."""
    seed: int = 1
    """Of the needle samples."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic. auto: the faster one, found by a one-second probe."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: the model's own."""
    text_field: str = "text"
    """Field of JSON objects, Parquet rows or data sets that holds the text, with dots into nested ones."""
    split_special_tokens: bool = True
    """Special tokens that a text spells (<|endoftext|>) are read as the text that they are; false: as the tokens themselves."""


@dataclass(frozen=True, kw_only=True)
class BasesOptions:
    """Choose a base for every key/value head.

    Give --model to read heads, head size and trained context from a checkpoint, or --heads and --head-dim with --min and --max.
    """

    length: int
    """Target context in tokens; 128k is 131072."""
    model: str | None = None
    """Checkpoint whose geometry is used: a folder, a hub name, or embedded. No weights are read."""
    heads: int | None = None
    """Key/value heads, one base each."""
    head_dim: int | None = None
    """Rotary dimensions of a head."""
    layers: int | None = None
    """Layers, where there is no --model and --layer-bases is not same."""
    strategy: Strategy = "uniform"
    """uniform: evenly spaced, ascending over the heads; uniform-descending: the other way round; log-uniform: in equal ratios;
    peak-valley: bases whose waveforms complement each other."""
    range: RangeRule = "critical"
    """With --model: the range of bases, around the critical base b*. critical: the paper's, 0.73 b* to 3.6 b*. short: 0.2 b* to b*, for
    trainings of some dozens of steps. ntk: 3 to 15 times the NTK-aware base. None goes below the trained base."""
    min: float | None = None
    """Low end of the range of bases, in place of the rule's; may lie below the trained base."""
    max: float | None = None
    """High end of the range of bases, in place of the rule's."""
    stride: float | None = None
    """Distance between candidates of --strategy peak-valley (published: 3e4); default: as its rule has it."""
    rule: Rule | None = None
    """Selection rule of --strategy peak-valley. published: gives Table 2 of the paper. printed: its Algorithm 1 as printed, which does not.
    general: any geometry. Default: published in the paper's own setting, else general."""
    force: bool = False
    """Let --rule published run outside the setting it was tuned for (head size 128, 128k tokens)."""
    assignment: Assignment | None = None
    """Which head gets which base: ascending (default), descending, random (--seed), or adaptive (heads that look farther on a few texts
    of --data get larger bases; reads the weights of --model)."""
    layer_bases: LayerBases = "same"
    """same: all layers alike. permuted: the same set in another order in every layer (random or adaptive). own: layers x heads bases."""
    data: str | None = None
    """Texts for --assignment adaptive: a file, a folder, a hub data set, or embedded."""
    seed: int = 0
    """Of --assignment random."""
    out: str | None = None
    """Folder to write bases.json and figures (.svg) into: waveforms, coverage, number line."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    original_length: int | None = None
    """Context that the model was trained with, where config.json does not say it."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write the report page of a run directory again from its files and print the main table."""

    run: str
    """The run directory."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write an extended model so that transformers and `transformers serve` load it without harpe.

    A model with one base per head gets one file of code in plain torch, loaded by trust_remote_code; other models need none. The folder
    holds weights, tokenizer, configuration and a model card.
    """

    source: str
    """A run directory of `harpe extend` or `harpe compare`, or the folder of an extended model."""
    out: str
    """Folder to make."""
    method: str | None = None
    """Which model of a run directory, by the name of its folder; default: the HARPE one, or the only one. In a comparison it has to be
    named where several were trained."""
    seed: int | None = None
    """Which training seed of a comparison; default: the first that has a model."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: the model's own."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Train and measure several methods from one checkpoint on the same tokens, and write the tables with intervals.

    The recipe is a YAML file (recipes/ has examples). A method that fails is recorded and does not stop the others. Started again, an
    interrupted comparison goes on at the method, stage and step where it was; methods that failed are tried again.
    """

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
    """Methods that are worked on at a time, each on one GPU in turn, and with its share of the cores (or OMP_NUM_THREADS threads)."""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """Extend the small model inside the package on the Python files of this machine, and compare. No downloads.

    Three rows: the model as it is, HARPE, and the control (one base in the middle of HARPE's range), both trained once at the target
    length on the same tokens. Started again with the same options, an interrupted run goes on where it was.
    """

    out: str = "runs/quickstart"
    """Run directory to make."""
    length: int = 2048
    """Target context in tokens; the model was trained with 256."""
    tokens: int = 262_144
    """Tokens that each method trains on."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    batch_tokens: int = 8192
    """Tokens an optimiser step."""
    seed: int = 0
    """Of the order of the training documents."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic. auto: the faster one, found by a one-second probe."""
    documents: int = 32
    """Held-out documents that perplexity is measured on."""
    samples: int = 100
    """Needle samples a task and length."""
    grid_samples: int = 10
    """Needle samples a cell of the grid."""
    tuning: bool = False
    """Measure on the held-out files that settings are tuned on, instead of those that figures are reported from."""

    def recipe(self) -> dict[str, Any]:
        """What decides the result: all options but where it is written."""
        return {key: value for key, value in asdict(self).items() if key != "out"}
