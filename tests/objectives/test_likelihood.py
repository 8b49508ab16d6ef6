"""GA, WGA, SatImp, CE-U and NLL against their papers' formulas on dense logits."""

from collections.abc import Callable
from math import exp

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.objectives import CEU, GA, NLL, WGA, Objective, SatImp, Signals

Compare = Callable[[Objective, Callable[[Tensor, Tensor], Tensor]], None]
SignalsOf = Callable[[Objective, Tensor], Signals]


@pytest.fixture
def target(answers: list[slice], target_N: Tensor) -> Callable[[Tensor], Tensor]:
    """What a [N + M, V] table holds at the answers' targets, [N]."""
    size = answers[-1].stop
    return lambda x_NV: x_NV[torch.arange(size), target_N[:size]]


@pytest.fixture
def others(answers: list[slice], target_N: Tensor) -> Callable[[Tensor], Tensor]:
    """A [N + M, V] table's answer rows without their targets, [N, V − 1]."""
    rows = range(answers[-1].stop)
    return lambda x_NV: torch.stack([torch.cat([x_NV[i, : target_N[i]], x_NV[i, target_N[i] + 1 :]]) for i in rows])


def test_ga_is_the_log_likelihood(assert_equals_definition: Compare, target: Callable[[Tensor], Tensor]) -> None:
    assert_equals_definition(GA(), lambda z, fixed: target(z.softmax(-1)).log())


def test_nll_is_the_negative_log_likelihood(
    assert_equals_definition: Compare, target: Callable[[Tensor], Tensor]
) -> None:
    assert_equals_definition(NLL(), lambda z, fixed: -target(z.softmax(-1)).log())


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_wga(assert_equals_definition: Compare, target: Callable[[Tensor], Tensor], beta: float) -> None:
    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        nll = -target(z.softmax(-1)).log()
        return -(target(fixed.softmax(-1)) ** beta) * nll

    assert_equals_definition(WGA(beta=beta), literal)


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (0.0, 0.0), (0.5, 2.0), (0.0, 1.0)])
def test_satimp(
    assert_equals_definition: Compare, target: Callable[[Tensor], Tensor], beta1: float, beta2: float
) -> None:
    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        p, nll = target(fixed.softmax(-1)), -target(z.softmax(-1)).log()
        return -(p**beta1) * (1 - p) ** beta2 * nll

    assert_equals_definition(SatImp(beta1=beta1, beta2=beta2), literal)


@pytest.mark.parametrize("objective", [WGA(beta=0.0), SatImp(beta1=0.0, beta2=0.0)])
def test_without_weights_they_are_ga(objective: Objective, signals_of: SignalsOf, logits_NV: Tensor) -> None:
    s = signals_of(objective, logits_NV)
    torch.testing.assert_close(objective.loss(s), GA().loss(signals_of(GA(), logits_NV)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", [WGA(beta=2.0), SatImp(beta1=2.0, beta2=1.0)])
def test_weights_carry_no_gradient(objective: Objective, signals_of: SignalsOf, logits_NV: Tensor) -> None:
    """∂loss/∂ℓ is the weight itself, loss/ℓ; the derivative of the weight would add to it. ∂ℓ/∂(log-odds) is 1 − p."""
    s = signals_of(objective, logits_NV)
    s.log_odds_N = s.log_odds_N.detach().requires_grad_()
    loss_N = objective.loss(s)
    loss_N.sum().backward()
    odds_N = s.log_odds_N.detach()
    expected_N = loss_N.detach() / logsigmoid(odds_N) * torch.sigmoid(-odds_N)
    torch.testing.assert_close(s.log_odds_N.grad, expected_N, rtol=1e-12, atol=0)


def test_ceu_is_the_cross_entropy_less_the_entropy_of_its_target(
    assert_equals_definition: Compare, others: Callable[[Tensor], Tensor]
) -> None:
    """CE(q, p) = −Σ q_i log p_i with q = p without its target, normalised again and held fixed."""

    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        q, p = others(fixed).softmax(-1), others(z.softmax(-1))
        cross_entropy, entropy = -(q * p.log()).sum(-1), -(q * q.log()).sum(-1)
        return cross_entropy - entropy

    assert_equals_definition(CEU(), literal)


def test_ceu_has_the_gradient_of_the_whole_cross_entropy(
    others: Callable[[Tensor], Tensor], signals_of: SignalsOf, logits_NV: Tensor
) -> None:
    ours_NV, theirs_NV = logits_NV.clone().requires_grad_(), logits_NV.clone().requires_grad_()
    CEU().loss(signals_of(CEU(), ours_NV)).sum().backward()
    q = others(theirs_NV.detach()).softmax(-1)
    (-(q * others(theirs_NV.log_softmax(-1))).sum()).backward()
    torch.testing.assert_close(ours_NV.grad, theirs_NV.grad, rtol=1e-10, atol=1e-12)


def test_ceu_pushes_the_same_however_confident_the_model_is(signals_of: SignalsOf) -> None:
    """∂CE/∂z_y = p and the others share −p: no 1/(1 − p) is left over in the logits' gradient."""
    s = signals_of(CEU(), torch.zeros(16, 11, dtype=torch.float64))
    for margin in (0.0, 5.0, 20.0, 500.0):
        z = torch.tensor([margin, 0.0], dtype=torch.float64, requires_grad=True)
        s.log_odds_N = (z[0] - z[1])[None]
        CEU().loss(s).sum().backward()
        p = 1 / (1 + exp(-margin))
        torch.testing.assert_close(z.grad, torch.tensor([p, -p], dtype=torch.float64), rtol=1e-14, atol=0)
