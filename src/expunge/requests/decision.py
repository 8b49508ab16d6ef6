"""Does a model remember some rows? A permutation test of rows among their controls, and an interval.

Nothing here knows what a score is: more is more likely remembered. If the model never saw the rows, each is as likely
as any of its controls to have the highest score of them all, whatever the model and the scores are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

LEVEL = 0.01
"""Probability of one wrong "remembers" or more, over all persons of a probe."""
DOUBT = 0.05
"""An uncorrected p up to which a model is not said to remember nothing."""
DRAWS = 99_999
SMALL = 1 / 3
"""Share of the rows under which the whole interval lies where the model does not remember them."""
TEST = (
    "one-sided permutation test of the mean reciprocal rank of each row among its own controls ({draws:,} draws), with "
    "Holm's correction over all verdicts here; level {level:g}. The interval is Clopper and Pearson's, 95 %"
)

Verdict = Literal["remembers", "does not remember", "cannot tell"]


@dataclass(frozen=True)
class Scores:
    """Scores of the rows of a stratum, and a list of as many for the controls of each.

    The j-th controls belong together, as the rows do: the rows could have been these.
    """

    rows: tuple[float, ...]
    controls: tuple[tuple[float, ...], ...]

    def rank(self, k: int) -> int:
        """The place of the k-th row among its controls, 1 where it exceeds all of them."""
        return 1 + sum(control >= self.rows[k] for control in self.controls[k])


@dataclass(frozen=True)
class Decision:
    """The verdict on some rows, and the numbers behind it.

    p         probability of a mean reciprocal rank as high or higher, if the model never saw the rows; as it is
    adjusted  the same by Holm's correction over everything that was asked
    auc       probability that a row's score exceeds that of a control of its own, ties counting half
    rows      rows with controls
    first     those that exceed every control of their own
    chance    rows that would, if none was remembered
    low, high  95 % interval of the share of rows that do
    """

    verdict: Verdict
    p: float
    adjusted: float
    auc: float
    rows: int
    first: int
    chance: float
    low: float
    high: float


def decide(asked: Sequence[Sequence[Scores]], *, level: float = LEVEL, seed: int = 0) -> list[Decision]:
    """One decision for each of `asked`: the strata of a person, or of all rows; corrected for their number.

    Use when rows have controls that they could be swapped with if the model never saw them. Without strata the verdict
    is "cannot tell".
    """
    ps = [_p(strata, seed) if strata else 1.0 for strata in asked]
    return [_decision(s, p, a, level) for s, p, a in zip(asked, ps, holm(ps), strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """p values by Holm's step-down correction (1979), which holds whatever the dependence between them.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for k, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - k) * ps[i]))
        adjusted[i] = highest
    return adjusted


def _decision(strata: Sequence[Scores], p: float, adjusted: float, level: float) -> Decision:
    if not strata:
        return Decision("cannot tell", 1.0, 1.0, 0.5, 0, 0, 0.0, 0.0, 1.0)
    from scipy.stats import binomtest

    each = [(s, k) for s in strata for k in range(len(s.rows))]
    first = sum(s.rank(k) == 1 for s, k in each)
    pairs = [(s.rows[k], control) for s, k in each for control in s.controls[k]]
    wins = sum((row > control) + (row == control) / 2 for row, control in pairs)
    chance = sum(1 / (len(s.controls[k]) + 1) for s, k in each)
    interval = binomtest(first, len(each)).proportion_ci(0.95, method="exact")
    low, high = float(interval.low), float(interval.high)
    verdict: Verdict = "cannot tell"
    if adjusted <= level:
        verdict = "remembers"
    elif high < SMALL and p > DOUBT:
        verdict = "does not remember"
    return Decision(verdict, p, adjusted, wins / len(pairs), len(each), first, chance, low, high)


def _p(strata: Sequence[Scores], seed: int) -> float:
    """(1 + draws with a sum of reciprocal ranks as high) / (1 + draws)."""
    import numpy as np

    draw = np.random.default_rng(seed)
    observed, drawn = 0.0, np.zeros(DRAWS)
    for stratum in strata:
        sums = _swapped(stratum)
        observed += float(sums[0])
        drawn += sums[draw.integers(len(sums), size=DRAWS)]
    return float((1 + np.count_nonzero(drawn >= observed - 1e-9)) / (1 + DRAWS))


def _swapped(stratum: Scores) -> Any:
    """The sum of reciprocal ranks if the rows had been themselves, their first controls, their second, and so on."""
    import numpy as np

    values = np.array([(row, *own) for row, own in zip(stratum.rows, stratum.controls, strict=True)])
    return (1 / (values[:, None, :] >= values[:, :, None]).sum(axis=2)).sum(axis=0)
