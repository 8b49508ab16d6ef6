"""What `Signals` and `Needs` do by themselves."""

import pytest
import torch
from torch import Tensor

from expunge.objectives import Divergence, Needs, Signals


def ragged(sequence: list[int], sequences: int) -> Signals:
    return Signals(vocab_size=7, sequence_N=torch.tensor(sequence, dtype=torch.long), sequences=sequences)


def test_sequence_sum_and_length() -> None:
    s = ragged([0, 0, 2, 2, 2], sequences=4)  # sequences 1 and 3 have no supervised token
    x_N = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64, requires_grad=True)
    sums = s.sequence_sum(x_N)
    assert sums.tolist() == [3.0, 0.0, 28.0, 0.0]
    assert sums.dtype == torch.float64
    assert s.sequence_length().tolist() == [2, 0, 3, 0]
    (sums * torch.arange(4.0)).sum().backward()
    assert x_N.grad is not None
    assert x_N.grad.tolist() == [0.0, 0.0, 2.0, 2.0, 2.0]


def test_sequence_sum_of_nothing() -> None:
    empty: Tensor = torch.zeros(0)
    assert ragged([], sequences=2).sequence_sum(empty).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("needs", "reference", "head"),
    [
        (Needs(), False, False),
        (Needs(logp=True), False, True),
        (Needs(log_odds=True), False, True),
        (Needs(uniform_ce=True), False, True),
        (Needs(logp=True, reference_logp=True), True, True),
        (Needs(divergence=Divergence("forward")), True, True),
        (Needs(layer=0), False, False),
        (Needs(layer=0, reference_layer=True), True, False),
    ],
)
def test_needs_say_what_must_run(needs: Needs, reference: bool, head: bool) -> None:
    assert (needs.reference, needs.head) == (reference, head)
