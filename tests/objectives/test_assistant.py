"""Objectives of the assistant methods: the uniform term, and that the others are the losses that they are named for."""

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor

from expunge.objectives import (
    DPO,
    GA,
    KL,
    NPO,
    ULD,
    Objective,
    OffsetDPO,
    OffsetGA,
    OffsetNPO,
    Signals,
    ULDDistilled,
    Uniform,
)

Compare = Callable[[Objective, Callable[[Tensor, Tensor], Tensor]], None]
SignalsOf = Callable[[Objective, Tensor], Signals]


def test_uniform_is_the_divergence_from_the_uniform_distribution(
    assert_equals_definition: Compare, answers: list[slice]
) -> None:
    """KL(u ‖ p) = Σ_v 1/V · log(1/V / p_v)."""

    def literal(z_NV: Tensor, _fixed: Tensor) -> Tensor:
        rows_NV = torch.cat([z_NV[rows] for rows in answers])
        vocabulary = rows_NV.shape[-1]
        return ((-log(vocabulary) - rows_NV.log_softmax(-1)) / vocabulary).sum(-1)

    assert_equals_definition(Uniform(), literal)


def test_uniform_vanishes_where_every_token_is_as_likely(signals_of: SignalsOf, logits_NV: Tensor) -> None:
    loss_N = Uniform().loss(signals_of(Uniform(), torch.full_like(logits_NV, 3.0)))
    torch.testing.assert_close(loss_N, torch.zeros_like(loss_N), rtol=0, atol=1e-12)


def test_uld_is_the_negative_log_likelihood(
    assert_equals_definition: Compare, target_N: Tensor, answers: list[slice]
) -> None:
    def literal(z_NV: Tensor, _fixed: Tensor) -> Tensor:
        rows = torch.cat([torch.arange(r.start, r.stop) for r in answers])
        return -z_NV.log_softmax(-1)[rows, target_N[rows]]

    assert_equals_definition(ULD(), literal)


@pytest.mark.parametrize("match", ["forward", "reverse"])
def test_the_distilled_one_is_a_divergence_to_its_teacher(signals_of: SignalsOf, logits_NV: Tensor, match: str) -> None:
    """The same as the retain term KL, of the same direction, but for whom the reference is asked of."""
    ours = ULDDistilled.model_validate({"match": match})
    theirs = KL.model_validate({"direction": match})
    assert ours.needs == theirs.needs
    assert torch.equal(ours.loss(signals_of(ours, logits_NV)), theirs.loss(signals_of(theirs, logits_NV)))


def test_the_distilled_one_regresses_on_its_teachers_log_probabilities() -> None:
    """Huber's loss: half the square under one nat, linear beyond; nothing pulls where the two agree."""
    logp_N = torch.tensor([-1.0, -1.5, -4.0, -0.1], dtype=torch.float64, requires_grad=True)
    teacher_N = torch.tensor([-1.0, -1.0, -1.0, -6.1], dtype=torch.float64)
    signals = Signals(vocab_size=9, sequence_N=torch.zeros(4), sequences=1, logp_N=logp_N, reference_logp_N=teacher_N)
    loss_N = ULDDistilled().loss(signals)
    torch.testing.assert_close(loss_N, torch.tensor([0, 0.125, 2.5, 5.5], dtype=torch.float64), rtol=0, atol=1e-12)
    loss_N.sum().backward()
    expected_N = torch.tensor([0, -0.5, -1, 1], dtype=torch.float64)
    torch.testing.assert_close(logp_N.grad, expected_N, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("offset", "plain"), [(OffsetGA(), GA()), (OffsetDPO(), DPO()), (OffsetNPO(), NPO())])
def test_offset_losses_are_the_plain_ones(
    signals_of: SignalsOf, logits_NV: Tensor, offset: Objective, plain: Objective
) -> None:
    assert offset.needs == plain.needs
    assert torch.equal(offset.loss(signals_of(offset, logits_NV)), plain.loss(signals_of(plain, logits_NV)))


def test_what_is_removed_is_said() -> None:
    """Suppressing at inference leaves the knowledge in the weights; distilling takes it out."""
    said = {cls.__name__: cls.removal for cls in (ULD, OffsetGA, OffsetDPO, OffsetNPO, ULDDistilled, GA, NPO)}
    inference = {name for name, removal in said.items() if removal == "inference"}
    assert inference == {"ULD", "OffsetGA", "OffsetDPO", "OffsetNPO"}
