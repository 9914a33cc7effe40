"""Every suite that harpe can run, as `harpe suites` and docs/evaluation.md list them."""

from __future__ import annotations

from dataclasses import astuple

from harpe.evaluation.long import registry
from harpe.evaluation.long.task import Suite

COLUMNS = ("suite", "run by", "asks", "needs", "lengths", "models", "a guesser", "comparable with")

SUITES = (
    Suite(
        name="perplexity",
        verb="harpe perplexity --lengths, --window",
        asks="how well every token is predicted, by context length or in a sliding window",
        needs="texts",
        lengths="up to those of the texts",
        models="base and chat",
        chance="perplexity of the vocabulary's size",
        comparable="tables on the same texts, tokenizer and kind of figure (Proof-pile, GovReport; --average yarn)",
    ),
    Suite(
        name="LongPPL",
        verb="harpe perplexity --key-tokens",
        asks="the same on tokens that need the long context",
        needs="texts",
        lengths="above --short-context (4,096)",
        models="base and chat",
        chance="-",
        comparable="LongPPL (arXiv 2410.23771) with the same judge and texts",
    ),
    Suite(
        name="needle tasks and grid",
        verb="harpe evaluate",
        asks="numbers that stand in a text: one, several, one of several; by length and depth",
        needs="texts",
        lengths="the short context, doubled up to --length",
        models="base and chat",
        chance="below 0.1%",
        comparable="none: numbers and wording are our own",
    ),
    Suite(
        name="RULER",
        verb="harpe ruler",
        asks="13 tasks: needles, variables, words that are common or frequent, questions on documents",
        needs="harpe[eval]; essays and questions for 8 of 13 (harpe fetch-data)",
        lengths="any from about 512 to 2,048 on, by task",
        models="base and chat (--template)",
        chance="below 1%",
        comparable="RULER's own (arXiv 2404.06654), with its essays",
    ),
    *(module.SUITE for module in registry.SUITES.values()),
    Suite(
        name="LongBench v2",
        verb="harpe short --tasks longbench2",
        asks="503 questions with four answers on documents, code, tables, conversations and examples",
        needs="harpe[eval]; the hub, or a clone of recursal/longbench-v2",
        lengths="of its texts, 8k to 2M words; longer than the context: told, and scored apart",
        models="base and chat",
        chance="25%",
        comparable="lm-eval's; not the published table, whose answers are generated",
    ),
    Suite(
        name="BABILong",
        verb="harpe short --tasks babilong-0k, babilong-1k … babilong-128k",
        asks="facts of bAbI's tasks 1 to 5 in books",
        needs="harpe[eval]; the hub, or a clone of RMT-team/babilong-1k-samples",
        lengths="0k, 1k, doubled up to 128k",
        models="base and chat",
        chance="17% in qa1 to qa3 (one of six places); an answer that names all is right too",
        comparable="lm-eval's; BABILong's own score asks that no other label is named",
    ),
    Suite(
        name="HELMET, recall, RAG and ICL",
        verb="harpe short --tasks helmet-recall-8k, helmet-rag-8k, helmet-icl-8k",
        asks="needles and values of keys; questions on documents; labels of texts by hundreds of solved examples",
        needs="harpe[eval]; the data folder of HELMET's archive, and for ICL four data sets from the hub",
        lengths="8k, doubled up to 128k",
        models="base and chat, without chat format",
        chance="below 1%; ICL: 17% (trec_coarse), 2% at most (the others)",
        comparable="HELMET's (arXiv 2410.02694) for models that continue texts",
    ),
    Suite(
        name="short benchmarks",
        verb="harpe short",
        asks="MMLU, HellaSwag, ARC-Challenge, PIQA, TriviaQA and any task of lm-eval, long ones too",
        needs="harpe[eval]; the hub, or files",
        lengths="of the tasks' own",
        models="base and chat",
        chance="25% (MMLU, HellaSwag, ARC), 50% (PIQA), below 1% (TriviaQA)",
        comparable="lm-eval's with the same version, and those made by it; not the *_local parts",
    ),
)


def cells(suite: Suite) -> tuple[str, ...]:
    """A suite's row, one text for each of `COLUMNS`."""
    return astuple(suite)


def as_markdown() -> str:
    """The table of docs/evaluation.md."""
    rows = [(name, f"`{verb}`", *rest) for name, verb, *rest in map(cells, SUITES)]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
