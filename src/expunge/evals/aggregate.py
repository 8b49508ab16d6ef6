"""One number for a run: has it forgotten, does the model still work, does it still write.

A run has three sets of metrics: its own, those of the target (the model before unlearning), and, where there is one,
those of the model retrained without the forget set. A number that is absent or not finite leaves undefined, None,
whatever needs it: no term is silently left out.

The definition is this project's own; OpenUnlearning, arXiv 2506.12618, likewise takes a harmonic mean of what is
forgotten and what is kept.
"""

import math
from collections.abc import Mapping

Metrics = Mapping[str, float | None]


def aggregate(metrics: Metrics, target: Metrics, retrained: Metrics | None = None) -> float | None:
    """Harmonic mean of `forgetting`, `utility` and `fluency`; None when one of them is undefined.

    Range [0, 1], and 0 as soon as one of the three is 0: the target itself has forgotten nothing and gets 0, broken
    text gets 0 however much is forgotten. Good: near 1, what a retrained model gets that works as well as the target.
    Scores with and without a retrained model measure different things; compare like with like.
    """
    parts = [forgetting(metrics, target, retrained), utility(metrics, target), fluency(metrics)]
    values = [part for part in parts if part is not None]
    if len(values) < len(parts):
        return None
    return 0.0 if 0.0 in values else len(values) / sum(1.0 / v for v in values)  # fsum would overflow near 0


def forgetting(metrics: Metrics, target: Metrics, retrained: Metrics | None = None) -> float | None:
    """How much of the way from the target's probability of the forget answers to the goal's has been gone.

    1 − clip((P − goal) / (P_target − goal), 0, 1), with P `forget_probability` and the goal the retrained model's;
    with no retrained model (`retrained` is None) the goal is 0, so it is 1 − P / P_target.

    Range [0, 1]: 0 for the target, 1 at the goal and anywhere below it. Going too far costs nothing here; it shows in
    `utility`, in `fluency` and in forget quality. None when a probability is missing, or when the target's is not
    above the goal: there was nothing to forget.
    """
    now, before = _number(metrics, "forget_probability"), _number(target, "forget_probability")
    goal = 0.0 if retrained is None else _number(retrained, "forget_probability")
    if now is None or before is None or goal is None or before <= goal:
        return None
    return 1.0 - _clip((now - goal) / (before - goal))


def utility(metrics: Metrics, target: Metrics) -> float | None:
    """Share of the target's `model_utility` that is left, at most 1.

    Range [0, 1]. None when either is missing or the target's is 0, of which there is no share.
    """
    now, before = _number(metrics, "model_utility"), _number(target, "model_utility")
    if now is None or before is None or before <= 0:
        return None
    return _clip(now / before)


def fluency(metrics: Metrics) -> float | None:
    """1 − `degeneration`: the share of generated forget answers that are text at all.

    Range [0, 1]. None when nothing was generated.
    """
    broken = _number(metrics, "degeneration")
    return None if broken is None else 1.0 - _clip(broken)


def _number(metrics: Metrics, name: str) -> float | None:
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)
