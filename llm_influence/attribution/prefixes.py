"""Many sequences that begin alike, as a tree whose branches are read once.

A state of a causal model depends on what stands before it alone, so sequences that share their
first events share the keys and values of these. The sequences become a tree, an event (or the
frame) a node; the tree is cut into paths, each going on with the child that has most tokens below
it (heavy paths, Sleator & Tarjan 1983). A path is read in one go, after the keys and values of the
path that it branches off. Leave-one-out over E events is one long path and E short ones, half of
the tokens; all 2^n coalitions of n one-token events are 2^n tokens instead of n 2^(n - 1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from llm_influence.types import IntArray


@dataclass(slots=True, eq=False)
class Path:
    """A run of tokens, read after the first ``depth`` tokens of its parent.

    Attributes:
        depth: Tokens that stand before it.
        tokens: Rows of the records that it reads.
        segments: For each of them a number that grows from event to event.
        ends: The sequences that end in it, with the place of their last token in ``tokens``.
        children: Paths that branch off it.
    """

    depth: int
    tokens: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    children: list[Path] = field(default_factory=list)


def paths(records: IntArray, owner: IntArray, event: IntArray) -> list[Path]:
    """The paths that begin at the root, with those that branch off them.

    Args:
        records: (V, C) tokens; equal rows are equal tokens.
        owner: (V,) the sequence of each token, growing.
        event: (V,) its event; tokens of one event (and those of the frame) stand together.
    """
    tree = _tree(records, owner, event)
    below = np.array([stop - start for start, stop in tree.spans], dtype=np.int64)
    for node in range(len(below) - 1, 0, -1):  # a child's number is larger than its parent's
        below[tree.parent[node]] += below[node]
    children: dict[int, list[int]] = defaultdict(list)
    for node in range(1, len(below)):
        children[tree.parent[node]].append(node)

    root = Path(depth=0)
    work = [(root, child) for child in children[0]]
    while work:
        parent, node = work.pop()
        path = Path(depth=tree.depth[node])
        parent.children.append(path)
        step = 0
        while node:
            start, stop = tree.spans[node]
            path.tokens.extend(range(start, stop))
            path.segments.extend([step] * (stop - start))
            path.ends.extend((sequence, len(path.tokens) - 1) for sequence in tree.ends[node])
            following = sorted(children[node], key=below.__getitem__)
            node, step = (following.pop(), step + 1) if following else (0, step)
            work.extend((path, child) for child in following)
    return root.children


def count_tokens(roots: Sequence[Path]) -> int:
    """Tokens that the paths read."""
    total, work = 0, list(roots)
    while work:
        path = work.pop()
        total += len(path.tokens)
        work.extend(path.children)
    return total


@dataclass(slots=True, eq=False)
class _Tree:
    """Node 0 is the root. Spans are rows of the records, depths the tokens before a node."""

    parent: list[int]
    spans: list[tuple[int, int]]
    depth: list[int]
    ends: dict[int, list[int]]


def _tree(records: IntArray, owner: IntArray, event: IntArray) -> _Tree:
    tree = _Tree([-1], [(0, 0)], [0], defaultdict(list))
    known: dict[tuple[int, bytes], int] = {}
    change = (np.diff(owner) != 0) | (np.diff(event) != 0)
    cuts = [0, *(np.flatnonzero(change) + 1).tolist(), len(owner)]
    records = np.ascontiguousarray(records)
    node, sequence = 0, -1
    for start, stop in pairwise(cuts):
        if owner[start] != sequence:
            if sequence >= 0:
                tree.ends[node].append(sequence)
            node, sequence = 0, int(owner[start])
        key = (node, records[start:stop].tobytes())
        found = known.get(key)
        if found is None:
            found = known[key] = len(tree.parent)
            start_of, stop_of = tree.spans[node]
            tree.parent.append(node)
            tree.spans.append((start, stop))
            tree.depth.append(tree.depth[node] + stop_of - start_of)
        node = found
    if sequence >= 0:
        tree.ends[node].append(sequence)
    return tree
