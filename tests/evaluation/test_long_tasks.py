"""The long-context suites made here: who knows the answer scores 100, who guesses scores what is stated, facts and
edges say what the references say, and no sample is longer than was asked."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harpe.data.token_ids import begin_ids, plain_ids, text_ids
from harpe.errors import HarpeError
from harpe.evaluation.long.filler import Filler, noise, scattered
from harpe.evaluation.long.generate import samples
from harpe.evaluation.long.registry import GROUPS, LONG_TASKS, TASKS, chosen
from harpe.evaluation.long.task import AtLength
from harpe.evaluation.ruler.counting import TokenCounter
from harpe.models.load import load_tokenizer

MANY = 300
PERSONS = ("Mary", "John", "Sandra", "Daniel")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")


def words(text: str) -> int:
    """A count of tokens that needs no tokenizer."""
    return len(text.split())


def bytes_tokenizer() -> PreTrainedTokenizerBase:
    """A token a byte, behind a token that begins every text."""
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<s>", *pre_tokenizers.ByteLevel.alphabet()])}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@cache
def drawn(name: str, count: int = MANY, length: int = 1200, seed: int = 0) -> list[dict[str, Any]]:
    return list(samples(AtLength(LONG_TASKS[name], length), count, seed, words, noise()))


def guess(name: str, sample: dict[str, Any], rng: random.Random) -> str:
    """An answer by the form of the task and the question alone, or, of texts and values, by what the prompt lists."""
    prompt = sample["input"]
    if name.startswith("babilong"):
        persons, things = sample["question"].startswith("Who"), "give to" in sample["question"]
        choices: Any = OBJECTS if things and not persons else GIVERS if persons else PLACES
        return rng.choice([each for each in choices if each not in re.findall(r"\w+", sample["question"])])
    if name.startswith("graph"):
        return rng.choice(sorted(set(re.findall(r"\b[0-9a-f]{10}\b", prompt)))) + "]"
    if name.startswith("order"):
        return rng.choice(re.findall(r"now set to (\d+)\.", prompt))
    if name.startswith("content"):
        return rng.choice(re.findall(r"The code of box [A-Z]{6} is (\d+)\.", prompt))
    alike = re.search(r"the \d+\w\w (\w+) about (.+) that you wrote", prompt)
    assert alike is not None
    texts = re.findall(f"User: Write a {alike[1]} about {alike[2]}.\nAssistant: (.+)", prompt)
    mark = re.search(r"User: Write (\w{10}) and", prompt)
    assert mark is not None and len(texts) == int(name.rpartition("-")[2])
    return mark[1] + rng.choice(texts)


@pytest.mark.parametrize("name", LONG_TASKS)
def test_who_knows_scores_100_and_who_guesses_what_is_stated(name: str) -> None:
    task, rng, rows = LONG_TASKS[name], random.Random(1), drawn(name)
    assert [task.score(row["answer"], row) for row in rows] == [1.0] * MANY
    assert not any(task.score("", row) or task.score("I do not know.", row) for row in rows)
    scores = [task.score(guess(name, row, rng), row) for row in rows]
    stated = sum(row["chance"] for row in rows) / MANY
    spread = math.sqrt(sum((score - stated) ** 2 for score in scores) / MANY)
    assert 0 < stated < 0.8 and spread > 0
    assert abs(sum(scores) / MANY - stated) < 3.3 * spread / math.sqrt(MANY)


@pytest.mark.parametrize("name", LONG_TASKS)
def test_the_references_alone_make_a_right_answer(name: str) -> None:
    for row in drawn(name, 20):
        said = {"graph": ", ".join(row["outputs"]) + "]"}.get(name.partition("-")[0], " ".join(row["outputs"]))
        assert LONG_TASKS[name].score(f" {said}", row) == 1.0


def told(facts: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Facts as subject, kind, object and receiver."""
    for fact in facts:
        if moved := re.fullmatch(r"(\w+) (?:went|moved|journeyed|travelled|went back) to the (\w+)\.", fact):
            yield moved[1], "move", moved[2], ""
        elif given := re.fullmatch(r"(\w+) (?:gave|passed|handed) the (\w+) to (\w+)\.", fact):
            yield given[1], "give", given[2], given[3]
        else:
            other = re.fullmatch(
                r"(\w+) (took|got|picked up|grabbed|dropped|put down|left|discarded) the (\w+)\.", fact
            )
            assert other is not None, fact
            yield other[1], "take" if other[2] in ("took", "got", "picked up", "grabbed") else "drop", other[3], ""


