"""Options of the verbs that measure and that fetch benchmark data. The text under each field is its help on the command
line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from harpe.options.shared import Dtype, FieldOptions, ModelOptions, TextOptions


@dataclass(frozen=True, kw_only=True)
class NeedleOptions:
    """How much `harpe evaluate` measures."""

    documents: int = 32
    """Documents that perplexity is measured on; each must be longer than the longest context."""
    samples: int = 100
    """Needle samples a task and length; 0: no needle tasks."""
    grid_samples: int = 10
    """Needle samples a cell of the grid; 0: no grid."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(NeedleOptions, TextOptions, ModelOptions):
    """Measure a checkpoint, or every model of a run directory, on texts that it was not trained on.

    Perplexity by position (token-weighted, whole documents), short-context perplexity, needle tasks with generated
    answers, and a grid of needles by length and depth; all with 95% intervals. What is already measured is not measured
    again. For a run directory the untouched model is measured too, and the report page is written.

    Several processes share the work: torchrun --nproc-per-node 4 -m harpe evaluate … The files are those of one
    process.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """A run directory of `harpe extend`, or any checkpoint: a folder, a GGUF file, a hub name, or embedded."""
    data: str
    """Texts: a file, a folder, a hub data set, or embedded."""
    out: str | None = None
    """Folder for the scores of a checkpoint; a run directory keeps its own."""
    length: int | None = None
    """Longest context in tokens that is measured; default: the model's."""
    original_length: int | None = None
    """Short context in tokens; default: the length before the extension, else the model's context."""
    seed: int = 1
    """Of the needle samples."""
    dtype: Dtype = "auto"
    """Arithmetic. auto: the faster one, found by a one-second probe."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Who answers samples, and where they and the answers go."""

    out: str
    """Folder for the files, one for each model; of `harpe ruler` one for each length too."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer in whose tokens lengths are counted; embedded for that of the model inside
    the package."""
    model: str | None = None
    """Checkpoint that answers: a folder, a GGUF file, a hub name, or embedded. Its tokenizer is the default for
    --tokenizer. With --server: the name that it has there."""
    server: str | None = None
    """Address of a server that speaks OpenAI's protocol and answers in place of a model in this process, such as
    http://localhost:8000. A key that it wants is read from OPENAI_API_KEY."""
    endpoint: Literal["completions", "chat"] = "completions"
    """completions: the server continues the prompt as it stands. chat: it puts the prompt into the model's own chat
    format."""
    requests: int = 8
    """Requests to the server at a time."""
    against: str | None = None
    """Folder with answers of another model to the same samples: write the difference of every task, with its interval,
    into against.md."""
    beyond_context: bool = False
    """Let a model be asked beyond the context that its configuration states."""
    dtype: Dtype = "auto"
    """Arithmetic of the model. auto: the faster one, found by a one-second probe."""
    batch_tokens: int | None = None
    """Tokens in one batch of answers at most; a longer sample is a batch of its own. Default: as many as have 1 GiB of
    keys and values, in 32 samples at most; 16384 where samples have to be padded to one length."""
    full_answers: bool = False
    """Let every answer go on to its end. Otherwise it ends where nothing that follows can change its score: in RULER
    where all references have been found, in the tasks of `harpe long` where what is scored has ended."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, or of a hub tokenizer where no model is given."""


@dataclass(frozen=True, kw_only=True)
class RulerTasks:
    """What is asked of RULER's tasks."""

    tasks: str = "all"
    """Names of tasks with commas between them; niah stands for the eight needle tasks, all for all 13."""
    samples: int = 500
    """Samples a task; 500 is the published number."""
    seed: int = 42
    """Starts the random numbers of every task; 42 is the published seed."""
    template: str = "base"
    """Format of the prompt: base, or the published meta-chat, vicuna-chat, meta-llama3, Phi3 and others."""
    data: str | None = None
    """Folder with essays, questions and sentence parameters; default: the one that HARPE_DATA names, then harpe's
    cache."""


