"""log(1 − exp ℓ) over its whole range, and what `Signals` and `Needs` do by themselves."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.objectives import Divergence, Needs, Signals
from expunge.objectives.base import log1mexp

EPS64, EPS32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps


def exact(logp: float) -> tuple[float, float]:
    """log(1 − exp ℓ) and its derivative −p/(1 − p) to 50 digits, rounded once."""
    with mpmath.workdps(50):
        p = mpmath.exp(mpmath.mpf(logp))
        return float(mpmath.log1p(-p)), float(-p / (1 - p))


def value_and_slope(logp: float, dtype: torch.dtype) -> tuple[float, float]:
    x = torch.tensor(logp, dtype=dtype, requires_grad=True)
    y = log1mexp(x)
    y.backward()
    assert x.grad is not None
    return y.item(), x.grad.item()


# −700: below it exp ℓ is subnormal, and has fewer digits in any formula.
@settings(deadline=None, max_examples=200)
@given(st.floats(min_value=-700, max_value=-EPS64) | st.floats(min_value=-2, max_value=-EPS64))
def test_log1mexp_in_float64(logp: float) -> None:
    value, slope = value_and_slope(logp, torch.float64)
    assert (value, slope) == pytest.approx(exact(logp), rel=8 * EPS64, abs=0)


@settings(deadline=None, max_examples=200)
@given(st.floats(min_value=-80, max_value=-EPS32, width=32) | st.floats(min_value=-2, max_value=-EPS32, width=32))
def test_log1mexp_in_float32(logp: float) -> None:
    value, slope = value_and_slope(logp, torch.float32)
    assert (value, slope) == pytest.approx(exact(logp), rel=8 * EPS32, abs=0)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, EPS64), (torch.float32, EPS32)])
@pytest.mark.parametrize("share_of_eps", [0.0, 1e-9, 0.5, 1.0])
def test_log1mexp_is_finite_up_to_zero(dtype: torch.dtype, eps: float, share_of_eps: float) -> None:
    """Everything nearer to zero than ε is taken at −ε, value and slope."""
    assert value_and_slope(-share_of_eps * eps, dtype) == pytest.approx(exact(-eps), rel=1e-6)


def test_log1mexp_far_away_is_zero() -> None:
    assert value_and_slope(-1e4, torch.float64) == (0.0, 0.0)
    assert value_and_slope(float("-inf"), torch.float64) == (0.0, 0.0)


def test_log1mexp_rows_do_not_mix() -> None:
    """Neighbours at the other end of the range leave no NaN in a row's gradient."""
    logp = torch.tensor([0.0, -1e-30, -0.5, -50.0, -1e4], requires_grad=True)
    log1mexp(logp).sum().backward()
    alone = torch.tensor([value_and_slope(x, torch.float32)[1] for x in logp.tolist()])
    assert logp.grad is not None
    assert torch.equal(logp.grad, alone)


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
        (Needs(logp=True, reference_logp=True), True, True),
        (Needs(divergence=Divergence("forward")), True, True),
        (Needs(layer=0), False, False),
        (Needs(layer=0, reference_layer=True), True, False),
    ],
)
def test_needs_say_what_must_run(needs: Needs, reference: bool, head: bool) -> None:
    assert (needs.reference, needs.head) == (reference, head)
