"""What is foreseen of a loss changes what a step costs, never what it gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.modeling import logprobs
from expunge.modeling.logprobs import CHUNK
from expunge.objectives import FORGET, JSD, KL, NLL, Needs, Objective
from expunge.objectives.base import Share
from expunge.training.reference import build_reference
from expunge.training.signals import gather_signals

KEEP = NLL(weight=0.7)
FORESEEN = ("ga", "wga", "satimp", "ceu", "unilogit", "npo", "simnpo", "undial", "jensun", "pdu")
"""Those that read one number of each token of the forget rows alone."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens the head has gone through, at every go."""
    made: list[int] = []
    original = logprobs._go_through

    def counting(hidden_ND: torch.Tensor, *rest: Any, **options: Any) -> Any:
        made.append(len(hidden_ND))
        return original(hidden_ND, *rest, **options)

    monkeypatch.setattr(logprobs, "_go_through", counting)
    return made


def gradients(
    model: Any,
    sets: Sets,
    objective: Objective,
    *,
    retain: Objective = KEEP,
    foresee: bool,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the loss, its gradient by all weights) of one step on all rows."""
    model = model.to(dtype)
    needs = {Role.FORGET: objective.needs, Role.REFUSAL: Needs(), Role.RETAIN: retain.needs}
    if objective.needs.refusal:
        needs[Role.REFUSAL] = objective.needs
    asked = objective.needs | retain.needs
    reference = build_reference(model, needs, sets, pad_token_id=0) if asked.reference else None
    torch.manual_seed(0)
    with torch.no_grad():  # the reference is of another model than the one that trains
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    roles = [role for role in Role if sets.of(role)]
    batch = Collator(sets, 0)([[(role, i)] for role in roles for i in range(len(sets.of(role)))])
    surprisal_V = torch.rand(300, generator=torch.Generator().manual_seed(0)).to(dtype)
    shares = {Role.FORGET: Share(objective, 100), Role.RETAIN: Share(retain, torch.tensor(60.0))}
    signals = gather_signals(model, batch, needs, reference, surprisal_V, shares if foresee else None)
    loss = torch.stack([s.objective.weight * s.term(signals[r]) for r, s in shares.items()]).sum()
    (3 * loss).backward()  # a scaler multiplies losses, too
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rows(lengths: list[int]) -> list[Encoded]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [Encoded(tuple(torch.randint(5, 250, (n,), generator=generator).tolist()), 3) for n in lengths]


@pytest.fixture
def sets() -> Sets:
    """More than one chunk of tokens, no two rows alike."""
    return Sets(forget=rows([40, 90, 61, 100, 30]), retain=rows([70, 33, 95, 110]))


@pytest.mark.parametrize("name", FORESEEN)
@pytest.mark.parametrize("retain", [KEEP, KL(weight=0.7), JSD(weight=0.7)], ids=["nll", "kl", "jsd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_step_goes_through_the_head_once(
    tiny_model: Callable[..., Any], sets: Sets, name: str, retain: Objective, dtype: torch.dtype, passes: list[int]
) -> None:
    expected = gradients(tiny_model(), sets, FORGET[name](), retain=retain, foresee=False, dtype=dtype)
    passes.clear()
    found = gradients(tiny_model(), sets, FORGET[name](), retain=retain, foresee=True, dtype=dtype)
    assert passes == [sum(len(e) - e.start for e in (*sets.forget, *sets.retain))]
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (1e-3, 1e-6)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def test_what_cannot_be_foreseen(tiny_model: Callable[..., Any], sets: Sets, passes: list[int]) -> None:
    """A refusal weighs the answer that it is preferred to; a sequence longer than a chunk is known too late."""
    refused = Sets(sets.forget, sets.retain, rows([20, 11, 31, 42, 13]))
    dpo = FORGET["dpo"]()
    torch.testing.assert_close(*(gradients(tiny_model(), refused, dpo, foresee=f) for f in (True, False)))
    assert passes == []
    long = Sets(forget=rows([CHUNK + 50, 20]), retain=sets.retain)
    for name, times in (("npo", 0), ("unilogit", 1)):
        model = lambda: tiny_model_of_context(tiny_model, CHUNK + 64)  # noqa: E731
        torch.testing.assert_close(
            *(gradients(model(), long, FORGET[name](), foresee=f) for f in (True, False)), rtol=1e-9, atol=1e-12
        )
        assert len(passes) == times


def tiny_model_of_context(tiny_model: Callable[..., Any], context: int) -> Any:
    model = tiny_model()
    model.config.max_position_embeddings = context  # rotary: nothing is stored per position
    return model
