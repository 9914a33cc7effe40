"""Prepare a corpus: check, tokenise, upsample, pack."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from harpe.data.packed import PackedDataset, is_packed
from harpe.data.packing import check_request, pack
from harpe.data.sampling import Upsampling
from harpe.data.shards import check_division, division, remove_shards, shard, tidy, tokenise_shard, whole_shards
from harpe.distributed.processes import refuse_several
from harpe.errors import HarpeError
from harpe.files import remove_folder
from harpe.models.load import load_config, load_tokenizer
from harpe.models.vocabulary import check_vocabulary
from harpe.options.extend import PrepareOptions
from harpe.report.terminal import sources_table
from harpe.reporter import Reporter
from harpe.runs.corpus import TextCorpus
from harpe.runs.foretell import check_room, foretell


def prepare(options: PrepareOptions, reporter: Reporter | None = None) -> Path:
    """Tokenise, upsample and pack a corpus; returns the folder, a `harpe.data.packed.PackedDataset`, or, of a shard,
    the one that its tokens are in.

    Raises HarpeError for bad options, unreadable input, a missing field, too little text, too few long documents or too
    little disk: before anything is written, and before anything is tokenised where that is certain without; not so for
    data sets of the hub, which are read once only.
    """
    refuse_several("harpe prepare", "the tokenizer uses all cores by itself; --shard divides a corpus.")
    reporter, out = reporter or Reporter(), Path(options.out)
    rule = _rule(options)
    if is_packed(out):
        tidy(out)
    check_request(options.length, out, options.seed, options.tokens or None)
    corpus = TextCorpus(options, load_tokenizer(*options.tokenizer_of(options.model)), rule)
    check_vocabulary(load_config(options.model, options.revision), corpus.tokenizer, options.model)
    count = division(out) if options.shard is None else 1
    if count > 1:
        return _joined(options, corpus, rule, count, reporter)
    check_division(out, corpus.shard[1])
    corpus.check()
    with shard(out, *corpus.shard) as folder:
        check_request(options.length, out, options.seed, options.tokens or None)  # another may have ended meanwhile
        characters = 0
        if corpus.read_twice:
            first = corpus.reading("reading", 0, reporter)
            if options.shard is None:
                foretell(first, corpus.tokenizer, options, rule, reporter, corpus.chats)
            else:
                for _ in first:
                    pass
                corpus.tell(first, reporter)
            characters = first.characters
        reading = corpus.reading("tokenising", characters, reporter)
        given = (corpus.request(), reading.account, reporter.say, options.min_length)
        part = tokenise_shard(reading, corpus.tokenizer, folder, *given)
        if not corpus.read_twice:
            corpus.tell(reading, reporter)
        if options.shard is not None:
            reporter.say(
                f"Shard {options.shard}: {int(part.lengths.sum()):,} tokens of {len(part.lengths):,} documents are in "
                f"{folder}. When all shards are there, start the same command without --shard."
            )
            return folder
        data = pack([part], corpus.tokenizer, *_order(options, rule), corpus.index())
        remove_shards([folder])
    return _told(data, out, rule, reporter)


def _rule(options: PrepareOptions) -> Upsampling:
    rule = Upsampling(
        options.upsample_length, options.upsample_factor, options.long_share, options.max_copies, options.short_share
    )
    rule.check()
    return rule


def _order(options: PrepareOptions, rule: Upsampling) -> tuple[int, Path, int, int | None, Upsampling]:
    return options.length, Path(options.out), options.seed, options.tokens or None, rule


def _joined(options: PrepareOptions, corpus: TextCorpus, rule: Upsampling, count: int, reporter: Reporter) -> Path:
    """Put shards together that as many processes have tokenised."""
    out = Path(options.out)
    with ExitStack() as stack:
        folders = [stack.enter_context(shard(out, number, count)) for number in range(1, count + 1)]
        check_request(options.length, out, options.seed, options.tokens or None)
        parts = whole_shards(folders, corpus.tokenizer, corpus.shards_request())
        tokens = sum(int(part.lengths.sum()) for part in parts)
        check_room(out, corpus.tokenizer, 0, options.tokens or tokens, corpus.chats)
        data = pack(parts, corpus.tokenizer, *_order(options, rule), corpus.index())
        remove_shards(folders)
    with suppress(HarpeError), shard(out, 1, 1) as rest:  # of a run before the corpus was divided
        remove_folder(rest)
    return _told(data, out, rule, reporter)


def _told(data: PackedDataset, out: Path, rule: Upsampling, reporter: Reporter) -> Path:
    if left_out := data.index["held_out_left_out"]:
        reporter.say(f"{left_out} documents are left out: --held-out has them.")
    if too_short := data.index["too_short_left_out"]:
        reporter.say(f"{too_short:,} documents are left out: they have fewer tokens than --min-length.")
    for note in _notes(data, rule):
        reporter.say(note)
    reporter.say(
        f"{data.tokens:,} tokens in {len(data):,} sequences of {data.length} are in {out}, SHA-256 {data.hash}."
    )
    if left := data.index.get("sequences_left_out"):
        reporter.say(
            f"{left:,} sequences without a token of an answer are left out: {left * data.length:,} tokens of what was "
            "drawn. Shares are those of the rest."
        )
    for note in data.notes:
        reporter.say(note)
    reporter.say(f"Train on them with --data {out}.")
    return out


def _notes(data: PackedDataset, rule: Upsampling) -> list[str]:
    """What a reader of the table might miss."""
    notes = []
    without = [row["source"] for row in data.index["sources"] if not row["long_documents"]]
    if rule.asked and without:
        notes.append(f"No document of {rule.length:,} tokens in: {', '.join(without)}. Nothing is upsampled there.")
    never = [row["source"] or "the texts" for row in data.index["sources"] if not row["documents_drawn"]]
    if never:
        notes.append(f"Too small for a single document among so few tokens: {', '.join(never)}.")
    return notes


def run(options: PrepareOptions, terminal: Any) -> None:
    """Pack a corpus, and show what was drawn from its sources."""
    folder = prepare(options, terminal)
    if options.shard is None:
        terminal.table(sources_table(folder))
