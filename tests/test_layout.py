"""Where a batch's sequences and tokens are: against the rows that went into it, and in chunks."""

from dataclasses import fields
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.objectives import Signals
from expunge.training.layout import LaidOut, Layout

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(LENGTHS, LENGTHS)
def test_every_token_is_where_its_row_is(forget: list[int], retain: list[int]) -> None:
    """Two tokens of each row are its prompt."""
    row = lambda n, first: Encoded(tuple(range(first, first + n + 2)), 2)  # noqa: E731
    sets = Sets(forget=[row(n, 100 * i) for i, n in enumerate(forget)], retain=[row(n, 7) for n in retain])
    chosen = [(role, i) for role in (Role.RETAIN, Role.FORGET) for i in range(len(sets.of(role)))]
    layout = Layout.of(Collator(sets, 0)([chosen]))
    assert layout.lengths == {Role.FORGET: forget, Role.RETAIN: retain}
    for role in layout.lengths:
        expected = [token for encoded in sets.of(role) for token in encoded.input_ids[2:]]
        assert layout.target_of(role).tolist() == expected
    assert layout.sequence_N.tolist() == [i for i, n in enumerate([*forget, *retain]) for _ in range(n)]
    assert layout.place_N.tolist() == [k for n in [*forget, *retain] for k in range(n)]


@given(LENGTHS, LENGTHS, st.sets(st.sampled_from(list(Role))))
def test_of_some_roles_it_is_that_of_a_batch_of_theirs(forget: list[int], retain: list[int], roles: set[Role]) -> None:
    row = lambda n, first: Encoded(tuple(range(first, first + n + 2)), 2)  # noqa: E731
    sets = Sets(forget=[row(n, 100 * i) for i, n in enumerate(forget)], retain=[row(n, 7) for n in retain])

    def laid_out(roles: set[Role]) -> dict[str, Any]:
        return LaidOut(Collator(sets, 0))([[(role, i)] for role in sorted(roles) for i in range(len(sets.of(role)))])

    held = {role for role in roles if sets.of(role)}
    whole = laid_out({Role.FORGET, Role.RETAIN})
    found = Layout.of(whole).only(roles)
    assert Layout.of(whole) is whole["layout"]
    if not held:
        assert not found.rows and not len(found.target_N)
        return
    expected = Layout.of({k: v for k, v in laid_out(held).items() if k != "layout"})
    for field in fields(Layout):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


@given(LENGTHS, st.integers(1, 6))
def test_chunks_hold_whole_sequences_and_longer_ones_in_parts(lengths: list[int], size: int) -> None:
    sets = Sets(forget=[Encoded(tuple(range(n + 1)), 1) for n in lengths])
    layout = Layout.of(Collator(sets, 0)([[(Role.FORGET, i)] for i in range(len(lengths))]))
    chunks = list(layout.chunks(Role.FORGET, size))
    assert [t for tokens, _ in chunks for t in range(tokens.start, tokens.stop)] == list(range(sum(lengths)))
    known = Signals(9, layout.sequence_N, len(lengths), place_N=layout.place_N)
    for tokens, sequences in chunks:
        assert tokens.stop - tokens.start <= size
        part = known.part(tokens, sequences)
        assert part.sequence_N.unique().tolist() == list(range(part.sequences))
        assert torch.equal(part.place_N, known.place_N[tokens])
        for sequence in range(sequences.start, sequences.stop):
            whole = int((part.sequence_N == sequence - sequences.start).sum()) == lengths[sequence]
            assert whole or lengths[sequence] > size
