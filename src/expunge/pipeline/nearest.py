"""The weights nearest to the target's at which the forget answers are still no likelier than ones it can't know.

A utility budget is judged here, not on the way, since the way back gives much of the utility back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from expunge.evals.glossary import METRICS, show
from expunge.modeling.interpolation import Line
from expunge.training.budget import UtilityBudget

FURTHER = 4
"""Training goes on until the forget probability is this many times lower than the goal, since the line back from there
keeps more than an earlier epoch (docs/explanation/utility-budget.md)."""
HALVINGS = 5
"""Measurements on the line in search of a share: it is found to 1/32."""


@dataclass(frozen=True)
class Nearest:
    """The share of the way from the target to the trained weights that is kept, and what was measured there.

    utility: with a budget, in its metric.
    reached: whether the goal holds.
    """

    share: float
    forget_probability: float
    reached: bool = True
    utility: float | None = None
    budget: UtilityBudget | None = None

    def __str__(self) -> str:
        kept = f"of the way from the target's weights {100 * self.share:.0f} % is kept"
        found = f"forget probability {show('forget_probability', self.forget_probability)}"
        if self.budget is None:
            return f"{kept}, the least at which the goal holds ({found})"
        name, limit = METRICS[self.budget.utility].label, self.budget.limit()
        found += f", {name} {show(self.budget.utility, self.utility)}"
        if self.reached:
            return f"{kept}, the least at which the goal holds ({found}; the budget is {limit})"
        if self.share == 1:
            return f"the goal was not reached: {kept} ({found}; the budget is {limit})"
        return f"the goal was not reached within the budget: {kept} ({found}), since {name} further on is under {limit}"


def keep_nearest(
    line: Line,
    forget_probability: Callable[[], float],
    goal: float,
    *,
    budget: UtilityBudget | None = None,
    metrics: Callable[[], Mapping[str, float]] = dict,
) -> Nearest | None:
    """Move to the smallest share of the line, to 1/32, with a forget probability of at most `goal`.

    With a budget, of which `metrics` are measured, move to the largest share within it where that one is not, or where
    the trained weights are above the goal themselves. Without a budget these stay as they are then: `None`.
    """
    forgets = _along(line, forget_probability)
    keeps = _along(line, lambda: 1.0 if budget is None else metrics()[budget.utility])
    share = 1.0
    if forgets(share) <= goal:
        _, share = _narrow(share, lambda middle: forgets(middle) <= goal)
    elif budget is None:
        return None
    if budget is not None and not budget.holds(keeps(share)):
        share, _ = _narrow(share, lambda middle: not budget.holds(keeps(middle)))
    found = forgets(share), None if budget is None else keeps(share)
    line.go_to(share)
    return Nearest(share, found[0], found[0] <= goal, found[1], budget)


def _along(line: Line, measure: Callable[[], float]) -> Callable[[float], float]:
    """`measure` as a function of the share; each share is measured once."""

    @cache
    def at(share: float) -> float:
        line.go_to(share)
        return measure()

    return at


def _narrow(high: float, goes_nearer: Callable[[float], bool]) -> tuple[float, float]:
    """The stretch from 0 to `high`, halved: on the target's side of a middle from which the search goes nearer."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if goes_nearer(middle) else (middle, high)
    return low, high
