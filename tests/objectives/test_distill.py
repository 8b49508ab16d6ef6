"""Unilogit against its definition, digit by digit; UnDIAL and KL against theirs.

The oracle for Unilogit evaluates the definition (soft labels, Σ over V) with mpmath at 50 digits. So that V = 128,256
takes milliseconds, the other tokens share a few distinct logits, each of which counts as often as it occurs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from expunge.objectives import JSD, KL, PDU, JensUn, Objective, Signals, UnDIAL, Unilogit

Real = Any  # mpmath makes the class of its numbers when it is imported
Compare = Callable[[Objective, Callable[[Tensor, Tensor], Tensor]], None]
SignalsOf = Callable[[Objective, Tensor], Signals]

EPS = torch.finfo(torch.float64).eps
# V and the number of distinct logits among the V − 1 other tokens.
SIZES = [pytest.param(1_000, 37, id="V=1000"), pytest.param(128_256, 113, id="V=128256")]
TAIL = [1e-12, 1e-9, 1e-6, 1e-4]
with mpmath.workdps(50):
    # Exact near 1 too: a float64 there has a 1 − p without error, which would flatter formulas that compute 1 − p.
    PROBABILITIES = [mpf(p) for p in (*TAIL, 0.0123, 0.2, 0.5, 0.9)] + [1 - mpf(q) for q in reversed(TAIL)]
DIRECTIONS = ["reverse", "forward"]


def log_softmax(z: list[Real], count: list[int]) -> list[Real]:
    normalizer = mpmath.log(sum(n * mpmath.exp(x) for n, x in zip(count, z, strict=True)))
    return [x - normalizer for x in z]


@dataclass
class Exact:
    """One token's logits z_V (target first) and Unilogit's definition on them, exact before one last rounding."""

    z_V: Tensor
    log_odds: float
    loss: float
    gradient_V: Tensor
    slope: float
    """∂loss/∂(log-odds): the w in gradient = w · ∂(log-odds)/∂z, which is 1 at the target."""

    @classmethod
    def of(cls, p: Real, vocabulary: int, distinct: int, direction: str) -> "Exact":
        times = (vocabulary - 1) // distinct
        assert times * distinct == vocabulary - 1
        count = [1] + [times] * distinct
        others = torch.randn(distinct, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
        with mpmath.workdps(50):
            rest = [mpf(x) for x in others.tolist()]
            log_sum = mpmath.log(sum(times * mpmath.exp(x) for x in rest))
            z_target = float(log_sum + mpmath.log(p / (1 - p)))  # rounded: now the truth
            log_p = log_softmax([mpf(z_target), *rest], count)
            log_q = log_softmax([log_sum - mpmath.log(vocabulary - 1), *rest], count)
            ps, qs = [mpmath.exp(x) for x in log_p], [mpmath.exp(x) for x in log_q]
            table = list(zip(count, ps, qs, log_p, log_q, strict=True))
            if direction == "reverse":  # Σ p (log p − log p̃)
                loss = sum(n * pi * (lp - lq) for n, pi, _, lp, lq in table)
                gradient = [pi * (lp - lq - loss) for _, pi, _, lp, lq in table]
            else:  # Σ p̃ (log p̃ − log p)
                loss = sum(n * qi * (lq - lp) for n, _, qi, lp, lq in table)
                gradient = [pi - qi for _, pi, qi, _, _ in table]
            slope = gradient[0]
            # The closed form's gradient is w · ∂(log-odds)/∂z; the definition's is, at every other token too.
            shares = [pi / (1 - ps[0]) for pi in ps[1:]]
            assert all(abs(g / (-slope * share) - 1) < 1e-30 for g, share in zip(gradient[1:], shares, strict=True))
        spread = torch.tensor([float(g) for g in gradient], dtype=torch.float64)
        return cls(
            z_V=torch.cat([torch.tensor([z_target], dtype=torch.float64), others.repeat_interleave(times)]),
            log_odds=float(mpf(z_target) - log_sum),
            loss=float(loss),
            gradient_V=torch.cat([spread[:1], spread[1:].repeat_interleave(times)]),
            slope=float(slope),
        )

    def errors(self, loss: Tensor, gradient_V: Tensor) -> tuple[float, float]:
        """Relative errors of a loss and, in the maximum norm, of a gradient."""
        worst = (gradient_V - self.gradient_V).abs().max() / self.gradient_V.abs().max()
        return abs(loss.item() / self.loss - 1), worst.item()


def literal_unilogit(z: Tensor, fixed: Tensor, target_N: Tensor, direction: str) -> Tensor:
    """KL between softmax(z) and the soft labels: the target's logit replaced so that its probability is 1/V. [N]."""
    rows = torch.arange(len(target_N))
    others = fixed.clone()
    others[rows, target_N] = -torch.inf
    soft = fixed.clone()
    soft[rows, target_N] = others.logsumexp(-1) - log(fixed.shape[-1] - 1)
    logp, logq = z.log_softmax(-1), soft.log_softmax(-1).detach()
    if direction == "reverse":
        return (logp.exp() * (logp - logq)).sum(-1)
    return (logq.exp() * (logq - logp)).sum(-1)


