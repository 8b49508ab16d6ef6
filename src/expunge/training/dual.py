"""The weight of a retain term that has a budget: it rises while the loss is above the budget, and falls below it.

The trainer gives the loss of each optimizer step; where it comes from is no matter here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from expunge.errors import UserError
from expunge.objectives import Kept


class RetainWeight(TrainerCallback, ExportableState):
    """After each optimizer step λ ← max(0, λ + η (L − ε)): λ is the term's weight, L its loss in that step.

    ε is the term's `budget` and η its `budget_rate` (dual ascent on "least forget loss with L ≤ ε"; Entesari et al.
    2025, arXiv 2506.05314, algorithm 1). All forwards of a step have one weight, and every checkpoint holds it.

    loss_of: the retain loss of an optimizer step by its number, a mean over all rows of the step, the same on every
        rank.
    """

    def __init__(self, term: Kept, loss_of: Callable[[int], float]) -> None:
        self.start = self.term = term
        self.loss_of = loss_of

    @property
    def weight(self) -> float:
        """λ, as it is now."""
        return self.term.weight

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"weight": self.weight}}

    def begin(self, checkpoint: Path | None) -> None:
        """Take the weight that a checkpoint holds, or the one to start with.

        Raises `UserError` for a checkpoint without one: its training had no budget.
        """
        weight = self.start.weight
        if checkpoint is not None:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            saved = state.get("stateful_callbacks", {}).get(type(self).__name__)
            if saved is None:
                raise UserError(f"{checkpoint}: its retain term had no budget; leave budget out, or start over.")
            weight = float(saved["attributes"]["weight"])
        self._set(weight)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.term.budget is not None
        self._set(self.weight + self.term.budget_rate * (self.loss_of(state.global_step) - self.term.budget))

    def _set(self, weight: float) -> None:
        self.term = self.term.model_copy(update={"weight": max(0.0, weight)})
