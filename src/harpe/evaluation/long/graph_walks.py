"""Walks on a graph that is told as a list of edges: the nodes a number of steps away, or those that lead to one.

After OpenAI's GraphWalks (data set openai/graphwalks, 2025). As there: nodes are ten hexadecimal digits, a directed
edge is a line, a breadth-first search asks for the nodes at exactly its depth, the answer is a list, and the score is
F1 of the two sets of nodes. Different: words of our own; the beginning of the list is given to the model, and it cannot
think before (GraphWalks lets it, for thousands of tokens); depths are 1 and 2, and an answer has one to six nodes, so
that its length is no question of the model's patience; the other edges, which change nothing in the answer, are as many
as fit, and make a sparse graph. So numbers are not comparable with published ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from harpe.evaluation.long.filler import Filler, scattered
from harpe.evaluation.long.task import Build, Draft, LongTask, Sample, Suite

Edge = tuple[str, str]
MOST = 6
TOKENS = 80
"""Of an answer: `MOST` nodes of ten digits, each a token at worst, and what stands between them."""
_GRAPH = (
    "Below is a directed graph as a list of edges. Carry out the operation behind it and give the set of nodes that it "
    "results in. A breadth-first search of depth N results in the nodes that are reached in N steps and not in fewer; "
    "the parents of a node are those with an edge to it.\n\nExample:\naaaa -> bbbb\naaaa -> cccc\nbbbb -> dddd\n"
    "Operation: breadth-first search from aaaa with depth 1.\nFinal Answer: [bbbb, cccc]\n"
    "Operation: parents of dddd.\nFinal Answer: [bbbb]\n\nThe graph:\n"
)
_LIST = "Final Answer: ["


class Walk(NamedTuple):
    """An operation, and the edges that decide it."""

    operation: str
    edges: list[Edge]
    result: list[str]
    starts: list[str]
    """Nodes of `edges` that other edges may start from,"""
    ends: list[str]
    """and end in, without a change of the result."""


def _node(rng: random.Random) -> str:
    return f"{rng.getrandbits(40):010x}"


def search(rng: random.Random) -> Walk:
    """A breadth-first search of depth 1 or 2."""
    root, depth = _node(rng), rng.randint(1, 2)
    nodes, edges, level = [root], list[Edge](), [root]
    for step in range(depth):
        last = step == depth - 1
        reached = [_node(rng) for _ in range(rng.randint(1, MOST if last else 3))]
        edges += [(rng.choice(level), each) for each in reached]
        nodes += reached
        level = reached
    return Walk(f"breadth-first search from {root} with depth {depth}", edges, level, list(level), nodes)


def parents(rng: random.Random) -> Walk:
    """The nodes with an edge to one."""
    node, found = _node(rng), [_node(rng) for _ in range(rng.randint(1, MOST))]
    return Walk(f"parents of {node}", [(each, node) for each in found], found, [node, *found], list(found))


def _others(rng: random.Random, walk: Walk) -> Callable[[int], list[Edge]]:
    """The first so many edges that change nothing."""
    edges, starts, ends = dict[Edge, None](), list(walk.starts), list(walk.ends)

    def first(count: int) -> list[Edge]:
        while len(edges) < count:
            start, end = (rng.choice(pool) if rng.random() < 0.5 else _node(rng) for pool in (starts, ends))
            if start != end and (start, end) not in edges:
                edges[start, end] = None
                # new nodes may start and end others; those of the walk stay in the pool that they are in
                starts.extend((start, end) if end not in walk.ends else (start,))
                ends.extend((start, end) if start not in walk.starts else (end,))
        return list(edges)[:count]

    return first


def _drawn(walked: Callable[[random.Random], Walk]) -> Callable[[random.Random, Filler], Build]:
    def draw(rng: random.Random, filler: Filler) -> Build:
        walk = walked(rng)
        deciding = rng.sample(walk.edges, len(walk.edges))
        places = sorted(rng.random() for _ in deciding)
        others = _others(random.Random(rng.getrandbits(64)), walk)
        facts = {"operation": walk.operation}

        def build(edges: int) -> Draft:
            lines = scattered(_lines(deciding), places, _lines(found := others(edges)))
            named = {node for edge in (*deciding, *found) for node in edge}
            size = len(walk.result)
            chance = size / len(named) * 2 / (1 + size)
            prompt = f"{_GRAPH}{chr(10).join(lines)}\n\nOperation: {walk.operation}.\n"
            return Draft(prompt, _LIST, walk.result, f"{', '.join(walk.result)}]", chance, facts)

        return build

    return draw


def _lines(edges: Iterable[Edge]) -> list[str]:
    return [f"{start} -> {end}" for start, end in edges]


def f1(answer: str, sample: Sample) -> float:
    """F1 of the nodes in the answer's list, 0 where the list does not end; in an answer that begins a list itself, of
    the last one."""
    listed, bracket, _ = answer.rpartition(_LIST)[2].partition("]")
    said, right = {node.strip(" \n\t'\"`") for node in listed.split(",")} - {""}, set(sample["outputs"])
    if not bracket or not said & right:
        return 0.0
    return 2 * len(said & right) / (len(said) + len(right))


TASKS = [LongTask("graph-bfs", TOKENS, _drawn(search), f1), LongTask("graph-parents", TOKENS, _drawn(parents), f1)]

SUITE = Suite(
    name="graph walks",
    verb="harpe long --tasks graph",
    asks="the nodes at depth 1 or 2 of a node, or those with an edge to it, in a list of edges; F1",
    needs="nothing",
    lengths="any from about 512 to 1,024 on",
    models="chat; base models of some size",
    chance="names one node of the list: 10% at the shortest lengths, 1% at 4,096 tokens",
    comparable="none: GraphWalks lets models think first, and its graphs are denser",
)
