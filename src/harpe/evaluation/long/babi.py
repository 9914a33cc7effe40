"""Stories of the kinds of bAbI's tasks 1 to 5, by a small simulation of persons, places and objects.

After Weston et al. 2015 (arXiv 1502.05698), whose stories are not contained here. As there: four persons move between
six places and take, leave and give three objects, and a question is about what one, two or three facts say together, or
about how two places or three things relate. Different: stories are at most 20 facts long (bAbI's second and third task
go up to 68 and 320), an object is where it is first taken, and a question that could be answered in two ways is not
asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

PERSONS = ("Mary", "John", "Sandra", "Daniel")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
MOVES = ("went to", "moved to", "journeyed to", "travelled to", "went back to")
TAKES = ("took", "got", "picked up", "grabbed")
DROPS = ("dropped", "put down", "left", "discarded")
GIVES = ("gave", "passed", "handed")


class Story(NamedTuple):
    """Facts and a question about them."""

    facts: list[str]
    question: str
    answer: str
    choices: list[str]
    """What somebody would choose from who has read the question alone; the answer is one of them."""


class Given(NamedTuple):
    """An object that changed hands."""

    giver: str
    thing: str
    receiver: str


class _World:
    """Persons and objects, and the facts that were told of them."""

    def __init__(self, rng: random.Random, persons: tuple[str, ...], giving: bool = False) -> None:
        self._rng, self._persons, self._giving = rng, persons, giving
        self.facts: list[str] = []
        self.place: dict[str, str] = {}
        """Of persons who moved."""
        self.holder: dict[str, str] = {}
        self.trail: dict[str, list[str]] = {}
        """Places of an object since it was first taken."""
        self.given: list[Given] = []

    def move(self) -> None:
        who = self._rng.choice(self._persons)
        where = self._rng.choice([place for place in PLACES if place != self.place.get(who)])
        self.facts.append(f"{who} {self._rng.choice(MOVES)} the {where}.")
        self.place[who] = where
        for thing, holder in self.holder.items():
            if holder == who:
                self.trail[thing].append(where)

    def step(self) -> None:
        """One fact: a move, or what somebody does with an object."""
        taken = [
            (who, thing)
            for who, where in self.place.items()
            for thing in OBJECTS
            if thing not in self.holder and self.trail.get(thing, [where])[-1] == where
        ]
        held = [(who, thing) for thing, who in self.holder.items()]
        given = [
            Given(who, thing, to)
            for who, thing in held
            for to in self._persons
            if self._giving and to != who and self.place.get(to, self.place[who]) == self.place[who]
        ]
        what = self._rng.random()
        if given and what < 0.4:
            self._give(self._rng.choice(given))
        elif held and what > 0.85:
            who, thing = self._rng.choice(held)
            self.facts.append(f"{who} {self._rng.choice(DROPS)} the {thing}.")
            del self.holder[thing]
        elif taken and 0.4 < what < 0.7:
            who, thing = self._rng.choice(taken)
            self.facts.append(f"{who} {self._rng.choice(TAKES)} the {thing}.")
            self.holder[thing] = who
            self.trail.setdefault(thing, [self.place[who]])
        else:
            self.move()

    def _give(self, given: Given) -> None:
        self.facts.append(f"{given.giver} {self._rng.choice(GIVES)} the {given.thing} to {given.receiver}.")
        self.place[given.receiver] = self.place[given.giver]
        self.holder[given.thing] = given.receiver
        self.given.append(given)


def one_fact(rng: random.Random) -> Story:
    """Task 1: where somebody is who went there."""
    world = _World(rng, PERSONS)
    for _ in range(rng.randint(2, 10)):
        world.move()
    who = rng.choice(list(world.place))
    return Story(world.facts, f"Where is {who}?", world.place[who], list(PLACES))


def two_facts(rng: random.Random) -> Story:
    """Task 2: where an object is that somebody took along."""
    while True:
        world = _World(rng, PERSONS)
        for _ in range(rng.randint(4, 16)):
            world.step()
        if world.trail:
            thing = rng.choice(list(world.trail))
            return Story(world.facts, f"Where is the {thing}?", world.trail[thing][-1], list(PLACES))


def three_facts(rng: random.Random) -> Story:
    """Task 3: where an object was before it came to a place, at which it was once."""
    while True:
        world = _World(rng, PERSONS)
        for _ in range(rng.randint(8, 20)):
            world.step()
        asked = [
            (thing, before, place)
            for thing, trail in world.trail.items()
            for before, place in pairwise(trail)
            if trail.count(place) == 1
        ]
        if asked:
            thing, before, place = rng.choice(asked)
            question = f"Where was the {thing} before the {place}?"
            return Story(world.facts, question, before, [each for each in PLACES if each != place])


def two_places(rng: random.Random) -> Story:
    """Task 4: what lies in a direction of a place, or what a place lies in a direction of."""
    while True:
        middle, *others = rng.sample(PLACES, 3)
        told: list[tuple[str, str, str]] = []
        for other in others:
            way = rng.choice(list(OPPOSITE))
            told.append((other, way, middle) if rng.random() < 0.5 else (middle, way, other))
        first, way, second = told[rng.randrange(2)]
        known = {*told, *((b, OPPOSITE[d], a) for a, d, b in told)}
        facts = [f"The {a} is {d} of the {b}." for a, d, b in told]
        if rng.random() < 0.5:
            if sum(d == way and b == second for _, d, b in known) == 1:
                question = f"What is {way} of the {second}?"
                return Story(facts, question, first, [place for place in PLACES if place != second])
        elif sum(a == first and d == way for a, d, _ in known) == 1:
            question = f"What is the {first} {way} of?"
            return Story(facts, question, second, [place for place in PLACES if place != first])


def three_things(rng: random.Random) -> Story:
    """Task 5: who gave what to whom; of several times the last one counts."""
    while True:
        world = _World(rng, GIVERS, giving=True)
        for _ in range(rng.randint(4, 16)):
            world.step()
        if world.given:
            break
    giver, thing, receiver = rng.choice(world.given)
    asked: list[tuple[str, Callable[[Given], bool], Callable[[Given], str]]] = [
        (f"What did {giver} give to {receiver}?", lambda g: g == (giver, g.thing, receiver), lambda g: g.thing),
        (f"Who gave the {thing} to {receiver}?", lambda g: g == (g.giver, thing, receiver), lambda g: g.giver),
        (f"Who did {giver} give the {thing} to?", lambda g: g == (giver, thing, g.receiver), lambda g: g.receiver),
        (f"Who gave the {thing}?", lambda g: g.thing == thing, lambda g: g.giver),
        (f"Who received the {thing}?", lambda g: g.thing == thing, lambda g: g.receiver),
    ]
    question, meant, part = rng.choice(asked)
    persons = [who for who in GIVERS if who not in question.rstrip("?").split()]
    choices = list(OBJECTS) if question.startswith("What") else persons
    return Story(world.facts, question, part([each for each in world.given if meant(each)][-1]), choices)
