"""NPO, DPO and SimNPO against their papers' formulas, answer by answer over ragged lengths; their limits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge.objectives import DPO, GA, NPO, AltPO, Objective, Signals, SimNPO

Compare = Callable[[Objective, Callable[[Tensor, Tensor], Tensor]], None]
SignalsOf = Callable[[Objective, Tensor], Signals]


@pytest.fixture
def log_probability(target_N: Tensor) -> Callable[[Tensor, slice], Tensor]:
    """log Π_t p(y_t) of one sequence, token after token."""

    def of(z_NV: Tensor, rows: slice) -> Tensor:
        tokens = range(rows.start, rows.stop)
        return torch.stack([z_NV[i].softmax(-1)[target_N[i]].log() for i in tokens]).sum()

    return of


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 4.5])
def test_npo(
    assert_equals_definition: Compare,
    log_probability: Callable[[Tensor, slice], Tensor],
    reference_NV: Tensor,
    answers: list[slice],
    beta: float,
) -> None:
    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        ratios = torch.stack([log_probability(z, a) - log_probability(reference_NV, a) for a in answers])
        return -2 / beta * torch.log(1 / (1 + torch.exp(beta * ratios)))

    assert_equals_definition(NPO(beta=beta), literal)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo(
    assert_equals_definition: Compare,
    log_probability: Callable[[Tensor, slice], Tensor],
    reference_NV: Tensor,
    answers: list[slice],
    refusals: list[slice],
    beta: float,
) -> None:
    def gain(z: Tensor, rows: slice) -> Tensor:
        return log_probability(z, rows) - log_probability(reference_NV, rows)

    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        margins = torch.stack([gain(z, idk) - gain(z, y) for idk, y in zip(refusals, answers, strict=True)])
        return -2 / beta * torch.log(1 / (1 + torch.exp(-beta * margins)))

    assert_equals_definition(DPO(beta=beta), literal)
    assert_equals_definition(AltPO(beta=beta), literal)  # the same of another preferred answer


@pytest.mark.parametrize(("beta", "gamma"), [(4.5, 0.0), (2.5, 0.0), (0.5, 1.5)])
def test_simnpo(
    assert_equals_definition: Compare,
    log_probability: Callable[[Tensor, slice], Tensor],
    answers: list[slice],
    beta: float,
    gamma: float,
) -> None:
    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        means = torch.stack([log_probability(z, a) / (a.stop - a.start) for a in answers])
        return -2 / beta * torch.log(1 / (1 + torch.exp(beta * means + gamma)))

    assert_equals_definition(SimNPO(beta=beta, gamma=gamma), literal)


def gradient(objective: Objective, signals_of: SignalsOf, logits_NV: Tensor, sequence: int | None = None) -> Tensor:
    """Gradient with respect to the logits of the loss, or of one sequence of it."""
    z = logits_NV.clone().requires_grad_()
    values = objective.loss(signals_of(objective, z))
    (values.sum() if sequence is None else values[sequence]).backward()
    assert z.grad is not None
    return z.grad


@pytest.mark.parametrize("beta", [1e-1, 1e-3, 1e-6, 1e-9])
def test_npo_tends_to_ga(
    signals_of: SignalsOf,
    log_probability: Callable[[Tensor, slice], Tensor],
    logits_NV: Tensor,
    reference_NV: Tensor,
    answers: list[slice],
    beta: float,
) -> None:
    """∇NPO = 2σ(βr) ∇GA with r = ℓ − ℓ⁰ of the answer, and |2σ(βr) − 1| ≤ β|r|/2."""
    ga = gradient(GA(), signals_of, logits_NV)
    npo = gradient(NPO(beta=beta), signals_of, logits_NV)
    for rows in answers:
        ratio = (npo[rows] / ga[rows]).flatten()
        r = log_probability(logits_NV, rows) - log_probability(reference_NV, rows)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 2 * torch.sigmoid(beta * r).item()))
        assert (ratio - 1).abs().max() <= beta * r.abs() / 2 + 1e-12


@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_npo_begins_as_ga(signals_of: SignalsOf, reference_NV: Tensor, beta: float) -> None:
    """At the starting model the ratio is 1 whatever β is."""
    npo = gradient(NPO(beta=beta), signals_of, reference_NV)
    torch.testing.assert_close(npo, gradient(GA(), signals_of, reference_NV), rtol=1e-12, atol=1e-15)


def test_npo_levels_off(signals_of: SignalsOf, logits_NV: Tensor) -> None:
    """An answer far below the starting model is left alone, where GA still pushes with full weight."""
    s = signals_of(NPO(), logits_NV)
    s.logp_N = (s.reference_logp_N - 1000).requires_grad_()
    NPO().loss(s).sum().backward()
    assert s.logp_N.grad is not None
    assert s.logp_N.grad.abs().max() < 1e-12


def test_dpo_raises_the_refusal_and_lowers_the_answer(signals_of: SignalsOf, logits_NV: Tensor) -> None:
    s = signals_of(DPO(), logits_NV)
    s.logp_N = s.logp_N.detach().requires_grad_()
    s.refusal.logp_N = s.refusal.logp_N.detach().requires_grad_()
    DPO().loss(s).sum().backward()
    assert s.logp_N.grad is not None
    assert s.refusal.logp_N.grad is not None
    assert (s.logp_N.grad > 0).all()
    assert (s.refusal.logp_N.grad < 0).all()


def test_simnpo_weighs_answers_of_any_length_alike(signals_of: SignalsOf, logits_NV: Tensor) -> None:
    s = signals_of(SimNPO(), logits_NV)
    s.logp_N = torch.full_like(s.logp_N, -0.7)
    losses = SimNPO().loss(s)
    torch.testing.assert_close(losses, losses[:1].expand_as(losses), rtol=1e-14, atol=0)


@pytest.mark.parametrize("objective", [NPO(beta=1.0), DPO(beta=1.0), SimNPO()])
def test_answers_do_not_mix(
    objective: Objective, signals_of: SignalsOf, logits_NV: Tensor, answers: list[slice]
) -> None:
    for i, own in enumerate(answers):
        touched = gradient(objective, signals_of, logits_NV, sequence=i).abs().sum(-1) > 0
        assert touched[own].all()
        assert not any(touched[rows].any() for j, rows in enumerate(answers) if j != i)


@pytest.mark.parametrize("objective", [NPO(), DPO(), SimNPO()])
def test_order_of_tokens_does_not_matter(objective: Objective, signals_of: SignalsOf, logits_NV: Tensor) -> None:
    s = signals_of(objective, logits_NV)
    before = objective.loss(s)
    shuffled = torch.randperm(len(s.sequence_N), generator=torch.Generator().manual_seed(0))
    s.sequence_N, s.logp_N = s.sequence_N[shuffled], s.logp_N[shuffled]
    if s.reference_logp_N is not None:
        s.reference_logp_N = s.reference_logp_N[shuffled]
    torch.testing.assert_close(objective.loss(s), before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@pytest.mark.parametrize("objective", [NPO(beta=4.5), DPO(beta=4.5), SimNPO()])
def test_finite_however_far_from_the_start(
    objective: Objective, signals_of: SignalsOf, logits_NV: Tensor, shift: float
) -> None:
    """The written-out log(1/(1 + e^x)) overflows here; the log-sigmoid does not."""
    s = signals_of(objective, logits_NV.float())
    s.logp_N = (s.logp_N.detach() + shift).requires_grad_()
    loss = objective.loss(s)
    loss.sum().backward()
    assert s.logp_N.grad is not None
    assert loss.isfinite().all()
    assert s.logp_N.grad.isfinite().all()
