"""Where everything stands in a batch: which sequences and which supervised tokens are whose.

Follows the collator's order: forget rows, refusals, retain rows.

Shapes: B sequences, T positions, N supervised tokens laid end to end.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.pairs import Role
from expunge.modeling.forward import supervised


@dataclass(frozen=True)
class Layout:
    """The layout of one batch; `lengths`, `sequences` and `tokens` have the roles that the batch holds.

    predicts_BT  whether a position predicts a supervised token
    target_N     the supervised tokens
    sequence_N   index in the batch of each token's sequence
    place_N      how many supervised tokens of its sequence come before each token
    lengths      supervised tokens of every sequence of a role
    sequences    where a role's sequences are among the B
    tokens       where a role's supervised tokens are among the N
    """

    predicts_BT: Tensor
    target_N: Tensor
    sequence_N: Tensor
    place_N: Tensor
    lengths: Mapping[Role, list[int]]
    sequences: Mapping[Role, slice]
    tokens: Mapping[Role, slice]

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> "Layout":
        predicts_BT, target_N = supervised(batch["labels"])
        roles_B, lengths_B = torch.stack([batch["role"], predicts_BT.sum(-1)]).tolist()
        lengths: dict[Role, list[int]] = {}
        for role, length in zip(roles_B, lengths_B, strict=True):
            lengths.setdefault(Role(role), []).append(length)
        assert list(lengths) == sorted(lengths), "the collator puts a batch's sequences in the order of their roles"
        return cls(
            predicts_BT,
            target_N,
            sequence_N=predicts_BT.nonzero()[:, 0],
            place_N=predicts_BT.cumsum(-1)[predicts_BT] - 1,
            lengths=lengths,
            sequences=dict(zip(lengths, slices_of(map(len, lengths.values())), strict=True)),
            tokens=dict(zip(lengths, slices_of(map(sum, lengths.values())), strict=True)),
        )

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


def slices_of(sizes: Iterable[int], start: int = 0) -> list[slice]:
    """Where parts of these sizes, laid end to end from `start`, begin and end."""
    slices: list[slice] = []
    for size in sizes:
        slices.append(slice(start, start + size))
        start += size
    return slices
