"""Forget/retain pairing, the order of an epoch, and collation into one flat batch.

An epoch is one pass over the forget rows. Each is joined by one retain row, drawn from a stream that visits every
retain row once before it repeats any. The order depends on the seed, the epoch and the number of rows in an optimizer
step, never on how a step is cut into micro-batches and ranks: these take different slices of the same order, and a
resumed run takes it up where it stopped.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from expunge.data.dialects import IGNORE
from expunge.data.encode import Encoded


class Role(IntEnum):
    """The purpose of a sequence in the batch."""

    FORGET = 0
    REFUSAL = 1
    RETAIN = 2


@dataclass(frozen=True)
class Sets:
    """The encoded rows of each role; `refusal[i]` answers the prompt of `forget[i]`."""

    forget: Sequence[Encoded] = ()
    retain: Sequence[Encoded] = ()
    refusal: Sequence[Encoded] = ()

    def of(self, role: Role) -> Sequence[Encoded]:
        return (self.forget, self.refusal, self.retain)[role]

    @property
    def lead(self) -> Role:
        """The role whose rows an epoch passes over: forget, or retain when there is nothing to forget."""
        return Role.FORGET if self.forget else Role.RETAIN


Item = list[tuple[Role, int]]
"""The (role, row) of the sequences that belong together."""


class Filler(Item):
    """An item that must not count: it fills the last step of an epoch up, so that every rank has as many batches."""


Pair = tuple[int, int] | tuple[int, int, None]
"""A lead row and the retain row beside it; a third element marks a filler."""


class PairedDataset(Dataset[Item]):
    """Turns the sampler's pairs into the sequences that go into the batch together."""

    def __init__(self, sets: Sets, *, refusals: bool = False) -> None:
        self.sets = sets
        self.refusals = refusals

    def __len__(self) -> int:
        return len(self.sets.of(self.sets.lead))

    def __getitem__(self, pair: Pair) -> Item:
        lead, retain = pair[:2]
        item = Filler() if len(pair) == 3 else []
        if self.sets.lead == Role.FORGET:
            item.append((Role.FORGET, lead))
            if self.refusals:
                item.append((Role.REFUSAL, lead))
            if self.sets.retain:
                item.append((Role.RETAIN, retain))
        else:
            item.append((Role.RETAIN, lead))
        return item


class PairSampler(Sampler[Pair]):
    """The order of an epoch: (lead row, retain row), grouped by length inside windows of `window` optimizer steps.

    Args:
        batch_size: lead rows of one optimizer step, over all accumulation steps and ranks.
        ranks: how many processes take turns with the batches that the order is cut into.
        per_rank: lead rows of such a batch. With several ranks, fillers make the order a multiple of a batch for each.
    """

    def __init__(
        self, sets: Sets, *, batch_size: int, seed: int, window: int = 16, ranks: int = 1, per_rank: int = 1
    ) -> None:
        self.sets = sets
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.ranks, self.per_rank = ranks, per_rank
        self.epoch = 0

    def __len__(self) -> int:
        turn = self.ranks * self.per_rank if self.ranks > 1 else 1
        return math.ceil(self.rows / turn) * turn

    @property
    def rows(self) -> int:
        """Lead rows of an epoch, fillers not counted."""
        return len(self.sets.of(self.sets.lead))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def retain_rows(self, epochs: int) -> set[int]:
        """Numbers of the retain rows paired with forget rows in `epochs` epochs: not all of a large retain set."""
        if self.sets.lead == Role.RETAIN:
            return set(range(len(self.sets.retain)))
        now, drawn = self.epoch, set[int]()
        for self.epoch in range(epochs):
            drawn.update(self._retain_draws(self.rows))
            if len(drawn) == len(self.sets.retain):
                break
        self.epoch = now
        return drawn

    def __iter__(self) -> Iterator[Pair]:
        order = list(self._order())
        whole = len(order) - len(order) % (self.ranks * self.per_rank) if self.ranks > 1 else len(order)
        yield from order[:whole]
        rest = order[whole:]
        for rank in range(self.ranks if rest else 0):
            mine = rest[rank :: self.ranks]
            yield from mine
            yield from [(*rest[0], None)] * (self.per_rank - len(mine))

    def _order(self) -> Iterator[tuple[int, int]]:
        lead_rows = self.sets.of(self.sets.lead)
        leads = _permutation(len(lead_rows), self.seed, self.epoch)
        retains = self._retain_draws(len(leads))
        generator = _generator(self.seed + 2, self.epoch)
        span = self.window * self.batch_size
        for i in range(0, len(leads), span):
            # Sorting both sides by length inside a window keeps padding low without changing who is in the window.
            a = sorted(leads[i : i + span], key=lambda row: len(lead_rows[row]))
            b = sorted(retains[i : i + span], key=lambda row: len(self.sets.retain[row])) if retains else [0] * len(a)
            pairs = list(zip(a, b, strict=True))
            steps = [pairs[j : j + self.batch_size] for j in range(0, len(pairs), self.batch_size)]
            tail = [steps.pop()] if len(steps[-1]) < self.batch_size else []
            for j in torch.randperm(len(steps), generator=generator).tolist():
                yield from steps[j]
            for step in tail:  # a short step must stay last, or every later step would straddle two lengths
                yield from step

    def _retain_draws(self, count: int) -> list[int]:
        size = len(self.sets.retain)
        if self.sets.lead == Role.RETAIN or not size:
            return []
        first = self.epoch * count
        return [
            row
            for lap in range(first // size, (first + count - 1) // size + 1)
            for k, row in enumerate(_permutation(size, self.seed + 1, lap), start=lap * size)
            if first <= k < first + count
        ]


@dataclass(frozen=True)
class Collator:
    """Collate items into one right-padded batch, forget rows first, then refusals, then retain rows.

    Gives `input_ids`, `attention_mask`, `labels` [B, T] int64 and `role`, `row` [B] int64. Fillers are left out; of
    nothing but fillers one is kept, and the key `filler` says that it must not count.
    """

    sets: Sets
    pad_token_id: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        counted = [item for item in items if not isinstance(item, Filler)]
        chosen = sorted((pair for item in counted or items[:1] for pair in item), key=lambda pair: pair[0])
        sequences = [self.sets.of(role)[row] for role, row in chosen]
        batch = pad(sequences, self.pad_token_id)
        batch["role"] = torch.tensor([int(role) for role, _ in chosen])
        batch["row"] = torch.tensor([row for _, row in chosen])
        return batch if counted else {**batch, "filler": torch.tensor(True)}


def pad(sequences: Sequence[Encoded], pad_token_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels` [B, T]: the targets, −100 where nothing is supervised."""
    length = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), length), pad_token_id)
    mask = torch.zeros((len(sequences), length), dtype=torch.long)
    labels = torch.full((len(sequences), length), IGNORE)
    for i, s in enumerate(sequences):
        tokens = torch.tensor(s.input_ids)
        ids[i, : len(s)] = tokens
        mask[i, : len(s)] = 1
        wanted = torch.tensor(s.wanted) if s.wanted else tokens
        for first, end in s.spans:
            labels[i, first:end] = wanted[first:end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(size, generator=_generator(seed, epoch)).tolist()


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + epoch)
