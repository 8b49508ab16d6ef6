"""How much utility unlearning may cost: training stops when it costs more, and the best checkpoint before that is kept.

Forget quality peaks and then falls, often while utility is lost, so the last epoch is seldom the best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from expunge.errors import UserError
from expunge.evals.glossary import FORGET_AXES, METRICS, RETAIN_AXES, number, show

FLOOR = 0.5
"""Share of the target's utility at which training stops where a way back follows: after more damage than this the
straight line back no longer leads past good models."""


@dataclass(frozen=True)
class Look:
    """An evaluation on the way."""

    epoch: float
    step: int
    metrics: Mapping[str, float]


class UtilityBudget(TrainerCallback):
    """Stops training after the first evaluation that finds less than `share` of the utility `before` unlearning.

    `before` is what evaluations on the way measure, of the target. Only the checkpoint of the evaluation with the best
    forget metric within the budget is saved; forget quality counts where it is measured, else how little is remembered.
    With `way_back` a part of the way is taken back afterwards (`pipeline/nearest.py`), and the budget holds only there:
    training goes on down to `FLOOR`, and how little is remembered counts.
    Raises `UserError` where nothing that should stay is measured.
    """

    def __init__(self, share: float, before: Mapping[str, float], *, way_back: bool = False) -> None:
        self.share, self.before, self.way_back = share, before, way_back
        self._least = min(share, FLOOR) if way_back else share
        kept = sorted(RETAIN_AXES, key=lambda name: name != "model_utility")  # it goes before the others
        utility = next((name for name in kept if number(before.get(name))), None)
        aim = next((name for name in FORGET_AXES if number(before.get(name)) is not None), None)
        if utility is None or aim is None:
            side = "stay" if utility is None else "go"
            raise UserError(f"evaluate.utility_budget: evaluations on the way measure nothing that should {side}.")
        self.utility, self.aim = utility, "forget_probability" if way_back else aim
        self.kept: Look | None = None
        self.over: Look | None = None
        self.last: Look | None = None

    def see(self, look: Look) -> bool:
        """Take note of an evaluation; whether it is the best so far within the budget."""
        self.last = look
        if look.metrics[self.utility] < self._least * self.before[self.utility]:
            self.over = self.over or look
            return False
        better = self.kept is None or self._score(look) > self._score(self.kept)
        self.kept = look if better else self.kept
        return better

    def holds(self, utility: float) -> bool:
        """Whether a model with this utility is within the budget."""
        return utility >= self.share * self.before[self.utility]

    def limit(self, share: float | None = None) -> str:
        """The budget in words, or another share of the target's utility."""
        share = self.share if share is None else share
        return f"{share:g} of the target's {show(self.utility, self.before[self.utility])}"

    def outcome(self) -> dict[str, Any] | None:
        """The entry of `results.json`: after which epoch training ended, which is kept (None: the last), and why."""
        if self.last is None:
            return None
        end = self.over or self.last
        words = f"{METRICS[self.utility].label} {show(self.utility, end.metrics[self.utility])} is"
        limit = self.limit(self._least) + (", too little for a way back" if self.over and self.way_back else "")
        why = f"stopped after epoch {end.epoch:g}, where {words} under {limit}" if self.over else (
            f"ended after epoch {end.epoch:g}, its last, where {words} still at least {limit}"
        )  # fmt: skip
        if self.kept is None:
            why += "; no earlier epoch was evaluated within the budget, so this one is kept"
        else:
            value = show(self.aim, self.kept.metrics[self.aim])
            why += f"; kept is epoch {self.kept.epoch:g}, with the best {METRICS[self.aim].label} within it ({value})"
        return {"epoch": end.epoch, "kept": None if self.kept is None else self.kept.epoch, "why": why}

    def choice(self, stopped: Mapping[str, Any]) -> dict[str, Any]:
        """The entry of a training that something else ended, with the epoch that this keeps where that is another."""
        if self.kept is None or self.kept.epoch == stopped["kept"]:
            return dict(stopped)
        value, name = show(self.aim, self.kept.metrics[self.aim]), METRICS[self.utility].label
        best = f"kept is epoch {self.kept.epoch:g}, with the best {METRICS[self.aim].label} ({value})"
        why = f"{stopped['why']}; {best} where {name} is at least {self.limit(self._least)}"
        return {**stopped, "kept": self.kept.epoch, "why": why}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for look in _looks(state.log_history):  # of a run that goes on
            self.see(look)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save = False

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save = False

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        control.should_save = self.see(_look(state.epoch or 0.0, state.global_step, metrics))
        control.should_training_stop = control.should_training_stop or self.over is not None

    def _score(self, look: Look) -> float:
        value = look.metrics[self.aim]
        return value if self.aim == "forget_quality" else -value


class ForgetGoal(TrainerCallback):
    """Stops training after the first evaluation whose forget probability is at most `most` / `further`.

    `most` is how probable the target finds answers that it can't know (`evals/knowledge.py`): going on would only harm,
    but where a part of the way is taken back afterwards (`pipeline/nearest.py`).
    """

    def __init__(self, most: float, *, further: int = 1) -> None:
        self.most, self.further = most, further
        self.reached: Look | None = None
        self.last: Look | None = None

    def see(self, look: Look) -> bool:
        """Take note of an evaluation; whether the goal is reached."""
        self.last = look
        if look.metrics["forget_probability"] <= self.most / self.further:
            self.reached = look
        return self.reached is not None

    def is_over(self, log_history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a training with this history, of a run that goes on, had reached the goal already."""
        for look in _looks(log_history):
            self.see(look)
        return self.reached is not None

    def outcome(self) -> dict[str, Any] | None:
        """The entry of `results.json`, as `UtilityBudget.outcome`; `None` where nothing was evaluated."""
        if self.last is None:
            return None
        value, most = (show("forget_probability", x) for x in (self.last.metrics["forget_probability"], self.most))
        share = "" if self.further == 1 else f"1/{self.further} of "
        which = f"is no longer above {share}" if self.reached else f"is still above {share}"
        verb = "stopped" if self.reached else "ended"
        why = f"{verb} after epoch {self.last.epoch:g}, where forget probability {value} {which}that of answers that "
        return {"epoch": self.last.epoch, "kept": self.last.epoch, "why": f"{why}the target can't know ({most})"}

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        if self.see(_look(state.epoch or 0.0, state.global_step, metrics)):
            control.should_training_stop = True


def _looks(log_history: Sequence[Mapping[str, Any]]) -> list[Look]:
    """The evaluations of a trainer's log."""
    evaluated = (row for row in log_history if any(key.startswith("eval_") for key in row))
    return [_look(row["epoch"], int(row["step"]), row) for row in evaluated]


def _look(epoch: float, step: int, row: Mapping[str, Any]) -> Look:
    return Look(epoch, step, {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_")})
