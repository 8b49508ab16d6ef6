"""One call of an objective of a user's own on made-up signals, so that a mistake in it shows before anything trains."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from expunge.errors import UserError, first_line
from expunge.objectives.base import Needs, Objective, Signals

SEQUENCE_N = (0, 0, 0, 1, 1)
"""The made-up batch: a sequence of three tokens and one of two."""

ASKED_BY = {f"{name}_N": name for name in (f.name for f in fields(Needs))} | {
    "layer_ND": "layer",
    "reference_layer_ND": "reference_layer",
    "refusal": "refusal",
}
"""Fields of `Signals`, and the field of `Needs` that asks for each."""


class _AskedSignals(Signals):
    """Signals of which a field that was not asked for says so, where it would be `None`."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is None and name in ASKED_BY:
            raise UserError(f"{name} was not asked for; give {ASKED_BY[name]} in needs")
        return value


def needs_of(objective: Objective) -> Needs:
    """The objective's needs. Raise `UserError` where a user's own objective fails to name them."""
    try:
        return objective.needs
    except Exception as error:
        known = ", ".join(field.name for field in fields(Needs))
        raise UserError(
            f"{objective.recipe_name()}.needs fails: {type(error).__name__}: {first_line(error)}; it returns Needs of "
            f"{known}."
        ) from error


def check_loss(objective: Objective, *, vocab_size: int, hidden_size: int) -> None:
    """Raise `UserError` for a loss that fails, that reads what it did not ask for, or that is not one number for each
    token ([N]) or sequence ([B]), as the objective's `per` says."""
    name = objective.recipe_name()
    generator = torch.Generator().manual_seed(0)
    signals = _signals(needs_of(objective), vocab_size, hidden_size, generator)
    try:
        loss = objective.loss(signals)
    except UserError as error:
        raise UserError(f"{name}.loss: {error}.") from error
    except Exception as error:
        raise UserError(f"{name}.loss fails: {type(error).__name__}: {first_line(error)}.") from error
    count = {"token": len(SEQUENCE_N), "sequence": SEQUENCE_N[-1] + 1}[objective.per]
    if not isinstance(loss, Tensor) or loss.shape != (count,):
        given = f"shape {[*loss.shape]}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(
            f"{name}.loss must return one number for each {objective.per}, [{count}] for {len(SEQUENCE_N)} tokens of "
            f"{SEQUENCE_N[-1] + 1} sequences, got {given}; the trainer takes the mean itself."
        )


def _signals(needs: Needs, vocab_size: int, hidden_size: int, generator: torch.Generator) -> Signals:
    count = len(SEQUENCE_N)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    numbers: dict[str, Any] = {
        **{f"{score}_N": -drawn(count).requires_grad_() for score in needs.scores},
        **({"reference_logp_N": -drawn(count)} if needs.reference_logp else {}),
        **({"divergence_N": drawn(count).requires_grad_()} if needs.divergence is not None else {}),
        **({"layer_ND": drawn(count, hidden_size).requires_grad_()} if needs.layer is not None else {}),
        **({"reference_layer_ND": drawn(count, hidden_size)} if needs.reference_layer else {}),
        **({"surprisal_N": drawn(count)} if needs.surprisal else {}),
    }
    if needs.refusal:
        numbers["refusal"] = _signals(replace(needs, refusal=False), vocab_size, hidden_size, generator)
    place_N = torch.tensor([0, 1, 2, 0, 1])
    return _AskedSignals(vocab_size, torch.tensor(SEQUENCE_N), SEQUENCE_N[-1] + 1, place_N=place_N, **numbers)
