"""A higher learning rate for a training that gets nowhere."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

FACTOR = 3.0
"""Times the learning rate."""
ENOUGH = 1 / 3
"""Share of the way from the target's forget probability to the goal; a training that has gone less gets nowhere."""
LOOKS = (1 / 3, 2 / 3)
"""Shares of the training after which the way is looked at."""


class FasterWhenStuck(TrainerCallback):
    """Trebles the learning rate after a third of the training, and again after two, where nearly nothing is forgotten.

    before: forget probability of the target.
    goal: the forget probability that is wanted.

    A training that goes on from a checkpoint finds the higher rate in it: the schedule's state holds it.
    """

    def __init__(self, before: float, goal: float) -> None:
        self.before, self.goal = before, goal
        self.raised: list[float] = []
        """Epochs after which the rate was raised."""
        self._looked = 0

    def see(self, epoch: float, epochs: float, forget_probability: float) -> bool:
        """Take note of an evaluation; whether the rate is to be raised."""
        due = sum(epoch >= share * epochs for share in LOOKS)
        if due <= self._looked:
            return False
        self._looked = due
        if self.before - forget_probability >= ENOUGH * (self.before - self.goal):
            return False
        self.raised.append(epoch)
        return True

    @property
    def words(self) -> str:
        """The raises as a clause; empty where there were none."""
        after = " and ".join(f"{epoch:g}" for epoch in self.raised)
        return f"after epoch {after} the learning rate was trebled, since little had been forgotten" if after else ""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for row in state.log_history:  # of a run that goes on
            if "eval_forget_probability" in row:
                self.see(row["epoch"], state.num_train_epochs, row["eval_forget_probability"])

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        if metrics is None or not self.see(
            state.epoch or 0.0, state.num_train_epochs, metrics["eval_forget_probability"]
        ):
            return
        # Every step after the next one takes its rate from these.
        lr_scheduler.base_lrs = [FACTOR * rate for rate in lr_scheduler.base_lrs]
