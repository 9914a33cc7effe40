"""RULER v2's tasks with their published settings, and their samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harpe.errors import HarpeError
from harpe.evaluation.long.ruler2 import documents, needles, questions, wording
from harpe.evaluation.long.ruler2.data import HOTPOTQA, MMLU, DataSet, Ruler2Data
from harpe.evaluation.long.ruler2.documents import DocumentMaker, DocumentSettings
from harpe.evaluation.long.ruler2.draft import Maker
from harpe.evaluation.long.ruler2.needles import NeedleMaker
from harpe.evaluation.long.ruler2.questions import QuestionMaker, QuestionSettings
from harpe.evaluation.long.ruler2.score import match_all, match_all_at_end, match_any, match_letter
from harpe.evaluation.long.task import Sample, Suite
from harpe.evaluation.ruler.search import Budget, fitting, largest_size
from harpe.evaluation.ruler.words import word_lists

Match = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Ruler2Task:
    """One task of the benchmark."""

    name: str
    tokens: int
    """Tokens that an answer may take, behind the length of a sample: the published length is that of the prompt."""
    step: int
    maker: Callable[[random.Random, int, Ruler2Data, Match], Maker]
    """From the stream of random numbers, the seed, the data and `match`."""
    match: Match
    """Scores an answer by its references, 0..1."""
    data: DataSet | None = None

    def score(self, answer: str, sample: Sample) -> float:
        return self.match(answer, sample["outputs"])

    def decided(self, answer: str) -> bool:
        """Never: a later `Answer:` takes away what stands before it."""
        return False

    def whole(self, length: int, begin: int) -> int:
        """Tokens of a sample of that length, with what the tokenizer begins texts with and the answer."""
        return begin + length + self.tokens

    def check(self, data: Ruler2Data) -> list[str]:
        """What is to be said of the data. Raises HarpeError where some are missing."""
        if self.data is not None:
            return data.check(self.data)
        word_lists()
        return []

    def samples(
        self,
        length: int,
        count: int,
        seed: int,
        tokens: Callable[[str], int],
        data: Ruler2Data,
        begin: int = 0,
        back: Callable[[str], str] = str,
        chat: Callable[[str], str] | None = None,
    ) -> Iterator[Sample]:
        """The first `count` samples: those that the published program writes with this --max_seq_length, number of
        samples, seed and tokenizer.

        Parameters
        ----------
        length
            Tokens of a prompt at most, special ones left out.
        tokens
            Counts the tokens of a text, special ones left out.
        begin
            How many tokens the tokenizer begins texts with.
        back
            A text as the tokenizer gives it back from its tokens.
        chat
            Puts a prompt into a chat format, whose tokens come beside `length`.

        Raises
        ------
        HarpeError
            For a length that is too short, more samples than there are questions, data in another format, and a
            tokenizer that cuts a right answer into more tokens than an answer may take or loses much of it.
        """
        rng = random.Random(seed)
        make = self.maker(rng, seed, data, self.match)
        budget = Budget(self.name, length, 0, self.step, "--lengths")
        upper = int(length / (tokens(make(self.step).text) / self.step) * 3)
        size = largest_size(make, tokens, budget, upper)
        for index in make.indices(count):
            make.index = index
            draft, found = fitting(make, tokens, budget, size)
            if (needed := tokens(draft.answer)) > self.tokens:
                raise HarpeError(
                    f"{self.name} cannot be asked with this tokenizer: the right answer of sample {index} takes "
                    f"{needed} tokens, and answers may take {self.tokens}. Leave the task out."
                )
            returned, right = (self.match(each, draft.outputs) for each in (back(draft.answer), draft.answer))
            if returned < right / 2:  # single characters may be lost
                raise HarpeError(
                    f"{self.name} cannot be asked with this tokenizer: the right answer of sample {index}, "
                    f"{draft.answer!r}, comes back from its tokens as {back(draft.answer)!r}, which scores "
                    f"{returned:.0%}. Leave the task out."
                )
            asked = draft.text if chat is None else chat(draft.text)
            yield {
                "index": index,
                "input": asked,
                "outputs": draft.outputs,
                "length": self.whole(found if chat is None else tokens(asked), begin),
                "answer_prefix": "",
                "answer": draft.answer,
                "chance": draft.chance(),
            }


def _needles(name: str, values: int) -> Ruler2Task:
    return Ruler2Task(
        f"ruler2-{name}", 128, needles.STEP, lambda rng, seed, *_: NeedleMaker(rng, seed, values), match_all
    )


def _questions(name: str, tokens: int, settings: QuestionSettings, match: Match) -> Ruler2Task:
    def maker(rng: random.Random, seed: int, data: Ruler2Data, match: Match) -> Maker:
        return QuestionMaker(settings, rng, *data.mmlu, match)

    return Ruler2Task(f"ruler2-{name}", tokens, questions.STEP, maker, match, MMLU)


def _documents(name: str, tokens: int, settings: DocumentSettings) -> Ruler2Task:
    def maker(rng: random.Random, seed: int, data: Ruler2Data, match: Match) -> Maker:
        return DocumentMaker(settings, rng, *data.hotpotqa, match)

    return Ruler2Task(f"ruler2-{name}", tokens, documents.STEP, maker, match_any, HOTPOTQA)


_COPY_ONE_OF = QuestionSettings(wording.COPY_ONE, wording.COPY, "question", alike=4)
_COPY_THEN_SOLVE = QuestionSettings(wording.SOLVE_ONE, wording.COPY_THEN_SOLVE, "letter", 1, 5, True)

TASKS = [
    _needles("mk_niah_basic", 1),
    _questions("mk_niah_easy", 2048, QuestionSettings(wording.COPY_ONE, wording.COPY, "question"), match_all),
    _questions("mk_niah_medium", 2560, _COPY_THEN_SOLVE, match_letter),
    _questions("mk_niah_hard", 1024, QuestionSettings(wording.SOLVE_ONE, wording.SOLVE, "letter", 1, 5), match_letter),
    _needles("mv_niah_basic", 4),
    _questions("mv_niah_easy", 4096, QuestionSettings(wording.COPY_SOME, wording.COPY_ALL, "all", 4), match_all),
    _questions(
        "mv_niah_medium",
        6144,
        QuestionSettings(wording.COPY_ONE, wording.COPY_ALL_THEN_ONE, "all then one", 4),
        match_all_at_end,
    ),
    _questions("mv_niah_hard", 2048, _COPY_ONE_OF, match_all),
    _documents("qa_basic", 128, DocumentSettings(wording.FIND_TEXT, wording.WHERE_IS_TEXT, "text")),
    _documents("qa_easy", 128, DocumentSettings(wording.FIND_SOURCE, wording.WHERE_IS_SOURCE, "source")),
    _documents("qa_medium", 2048, DocumentSettings(wording.ANSWER, wording.COPY_THEN_ANSWER, "answer", True)),
    _documents("qa_hard", 512, DocumentSettings(wording.ANSWER, wording.ANSWER_FROM_ALL, "answer")),
]

SUITE = Suite(
    name="RULER v2",
    verb="harpe long --tasks ruler2",
    asks="12 tasks, basic to hard: numbers of a key, questions to copy or solve, documents to find or to answer from",
    needs="harpe[eval]; cais/mmlu for 6 and hotpotqa/hotpot_qa for 4 of 12 (the hub, or files)",
    lengths="any from about 1,024 to 4,096 on, by task; an answer comes behind",
    models="chat (--chat, or a server's --endpoint chat)",
    chance="copies one of the list: 8% (mk easy, mv easy); names one: 1% to 9% at 4,096 tokens (basic, qa easy); gives "
    "a letter: 25% (mk medium, hard), one of four: 30% (mv medium, hard), yes or no: 5% (qa medium, hard)",
    comparable="RULER v2's own of models that do not think first; for qa up to the order of a list",
)
