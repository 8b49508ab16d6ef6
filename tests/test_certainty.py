"""Objectives at both ends of p, through every route of the head, against their papers' definitions in 50 digits.

Hidden states are rows of the unit matrix, so that a column of the head's weight is one token's logits to the last bit.
Shapes: N tokens, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor, nn

from expunge.modeling.logprobs import Chunk, Head, score_of, token_numbers, token_scores
from expunge.objectives import CEU, WGA, Objective, SatImp, Signals, Unilogit

Real = Any  # mpmath makes the class of its numbers when it is imported
V = 23  # vocabulary
ENDS = [10.0**-k for k in (1, 2, 4, 6, 7, 8, 10, 15, 20, 25, 30)]
NORMAL = torch.finfo(torch.float32).tiny
OBJECTIVES: list[Objective] = [
    CEU(),
    Unilogit(),
    Unilogit(direction="forward"),
    WGA(),
    SatImp(),
    SatImp(beta1=0.5, beta2=0.25),
]
IDS = ["ceu", "unilogit", "unilogit-forward", "wga", "satimp", "satimp-flat"]
# As a definition's last rounding is: 1 − p of 1e-30 is told by logits of about 70, of which float32 has 4e-6 left.
TOLERANCE = 1e-5


def logits(dtype: torch.dtype) -> Tensor:
    """[N, V] in `dtype`, target first: its probability is as near to 1, then to 0, as each of `ENDS`."""
    others_V = torch.randn(V - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    margins = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) * torch.tensor(ENDS, dtype=torch.float64).log()
    target_N1 = margins.reshape(-1, 1) + others_V.logsumexp(-1)
    return torch.cat([target_N1, others_V.expand(len(target_N1), -1)], 1).to(dtype)


def definition(objective: Objective, z: list[Real]) -> tuple[Real, list[Real]]:
    """The literal loss of one token, target first, and its gradient by the logits."""
    total = mpmath.log(sum(map(mpmath.exp, z)))
    rest = mpmath.log(sum(map(mpmath.exp, z[1:])))
    log_p = [x - total for x in z]
    p = [mpmath.exp(x) for x in log_p]
    if isinstance(objective, CEU):  # CE(q, p) less its constant H(q), q being p without its target
        log_q = [x - rest for x in z[1:]]
        q = [mpmath.exp(x) for x in log_q]
        loss = sum(qi * (lq - lp) for qi, lq, lp in zip(q, log_q, log_p[1:], strict=True))
        return loss, [p[0], *(pi - qi for pi, qi in zip(p[1:], q, strict=True))]
    if isinstance(objective, Unilogit):
        soft = [rest - mpmath.log(len(z) - 1), *z[1:]]
        log_q = [x - mpmath.log(sum(map(mpmath.exp, soft))) for x in soft]
        if objective.direction == "forward":
            loss = sum(mpmath.exp(lq) * (lq - lp) for lq, lp in zip(log_q, log_p, strict=True))
            return loss, [pi - mpmath.exp(lq) for pi, lq in zip(p, log_q, strict=True)]
        loss = sum(pi * (lp - lq) for pi, lp, lq in zip(p, log_p, log_q, strict=True))
        return loss, [pi * (lp - lq - loss) for pi, lp, lq in zip(p, log_p, log_q, strict=True)]
    if isinstance(objective, WGA):
        weight = p[0] ** objective.beta
    else:
        assert isinstance(objective, SatImp)
        weight = p[0] ** objective.beta1 * (1 - p[0]) ** objective.beta2
    return weight * log_p[0], [weight * ((i == 0) - pi) for i, pi in enumerate(p)]


@cache
def exact(which: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Losses [N] and gradients by the logits [N, V] of the definition on the very logits."""
    with mpmath.workdps(50):
        rows = [definition(OBJECTIVES[which], [mpf(x) for x in row]) for row in logits(dtype).double().tolist()]
        losses, gradients = [float(loss) for loss, _ in rows], [[float(g) for g in own] for _, own in rows]
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)


def signals(log_odds_N: Tensor) -> Signals:
    size = len(log_odds_N)
    return Signals(vocab_size=V, sequence_N=torch.zeros(size, dtype=torch.long), sequences=1, log_odds_N=log_odds_N)


