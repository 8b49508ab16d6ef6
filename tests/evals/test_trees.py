"""Sequences laid over each other lose nothing and share what they can."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.encode import Encoded
from expunge.evals import trees
from expunge.evals.trees import grow

sequences = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9).map(tuple), max_size=12).flatmap(
    lambda rows: st.tuples(*(st.builds(Encoded, st.just(ids), st.integers(0, len(ids) - 1)) for ids in rows))
)


@given(sequences, st.booleans())
def test_every_sequence_is_a_path(rows: tuple[Encoded, ...], shared: bool) -> None:
    distinct = set(rows)
    grown = grow(distinct, shared=shared)
    assert sorted((s.input_ids, s.start) for tree in grown for s in tree.sequences) == sorted(
        (s.input_ids, s.start) for s in distinct
    )
    for tree in grown:
        sees_TT = tree.sees()
        for (sequence, predicting), path in zip(tree.predicting(), tree.paths, strict=True):
            assert [tree.tokens[node] for node in path] == list(sequence.input_ids[:-1])
            assert [tree.depths[node] for node in path] == list(range(len(path)))
            # A token attends to what stands before it in its own sequence, and to nothing else.
            assert all(sees_TT[node].nonzero()[:, 0].tolist() == sorted(path[: i + 1]) for i, node in enumerate(path))
            assert predicting == path[-(len(sequence) - max(sequence.start, 1)) :]
        assert shared or len(tree.sequences) == 1
        prefixes = {s.input_ids[: i + 1] for s in tree.sequences for i in range(len(s) - 1)}
        assert len(tree) == len(prefixes), "no token of a tree is read twice"


def test_a_question_is_read_once_for_all_its_answers() -> None:
    prompt = tuple(range(20))
    answers = [Encoded((*prompt, 30 + i, 40 + i, 1), 20) for i in range(5)]
    (tree,) = grow(answers)
    assert len(tree) == 20 + 5 * 2
    assert tree.sees().sum() == 20 * 21 // 2 + 5 * (21 + 22)
    assert torch.equal(tree.sees().diagonal(), torch.ones(30, dtype=torch.bool))


def test_what_is_hardly_alike_stays_apart() -> None:
    """Texts that open with the same token, and answers that would make a row too long."""
    assert len(grow([Encoded((7, *[i] * 30), 1) for i in range(4)])) == 4
    long = [Encoded((*range(100), *[200 + i] * 60), 100) for i in range(20)]
    grown = grow(long)
    assert len(grown) > 1 and all(len(tree) <= trees.NODES for tree in grown)
    assert sum(len(tree.sequences) for tree in grown) == 20
    assert grow([]) == []