@dataclass(frozen=True, kw_only=True)
class RulerOptions(RulerTasks, AnswerOptions):
    """Write samples of RULER's 13 tasks; with --model, answer and score them too.

    The samples are those that NVIDIA/RULER (commit c3f5e3b) makes from the same seed, tokenizer and data: the same
    bytes, in one process and many times faster. Each task goes into its own file, TASK.jsonl. Answers (greedy) go into
    answers.jsonl, one record a sample, and the scores with their intervals into ruler.json; started again, an
    interrupted evaluation goes on where it was.

    Several processes share the samples: torchrun --nproc-per-node 4 -m harpe ruler … (or accelerate launch, on GPUs).
    The files are those of one process.
    """

    length: int
    """Tokens of a sample at most, the answer included; 128k is 131072."""


@dataclass(frozen=True, kw_only=True)
class LongTasks:
    """What is asked of the long-context suites."""

    tasks: str = "all"
    """Names of tasks or suites with commas between them: babilong (-qa1 to -qa5), graph (-bfs, -parents), order,
    content, coreference, or all, quick (one of babilong, order and content each), base-model (without graph and
    coreference, whose answers follow instructions), chat-model (all, with --chat). ruler2 (RULER v2) needs data and has
    long answers, and has to be named. `harpe suites` says what they ask."""
    chat: bool = False
    """Ask in the chat format of the tokenizer: its template around the question, and the answer's turn begun."""
    samples: int = 100
    """Samples a task and length."""
    seed: int = 42
    """Starts the random numbers of every sample."""
    filler: Literal["noise", "essays"] = "noise"
    """What facts are hidden in: the sentences of RULER's noise, or its essays."""
    data: str | None = None
    """Folder with the essays and sentence parameters, and with ruler2's questions; default: the one that HARPE_DATA
    names, then harpe's cache, and for ruler2 the hub."""


@dataclass(frozen=True, kw_only=True)
class LongSamples(LongTasks, AnswerOptions):
    """Samples of the long-context suites, which are answered where a model is named."""

    lengths: str
    """Tokens of a sample at most, with what the tokenizer begins texts with and the answer (of ruler2, as published, of
    the prompt alone): FIRST:LAST:STEP or numbers with commas between them."""
    original_length: int | None = None
    """Context in tokens up to which a score counts as the short one that an effective length keeps; default: the length
    before the extension, else the model's context."""


@dataclass(frozen=True, kw_only=True)
class LongOptions(LongSamples):
    """Ask a checkpoint long-context tasks whose samples are made here: facts in filler, graph walks, order and content
    probes, co-reference in long conversations, and RULER v2.

    Samples go into TASK-LENGTH.jsonl, answers (greedy) into answers.jsonl, and scores with their intervals, effective
    lengths and length scores into long.json; started again, an interrupted evaluation goes on where it was, and other
    lengths or tasks are added. `harpe suites` lists what is asked.

    Several processes share the samples: torchrun --nproc-per-node 4 -m harpe long … The files are those of one process.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Checkpoint that answers: a folder, a GGUF file, a hub name, or embedded. With --server: the name that it has
    there."""


@dataclass(frozen=True, kw_only=True)
class CurveTexts(FieldOptions):
    """Perplexity on one corpus: by prefix length, or in a sliding window."""

    data: str
    """Texts: a file, a folder, a hub data set, or embedded."""
    lengths: str | None = None
    """Context lengths in tokens, FIRST:LAST:STEP or with commas between them; 2048:131072:2048 are those of the
    paper."""
    window: int | None = None
    """Window in tokens."""
    stride: int = 256
    """Tokens that the window moves on by; 256 as in the paper."""
    average: Literal["tokens", "yarn"] = "tokens"
    """tokens: over all scored tokens. yarn: as YaRN's script, a mean over windows of any length, each behind a
    beginning-of-text token."""
    documents: int = 32
    """Documents that are measured; each must have the longest length."""


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(CurveTexts, TextOptions, ModelOptions):
    """Perplexity of a checkpoint by context length, or in sliding windows.

    With --lengths, documents are cut to each length, and one forward pass over a document gives all lengths. With
    --window and --stride, a window slides over whole documents and every token is scored once (Press et al.). The two
    kinds of figure are not comparable, and the file says which one it holds.

    Several processes share the documents: torchrun --nproc-per-node 4 -m harpe perplexity … The files are those of one
    process.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Checkpoint: a folder, a GGUF file, a hub name, or embedded."""
    out: str
    """File to write (.json)."""
    key_tokens: bool = False
    """Measure also the tokens that need the long context (LongPPL, arXiv 2410.23771), with --lengths: those that are
    predicted more than 2 nats worse behind a short context, and better than 2 nats behind the long one."""
    judge: str | None = None
    """Checkpoint that says which tokens those are, for --key-tokens; default: the model itself. Name the same one for
    models that are to be compared."""
    short_context: int = 4096
    """Tokens of the short context of --key-tokens at least; 4096 as published."""
    dtype: Dtype = "auto"
    """Arithmetic. auto: the faster one, found by a one-second probe."""
    server: str | None = None
    """Refused: servers give text, and this needs the probability of every token that the model reads."""


