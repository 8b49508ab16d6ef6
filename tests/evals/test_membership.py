"""Membership inference against values worked out by hand, and AUC against all pairs."""

import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.evals import membership as mi

LOG2 = math.log(2)
few_values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=15)  # few, so that there are ties
log_probabilities = st.lists(st.floats(-50, 0), min_size=1, max_size=20)
shares = st.sampled_from([0.05, 0.2, 0.4, 0.5, 0.99, 1.0])


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("logps", "expected"), [([-1.0, -3.0], -2.0), ([0.0], 0.0), ([-LOG2] * 7, -LOG2), ([-1e4, 0, 0, 0], -2500.0)]
)
def test_loss_score(logps: list[float], expected: float) -> None:
    assert mi.loss_score(np.array(logps)) == close(expected)
    assert mi.loss_score(np.array(logps, dtype=np.float32)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("logps", "text", "expected"),
    [
        ([-4.0, -12.0], "", -1.0),  # nothing compresses to 8 bytes: two of header, two of data, four of checksum
        ([-9.0, -18.0], "a", -1.5),  # one more for a letter
        ([0.0, 0.0], "abc", 0.0),
        ([-22.0], "é", -2.2),  # two letters in UTF-8, so ten bytes
    ],
)
def test_zlib_score(logps: list[float], text: str, expected: float) -> None:
    assert mi.zlib_score(np.array(logps), text) == close(expected)
    assert mi.zlib_sum_score(np.array(logps), text) == close(expected * len(logps))


def test_zlib_score_expects_more_of_a_repetitive_text() -> None:
    logps, plain, repetitive = np.full(20, -1.0), "The quick brown fox jumps over it", "na" * 17
    assert mi.zlib_score(logps, plain) == close(-1 / len(zlib.compress(plain.encode())))
    assert mi.zlib_score(logps, repetitive) < mi.zlib_score(logps, plain)


@pytest.mark.parametrize(
    ("logps", "k", "expected"),
    [
        ([-1.0, -5.0, -2.0, -4.0, -3.0], 0.4, -4.5),
        ([-1.0, -2.0, -6.0], 0.4, -6.0),  # 1.2 tokens are one
        ([-1.0, -2.0, -6.0], 0.67, -4.0),
        ([-1.0, -2.0, -6.0], 0.01, -6.0),
        ([-1.0, -2.0, -6.0], 1.0, -3.0),
        ([-7.0], 0.4, -7.0),
        ([0.0] * 9 + [-1e4], 0.1, -1e4),
        ([-1.0] * 7 + [0.0] * 93, 0.07, -1.0),
    ],
)
def test_min_k_score(logps: list[float], k: float, expected: float) -> None:
    assert mi.min_k_score(np.array(logps), k) == close(expected)


def test_min_k_is_min_40_unless_told_otherwise() -> None:
    logps = -np.arange(10.0)
    assert mi.min_k_score(logps) == close(-(6 + 7 + 8 + 9) / 4)


@given(log_probabilities, shares)
def test_min_k_by_sorting(logps: list[float], k: float) -> None:
    count = max(1, math.floor(len(logps) * k))
    assert mi.min_k_score(np.array(logps), k) == close(math.fsum(sorted(logps)[:count]) / count)
    assert mi.min_k_score(np.array(logps), k) <= mi.loss_score(np.array(logps)) + 1e-9