def states(facts: list[str]) -> list[dict[str, str | None]]:
    """Where every object is after each fact, found anew from the facts so far, last one first."""

    def person(who: str, until: int, known: list[tuple[str, str, str, str]]) -> str | None:
        for number in range(until, -1, -1):
            subject, kind, what, receiver = known[number]
            if kind == "move" and subject == who:
                return what
            if kind == "give" and receiver == who:
                return person(subject, number - 1, known)
        return None

    def thing(what: str, until: int, known: list[tuple[str, str, str, str]]) -> str | None:
        for number in range(until, -1, -1):
            subject, kind, named, receiver = known[number]
            if named == what and kind != "move":
                return person(receiver or subject, number if kind == "drop" else until, known)
        return None

    known = list(told(facts))
    return [{each: thing(each, until, known) for each in OBJECTS} for until in range(len(known))]


def told_answer(facts: list[str], question: str) -> str | None:
    """By another way than the generator's: the question is read, and the facts are searched from their end."""
    asked = question.rstrip("?").split()
    known = list(told(facts)) if not facts[0].startswith("The ") else []
    if question.startswith("Where was"):
        trail = [state[asked[3]] for state in states(facts)]
        steps = [(a, b) for a, b in pairwise(trail) if a and a != b]
        before = [a for a, b in steps if b == asked[6]]
        assert len(before) == 1, "a question with two answers"
        return before[0]
    if question.startswith("Where is the"):
        return states(facts)[-1][asked[3]]
    if question.startswith("Where is"):
        return next(what for who, _, what, _ in reversed(known) if who == asked[2])
    gifts = [(giver, thing, to) for giver, kind, thing, to in known if kind == "give"]
    if given := re.fullmatch(r"What did (\w+) give to (\w+)\?", question):
        return next(thing for giver, thing, to in reversed(gifts) if (giver, to) == given.groups())
    if given := re.fullmatch(r"Who gave the (\w+)(?: to (\w+))?\?", question):
        return next(g for g, thing, to in reversed(gifts) if thing == given[1] and given[2] in (None, to))
    if given := re.fullmatch(r"Who did (\w+) give the (\w+) to\?", question):
        return next(to for giver, thing, to in reversed(gifts) if (giver, thing) == given.groups())
    if given := re.fullmatch(r"Who received the (\w+)\?", question):
        return next(to for _, thing, to in reversed(gifts) if thing == given[1])
    opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}
    lies = set()
    for fact in facts:
        first, way, second = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", fact).groups()  # type: ignore[union-attr]
        lies |= {(first, way, second), (second, opposite[way], first)}
    if given := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
        found = {a for a, way, b in lies if (way, b) == given.groups()}
    else:
        given = re.fullmatch(r"What is the (\w+) (\w+) of\?", question)
        assert given is not None
        found = {b for a, way, b in lies if (a, way) == given.groups()}
    assert len(found) == 1, "a question with two answers"
    return found.pop()


@pytest.mark.parametrize("kind", ["qa1", "qa2", "qa3", "qa4", "qa5"])
def test_facts_say_what_the_reference_says_and_stand_in_the_text_in_their_order(kind: str) -> None:
    answers = set()
    for row in drawn(f"babilong-{kind}"):
        assert [told_answer(row["facts"], row["question"])] == row["outputs"]
        context, at = row["input"].split("\n\nText: ")[1].rpartition("\n\nQuestion: ")[0], 0
        for fact in row["facts"]:
            at = context.index(fact, at) + len(fact)
        rest = context
        for fact in row["facts"]:
            rest = rest.replace(fact, "", 1)
        assert not re.search("|".join((*PERSONS, *GIVERS, *PLACES)), rest)
        answers.add(row["outputs"][0])
    assert len(answers) >= 6  # every place; persons and objects of the fifth


def test_nobody_takes_leaves_or_gives_what_is_elsewhere() -> None:
    """Objects are where they were left, and who gives stands where the other one does."""
    for name in ("babilong-qa2", "babilong-qa3", "babilong-qa5"):
        for row in drawn(name, 100):
            place: dict[str, str] = {}
            holder: dict[str, str] = {}
            left: dict[str, str] = {}
            for who, kind, what, to in told(row["facts"]):
                if kind == "move":
                    assert place.get(who) != what
                    place[who] = what
                elif kind == "take":
                    assert what not in holder and left.get(what, place[who]) == place[who]
                    holder[what] = who
                else:
                    assert holder[what] == who
                    if kind == "give":
                        assert place.get(to, place[who]) == place[who]
                        holder[what], place[to] = to, place[who]
                    else:
                        left[what] = place[who]
                        del holder[what]