def token(log_odds_N: Tensor, vocabulary: int) -> Signals:
    sequence_N = torch.zeros(len(log_odds_N), dtype=torch.long)
    return Signals(vocab_size=vocabulary, sequence_N=sequence_N, sequences=1, log_odds_N=log_odds_N)


def log_odds(z_NV: Tensor) -> Tensor:
    """Of the first token of the vocabulary, [N]."""
    return z_NV[:, 0] - z_NV[:, 1:].logsumexp(-1)


def from_logits(loss: Callable[[Tensor], Tensor], z_V: Tensor) -> tuple[Tensor, Tensor]:
    z_NV = z_V[None].clone().requires_grad_()
    value = loss(z_NV).sum()
    value.backward()
    assert z_NV.grad is not None
    return value.detach(), z_NV.grad[0]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_unilogit(assert_equals_definition: Compare, target_N: Tensor, answers: list[slice], direction: str) -> None:
    size = answers[-1].stop

    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        return literal_unilogit(z[:size], fixed[:size], target_N[:size], direction)

    assert_equals_definition(Unilogit(direction=direction), literal)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("vocabulary", "distinct"), SIZES)
def test_unilogit_is_exact_in_the_log_odds(vocabulary: int, distinct: int, direction: str) -> None:
    """Given the log-odds to their last bit: loss and w, hence the gradient, to 1e-10 for every p. (1e-14 is seen.)"""
    for p in PROBABILITIES:
        exact = Exact.of(p, vocabulary, distinct, direction)
        odds_N = torch.tensor([exact.log_odds], dtype=torch.float64, requires_grad=True)
        loss = Unilogit(direction=direction).loss(token(odds_N, vocabulary))
        loss.sum().backward()
        assert odds_N.grad is not None
        assert loss.item() == pytest.approx(exact.loss, rel=1e-10, abs=0), p
        assert odds_N.grad.item() == pytest.approx(exact.slope, rel=1e-10, abs=0), p


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("vocabulary", "distinct"), SIZES)
def test_unilogit_from_logits_in_float64(vocabulary: int, distinct: int, direction: str) -> None:
    """1e-10 for every p, where the definition on a softmax has lost its digits at both ends."""
    objective, first = Unilogit(direction=direction), torch.zeros(1, dtype=torch.long)

    def closed(z_NV: Tensor) -> Tensor:
        return objective.loss(token(log_odds(z_NV), vocabulary))

    def literal(z_NV: Tensor) -> Tensor:
        return literal_unilogit(z_NV, z_NV.detach(), first, direction)

    for p in PROBABILITIES:
        exact = Exact.of(p, vocabulary, distinct, direction)
        assert max(exact.errors(*from_logits(closed, exact.z_V))) <= 1e-10, p
        if direction == "reverse" and not 1e-10 < p < 1 - 1e-8:
            definition = max(exact.errors(*from_logits(literal, exact.z_V)))
            assert definition > 1e-8, f"the definition was to lose its digits at p = {p}"
        if 1e-5 < p <= 0.9:
            assert max(exact.errors(*from_logits(literal, exact.z_V))) <= 1e-10, p


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("vocabulary", [2, 1_000, 128_256])
def test_unilogit_rests_at_the_uniform_probability(vocabulary: int, direction: str) -> None:
    odds_N = torch.tensor([-log(vocabulary - 1)], dtype=torch.float64, requires_grad=True)
    loss = Unilogit(direction=direction).loss(token(odds_N, vocabulary))
    loss.sum().backward()
    assert odds_N.grad is not None
    assert abs(loss.item()) < 1e-15
    assert abs(odds_N.grad.item()) < 1e-14


@pytest.mark.parametrize("vocabulary", [1_000, 128_256])
def test_unilogit_has_the_weights_of_the_paper_s_gradient(vocabulary: int) -> None:
    """∂L/∂ℓ = p [log(p/(1 − p)) + log(V − 1)], and forward (p − 1/V)/(1 − p); times 1 − p, by the log-odds."""
    p = torch.tensor([1e-9, 2e-3, 0.3, 0.97], dtype=torch.float64)
    weights = {
        "reverse": p * (torch.log(p / (1 - p)) + log(vocabulary - 1)),
        "forward": (p - 1 / vocabulary) / (1 - p),
    }
    for direction, w in weights.items():
        odds_N = torch.logit(p).requires_grad_()
        Unilogit(direction=direction).loss(token(odds_N, vocabulary)).sum().backward()
        torch.testing.assert_close(odds_N.grad, w * (1 - p), rtol=1e-11, atol=0)


