"""Options of `harpe extend` and of `harpe prepare`. The text under each field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from harpe.bases.choice import SearchOptions
from harpe.data.sampling import PUBLISHED_LENGTH
from harpe.options.shared import ContextOptions, Dtype, ModelOptions, RangeOptions, Recorded, TextOptions
from harpe.options.training import LayoutOptions, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class ExtendOptions(
    Recorded, LayoutOptions, TrainingOptions, SearchOptions, RangeOptions, ContextOptions, TextOptions, ModelOptions
):
    """Extend a model's context in one stage of training and save it.

    The model may be a folder, a GGUF file (FOLDER:FILE.gguf; it is dequantised once), a name on the Hugging Face hub,
    or "embedded" (the small model inside the package). The run directory gets the recipe, the plan with its reasons,
    resumable checkpoints, logs, and the extended model, which transformers loads after `import harpe;
    harpe.register()`.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Checkpoint to extend: a folder, a GGUF file, a hub name (gated ones with HF_TOKEN set), or embedded."""
    length: int
    """Target context in tokens; 128k is 131072."""
    data: str
    """Training texts: a file or folder (.txt .md .tex .py .rst .jsonl .ndjson .json .tar, also .gz .zst .bz2 .xz, and
    .parquet; of splits only train), a hub data set NAME or NAME:CONFIG, embedded, or what `harpe prepare` made."""
    out: str
    """Run directory to make."""
    method: str | None = None
    """yarn, harpe (a base for every key/value head), harpe-parts, abf (one larger base) and others, also of installed
    packages: docs/methods.md. Default: harpe where options choose its bases, otherwise what did best in
    docs/results.md; the plan says what and why."""
    as_published: bool = False
    """HARPE as its paper has it: --method harpe --strategy peak-valley."""
    method_options: dict[str, Any] | None = None
    """Options of the method by name, as JSON: '{"factor": 8}'."""
    base: float | None = None
    """The one base of --method abf; default: the top of the range."""
    tokens: int = 0
    """Tokens to train on; 0: all of the data, once."""
    dtype: Dtype = "auto"
    """Arithmetic; weights are trained in float32. auto: the faster one, found by a one-second probe."""
    seed: int = 0
    """Of the order of the documents and of all else that is random."""
    resume: bool = False
    """Go on with the interrupted run in --out."""
    ignore_memory: bool = False
    """Train although memory does not suffice by the plan."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Recorded, TextOptions, ModelOptions):
    """Tokenise, upsample and pack a corpus once, for `harpe extend` and `harpe compare` to train on as it lies (--data
    OUT).

    Every source keeps its share of the tokens; inside each, long documents may be drawn more often (Fu et al. 2024,
    arXiv 2402.10171). OUT gets the packed tokens, where documents start, and index.json with hashes, options and what
    was drawn by source. It appears when it is whole.
    """

    data: str
    """Texts: a file or folder (.txt .md .tex .py .rst .jsonl .ndjson .json .tar, also .gz .zst .bz2 .xz, and .parquet;
    of splits only train), a hub data set NAME or NAME:CONFIG, or embedded."""
    model: str
    """Checkpoint that will be trained, for its tokenizer: a folder, a GGUF file, a hub name, or embedded. No weights
    are read."""
    length: int
    """Tokens of a sequence: the target context. Runs may train on shorter ones that divide it, not on longer ones."""
    out: str
    """Folder to make."""
    tokens: int = 0
    """Tokens to write; 0: as many as there are under --max-copies."""
    upsample_factor: float = 1.0
    """How much more often a long document is drawn than a short one of its source. 1: no upsampling. 10: the published
    program."""
    upsample_length: int = PUBLISHED_LENGTH
    """Tokens from which on a document is long; the published 4096."""
    long_share: float | None = None
    """In place of --upsample-factor: the share of every source's tokens that long documents get, where they have less
    (0.7: the paper's outcome over all of SlimPajama)."""
    max_copies: int = 1
    """How often a document may be drawn; 1: none is repeated."""
    source_field: str | None = None
    """Field that says which source a row is from, with dots into nested ones (meta.redpajama_set_name); default: all
    texts are one source."""
    by_folder: bool = False
    """Each sub-folder of --data is a source."""
    chat: str | None = None
    """Field of rows that holds a conversation (a list of messages with role and content, with dots into nested ones):
    its messages go through the tokenizer's chat template, and answers alone are trained on."""
    short_data: str | None = None
    """Short texts or conversations that are mixed in at --short-share, so that the model keeps what it does with short
    contexts: as --data, with its --text-field."""
    short_share: float = 0.0
    """Share of the tokens that --short-data gets, from the first sequence to the last."""
    short_chat: str | None = None
    """As --chat, for the rows of --short-data."""
    shard: str | None = None
    """Tokenise a part of --data, I/N: the I-th of N that as many processes work on, anywhere. When all are done, the
    same command without this puts them together."""
    min_length: int = 0
    """Leave out documents of --data that have fewer tokens."""
    held_out: str | None = None
    """Texts that will be evaluated on, as for --data: documents with the same text are left out."""
    documents: int = 0
    """Read the first so many documents only, of a corpus that lies in random order; 0: all."""
    seed: int = 0
    """Of the order of the documents, and of which are drawn."""