@pytest.mark.parametrize("length", [400, 3000])
def test_the_list_of_edges_alone_gives_the_nodes(length: int) -> None:
    """By a search over the lines as they stand in the prompt."""
    depths = set()
    for name in ("graph-bfs", "graph-parents"):
        for row in drawn(name, 60, length):
            lines = row["input"].split("The graph:\n")[1].split("\n\n")[0].splitlines()
            edges = [tuple(line.split(" -> ")) for line in lines]
            assert len(edges) == len(set(edges)) and all(a != b for a, b in edges)
            if found := re.search(r"search from (\w+) with depth (\d)", row["operation"]):
                seen, level = {found[1]}, {found[1]}
                for _ in range(int(found[2])):
                    level = {b for a, b in edges if a in level} - seen
                    seen |= level
                depths.add(found[2])
            else:
                level = {a for a, b in edges if b == row["operation"].split()[-1]}
            assert sorted(level) == sorted(row["outputs"]) and 1 <= len(level) <= 6
    assert depths == {"1", "2"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("aa, bb]", 1.0),
        ("bb, aa, aa]\nOperation", 1.0),
        ("aa]", 2 / 3),
        ("aa, cc, dd]", 2 / 5),
        ("aa, bb", 0.0),  # a list without an end
        ("]", 0.0),
        ("cc] Final Answer: [aa, bb]", 1.0),  # a model that begins the list itself
    ],
)
def test_graphs_are_scored_by_f1_of_whole_lists(answer: str, expected: float) -> None:
    assert LONG_TASKS["graph-bfs"].score(answer, {"outputs": ["aa", "bb"]}) == pytest.approx(expected)


def test_f1_and_the_ratio_are_those_of_lm_eval_and_difflib() -> None:
    utils = pytest.importorskip("lm_eval.tasks.graphwalks.utils")
    rng = random.Random(3)
    for row in drawn("graph-bfs", 50):
        nodes = sorted(set(re.findall(r"\b[0-9a-f]{10}\b", row["input"])))
        said = rng.sample(nodes, 2) + rng.sample(row["outputs"], rng.randint(0, len(row["outputs"])))
        theirs = utils.process_results({"answer_nodes": row["outputs"]}, [f"Final Answer: [{', '.join(said)}]"])
        assert LONG_TASKS["graph-bfs"].score(f"{', '.join(said)}]", row) == pytest.approx(theirs["f1"])
    for row in drawn("coreference-4", 20):
        score, right = LONG_TASKS["coreference-4"].score, row["outputs"][0]
        cut = right[: len(right) // 2].rstrip()
        expected = SequenceMatcher(None, cut[10:], right[10:]).ratio()
        assert score(f" {cut}\nUser: Write more.", row) == expected and 0.5 < expected < 0.9
        assert score(right[10:], row) == 0.0 == score("x" + right, row)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" kitchen.", 1.0),
        ("The most recent location of Mary is the Kitchen.", 1.0),
        ("kitchen\nQuestion: Where is John?\nAnswer: garden", 1.0),
        ("kitchen or garden", 0.0),
        ("In the garden. Not in the kitchen.", 0.0),
        ("", 0.0),
    ],
)
def test_a_place_is_right_where_it_is_the_only_one(answer: str, expected: float) -> None:
    sample = {"outputs": ["kitchen"], "question": "Where is Mary?"}
    assert LONG_TASKS["babilong-qa1"].score(answer, sample) == expected


def test_only_order_tells_the_register_and_only_letters_the_box() -> None:
    for name, count in (("order-last-4", 4), ("order-nth-16", 16)):
        for row in drawn(name, 50):
            held = re.findall(r"now set to (\d+)\.", row["input"])
            asked = re.search(r"set the (?:(\d+)\w\w|last) time\?$", row["input"])
            assert asked is not None and len(held) == len(set(held)) == count == row["of"]
            assert row["outputs"] == [held[int(asked[1]) - 1 if asked[1] else -1]]
            behind = row["input"].split(f" {row['outputs'][0]}. ", 1)[1].split("\n\nQuestion:")[0]
            assert row["words_behind"] == words(behind)
    for row in drawn("content-16", 50):
        codes = dict(re.findall(r"The code of box ([A-Z]+) is (\d+)\.", row["input"]))
        asked = re.search(r"code of box (\w+)\?$", row["input"])
        assert asked is not None and len(codes) == len(set(codes.values())) == 16
        assert row["outputs"] == [codes[asked[1]]]
        assert {sum(a != b for a, b in zip(key, asked[1], strict=True)) for key in codes} == {0, 1}
    distances = [row["words_behind"] for row in drawn("order-last-16", 200)]
    assert sum(each < 300 for each in distances) > 30 < sum(each > 800 for each in distances)  # of about 1,100 words


