"""The share of the way back that is kept: by explicit functions of the share, with and without a utility budget."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.pipeline.nearest import HALVINGS, Nearest, keep_nearest
from expunge.training.budget import UtilityBudget

STEP = 1 / 2**HALVINGS
GOAL = 0.3
SHARES = st.floats(0.0, 1.5)


class Way:
    """A line on which the goal holds from the share `forgets` on, and a budget of 0.9 up to `keeps`."""

    def __init__(self, forgets: float, keeps: float = 1.0) -> None:
        self.forgets, self.keeps = forgets, keeps
        self.share = 1.0
        self.measured = {"forget": 0, "utility": 0}

    def go_to(self, share: float) -> None:
        self.share = share

    def forget_probability(self) -> float:
        self.measured["forget"] += 1
        return GOAL if self.share >= self.forgets else 2 * GOAL

    def metrics(self) -> Mapping[str, float]:
        self.measured["utility"] += 1
        return {"retain_probability": 0.73 if self.share <= self.keeps else 0.4, "forget_probability": 0.0}

    def kept(self, share: float | None = None) -> Nearest | None:
        """The point that is kept, with a budget of this share of the target's utility."""
        line: Any = self
        before = {"retain_probability": 0.8, "forget_probability": 1.0}
        budget = None if share is None else UtilityBudget(share, before, way_back=True)
        return keep_nearest(line, self.forget_probability, GOAL, budget=budget, metrics=self.metrics)


@given(SHARES)
def test_the_smallest_share_at_which_the_goal_holds_is_kept(forgets: float) -> None:
    way = Way(forgets)
    kept = way.kept()
    if forgets > 1:
        assert kept is None and way.share == 1
        return
    assert kept is not None and forgets <= kept.share == way.share <= max(forgets, 0) + STEP
    assert kept.reached and "the least at which the goal holds (forget probability .300)" in str(kept)
    assert way.measured == {"forget": 1 + HALVINGS, "utility": 0}


@given(SHARES, SHARES)
def test_utility_is_within_the_budget_wherever_the_target_s_is(forgets: float, keeps: float) -> None:
    way = Way(forgets, keeps)
    kept = way.kept(0.9)
    assert kept is not None and kept.share == way.share <= keeps
    assert kept.reached == (kept.share >= forgets)
    if forgets + STEP <= min(keeps, 1):  # both hold somewhere
        assert forgets <= kept.share <= forgets + STEP
        assert way.measured == {"forget": 1 + HALVINGS, "utility": 1}
    elif forgets > keeps:  # nowhere
        assert min(keeps, 1) - STEP < kept.share
    assert way.measured["forget"] <= 2 + HALVINGS and way.measured["utility"] <= 2 + HALVINGS


@pytest.mark.parametrize(
    ("way", "share", "words"),
    [
        (
            Way(0.5, 0.75),
            0.5,
            "of the way from the target's weights 50 % is kept, the least at which the goal holds (forget probability "
            ".300, retain probability .730; the budget is 0.9 of the target's .800)",
        ),
        (
            Way(0.5, 0.25),
            0.25,
            "the goal was not reached within the budget: of the way from the target's weights 25 % is kept (forget "
            "probability .600, retain probability .730), since retain probability further on is under 0.9 of the "
            "target's .800",
        ),
        (
            Way(2, 1),
            1.0,
            "the goal was not reached: of the way from the target's weights 100 % is kept (forget probability .600, "
            "retain probability .730; the budget is 0.9 of the target's .800)",
        ),
        (
            Way(2, 0),
            0.0,
            "the goal was not reached within the budget: of the way from the target's weights 0 % is kept (forget "
            "probability .600, retain probability .730), since retain probability further on is under 0.9 of the "
            "target's .800",
        ),
    ],
    ids=["both hold", "no share for both", "goal out of reach", "no share but the target's"],
)
def test_what_is_said_of_it(way: Way, share: float, words: str) -> None:
    kept = way.kept(0.9)
    assert kept is not None and str(kept) == words
    assert kept.share == pytest.approx(share, abs=1e-9)
