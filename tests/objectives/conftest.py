"""A ragged batch of dense float64 logits, its signals, and the comparison of an objective with its definition.

N answer tokens and M refusal tokens laid end to end are the rows of `logits_NV` (answers first), V their columns.
The same rows serve as hidden states for the objectives that read those, so one comparison does for every objective.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge.modeling.logprobs import Head, token_divergence
from expunge.objectives import Objective, Signals

LENGTHS = (3, 1, 5)
REFUSAL_LENGTHS = (2, 4, 1)
TOKENS = sum(LENGTHS)
VOCABULARY = 11


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def logits_NV() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = TOKENS + sum(REFUSAL_LENGTHS)
    return 2 * torch.randn(rows, VOCABULARY, generator=generator, dtype=torch.float64)


@pytest.fixture
def reference_NV(logits_NV: Tensor) -> Tensor:
    """The starting model's logits: near the model's, as they are early in training."""
    return logits_NV + torch.randn(logits_NV.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def target_N(logits_NV: Tensor) -> Tensor:
    return torch.randint(VOCABULARY, (len(logits_NV),), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def answers() -> list[slice]:
    """The rows of each answer."""
    return _spans(LENGTHS, 0)


@pytest.fixture
def refusals() -> list[slice]:
    """The rows of each refusal, in the order of the answers."""
    return _spans(REFUSAL_LENGTHS, TOKENS)


@pytest.fixture
def signals_of(reference_NV: Tensor, target_N: Tensor) -> Callable[[Objective, Tensor], Signals]:
    """The signals that an objective declares, and no others, from dense logits [N + M, V] with gradient."""

    def logp(z_NV: Tensor) -> Tensor:
        return z_NV.log_softmax(-1).gather(-1, target_N[:, None])[:, 0]

    def build(objective: Objective, z_NV: Tensor) -> Signals:
        needs = objective.needs
        identity = Head(forward=torch.clone, vocab_size=z_NV.shape[-1])
        logp_N, reference_N = logp(z_NV), logp(reference_NV.to(z_NV))
        others_N = z_NV.scatter(-1, target_N[:, None], -torch.inf).logsumexp(-1)
        log_odds_N = z_NV.gather(-1, target_N[:, None])[:, 0] - others_N

        def part(rows: slice, lengths: tuple[int, ...]) -> Signals:
            s = Signals(
                vocab_size=z_NV.shape[-1],
                sequence_N=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
                sequences=len(lengths),
                place_N=torch.cat([torch.arange(length) for length in lengths]),
            )
            if needs.logp:
                s.logp_N = logp_N[rows]
            if needs.log_odds:
                s.log_odds_N = log_odds_N[rows]
            if needs.reference_logp:
                s.reference_logp_N = reference_N[rows]
            if needs.uniform_ce:
                s.uniform_ce_N = -z_NV[rows].log_softmax(-1).mean(-1)
            if needs.margin:
                s.margin_N = z_NV[rows].max(-1).values - z_NV[rows].mean(-1)
            if needs.divergence is not None:
                s.divergence_N = token_divergence(
                    z_NV[rows], identity, reference_NV[rows].to(z_NV), identity, target_N[rows], needs.divergence
                )
            if needs.layer is not None:
                s.layer_ND = z_NV[rows]
            if needs.reference_layer:
                s.reference_layer_ND = reference_NV[rows].to(z_NV)
            return s

        signals = part(slice(0, TOKENS), LENGTHS)
        if needs.refusal:
            signals.refusal = part(slice(TOKENS, None), REFUSAL_LENGTHS)
        return signals

    return build


@pytest.fixture
def assert_equals_definition(
    logits_NV: Tensor, signals_of: Callable[[Objective, Tensor], Signals]
) -> Callable[[Objective, Callable[[Tensor, Tensor], Tensor]], None]:
    """Compare an objective with `literal(z_NV, fixed_NV)`, which gives the same tokens or sequences.

    `fixed_NV` holds the same logits and stands wherever the definition has a stop-gradient, so that one function
    serves for automatic differentiation and for finite differences of what is left.
    """

    def compare(objective: Objective, literal: Callable[[Tensor, Tensor], Tensor]) -> None:
        weights = torch.linspace(0.5, 1.5, len(literal(logits_NV, logits_NV)), dtype=torch.float64)

        ours_NV = logits_NV.clone().requires_grad_()
        ours = objective.loss(signals_of(objective, ours_NV))
        (weights * ours).sum().backward()
        theirs_NV = logits_NV.clone().requires_grad_()
        theirs = literal(theirs_NV, logits_NV)
        (weights * theirs).sum().backward()

        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours_NV.grad, theirs_NV.grad, rtol=1e-10, atol=1e-10)
        slope_NV = _central_differences(lambda z: (weights * literal(z, logits_NV)).sum(), logits_NV)
        torch.testing.assert_close(ours_NV.grad, slope_NV, rtol=1e-6, atol=1e-6)

    return compare


def _central_differences(fn: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    slope = torch.zeros_like(x)
    for i in range(x.numel()):
        nudge = torch.zeros_like(x)
        nudge.view(-1)[i] = step
        slope.view(-1)[i] = (fn(x + nudge) - fn(x - nudge)) / (2 * step)
    return slope


def _spans(lengths: tuple[int, ...], start: int) -> list[slice]:
    ends = torch.tensor(lengths).cumsum(0).add(start).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
