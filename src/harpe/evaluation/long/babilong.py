"""Facts of bAbI's tasks 1 to 5, scattered in filler text.

After BABILong (Kuratov et al. 2024, arXiv 2406.10149; program booydar/babilong). As there: the facts keep their order,
stand at random places between sentences of the filler, and an answer is right if the right label is the only one in its
first sentence that the question does not name. Different: stories are made by `babi`, the filler is RULER's noise or
essays in the place of books (PG19), instructions and their one example have words of our own, an answer ends at its
first line (a base model would go on with further questions), and lengths count the prompt and the answer, where
BABILong counts facts and filler. So numbers are not comparable with published ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from harpe.evaluation.long import babi
from harpe.evaluation.long.filler import Filler, scattered
from harpe.evaluation.long.task import Build, Draft, LongTask, Sample, Suite

_ABOUT = (
    "A text follows with facts about {what} hidden in it, and a question. Answer by these facts alone, in one word."
)
_PLACES = _ABOUT.format(what="persons and where they went")
_THINGS = _ABOUT.format(what="persons and what they did") + " What somebody carries goes where they go."

KINDS: dict[str, tuple[Callable[[random.Random], babi.Story], str, str]] = {
    "qa1": (
        babi.one_fact,
        _PLACES,
        "Tom went to the cellar. Ann moved to the attic. Tom travelled to the porch.\n"
        "Question: Where is Tom?\nAnswer: porch",
    ),
    "qa2": (
        babi.two_facts,
        _THINGS,
        "Tom went to the cellar. Tom took the ball. Tom moved to the porch.\n"
        "Question: Where is the ball?\nAnswer: porch",
    ),
    "qa3": (
        babi.three_facts,
        _THINGS,
        "Tom went to the cellar. Tom took the ball. Tom moved to the porch.\n"
        "Question: Where was the ball before the porch?\nAnswer: cellar",
    ),
    "qa4": (
        babi.two_places,
        _ABOUT.format(what="places and how they lie"),
        "The attic is north of the porch. The porch is north of the cellar.\n"
        "Question: What is north of the porch?\nAnswer: attic",
    ),
    "qa5": (
        babi.three_things,
        _ABOUT.format(what="persons and what they gave each other") + " The last time counts.",
        "Tom took the ball. Tom gave the ball to Ann.\nQuestion: Who gave the ball to Ann?\nAnswer: Tom",
    ),
}
"""Of each task its stories, its instruction and a solved example."""
_LABELS = dict.fromkeys(KINDS, babi.PLACES) | {"qa5": (*babi.GIVERS, *babi.OBJECTS)}


def _drawn(kind: str) -> Callable[[random.Random, Filler], Build]:
    tell, instruction, example = KINDS[kind]

    def draw(rng: random.Random, filler: Filler) -> Build:
        story = tell(rng)
        places, start = sorted(rng.random() for _ in story.facts), filler.start(rng)
        right, facts = f" {story.answer}", {"facts": story.facts, "question": story.question}

        def build(words: int) -> Draft:
            context = " ".join(scattered(story.facts, places, filler.sentences(words, start)))
            prompt = f"{instruction}\n\nExample: {example}\n\nText: {context}\n\nQuestion: {story.question}"
            return Draft(prompt, "\nAnswer:", [story.answer], right, 1 / len(story.choices), facts)

        return build

    return draw


def _scored(kind: str) -> Callable[[str, Sample], float]:
    labels = {label.lower() for label in _LABELS[kind]}

    def score(answer: str, sample: Sample) -> float:
        lines = answer.strip().lower().splitlines() or [""]
        said = {label for label in labels if label in lines[0].split(".")[0]}
        asked = {label for label in labels if label in sample["question"].lower()}
        return float(said - asked == {sample["outputs"][0].lower()})

    return score


def sentence_ended(answer: str) -> bool:
    """Whether the only sentence that is scored has ended, in the first line."""
    return "." in (answer.strip().splitlines() or [""])[0]


TASKS = [LongTask(f"babilong-{kind}", 20, _drawn(kind), _scored(kind), sentence_ended) for kind in KINDS]

SUITE = Suite(
    name="BABILong-like",
    verb="harpe long --tasks babilong",
    asks="where somebody or something is, was or lies, or who gave what: facts of bAbI's tasks 1 to 5 in filler",
    needs="nothing; the essays for --filler essays",
    lengths="any from 256 to 512 on, by task and tokenizer",
    models="base and chat",
    chance="names a place, person or object that the question allows: 17% (qa1, qa2), 20% (qa3, qa4), about 30% (qa5)",
    comparable="none: stories, filler and wording are our own (BABILong's own: harpe short --tasks babilong-4k)",
)