def by_asking(objective: Objective, hidden_NN: Tensor, head: Head) -> Tensor:
    size = len(hidden_NN)
    return token_scores(hidden_NN, torch.zeros(size, dtype=torch.long), head, [("log_odds", size)])


def foreseen(objective: Objective, hidden_NN: Tensor, head: Head) -> Tensor:
    def gradient(odds_C: Tensor) -> Tensor:
        with torch.enable_grad():
            odds_C = odds_C.detach().requires_grad_()
            return torch.autograd.grad(objective.loss(signals(odds_C)).sum(), odds_C)[0]

    size = len(hidden_NN)
    target_N = torch.zeros(size, dtype=torch.long)
    return token_numbers(hidden_NN, head, [Chunk(slice(0, size), score_of("log_odds", target_N), gradient)])


# How the head is gone through, whether it is a plain matrix, whether it trains.
ROUTES: dict[str, tuple[Callable[[Objective, Tensor, Head], Tensor], bool, bool]] = {
    "blocks of a frozen head": (by_asking, True, False),
    "chunks of a trained head": (by_asking, True, True),
    "a foreseen loss": (foreseen, True, True),
    "another kind of head": (by_asking, False, True),
}


@pytest.mark.parametrize("which", range(len(OBJECTIVES)), ids=IDS)
@pytest.mark.parametrize("route", ROUTES)
def test_from_certain_to_impossible_in_float32(route: str, which: int) -> None:
    """Loss and gradient to 1e-5 from 1 − p = 1e-30 to p = 1e-30, wherever float32 can hold the exact number."""
    number, linear, trained = ROUTES[route]
    objective, z_NV = OBJECTIVES[which], logits(torch.float32)
    loss_N, gradient_NV = exact(which, torch.float32)
    layer = nn.Linear(len(z_NV), V, bias=False)
    layer.weight = nn.Parameter(z_NV.T.contiguous(), requires_grad=trained)
    head = Head(forward=layer, vocab_size=V, linear=layer.weight if linear else None)
    hidden_NN = torch.eye(len(z_NV), requires_grad=True)
    ours_N = objective.loss(signals(number(objective, hidden_NN, head)))
    ours_N.sum().backward()
    assert hidden_NN.grad is not None
    assert_close(ours_N.detach()[:, None], loss_N[:, None])
    if trained:
        assert layer.weight.grad is not None
        assert_close(layer.weight.grad.T, gradient_NV)
    # By the hidden state it is the same gradient through the weight; of its own logits, at the diagonal, what is seen
    # of 1e-5 is 1e-5 of the terms of the sum, which cancel in part.
    through_N = (gradient_NV * z_NV.double()).abs().sum(-1)
    error_N = (hidden_NN.grad.diagonal() - (gradient_NV * z_NV.double()).sum(-1)).abs()
    assert (error_N <= TOLERANCE * through_N + NORMAL).all()


@pytest.mark.parametrize("which", range(len(OBJECTIVES)), ids=IDS)
@pytest.mark.parametrize("softcap", [None, 100.0])
def test_heads_that_round_or_cap(which: int, softcap: float | None) -> None:
    """Of the logits that a bfloat16 or a capped head gives, float32 loses no more than of others."""
    objective = OBJECTIVES[which]
    dtype = torch.bfloat16 if softcap is None else torch.float32
    raw_NV = logits(dtype)
    head = Head(forward=lambda h: h @ raw_NV, vocab_size=V, linear=raw_NV.T.contiguous(), softcap=softcap)
    z_NV = head.logits(torch.eye(len(raw_NV), dtype=dtype))
    ours_N = objective.loss(signals(by_asking(objective, torch.eye(len(raw_NV), dtype=dtype), head)))
    with mpmath.workdps(50):
        loss_N = [float(definition(objective, [mpf(x) for x in row])[0]) for row in z_NV.double().tolist()]
    assert ours_N.dtype == torch.float32
    assert_close(ours_N[:, None], torch.tensor(loss_N, dtype=torch.float64)[:, None])


def assert_close(ours_NV: Tensor, exact_NV: Tensor) -> None:
    """Each row relative to its largest element, and at all only where float32 holds that."""
    size_N = exact_NV.abs().amax(-1)
    held_N = size_N > NORMAL / TOLERANCE
    error_N = (ours_NV - exact_NV).abs().amax(-1) / size_N
    assert held_N.any()
    assert error_N[held_N].max() <= TOLERANCE, error_N