@pytest.mark.parametrize(
    ("logps", "means", "deviations", "k", "expected"),
    [
        ([-1.0, -5.0], [-3.0, -3.0], [2.0, 4.0], 0.5, -0.5),  # z = 1, −.5
        ([-1.0, -5.0], [-3.0, -3.0], [2.0, 4.0], 1.0, 0.25),
        ([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [1.0, 2.0, 3.0], 0.4, 0.0),
        ([-LOG2] * 4, [-LOG2] * 4, [0.0] * 4, 0.4, 0.0),  # evenly between two tokens: no spread at all
        ([0.0, -2.0], [0.0, 0.0], [0.0, 0.0], 0.5, -2000.0),  # the floor of the deviation
        ([-9.0], [-1.0], [2.0], 0.4, -4.0),
    ],
)
def test_min_k_plus_plus_score(
    logps: list[float], means: list[float], deviations: list[float], k: float, expected: float
) -> None:
    assert mi.min_k_plus_plus_score(np.array(logps), np.array(means), np.array(deviations), k) == close(expected)


@given(log_probabilities, shares)
def test_min_k_plus_plus_of_standard_positions_is_min_k(logps: list[float], k: float) -> None:
    array = np.array(logps)
    zeros, ones = np.zeros_like(array), np.ones_like(array)
    assert mi.min_k_plus_plus_score(array, zeros, ones, k) == close(mi.min_k_score(array, k))


@pytest.mark.parametrize("empty", [np.array([]), np.zeros((2, 2))])
def test_scores_want_a_row_of_tokens(empty: np.ndarray) -> None:
    for score in (mi.loss_score, mi.min_k_score):
        with pytest.raises(AssertionError):
            score(empty)


@pytest.mark.parametrize("k", [0.0, -0.1, 1.1])
def test_k_is_a_share(k: float) -> None:
    with pytest.raises(AssertionError):
        mi.min_k_score(np.array([-1.0]), k)


@pytest.mark.parametrize(
    ("members", "others", "expected"),
    [
        ([3.0, 4.0], [1.0, 2.0], 1.0),
        ([1.0, 2.0], [3.0, 4.0], 0.0),
        ([1.0, 1.0], [1.0], 0.5),
        ([1.0, 3.0], [2.0, 4.0], 0.25),
        ([1.0, 2.0], [2.0, 3.0], 0.125),  # one tie of four pairs
        ([5.0], [1.0, 5.0, 9.0, 2.0], 0.625),
        ([math.inf, 0.0], [-math.inf, math.inf], 0.625),  # 1, ½, 1, 0
    ],
)
def test_auc(members: list[float], others: list[float], expected: float) -> None:
    assert mi.auc(members, others) == close(expected)
    assert mi.auc(others, members) == close(1 - expected)


@given(few_values, few_values)
def test_auc_is_a_count_over_all_pairs(members: list[float], others: list[float]) -> None:
    wins = sum((a > b) + (a == b) / 2 for a in members for b in others)
    assert mi.auc(members, others) == wins / (len(members) * len(others))
    assert 0 <= mi.auc(members, others) <= 1


@pytest.mark.parametrize(
    ("members", "others", "message"),
    [
        ([], [1.0], "of members"),
        ([1.0], [], "of others"),
        ([math.nan], [1.0], "members"),
        ([1.0], [math.nan], "others"),
    ],
)
def test_auc_refuses_what_can_not_be_ranked(members: list[float], others: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mi.auc(members, others)


@pytest.mark.parametrize(
    ("forget", "holdout", "expected"),
    [
        ([-0.1, -0.2], [-3.0, -4.0], 0.0),
        ([-9.0, -8.0], [-3.0, -4.0], 1.0),
        ([-0.1, -3.5], [-3.0, -4.0], 0.25),
        ([-2.0], [-2.0], 0.5),
    ],
)
def test_muse_auc(forget: list[float], holdout: list[float], expected: float) -> None:
    assert mi.muse_auc(forget, holdout) == close(expected)


@pytest.mark.parametrize(
    ("auc", "retrained", "expected"),
    [
        (0.0, 0.4772, -100.0),
        (0.4772, 0.4772, 0.0),
        (0.25, 0.5, -50.0),
        (0.6, 0.5, 20.0),
        (1.0, 0.5, 100.0),
        (1.0, 0.01, 9900.0),
        (0.0009544, 0.4772, -99.8),  # Llama-2-7B on MUSE-News before unlearning
    ],
)
def test_privleak(auc: float, retrained: float, expected: float) -> None:
    assert mi.privleak(auc, retrained) == close(expected)


@pytest.mark.parametrize(("auc", "retrained"), [(0.5, 0.0), (1.1, 0.5), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)])
def test_privleak_refuses_what_it_is_undefined_for(auc: float, retrained: float) -> None:
    with pytest.raises(ValueError, match="AUC"):
        mi.privleak(auc, retrained)


def test_privleak_from_log_probabilities() -> None:
    def scores(logp: float) -> list[float]:
        return [mi.min_k_score(np.array([logp, 0.0, logp - i])) for i in range(4)]

    holdout = scores(-9.0)
    retrained = mi.muse_auc(scores(-9.0), holdout)
    assert retrained == 0.5
    assert mi.privleak(mi.muse_auc(scores(-0.01), holdout), retrained) == close(-100)
    assert mi.privleak(mi.muse_auc(scores(-9.0), holdout), retrained) == close(0)
    assert mi.privleak(mi.muse_auc(scores(-99.0), holdout), retrained) == close(100)
