"""The weights nearest to the target's at which the forget answers are still no likelier than ones it can't know."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from expunge.modeling.interpolation import Line

log = logging.getLogger(__name__)

FURTHER = 4
"""Training goes on until the forget probability is this many times lower than the goal, since the line back from there
keeps more than an earlier epoch (docs/explanation/utility-budget.md)."""
HALVINGS = 5
"""Measurements of the forget probability on the line: the share is found to 1/32."""


@dataclass(frozen=True)
class Nearest:
    """The share of the way from the target to the trained weights that is kept, and the forget probability there."""

    share: float
    forget_probability: float

    def __str__(self) -> str:
        return (
            f"of the way from the target's weights {100 * self.share:.0f} % is kept, the least at which the goal "
            f"holds (forget probability {self.forget_probability:.3f})"
        )


def keep_nearest(line: Line, forget_probability: Callable[[], float], goal: float) -> Nearest | None:
    """Move to the smallest share of the line, to 1/32, with a forget probability of at most `goal`.

    `None`, and the weights stay as trained, where these are above the goal themselves.
    """
    line.go_to(1.0)
    value = forget_probability()
    if value > goal:
        return None
    low, kept = 0.0, Nearest(1.0, value)
    for _ in range(HALVINGS):
        middle = (low + kept.share) / 2
        line.go_to(middle)
        if (value := forget_probability()) <= goal:
            kept = Nearest(middle, value)
        else:
            low = middle
    line.go_to(kept.share)
    return kept
