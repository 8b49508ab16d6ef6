"""Sequences that begin alike as one row in which every shared token stands once.

A question is read once for all its answers (TOFU asks for seven, a choice for four), and so are few-shot examples for
all questions after them.

Shapes: `T` nodes of a tree, one for each token that is read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from expunge.data.encode import Encoded

NODES = 512
"""A tree grows no further: in attention, each of its tokens is paired with all others, whether it sees them or not."""


@dataclass
class Tree:
    """Sequences laid over each other; a sequence's last token predicts nothing and is not read.

    `branches` are (first node, one past the last, the node that the first follows); `paths` gives for each sequence
    the nodes of its tokens.
    """

    sequences: list[Encoded] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    branches: list[tuple[int, int, int | None]] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def alike(self, sequence: Encoded) -> int:
        """How many tokens `sequence` shares with the one that came last, of those that are read."""
        pairs = zip((self.tokens[node] for node in self.paths[-1]), sequence.input_ids[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def add(self, sequence: Encoded, alike: int) -> None:
        shared = self.paths[-1][:alike] if self.paths else []
        first, new = len(self), sequence.input_ids[alike:-1]
        if new:
            self.branches.append((first, first + len(new), shared[-1] if shared else None))
        self.sequences.append(sequence)
        self.tokens.extend(new)
        self.depths.extend(range(alike, alike + len(new)))
        self.paths.append([*shared, *range(first, first + len(new))])

    def predicting(self) -> Iterator[tuple[Encoded, list[int]]]:
        """Each sequence with the nodes that predict its supervised tokens."""
        for sequence, path in zip(self.sequences, self.paths, strict=True):
            yield sequence, [node for first, end in sequence.spans for node in path[first - 1 : end - 1]]

    def sees(self) -> Tensor:
        """Which nodes each node attends to: itself and what it follows, [T, T] bool."""
        sees_TT = torch.zeros(len(self), len(self), dtype=torch.bool)
        for first, end, follows in self.branches:
            sees_TT[first:end, first:end] = torch.ones(end - first, end - first, dtype=torch.bool).tril()
            if follows is not None:
                sees_TT[first:end] |= sees_TT[follows]
        return sees_TT


def grow(sequences: Iterable[Encoded], *, shared: bool = True) -> list[Tree]:
    """Trees that hold every sequence once; a tree for each without `shared`.

    In lexicographic order a sequence has most in common with the one before it. It joins that one's tree if this is an
    eighth of its tokens at least; less would not make up for the longer row.
    """
    trees: list[Tree] = []
    for sequence in sorted(sequences, key=lambda s: (s.input_ids, s.start, s.given)):
        assert max(sequence.start, 1) < len(sequence), "a sequence with nothing to score"
        alike = trees[-1].alike(sequence) if shared and trees else 0
        if not alike or 8 * alike < len(sequence) or len(trees[-1]) + len(sequence) - alike > NODES:
            trees.append(Tree())
            alike = 0
        trees[-1].add(sequence, alike)
    return trees
