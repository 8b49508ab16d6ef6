"""RMU and its anchor against their papers' formulas, token by token; the vector that RMU pushes towards."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge.objectives import RMU, Anchor, Objective, Signals

Compare = Callable[[Objective, Callable[[Tensor, Tensor], Tensor]], None]


def hidden_signals(hidden_ND: Tensor, reference_ND: Tensor | None = None) -> Signals:
    s = Signals(vocab_size=7, sequence_N=torch.zeros(len(hidden_ND), dtype=torch.long), sequences=1)
    s.layer_ND = hidden_ND
    if reference_ND is not None:
        s.reference_layer_ND = reference_ND
    return s


@pytest.mark.parametrize(("coefficient", "seed"), [(6.5, 0), (20.0, 3)])
def test_rmu(assert_equals_definition: Compare, answers: list[slice], coefficient: float, seed: int) -> None:
    # Drawn in float32 whatever the model's dtype, so that a seed always means the same vector.
    draw_D = torch.rand(11, generator=torch.Generator().manual_seed(seed))
    u_D = (draw_D / draw_D.norm()).tolist()

    def literal(h: Tensor, fixed: Tensor) -> Tensor:
        tokens = range(answers[-1].stop)
        squares = [torch.stack([(h[t, d] - coefficient * u) ** 2 for d, u in enumerate(u_D)]) for t in tokens]
        return torch.stack(squares).sum(-1)

    assert_equals_definition(RMU(coefficient=coefficient, vector_seed=seed), literal)


def test_anchor(assert_equals_definition: Compare, reference_NV: Tensor, answers: list[slice]) -> None:
    def literal(h: Tensor, fixed: Tensor) -> Tensor:
        return torch.stack([(h[t] - reference_NV[t]).norm() ** 2 for t in range(answers[-1].stop)])

    assert_equals_definition(Anchor(), literal)


# A missing or a superfluous axis broadcasts silently where sizes agree, so they agree and differ in turn.
@pytest.mark.parametrize(("tokens", "size"), [(0, 5), (1, 5), (5, 1), (5, 5), (7, 3)])
def test_one_number_per_token(tokens: int, size: int) -> None:
    hidden_ND, reference_ND = torch.randn(tokens, size), torch.randn(tokens, size)
    for objective in (RMU(), Anchor()):
        loss_N = objective.loss(hidden_signals(hidden_ND, reference_ND))
        assert loss_N.shape == (tokens,)
        alone = [objective.loss(hidden_signals(hidden_ND[[t]], reference_ND[[t]])).item() for t in range(tokens)]
        torch.testing.assert_close(loss_N, torch.tensor(alone))


@pytest.mark.parametrize("size", [1, 2, 64, 4096])
def test_vector_is_a_unit_vector(size: int) -> None:
    assert RMU().direction(size).norm().item() == pytest.approx(1.0, rel=1e-6)


def test_vector_is_fixed_by_its_seed_alone() -> None:
    first = RMU(vector_seed=1).direction(64)
    torch.rand(5)  # other random numbers drawn meanwhile
    state = torch.get_rng_state()
    assert torch.equal(RMU(vector_seed=1, layer=2, coefficient=1.0).direction(64), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(RMU(vector_seed=2).direction(64), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_vector_follows_the_model(dtype: torch.dtype) -> None:
    hidden_ND = torch.zeros(3, 64, dtype=dtype)
    loss_N = RMU(coefficient=2.0).loss(hidden_signals(hidden_ND))
    assert loss_N.dtype == dtype
    torch.testing.assert_close(loss_N.double(), torch.full((3,), 4.0).double(), rtol=1e-2, atol=0)


def test_loss_vanishes_at_its_target() -> None:
    target_ND = (3.0 * RMU().direction(8)).expand(4, 8)
    assert RMU(coefficient=3.0).loss(hidden_signals(target_ND)).abs().max() == 0
    assert Anchor().loss(hidden_signals(target_ND, target_ND)).abs().max() == 0


@pytest.mark.parametrize(("layer", "trains"), [(7, [5, 6, 7]), (2, [0, 1, 2]), (1, [0, 1]), (0, [0])])
def test_trainable_layers(layer: int, trains: list[int]) -> None:
    layers, modules = RMU(layer=layer).parts
    assert list(layers) == trains and modules == ()
