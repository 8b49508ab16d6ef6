"""Where everything stands in a batch: which sequences and which supervised tokens are whose.

Follows the collator's order: forget rows, refusals, retain rows.

Shapes: B sequences, T positions, N supervised tokens laid end to end.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from expunge.data.pairs import Item, Role
from expunge.modeling.forward import supervised

LAYOUT = "layout"
"""The key of a batch that holds its layout."""


@dataclass(frozen=True)
class Layout:
    """The layout of one batch; `lengths`, `sequences` and `tokens` have the roles that the batch holds.

    sequence_N   index in the batch of each supervised token's sequence
    position_N   the position that predicts it
    target_N     the supervised tokens
    place_N      how many supervised tokens of its sequence come before each token
    rows         (role, row) of every sequence
    lengths      supervised tokens of every sequence of a role
    sequences    where a role's sequences are among the B
    tokens       where a role's supervised tokens are among the N
    """

    sequence_N: Tensor
    position_N: Tensor
    target_N: Tensor
    place_N: Tensor
    rows: Sequence[tuple[Role, int]]
    lengths: Mapping[Role, list[int]]
    sequences: Mapping[Role, slice]
    tokens: Mapping[Role, slice]

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> "Layout":
        """The layout that came with the batch (`LaidOut`), else one that is read off its tensors."""
        if LAYOUT in batch:
            return batch[LAYOUT]
        predicts_BT, target_N = supervised(batch["labels"])
        sequence_N, position_N = predicts_BT.nonzero(as_tuple=True)
        place_N = predicts_BT.cumsum(-1)[predicts_BT] - 1
        rows = [(Role(role), row) for role, row in torch.stack([batch["role"], batch["row"]], -1).tolist()]
        lengths: dict[Role, list[int]] = {}
        for (role, _), length in zip(rows, predicts_BT.sum(-1).tolist(), strict=True):
            lengths.setdefault(role, []).append(length)
        assert list(lengths) == sorted(lengths), "the collator puts a batch's sequences in the order of their roles"
        sequences, tokens = _slices(lengths)
        return cls(sequence_N, position_N, target_N, place_N, rows, lengths, sequences, tokens)

    @property
    def predicts(self) -> tuple[Tensor, Tensor]:
        """Where supervised tokens are predicted: rows and positions, [N] each."""
        return self.sequence_N, self.position_N

    def only(self, roles: Collection[Role]) -> "Layout":
        """The layout of the batch that has the sequences of these roles alone."""
        lengths = {role: counts for role, counts in self.lengths.items() if role in roles}
        if len(lengths) == len(self.lengths):
            return self
        sequences, tokens = _slices(lengths)
        moved = [self.sequence_N[self.tokens[r]] + (sequences[r].start - self.sequences[r].start) for r in lengths]
        position_N, target_N, place_N = (
            torch.cat([x_N[:0], *(x_N[self.tokens[r]] for r in lengths)])
            for x_N in (self.position_N, self.target_N, self.place_N)
        )
        rows = [pair for pair in self.rows if pair[0] in lengths]
        sequence_N = torch.cat([self.sequence_N[:0], *moved])
        return Layout(sequence_N, position_N, target_N, place_N, rows, lengths, sequences, tokens)

    def to(self, device: torch.device | str, **options: Any) -> "Layout":
        """The same with its tensors on `device`; whoever moves a batch's tensors there moves this, too."""
        names = ("sequence_N", "position_N", "target_N", "place_N")
        return replace(self, **{name: getattr(self, name).to(device, **options) for name in names})

    def target_of(self, role: Role) -> Tensor:
        """The role's supervised tokens."""
        return self.target_N[self.tokens[role]]

    def chunks(self, role: Role, size: int) -> Iterator[tuple[slice, slice]]:
        """(tokens, sequences) of the role by chunks: as many whole sequences as `size` tokens hold, or part of one."""
        start = end = first = last = 0
        for sequence, length in enumerate(self.lengths[role]):
            for part in (min(size, length - done) for done in range(0, length, size)):
                if end + part - start > size:
                    yield slice(start, end), slice(first, last + 1)
                    start, first = end, sequence
                end, last = end + part, sequence
        yield slice(start, end), slice(first, last + 1)


@dataclass(frozen=True)
class LaidOut:
    """A collator whose batches carry their `Layout`: worked out on the device, each step would wait for it."""

    collate: Callable[[Sequence[Item]], dict[str, Tensor]]

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        batch = self.collate(items)
        return {**batch, LAYOUT: Layout.of(batch)}


def _slices(lengths: Mapping[Role, list[int]]) -> tuple[dict[Role, slice], dict[Role, slice]]:
    """Where each role's sequences and supervised tokens are."""
    return (
        dict(zip(lengths, slices_of(map(len, lengths.values())), strict=True)),
        dict(zip(lengths, slices_of(map(sum, lengths.values())), strict=True)),
    )


def part_of(batch: Mapping[str, Any], roles: Collection[Role]) -> dict[str, Any]:
    """The batch that has the sequences of these roles alone, of those that `batch` has."""
    whole = Layout.of(batch)
    layout = whole.only(roles)
    chosen = [whole.sequences[role] for role in layout.sequences]
    parts = {name: torch.cat([x[:0], *(x[at] for at in chosen)]) for name, x in batch.items() if isinstance(x, Tensor)}
    return {**parts, LAYOUT: layout}


def slices_of(sizes: Iterable[int], start: int = 0) -> list[slice]:
    """Where parts of these sizes, laid end to end from `start`, begin and end."""
    slices: list[slice] = []
    for size in sizes:
        slices.append(slice(start, start + size))
        start += size
    return slices
