"""Pairing, order and collation of forget and retain rows."""

from collections import Counter
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, PairedDataset, PairSampler, Role, Sets, pad


def sequences(count: int, first: int = 10) -> list[Encoded]:
    return [Encoded(tuple(range(first + i, first + i + 3 + i % 5)), 1) for i in range(count)]


sizes = st.integers(1, 40)


@given(forget=sizes, retain=sizes, batch=st.integers(1, 9), seed=st.integers(0, 5), epochs=st.integers(1, 4))
def test_an_epoch_is_every_forget_row_once_and_retain_rows_wrap_last(
    forget: int, retain: int, batch: int, seed: int, epochs: int
) -> None:
    sampler = PairSampler(Sets(sequences(forget), sequences(retain)), batch_size=batch, seed=seed)
    drawn: Counter[int] = Counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert sorted(lead for lead, *_ in pairs) == list(range(forget))
        assert pairs == list(sampler)  # a resumed epoch is the same epoch
        drawn.update(pair[1] for pair in pairs)
    counts = [drawn[row] for row in range(retain)]
    assert max(counts) - min(counts) <= 1  # nothing repeats before everything has been seen


def test_epochs_and_seeds_differ() -> None:
    sets = Sets(sequences(30), sequences(50))
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = PairSampler(sets, batch_size=4, seed=seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_ranks_see_different_retain_rows() -> None:
    """With accelerate's own sharding of the batches, as a launcher would do it."""
    sampler: Any = PairSampler(Sets(sequences(32), sequences(64)), batch_size=8, seed=0)
    seen = []
    for rank in range(2):
        shard: Any = BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), num_processes=2, process_index=rank)
        seen.append({row for batch in shard for _, row in batch})
    assert len(seen[0]) == len(seen[1]) == 16
    assert not seen[0] & seen[1]


def test_batches_hold_rows_of_like_length() -> None:
    rows = [Encoded(tuple(range(2 + i % 50)), 1) for i in range(400)]
    order = [lead for lead, *_ in PairSampler(Sets(retain=rows), batch_size=10, seed=0)]
    assert sorted(order) == list(range(400))
    padding = sum(
        max(len(rows[i]) for i in order[b : b + 10]) * 10 - sum(len(rows[i]) for i in order[b : b + 10])
        for b in range(0, 400, 10)
    )
    assert padding < 0.15 * sum(map(len, rows))


def test_items_hold_what_belongs_together() -> None:
    sets = Sets(sequences(3), sequences(4), sequences(3))
    assert PairedDataset(sets, refusals=True)[(2, 1)] == [(Role.FORGET, 2), (Role.REFUSAL, 2), (Role.RETAIN, 1)]
    assert PairedDataset(sets)[(2, 1)] == [(Role.FORGET, 2), (Role.RETAIN, 1)]
    assert PairedDataset(Sets(sequences(3)))[(2, 0)] == [(Role.FORGET, 2)]
    assert PairedDataset(Sets(retain=sequences(4)))[(3, 0)] == [(Role.RETAIN, 3)]


def test_a_batch_is_ordered_by_role_and_refusals_keep_their_forget_rows_order() -> None:
    sets = Sets(sequences(5), sequences(5), sequences(5, first=100))
    dataset = PairedDataset(sets, refusals=True)
    batch = Collator(sets, pad_token_id=0)([dataset[(3, 0)], dataset[(1, 4)]])
    assert batch["role"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["row"].tolist() == [3, 1, 3, 1, 0, 4]


@pytest.mark.parametrize("pad_token", [0, 99])
def test_labels_are_the_supervised_span_even_where_padding_is_the_end_token(pad_token: int) -> None:
    end = 99
    batch = pad([Encoded((1, 2, 3, end), 2), Encoded((4, end), 1)], pad_token)
    assert batch["labels"].tolist() == [[-100, -100, 3, end], [-100, end, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["input_ids"][1].tolist() == [4, end, pad_token, pad_token]
    assert batch["input_ids"].dtype == torch.long