@pytest.mark.parametrize("make", [lambda: load_tokenizer("embedded"), bytes_tokenizer], ids=["embedded", "bytes"])
@pytest.mark.parametrize("name", LONG_TASKS)
def test_samples_fill_the_length_and_never_pass_it(name: str, make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    task, begin = LONG_TASKS[name], len(begin_ids(tokenizer))
    count = TokenCounter(tokenizer)
    unit = {"graph": 25, "coreference": 330}.get(name.partition("-")[0], 12)  # tokens of an edge, a turn, a word
    for length in (5000, 8192):
        for row in samples(AtLength(task, length), 3, 5, count, noise(), begin):
            asked = len(text_ids(tokenizer, row["input"] + row["answer_prefix"]))
            assert row["length"] == asked + task.tokens
            assert length - unit < row["length"] <= length


def test_a_length_that_is_too_short_is_told_with_what_it_takes() -> None:
    for name, task in LONG_TASKS.items():
        with pytest.raises(HarpeError, match=f"{name} cannot be made with 60 tokens.*takes at least (\\d+)") as told_:
            list(samples(AtLength(task, 60), 1, 0, words, noise()))
        least = int(re.search(r"at least (\d+)", str(told_.value))[1])  # type: ignore[index]
        (row,) = samples(AtLength(task, least), 1, 0, words, noise())
        assert row["length"] == least
        with pytest.raises(HarpeError):
            list(samples(AtLength(task, least - 1), 1, 0, words, noise()))


def test_answers_that_do_not_fit_their_budget_are_told() -> None:
    with pytest.raises(HarpeError, match="the right answer of sample 0 takes"):
        list(samples(AtLength(LONG_TASKS["coreference-2"], 9000), 1, 0, lambda text: 2 * len(text), noise()))


@pytest.mark.parametrize("make", [lambda: load_tokenizer("embedded"), bytes_tokenizer], ids=["embedded", "bytes"])
def test_right_answers_come_back_from_their_tokens_and_a_tokenizer_that_loses_them_is_told(
    make: Callable[[], PreTrainedTokenizerBase],
) -> None:
    tokenizer = make()

    def back(text: str) -> str:
        return str(tokenizer.decode(plain_ids(tokenizer, text), skip_special_tokens=True))

    for task in LONG_TASKS.values():
        assert len(list(samples(AtLength(task, 2000), 5, 0, words, noise(), back=back))) == 5
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert len(list(samples(AtLength(LONG_TASKS["babilong-qa5"], 2000), 5, 0, words, noise(), back=back))) == 5
    with pytest.raises(HarpeError, match="coreference-2 cannot be asked with this tokenizer: .* comes back"):
        list(samples(AtLength(LONG_TASKS["coreference-2"], 2000), 5, 0, words, noise(), back=back))


@pytest.mark.parametrize("name", LONG_TASKS)
def test_the_same_seed_gives_the_same_samples_and_another_one_others(name: str) -> None:
    at = AtLength(LONG_TASKS[name], 1000)
    first = list(samples(at, 5, 7, words, noise()))
    assert first == list(samples(at, 5, 7, words, noise())) and first[:3] == list(samples(at, 3, 7, words, noise()))
    assert not {row["input"] for row in first} & {row["input"] for row in samples(at, 5, 8, words, noise())}
    longer = list(samples(AtLength(LONG_TASKS[name], 2000), 5, 7, words, noise()))
    assert [row["answer"] for row in longer] == [row["answer"] for row in first]


def test_filler_is_cut_by_words_and_facts_stand_between_sentences() -> None:
    filler = Filler(["One two three.", "Four five."])
    assert filler.sentences(7, 1) == ["Four five.", "One two three.", "Four five."]
    assert filler.sentences(6, 0) == ["One two three.", "Four five.", "One"]
    assert scattered(["A.", "B."], [0.0, 0.99], ["x.", "y.", "z"]) == ["A.", "x.", "y.", "B.", "z"]


def test_names_of_suites_stand_for_their_tasks() -> None:
    assert [task.name for task in chosen(["babilong"])] == [f"babilong-qa{i}" for i in range(1, 6)]
    assert [task.name for task in chosen(["content-4", "graph"])] == ["graph-bfs", "graph-parents", "content-4"]
    assert set(GROUPS["all"]) == set(LONG_TASKS) and set(TASKS) == {name for names in GROUPS.values() for name in names}
    assert {task.name.partition("-")[0] for task in chosen(["base-model"])} == {"babilong", "order", "content"}
    with pytest.raises(HarpeError, match="--tasks babylong is no task of harpe long. Did you mean babilong"):
        chosen(["babylong"])
    with pytest.raises(HarpeError, match="--tasks names no task"):
        chosen([])
