"""Membership inference: are the forget rows told from rows of their kind that no model saw?

Source: the six scores of `evals/membership.py`. Which of them tells most is not known before; an attacker tries all.
"""

from statistics import fmean

from expunge.data.benchmark import Benchmark, Membership
from expunge.evals.probes import evaluate_probes
from expunge.stress.attack import Clock, Victim
from expunge.stress.outcome import Outcome, Point

SCORES = {
    "loss": "loss",
    "zlib": "loss by size",
    "zlib_sum": "summed loss by size",
    "min_k": "min-k %",
    "min_k_plus_plus": "min-k++",
    "min_k_plus_plus_20": "min-k++, k = .2",
}
"""The scores by the names that `evaluate_probes` has for them, and as a reader has them."""
MEAN, BEST = "mean of six", "best of six"
MEASURE = "2 AUC − 1 of telling forget rows from unseen ones"


def membership(victim: Victim) -> list[Outcome]:
    """Measure how well each score tells the forget rows from unseen ones: 0 is a guess, 1 always.

    Where a score tells them the wrong way round, that is 0, too: forget rows that are less likely than rows that nobody
    saw give away that something was removed, and bring nothing back. Rows that are raw text are read whole.
    Where no rows are unseen, there is no outcome.
    """
    asked = told_apart(victim.benchmark)
    if asked is None:
        return []
    clock = Clock()
    aucs, _ = evaluate_probes(*victim.load(), [asked], generate=False, progress=False)
    told = {words: max(0.0, 2 * aucs[f"{asked.name}_{score}"] - 1) for score, words in SCORES.items()}
    every = {MEAN: fmean(told.values()), **told, BEST: max(told.values())}
    points = tuple(Point(name, known) for name, known in every.items())
    return [Outcome("membership", "rows that no model saw", "score", MEASURE, points, clock.lap())]


def told_apart(benchmark: Benchmark) -> Membership | None:
    """Rows that were trained on and rows that were not: the benchmark's own texts, else forget rows and `unseen`."""
    own = (probe for probe in benchmark.probes if isinstance(probe, Membership) and probe.sides is None)
    usual = Membership("membership", benchmark.forget, benchmark.unseen) if benchmark.unseen else None
    return next(own, usual)


def lacks(benchmark: Benchmark) -> str | None:
    """Say why a benchmark's rows can't be so attacked."""
    return None if told_apart(benchmark) else f"{benchmark.name} has no rows that no model saw"
