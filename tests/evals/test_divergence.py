"""Divergences against values worked out by hand and scipy's, and soft labels against their definition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from expunge.evals.divergence import SoftLabels, kl
from expunge.objectives import NPO, UnDIAL, Unilogit

LOG2, LOG3 = math.log(2), math.log(3)


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


def logs(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_logits(tokens: int, vocabulary: int, *, scale: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(tokens, vocabulary, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0),
        ([1.0, 0.0], [0.5, 0.5], LOG2),
        ([0.5, 0.5], [0.25, 0.75], LOG2 - LOG3 / 2),
        ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5], LOG2),
        ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0], 0.0),  # 0 log 0/0 is 0
        ([0.5, 0.5], [1.0, 0.0], math.inf),
        ([1.0, 0.0], [0.0, 1.0], math.inf),
    ],
)
def test_kl(p: list[float], q: list[float], expected: float) -> None:
    assert kl(logs(p), logs(q)).tolist() == close([expected])


def test_kl_is_one_number_a_token_and_says_which_comes_first() -> None:
    p, q = logs([1.0, 0.0], [0.5, 0.5], [0.5, 0.5]), logs([0.5, 0.5], [0.5, 0.5], [0.25, 0.75])
    assert kl(p, q).tolist() == close([LOG2, 0.0, LOG2 - LOG3 / 2])
    assert kl(q, p).tolist() == close([math.inf, 0.0, 0.75 * LOG3 - LOG2])


def test_kl_of_what_probabilities_underflow_for() -> None:
    z = torch.tensor([[0.0, -2000.0]], dtype=torch.float64)
    assert kl(torch.zeros_like(z).log_softmax(-1), z.log_softmax(-1)).tolist() == close([1000 - LOG2])


@given(st.integers(1, 5), st.integers(2, 12), st.integers(0, 50), st.sampled_from([0.1, 3.0, 30.0]))
def test_kl_is_scipys(tokens: int, vocabulary: int, seed: int, scale: float) -> None:
    z_p, z_q = (random_logits(tokens, vocabulary, scale=scale, seed=s) for s in (seed, seed + 99))
    ours = kl(z_p.log_softmax(-1), z_q.log_softmax(-1))
    np.testing.assert_allclose(ours, entropy(softmax(z_p, -1), softmax(z_q, -1), axis=-1), rtol=1e-9, atol=1e-9)
    assert kl(z_p.log_softmax(-1), z_p.log_softmax(-1)).tolist() == [0.0] * tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kl_is_computed_in_at_least_float32_and_never_negative(dtype: torch.dtype) -> None:
    p = random_logits(50, 30).log_softmax(-1).to(dtype)
    q = (p.float() + 1e-7).to(dtype)  # not quite normalised, so the exact sum is −1e-7
    assert kl(p, q).dtype == torch.float32
    assert (kl(p, q) >= 0).all()


def test_kl_keeps_nan_in_sight() -> None:
    nan = torch.full((1, 3), math.nan, dtype=torch.float64)
    assert kl(nan, logs([0.2, 0.3, 0.5])).isnan().all()
    assert kl(logs([0.2, 0.3, 0.5]), nan).isnan().all()


@pytest.mark.parametrize(
    ("probabilities", "target", "expected"),
    [
        ([0.7, 0.2, 0.1], 0, [1 / 3, 4 / 9, 2 / 9]),  # the rest, 2/3, is shared 2 : 1
        ([0.25, 0.25, 0.25, 0.25], 2, [0.25, 0.25, 0.25, 0.25]),
        ([0.0, 0.5, 0.5], 0, [1 / 3, 1 / 3, 1 / 3]),
        ([0.01, 0.99], 1, [0.5, 0.5]),
        ([1e-300, 0.6, 0.4], 1, [1e-300, 1 / 3, 2 / 3]),
    ],
)
def test_unilogit_soft_labels(probabilities: list[float], target: int, expected: list[float]) -> None:
    labels = SoftLabels("unilogit")(logs(probabilities), torch.tensor([target]))
    assert labels.exp().tolist()[0] == close(expected)


@pytest.mark.parametrize(
    ("probabilities", "target", "beta", "expected"),
    [
        ([0.5, 0.3, 0.2], 0, LOG2, [1 / 3, 0.4, 4 / 15]),  # .25 : .3 : .2
        ([0.5, 0.3, 0.2], 1, 0.0, [0.5, 0.3, 0.2]),
        ([0.9, 0.1], 0, math.log(9), [0.5, 0.5]),
        ([0.5, 0.3, 0.2], 0, 1e4, [0.0, 0.6, 0.4]),
    ],
)
def test_undial_soft_labels(probabilities: list[float], target: int, beta: float, expected: list[float]) -> None:
    labels = SoftLabels("undial", beta)(logs(probabilities), torch.tensor([target]))
    assert labels.exp().tolist()[0] == close(expected)


def test_undial_lowers_by_10_unless_told_otherwise() -> None:
    z, target = random_logits(3, 5), torch.tensor([0, 1, 4])
    assert torch.equal(SoftLabels("undial")(z, target), SoftLabels("undial", 10.0)(z, target))
    assert not torch.allclose(SoftLabels("undial")(z, target), SoftLabels("undial", 9.0)(z, target))


@given(st.integers(1, 5), st.integers(2, 12), st.integers(0, 50), st.floats(-1e3, 1e3))
def test_unilogit_soft_labels_are_a_share_of_one_in_v(tokens: int, vocabulary: int, seed: int, peak: float) -> None:
    z = random_logits(tokens, vocabulary, seed=seed)
    target = torch.arange(tokens) % vocabulary
    z[torch.arange(tokens), target] = peak  # whatever it was, it takes no part
    labels = SoftLabels("unilogit")(z, target)
    for n in range(tokens):
        others = np.delete(z[n].numpy(), int(target[n]))
        expected = np.insert(softmax(others) * (1 - 1 / vocabulary), int(target[n]), 1 / vocabulary)
        np.testing.assert_allclose(labels[n].exp(), expected, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 50))
def test_unilogit_objective_is_the_divergence_to_these_labels(seed: int) -> None:
    from expunge.objectives.base import Signals

    z, target = random_logits(4, 9, seed=seed), torch.tensor([0, 3, 8, 3])
    logp = z.log_softmax(-1)
    rest = logp.scatter(-1, target[:, None], -torch.inf).logsumexp(-1)
    odds = logp.gather(-1, target[:, None])[:, 0] - rest
    signals = Signals(vocab_size=9, sequence_N=torch.zeros(4, dtype=torch.long), sequences=1, log_odds_N=odds)
    expected = kl(logp, SoftLabels("unilogit")(z, target))
    np.testing.assert_allclose(Unilogit().loss(signals), expected, rtol=1e-9, atol=1e-9)


def test_soft_labels_leave_the_logits_as_they_are_and_raise_low_precision() -> None:
    z = random_logits(2, 4)
    before, target = z.clone(), torch.tensor([1, 2])
    for kind in ("unilogit", "undial"):
        assert SoftLabels(kind)(z.bfloat16(), target).dtype == torch.float32
        SoftLabels(kind)(z, target)
    assert torch.equal(z, before)


def test_soft_labels_of_the_objectives_that_have_them() -> None:
    assert SoftLabels.of(Unilogit(direction="forward")) == SoftLabels("unilogit")
    assert SoftLabels.of(UnDIAL(beta=3)) == SoftLabels("undial", 3)
    assert SoftLabels.of(NPO()) is None
