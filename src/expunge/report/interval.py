"""Values over seeds or questions → their mean and how sure it is."""

import math
from collections.abc import Sequence
from statistics import stdev

RESAMPLES = 9999


def mean_interval(values: Sequence[float], *, log: bool = False) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % percentile bootstrap interval of the mean, the same at every call.

    With `log` all of it on the log scale, which is the geometric mean; of values that are not all positive, plainly.
    Of five values such an interval is somewhat too narrow, as any bootstrap of so few is; of one there is none, and
    low and high are the value itself.
    """
    import numpy as np
    from scipy.stats import bootstrap

    log = log and min(values) > 0
    x = np.log(values) if log else np.asarray(values, dtype=float)
    mean, low, high = x.mean(), x.min(), x.max()
    if low < high:
        result = bootstrap((x,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0))
        low, high = result.confidence_interval
    mean, low, high = np.exp((mean, low, high)) if log else (mean, low, high)
    return float(mean), float(low), float(high)


def half_width(values: Sequence[float]) -> float:
    """Half of the normal 95 % confidence interval of the mean of at least two values."""
    return 1.96 * stdev(values) / math.sqrt(len(values))
