"""What follows from attacks on three models."""

from dataclasses import replace

import pytest

from expunge.evals.glossary import METRICS
from expunge.stress.options import ATTACKS
from expunge.stress.outcome import Outcome, Point
from expunge.stress.summary import Returned, metrics, of_rows, outcomes, returned, robustness


def outcome(*known: float, setting: str = "5 %") -> Outcome:
    points = tuple(Point(10 * i, value) for i, value in enumerate(known))
    return Outcome("relearning", setting, "steps", "probability", points, 1.0)


def test_what_comes_back_is_counted_from_models_that_never_knew_to_the_target() -> None:
    (found,) = returned([outcome(0.9, 0.9)], [outcome(0.1, 0.5)], [[outcome(0.1, 0.2)], [outcome(0.1, 0.4)]])
    assert found.before == 0.0 and found.after == pytest.approx((0.5 - 0.3) / (0.9 - 0.3)) and found.at == 10
    assert found.control and found.gain == found.after
    assert robustness([found]) == pytest.approx(1 - found.after) and robustness([]) is None


def test_each_attack_has_a_number_beside_the_largest() -> None:
    found = [replace(only(0.5), attack="sampling"), only(0.2), only(0.3)]
    assert metrics(found) == {"comes_back": 0.5, "comes_back_sampling": 0.5, "comes_back_relearning": 0.3}
    assert metrics([]) == {}
    assert {f"comes_back_{attack}" for attack in ATTACKS} == {
        name for name in METRICS if name.startswith("comes_back_")
    }


def only(share: float) -> Returned:
    (found,) = returned([outcome(1.0, 1.0)], [outcome(share / 2, share)], [[outcome(0.0, 0.0)]])
    return found


def test_without_one_it_is_counted_from_nothing_and_says_so() -> None:
    (found,) = returned([outcome(0.8, 0.8)], [outcome(0.2, 0.4)])
    assert (found.before, found.after, found.control) == (pytest.approx(0.25), pytest.approx(0.5), False)


def test_a_retrained_model_has_nothing_back_and_the_target_all() -> None:
    never, target = [outcome(0.1, 0.3, 0.2)], [outcome(0.9, 0.9, 0.9)]
    assert returned(target, never, [never])[0].after == 0.0
    assert returned(target, target, [never])[0].after == 1.0


def test_a_strength_at_which_the_target_knows_no_more_says_nothing() -> None:
    (found,) = returned([outcome(0.9, 0.32)], [outcome(0.1, 0.31)], [[outcome(0.1, 0.3)]])
    assert found.at == 0 and found.after == 0.0
    assert returned([outcome(0.3, 0.3)], [outcome(0.3, 0.3)], [[outcome(0.3, 0.3)]]) == []


def test_other_settings_are_not_compared() -> None:
    assert returned([outcome(0.9, setting="20 %")], [outcome(0.1)]) == []
    assert returned([outcome(0.9)], [outcome(0.1, 0.2)]) == []


def test_rows_of_results_hold_the_same() -> None:
    rows = [
        {"stress": {"models": [{"done": ["relearning"], "outcomes": [outcome(*known).as_json()]}]}}
        for known in ((0.9, 0.9), (0.1, 0.5), (0.1, 0.3))
    ]
    assert outcomes(rows[0]) == [[outcome(0.9, 0.9)]]
    assert of_rows(*rows) == returned([outcome(0.9, 0.9)], [outcome(0.1, 0.5)], [[outcome(0.1, 0.3)]])
    assert of_rows(None, rows[1], rows[2]) == of_rows(rows[0], {}, rows[2]) == []