def test_min_surprisal_leaves_common_tokens_alone(signals_of: SignalsOf, logits_NV: Tensor) -> None:
    objective = Unilogit(min_surprisal=3.0)
    assert objective.needs.surprisal
    assert not Unilogit().needs.surprisal
    s = signals_of(objective, logits_NV)
    s.log_odds_N = s.log_odds_N.detach().requires_grad_()
    s.surprisal_N = torch.linspace(1, 5, len(s.log_odds_N))
    selected = s.surprisal_N >= 3.0
    loss_N = objective.loss(s)
    loss_N.sum().backward()
    s_all = signals_of(Unilogit(), logits_NV)
    assert torch.equal(loss_N[selected], Unilogit().loss(s_all)[selected])
    assert loss_N[~selected].abs().max() == 0
    assert s.log_odds_N.grad is not None
    assert s.log_odds_N.grad[~selected].abs().max() == 0


@pytest.mark.parametrize("beta", [0.0, 3.0, 10.0, 30.0])
def test_undial(
    assert_equals_definition: Compare, reference_NV: Tensor, target_N: Tensor, answers: list[slice], beta: float
) -> None:
    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        losses = []
        for i in range(answers[-1].stop):
            one_hot = torch.nn.functional.one_hot(target_N[i], z.shape[-1])
            teacher = torch.softmax(reference_NV[i] - beta * one_hot, -1)
            losses.append(torch.nn.functional.cross_entropy(z[i], teacher))
        return torch.stack(losses)

    assert_equals_definition(UnDIAL(beta=beta), literal)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl(assert_equals_definition: Compare, reference_NV: Tensor, answers: list[slice], direction: str) -> None:
    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        p, p0 = z.softmax(-1), reference_NV.softmax(-1)
        a, b = (p0, p) if direction == "forward" else (p, p0)
        return (a * torch.log(a / b)).sum(-1)[: answers[-1].stop]

    assert_equals_definition(KL(direction=direction), literal)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """The entropy of their mean, less the mean of their entropies."""
    entropy = lambda x: torch.special.entr(x).sum(-1)  # noqa: E731
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def test_jensun(assert_equals_definition: Compare, target_N: Tensor, answers: list[slice]) -> None:
    """The divergence of whole distributions, one of which is certain of the target."""
    size = answers[-1].stop

    def literal(z: Tensor, fixed: Tensor) -> Tensor:
        return jensen_shannon(torch.nn.functional.one_hot(target_N[:size], z.shape[-1]).double(), z[:size].softmax(-1))

    assert_equals_definition(JensUn(), literal)


def test_jensun_is_between_0_and_log_2() -> None:
    logp_N = torch.tensor([0.0, -1e-6, -1.0, -20.0, -200.0], requires_grad=True)
    losses = JensUn().loss(Signals(10, torch.zeros(5, dtype=torch.long), 1, logp_N=logp_N))
    losses.sum().backward()
    assert losses[0] == 0 and losses[-1].item() == pytest.approx(log(2))
    assert (losses.diff() > 0)[:3].all() and (losses <= log(2)).all()
    assert logp_N.grad is not None
    torch.testing.assert_close(logp_N.grad[0], torch.tensor(-log(2) / 2))
    assert logp_N.grad[-1] == 0


def test_jsd(assert_equals_definition: Compare, reference_NV: Tensor, answers: list[slice]) -> None:
    size = answers[-1].stop
    assert_equals_definition(JSD(), lambda z, _: jensen_shannon(reference_NV[:size].softmax(-1), z[:size].softmax(-1)))


def test_pdu(assert_equals_definition: Compare, answers: list[slice]) -> None:
    size = answers[-1].stop
    assert_equals_definition(
        PDU(), lambda z, _: torch.stack([(max(row) - sum(row) / len(row)) ** 2 for row in z[:size]])
    )


@pytest.mark.parametrize("objective", [UnDIAL(beta=0.0), KL(), KL(direction="reverse"), JSD()])
def test_nothing_to_do_at_the_start(objective: Objective, signals_of: SignalsOf, reference_NV: Tensor) -> None:
    """With an unshifted teacher the starting model is where it should be."""
    z_NV = reference_NV.clone().requires_grad_()
    loss_N = objective.loss(signals_of(objective, z_NV))
    loss_N.sum().backward()
    assert z_NV.grad is not None
    assert z_NV.grad.abs().max() < 1e-14
    if not isinstance(objective, UnDIAL):
        assert loss_N.abs().max() < 1e-14


def test_undial_lowers_the_target(signals_of: SignalsOf, reference_NV: Tensor, target_N: Tensor) -> None:
    z_NV = reference_NV.clone().requires_grad_()
    UnDIAL().loss(signals_of(UnDIAL(), z_NV)).sum().backward()
    assert z_NV.grad is not None
    assert (z_NV.grad[torch.arange(9), target_N[:9]] > 0).all()