@dataclass(frozen=True, kw_only=True)
class ShortTasks:
    """Which short benchmarks, and how much of them."""

    tasks: str = "mmlu,hellaswag,arc_challenge,piqa,triviaqa"
    """Names of lm-eval's tasks with commas between them. babilong-4k is BABILong at that length (qa1 to qa5; 0k to
    128k), long stands for longbench2 and BABILong at the lengths that fit into the model's context. helmet-recall-8k,
    helmet-rag-8k and helmet-icl-8k are HELMET's tasks at that length (8k to 128k), read from helmet in --data."""
    limit: int | None = None
    """Questions of each task, for a trial; default: all."""
    offline: bool = False
    """Ask no hub. MMLU and PIQA are read from short_bench in --data, with lm-eval's own prompts, and parts of others as
    hellaswag_local, arc_challenge_local and triviaqa_local, whose scores are not comparable with published ones; all
    other tasks from clones in hub in --data, and refused where those are not there."""
    data: str | None = None
    """Folder with short_bench, with helmet (the data folder of HELMET's archive, and icl in it), and with hub: clones
    of data sets as OWNER/NAME, read in the place of those on the hub. Default: the one that HARPE_DATA names."""


@dataclass(frozen=True, kw_only=True)
class ShortOptions(ShortTasks, ModelOptions):
    """Short benchmarks of a checkpoint through lm-eval: its tasks, its prompts, its numbers.

    The default is the paper's five: MMLU 5-shot, HellaSwag 10-shot, ARC-Challenge 25-shot, PIQA 0-shot, TriviaQA
    5-shot. Any other task of lm-eval can be named. What is already measured in --out is not measured again, question by
    question.

    Several processes share the questions: torchrun --nproc-per-node 4 -m harpe short … The files are those of one
    process.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Checkpoint: a folder, a GGUF file, a hub name, or embedded. Per-head checkpoints too."""
    out: str
    """Folder for short.json and the records of every question."""
    shots: int | None = None
    """Solved examples in front of a question; default: the paper's number, for other tasks their own."""
    against: str | None = None
    """Folder with another model's scores on the same questions: write the difference of every task, with its interval,
    into against.md."""
    server: str | None = None
    """Refused: servers give text, and this needs the log-likelihood of given answers."""
    batch_size: int = 8
    """Questions in one forward pass."""
    dtype: Dtype = "auto"
    """Arithmetic. auto: the faster one, found by a one-second probe."""


@dataclass(frozen=True, kw_only=True)
class SuitesOptions:
    """List everything that harpe can measure of a model: what it asks, what it needs, at which lengths, of which
    models, what a guesser scores, and which published numbers it can be compared with."""

    markdown: bool = False
    """As the table of docs/evaluation.md."""


@dataclass(frozen=True, kw_only=True)
class FetchDataOptions:
    """Download the data that RULER is made from, and check every file's SHA-256.

    What is there already, here or in the folder that HARPE_DATA names, is not fetched again. Where there is no network,
    what is missing is told, with the address that it comes from.
    """

    out: str | None = None
    """Folder for the data; default: harpe's cache, which `harpe ruler` looks into."""
    only: str = "all"
    """Names with commas between them: essays, squad, hotpotqa, english_words, punkt."""
